#include "runtime/node/resources.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/hex.h"
#include "runtime/base/mem.h"

#define ONE 10000
#define MOST 1e14 // of any resource, as the GCS has it

mob_fixed_t mob_fixed(double amount) {
  if (!(fabs(amount) < MOST)) amount = amount > 0 ? MOST : 0; // no number: nothing
  return (mob_fixed_t)llround(amount * ONE);
}

double mob_unfixed(mob_fixed_t amount) {
  return (double)amount / ONE;
}

void mob_grants_free(mob_grants_t *grants) {
  for (size_t i = 0; i < grants->len; i++) {
    free(grants->at[i].name);
    mob_vec_free(&grants->at[i].shares);
  }
  mob_vec_free(grants);
}

void mob_pool_free(mob_pool_t *pool) {
  for (size_t i = 0; i < pool->entries.len; i++) {
    free(pool->entries.at[i].name);
    mob_vec_free(&pool->entries.at[i].units);
  }
  mob_vec_free(&pool->entries);
}

void mob_pool_add(mob_pool_t *pool, const char *name, mob_fixed_t total, int units) {
  mob_pool_entry_t *entry = mob_vec_push(&pool->entries);
  entry->name = mob_strdup(name);
  entry->total = entry->free = total;
  for (int i = 0; i < units; i++) *mob_vec_push(&entry->units) = (mob_share_t){i, ONE};
}

static mob_pool_entry_t *find(const mob_pool_t *pool, const char *name) {
  for (size_t i = 0; i < pool->entries.len; i++) {
    if (strcmp(pool->entries.at[i].name, name) == 0) return &pool->entries.at[i];
  }
  return NULL;
}

static mob_status shortage(const char *name, mob_fixed_t want, const mob_pool_entry_t *entry) {
  return mob_fail(MOB_E_NO_RESOURCES, "%s: %g asked, %g free of %g", name, mob_unfixed(want),
                  entry ? mob_unfixed(entry->free) : 0, entry ? mob_unfixed(entry->total) : 0);
}

// Whole instances for 1 and above; below, the fullest instance that still has room.
static mob_status take_units(mob_pool_entry_t *entry, mob_fixed_t amount, mob_grant_t *grant) {
  if (amount >= ONE) {
    if (amount % ONE) {
      return mob_fail(MOB_E_INVALID, "%s: %g asked; above 1 it must be a whole number", entry->name,
                      mob_unfixed(amount));
    }
    mob_fixed_t left = amount;
    for (size_t i = 0; i < entry->units.len && left; i++) {
      if (entry->units.at[i].amount == ONE) left -= ONE;
    }
    if (left) return shortage(entry->name, amount, entry);
    for (size_t i = 0; i < entry->units.len && amount; i++) {
      if (entry->units.at[i].amount != ONE) continue;
      entry->units.at[i].amount = 0;
      *mob_vec_push(&grant->shares) = (mob_share_t){entry->units.at[i].index, ONE};
      amount -= ONE;
    }
    return MOB_OK;
  }
  mob_share_t *best = NULL;
  for (size_t i = 0; i < entry->units.len; i++) {
    mob_share_t *unit = &entry->units.at[i];
    if (unit->amount >= amount && (!best || unit->amount < best->amount)) best = unit;
  }
  if (!best) return shortage(entry->name, amount, entry);
  best->amount -= amount;
  *mob_vec_push(&grant->shares) = (mob_share_t){best->index, amount};
  return MOB_OK;
}

mob_status mob_pool_take(mob_pool_t *pool, const mob_want_t *wants, size_t count,
                         mob_grants_t *out) {
  mob_grants_t grants = {0};
  mob_status status = MOB_OK;
  for (size_t i = 0; i < count && status == MOB_OK; i++) {
    mob_fixed_t amount = mob_fixed(wants[i].amount);
    if (amount <= 0) continue;
    mob_pool_entry_t *entry = find(pool, wants[i].name);
    if (!entry || entry->free < amount) {
      status = shortage(wants[i].name, amount, entry);
      break;
    }
    mob_grant_t *grant = mob_vec_push(&grants);
    grant->name = mob_strdup(wants[i].name);
    if (entry->units.len) status = take_units(entry, amount, grant);
    if (status == MOB_OK) {
      entry->free -= amount;
      grant->amount = amount;
    }
  }
  if (status == MOB_OK) {
    *out = grants;
    return MOB_OK;
  }
  mob_pool_give(pool, &grants);
  mob_grants_free(&grants);
  return status;
}

void mob_pool_give(mob_pool_t *pool, const mob_grants_t *grants) {
  for (size_t i = 0; i < grants->len; i++) {
    const mob_grant_t *grant = &grants->at[i];
    mob_pool_entry_t *entry = find(pool, grant->name);
    if (!entry) continue;
    entry->free += grant->amount;
    for (size_t s = 0; s < grant->shares.len; s++) {
      for (size_t u = 0; u < entry->units.len; u++) {
        if (entry->units.at[u].index == grant->shares.at[s].index) {
          entry->units.at[u].amount += grant->shares.at[s].amount;
        }
      }
    }
  }
}

static void slot_free(mob_bundle_slot_t *slot) {
  mob_grants_free(&slot->taken);
  mob_pool_free(&slot->pool);
  free(slot);
}

void mob_ledger_free(mob_ledger_t *ledger) {
  for (size_t i = 0; i < ledger->bundles.len; i++) slot_free(ledger->bundles.at[i]);
  mob_vec_free(&ledger->bundles);
  mob_pool_free(&ledger->node);
}

void mob_holding_free(mob_holding_t *holding) {
  mob_grants_free(&holding->of_node);
  mob_grants_free(&holding->of_bundle);
}

mob_bundle_slot_t *mob_ledger_find(mob_ledger_t *ledger, const uint8_t *pg, int index) {
  for (size_t i = 0; i < ledger->bundles.len; i++) {
    mob_bundle_slot_t *slot = ledger->bundles.at[i];
    if (slot->index == index && memcmp(slot->pg, pg, MOB_NODE_PG_LEN) == 0) return slot;
  }
  return NULL;
}

mob_status mob_ledger_prepare(mob_ledger_t *ledger, const uint8_t *pg, int index,
                              const mob_want_t *wants, size_t count) {
  if (mob_ledger_find(ledger, pg, index)) return MOB_OK;
  mob_grants_t taken = {0};
  MOB_TRY(mob_pool_take(&ledger->node, wants, count, &taken));
  mob_bundle_slot_t *slot = MOB_NEW(mob_bundle_slot_t);
  memcpy(slot->pg, pg, MOB_NODE_PG_LEN);
  slot->index = index;
  slot->serial = ++ledger->serial;
  slot->taken = taken;
  for (size_t i = 0; i < taken.len; i++) {
    const mob_grant_t *grant = &taken.at[i];
    mob_pool_add(&slot->pool, grant->name, grant->amount, 0);
    mob_pool_entry_t *entry = &slot->pool.entries.at[slot->pool.entries.len - 1];
    for (size_t s = 0; s < grant->shares.len; s++)
      *mob_vec_push(&entry->units) = grant->shares.at[s];
  }
  mob_pool_add(&slot->pool, "bundle", mob_fixed(1000), 0);
  *mob_vec_push(&ledger->bundles) = slot;
  return MOB_OK;
}

mob_status mob_ledger_commit(mob_ledger_t *ledger, const uint8_t *pg, int index) {
  mob_bundle_slot_t *slot = mob_ledger_find(ledger, pg, index);
  if (!slot) return mob_fail(MOB_E_NOT_FOUND, "bundle %d was not prepared here", index);
  slot->committed = true;
  return MOB_OK;
}

static void cancel_at(mob_ledger_t *ledger, size_t i) {
  mob_pool_give(&ledger->node, &ledger->bundles.at[i]->taken);
  slot_free(ledger->bundles.at[i]);
  mob_vec_remove(&ledger->bundles, i);
}

bool mob_ledger_cancel(mob_ledger_t *ledger, const uint8_t *pg, int index) {
  for (size_t i = 0; i < ledger->bundles.len; i++) {
    mob_bundle_slot_t *slot = ledger->bundles.at[i];
    if (slot->index != index || memcmp(slot->pg, pg, MOB_NODE_PG_LEN) != 0) continue;
    cancel_at(ledger, i);
    return true;
  }
  return false;
}

void mob_ledger_shrink(mob_ledger_t *ledger, size_t count) {
  while (ledger->bundles.len > count) cancel_at(ledger, ledger->bundles.len - 1);
}

bool mob_parse_group_name(const char *name, char *base, size_t cap, int *index,
                          uint8_t pg[MOB_NODE_PG_LEN]) {
  const size_t hex = 2 * MOB_NODE_PG_LEN, len = strlen(name);
  if (len < hex + 8) return false;
  const char *id = name + len - hex;
  if (id[-1] != '_' || mob_unhex(id, pg, MOB_NODE_PG_LEN) != MOB_OK) return false;
  const char *mark = id - 1; // the '_' before the id
  const char *digits = mark;
  while (digits > name && digits[-1] >= '0' && digits[-1] <= '9') digits--;
  *index = -1;
  if (digits < mark && digits > name && digits[-1] == '_') {
    *index = atoi(digits);
    mark = digits - 1;
  }
  const char word[] = "_group";
  const size_t n = sizeof word - 1;
  if ((size_t)(mark - name) <= n || memcmp(mark - n, word, n) != 0) return false;
  size_t base_len = (size_t)(mark - name) - n;
  if (base_len >= cap) return false;
  memcpy(base, name, base_len);
  base[base_len] = 0;
  return true;
}

// The wants split by where they are taken from.
typedef struct split {
  MOB_VEC(mob_want_t) node, bundle;
  MOB_VEC(char *) names; // owned base names
  bool grouped;
  int index;
  uint8_t pg[MOB_NODE_PG_LEN];
} split_t;

static void split_free(split_t *split) {
  for (size_t i = 0; i < split->names.len; i++) free(split->names.at[i]);
  mob_vec_free(&split->names);
  mob_vec_free(&split->node);
  mob_vec_free(&split->bundle);
}

// The indexed and the plain name of one resource ask for the same share.
static void want_of_bundle(split_t *split, const char *base, double amount) {
  for (size_t i = 0; i < split->bundle.len; i++) {
    mob_want_t *want = &split->bundle.at[i];
    if (strcmp(want->name, base)) continue;
    if (amount > want->amount) want->amount = amount;
    return;
  }
  char *name = mob_strdup(base);
  *mob_vec_push(&split->names) = name;
  *mob_vec_push(&split->bundle) = (mob_want_t){name, amount};
}

static mob_status split_wants(const mob_want_t *wants, size_t count, split_t *split) {
  char base[128];
  split->index = -1;
  for (size_t i = 0; i < count; i++) {
    uint8_t pg[MOB_NODE_PG_LEN];
    int index;
    if (!mob_parse_group_name(wants[i].name, base, sizeof base, &index, pg)) {
      *mob_vec_push(&split->node) = wants[i];
      continue;
    }
    if (split->grouped && memcmp(split->pg, pg, sizeof pg) != 0) {
      return mob_fail(MOB_E_INVALID, "the request names two placement groups");
    }
    split->grouped = true;
    memcpy(split->pg, pg, sizeof pg);
    if (index >= 0) split->index = index;
    want_of_bundle(split, base, wants[i].amount);
  }
  return MOB_OK;
}

mob_status mob_ledger_take(mob_ledger_t *ledger, const mob_want_t *wants, size_t count,
                           mob_holding_t *out) {
  split_t split = {0};
  *out = (mob_holding_t){0};
  mob_status status;
  MOB_TRY_GOTO(split_wants(wants, count, &split), status, cleanup);
  MOB_TRY_GOTO(mob_pool_take(&ledger->node, split.node.at, split.node.len, &out->of_node), status,
               cleanup);
  if (!split.grouped) goto cleanup;
  status = mob_fail(MOB_E_NOT_FOUND, "no bundle %d of that placement group is on this node",
                    split.index);
  for (size_t i = 0; i < ledger->bundles.len; i++) {
    mob_bundle_slot_t *slot = ledger->bundles.at[i];
    if (!slot->committed || memcmp(slot->pg, split.pg, MOB_NODE_PG_LEN) != 0) continue;
    if (split.index >= 0 && slot->index != split.index) continue;
    status = mob_pool_take(&slot->pool, split.bundle.at, split.bundle.len, &out->of_bundle);
    if (status != MOB_OK) continue;
    out->in_bundle = true;
    out->index = slot->index;
    out->serial = slot->serial;
    memcpy(out->pg, slot->pg, MOB_NODE_PG_LEN);
    break;
  }
  if (status != MOB_OK) {
    mob_pool_give(&ledger->node, &out->of_node);
    mob_holding_free(out);
  }
cleanup:
  split_free(&split);
  return status;
}

void mob_ledger_give(mob_ledger_t *ledger, mob_holding_t *holding) {
  mob_pool_give(&ledger->node, &holding->of_node);
  if (holding->in_bundle) {
    mob_bundle_slot_t *slot = mob_ledger_find(ledger, holding->pg, holding->index);
    if (slot && slot->serial == holding->serial) mob_pool_give(&slot->pool, &holding->of_bundle);
  }
  mob_holding_free(holding);
  *holding = (mob_holding_t){0};
}

// The sum over this node's bundles of the group, told once: at the group's first bundle here.
static void view_whole_group(const mob_ledger_t *ledger, size_t first, mob_ledger_fn fn,
                             void *arg) {
  const mob_bundle_slot_t *slot = ledger->bundles.at[first];
  char hex[2 * MOB_NODE_PG_LEN + 1];
  mob_hex(slot->pg, MOB_NODE_PG_LEN, hex);
  mob_pool_t sum = {0};
  for (size_t i = first; i < ledger->bundles.len; i++) {
    const mob_bundle_slot_t *other = ledger->bundles.at[i];
    if (!other->committed || memcmp(other->pg, slot->pg, MOB_NODE_PG_LEN) != 0) continue;
    for (size_t e = 0; e < other->pool.entries.len; e++) {
      const mob_pool_entry_t *entry = &other->pool.entries.at[e];
      mob_pool_entry_t *whole = find(&sum, entry->name);
      if (!whole) {
        mob_pool_add(&sum, entry->name, 0, 0);
        whole = &sum.entries.at[sum.entries.len - 1];
      }
      whole->total += entry->total;
      whole->free += entry->free;
    }
  }
  for (size_t e = 0; e < sum.entries.len; e++) {
    const mob_pool_entry_t *entry = &sum.entries.at[e];
    char *name = mob_sprintf("%s_group_%s", entry->name, hex);
    fn(arg, name, mob_unfixed(entry->total), mob_unfixed(entry->free));
    free(name);
  }
  mob_pool_free(&sum);
}

void mob_ledger_view(const mob_ledger_t *ledger, mob_ledger_fn fn, void *arg) {
  for (size_t i = 0; i < ledger->node.entries.len; i++) {
    const mob_pool_entry_t *entry = &ledger->node.entries.at[i];
    fn(arg, entry->name, mob_unfixed(entry->total), mob_unfixed(entry->free));
  }
  for (size_t i = 0; i < ledger->bundles.len; i++) {
    const mob_bundle_slot_t *slot = ledger->bundles.at[i];
    char hex[2 * MOB_NODE_PG_LEN + 1];
    if (!slot->committed) continue;
    mob_hex(slot->pg, MOB_NODE_PG_LEN, hex);
    for (size_t e = 0; e < slot->pool.entries.len; e++) {
      const mob_pool_entry_t *entry = &slot->pool.entries.at[e];
      char *name = mob_sprintf("%s_group_%d_%s", entry->name, slot->index, hex);
      fn(arg, name, mob_unfixed(entry->total), mob_unfixed(entry->free));
      free(name);
    }
    bool first = true;
    for (size_t j = 0; j < i && first; j++) {
      const mob_bundle_slot_t *before = ledger->bundles.at[j];
      first = !before->committed || memcmp(before->pg, slot->pg, MOB_NODE_PG_LEN) != 0;
    }
    if (first) view_whole_group(ledger, i, fn, arg);
  }
}
