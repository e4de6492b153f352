#include "runtime/gcs/resources.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

int64_t mob_resource_fixed(double value) {
  if (!(value > -MOB_RESOURCE_MAX))
    return isnan(value) ? 0 : (int64_t)-MOB_RESOURCE_MAX * MOB_RESOURCE_UNIT;
  if (value > MOB_RESOURCE_MAX) value = MOB_RESOURCE_MAX;
  return llround(value * MOB_RESOURCE_UNIT);
}

// Sums stay at the ends of the range instead of leaving it.
static int64_t plus(int64_t a, int64_t b) {
  int64_t sum;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return a > 0 ? INT64_MAX : INT64_MIN;
}

double mob_resource_double(int64_t amount) {
  return (double)amount / MOB_RESOURCE_UNIT;
}

void mob_resources_free(mob_resources_t *set) {
  for (size_t i = 0; i < set->len; i++) free(set->at[i].name);
  mob_vec_free(set);
}

// The index of `name`, or where it belongs.
static size_t place_of(const mob_resources_t *set, const char *name, bool *found) {
  size_t low = 0, high = set->len;
  *found = false;
  while (low < high) {
    size_t mid = (low + high) / 2;
    int order = strcmp(set->at[mid].name, name);
    if (order == 0) {
      *found = true;
      return mid;
    }
    if (order < 0) {
      low = mid + 1;
    } else {
      high = mid;
    }
  }
  return low;
}

int64_t mob_resources_get(const mob_resources_t *set, const char *name) {
  bool found;
  size_t i = place_of(set, name, &found);
  return found ? set->at[i].amount : 0;
}

void mob_resources_set(mob_resources_t *set, const char *name, int64_t amount) {
  bool found;
  size_t i = place_of(set, name, &found);
  if (!found) {
    mob_vec_push(set);
    memmove(&set->at[i + 1], &set->at[i], (set->len - 1 - i) * sizeof *set->at);
    set->at[i].name = mob_strdup(name);
  }
  set->at[i].amount = amount;
}

void mob_resources_copy(mob_resources_t *to, const mob_resources_t *from) {
  if (to == from) return;
  mob_resources_free(to);
  for (size_t i = 0; i < from->len; i++) {
    mob_amount_t *amount = mob_vec_push(to);
    amount->name = mob_strdup(from->at[i].name);
    amount->amount = from->at[i].amount;
  }
}

void mob_resources_read(mob_resources_t *to, mob_pb_double_t *const *entries, size_t n) {
  mob_resources_free(to);
  for (size_t i = 0; i < n; i++)
    mob_resources_set(to, entries[i]->key, mob_resource_fixed(entries[i]->value));
}

void mob_resources_write(const mob_resources_t *set, mob_pb_double_t ***entries, size_t *n) {
  mob_pb_double_clear(entries, n);
  for (size_t i = 0; i < set->len; i++) {
    mob_pb_double_put(entries, n, set->at[i].name, mob_resource_double(set->at[i].amount));
  }
}

void mob_resources_add(mob_resources_t *to, const mob_resources_t *from) {
  for (size_t i = 0; i < from->len; i++) {
    mob_resources_set(to, from->at[i].name,
                      plus(mob_resources_get(to, from->at[i].name), from->at[i].amount));
  }
}

void mob_resources_sub(mob_resources_t *from, const mob_resources_t *what) {
  for (size_t i = 0; i < what->len; i++) {
    int64_t less = what->at[i].amount == INT64_MIN ? INT64_MAX : -what->at[i].amount;
    mob_resources_set(from, what->at[i].name,
                      plus(mob_resources_get(from, what->at[i].name), less));
  }
}

bool mob_resources_cover(const mob_resources_t *have, const mob_resources_t *need) {
  for (size_t i = 0; i < need->len; i++) {
    if (need->at[i].amount > 0 && mob_resources_get(have, need->at[i].name) < need->at[i].amount) {
      return false;
    }
  }
  return true;
}

bool mob_resources_equal(const mob_resources_t *a, const mob_resources_t *b) {
  if (a->len != b->len) return false;
  for (size_t i = 0; i < a->len; i++) {
    if (a->at[i].amount != b->at[i].amount || strcmp(a->at[i].name, b->at[i].name) != 0)
      return false;
  }
  return true;
}

void mob_resources_print(const mob_resources_t *set, mob_buf_t *out) {
  mob_buf_putc(out, '{');
  for (size_t i = 0; i < set->len; i++) {
    mob_buf_printf(out, "%s%s: %.15g", i ? ", " : "", set->at[i].name,
                   mob_resource_double(set->at[i].amount));
  }
  mob_buf_putc(out, '}');
}

static void set_named(mob_resources_t *out, const char *name, const char *group_hex, int64_t index,
                      int64_t amount) {
  char *key = index < 0 ? mob_sprintf("%s_group_%s", name, group_hex)
                        : mob_sprintf("%s_group_%lld_%s", name, (long long)index, group_hex);
  mob_resources_set(out, key, amount);
  free(key);
}

static void with_group(mob_resources_t *out, const mob_resources_t *plain, const char *group_hex,
                       int64_t index, int64_t marker) {
  mob_resources_free(out);
  for (size_t i = 0; i < plain->len; i++) {
    set_named(out, plain->at[i].name, group_hex, -1, plain->at[i].amount);
    if (index >= 0) set_named(out, plain->at[i].name, group_hex, index, plain->at[i].amount);
  }
  set_named(out, "bundle", group_hex, -1, marker);
  if (index >= 0) set_named(out, "bundle", group_hex, index, marker);
}

void mob_resources_of_bundle(mob_resources_t *out, const mob_resources_t *bundle,
                             const char *group_hex, int64_t index) {
  with_group(out, bundle, group_hex, index, (int64_t)1000 * MOB_RESOURCE_UNIT);
}

void mob_resources_in_group(mob_resources_t *out, const mob_resources_t *plain,
                            const char *group_hex, int64_t index) {
  with_group(out, plain, group_hex, index, MOB_RESOURCE_UNIT / 1000);
}

bool mob_resource_is_group(const char *name) {
  const char *at = strstr(name, "_group_");
  if (!at) return false;
  at += strlen("_group_");
  const char *hex = strrchr(at, '_');
  hex = hex ? hex + 1 : at;
  return strlen(hex) == 36 && strspn(hex, "0123456789abcdef") == 36;
}
