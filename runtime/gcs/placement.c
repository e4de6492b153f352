#include "runtime/gcs/placement.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

static bool is_builtin(const char *name) {
  return strcmp(name, "CPU") == 0 || strcmp(name, "GPU") == 0 || strcmp(name, "memory") == 0 ||
         strcmp(name, "object_store_memory") == 0;
}

static int64_t custom_sum(const mob_resources_t *r) {
  int64_t sum = 0;
  for (size_t i = 0; i < r->len; i++) sum += is_builtin(r->at[i].name) ? 0 : r->at[i].amount;
  return sum;
}

// Whether a is scarcer than b.
static int compare_scarcity(const mob_resources_t *a, const mob_resources_t *b) {
  static const char *const order[] = {"GPU", NULL, "object_store_memory", "memory", "CPU"};
  for (size_t i = 0; i < MOB_LEN(order); i++) {
    int64_t x = order[i] ? mob_resources_get(a, order[i]) : custom_sum(a);
    int64_t y = order[i] ? mob_resources_get(b, order[i]) : custom_sum(b);
    if (x != y) return x > y ? -1 : 1;
  }
  return 0;
}

// Indices of the bundles, scarcest first, otherwise in their order.
static size_t *sorted(const mob_resources_t *bundles, size_t n) {
  size_t *order = MOB_NEW_ARRAY(size_t, n + 1);
  for (size_t i = 0; i < n; i++) {
    size_t at = i;
    for (; at > 0 && compare_scarcity(&bundles[i], &bundles[order[at - 1]]) < 0; at--)
      order[at] = order[at - 1];
    order[at] = i;
  }
  return order;
}

static double score(const mob_resources_t *available, const mob_resources_t *need) {
  double sum = 0;
  for (size_t i = 0; i < need->len; i++) {
    if (need->at[i].amount <= 0) continue;
    double have = (double)mob_resources_get(available, need->at[i].name);
    sum += (have - (double)need->at[i].amount) / have;
  }
  return sum;
}

typedef struct room {
  const mob_place_node_t *nodes;
  size_t n;
  mob_resources_t *left; // of each node
  bool *used;
} room_t;

// The best node that has `need`; n when there is none.
static size_t best_node(const room_t *room, const mob_resources_t *need, bool unused_only) {
  size_t best = room->n;
  double best_score = 0;
  for (size_t i = 0; i < room->n; i++) {
    if ((unused_only && room->used[i]) || !mob_resources_cover(&room->left[i], need)) continue;
    double s = score(&room->left[i], need);
    if (best == room->n || s > best_score) {
      best = i;
      best_score = s;
    }
  }
  return best;
}

static void take(room_t *room, size_t node, const mob_resources_t *need) {
  mob_resources_sub(&room->left[node], need);
  room->used[node] = true;
}

static bool place_pack(room_t *room, const mob_resources_t *bundles, const size_t *order, size_t n,
                       size_t *chosen) {
  bool *done = MOB_NEW_ARRAY(bool, n + 1);
  size_t left = n;
  while (left > 0) {
    size_t first = 0;
    while (done[first]) first++;
    size_t node = best_node(room, &bundles[order[first]], false);
    if (node == room->n) break;
    // Pour everything that fits onto it before another node is touched.
    for (size_t k = first; k < n; k++) {
      if (done[k] || !mob_resources_cover(&room->left[node], &bundles[order[k]])) continue;
      take(room, node, &bundles[order[k]]);
      chosen[order[k]] = node;
      done[k] = true;
      left--;
    }
  }
  free(done);
  return left == 0;
}

static bool place_spread(room_t *room, const mob_resources_t *bundles, const size_t *order,
                         size_t n, size_t *chosen, bool strict) {
  for (size_t k = 0; k < n; k++) {
    const mob_resources_t *need = &bundles[order[k]];
    size_t node = best_node(room, need, true);
    if (node == room->n && !strict) node = best_node(room, need, false);
    if (node == room->n) return false;
    take(room, node, need);
    chosen[order[k]] = node;
  }
  return true;
}

static bool place_strict_pack(room_t *room, const mob_resources_t *bundles, size_t n,
                              size_t *chosen) {
  mob_resources_t all = {0};
  for (size_t i = 0; i < n; i++) mob_resources_add(&all, &bundles[i]);
  size_t node = best_node(room, &all, false);
  for (size_t i = 0; i < room->n; i++) {
    if (room->nodes[i].preferred && mob_resources_cover(&room->left[i], &all)) node = i;
  }
  mob_resources_free(&all);
  if (node == room->n) return false;
  for (size_t i = 0; i < n; i++) chosen[i] = node;
  return true;
}

static bool place(mob_placement_strategy_t strategy, const mob_place_node_t *nodes,
                  size_t node_count, bool as_if_empty, const mob_resources_t *bundles, size_t n,
                  size_t *chosen) {
  room_t room = {nodes, node_count, MOB_NEW_ARRAY(mob_resources_t, node_count + 1),
                 MOB_NEW_ARRAY(bool, node_count + 1)};
  for (size_t i = 0; i < node_count; i++) {
    mob_resources_copy(&room.left[i], as_if_empty ? nodes[i].total : nodes[i].available);
    room.used[i] = nodes[i].excluded;
  }
  size_t *order = sorted(bundles, n);
  bool placed = false;
  switch (strategy) {
  case MOB_PLACE_PACK:
    placed = place_pack(&room, bundles, order, n, chosen);
    break;
  case MOB_PLACE_SPREAD:
    placed = place_spread(&room, bundles, order, n, chosen, false);
    break;
  case MOB_PLACE_STRICT_PACK:
    placed = place_strict_pack(&room, bundles, n, chosen);
    break;
  case MOB_PLACE_STRICT_SPREAD:
    placed = place_spread(&room, bundles, order, n, chosen, true);
    break;
  }
  free(order);
  for (size_t i = 0; i < node_count; i++) mob_resources_free(&room.left[i]);
  free(room.left);
  free(room.used);
  return placed;
}

// What is asked in all, and of that what each node has.
static void explain(const mob_place_node_t *nodes, size_t node_count,
                    const mob_resources_t *bundles, size_t n, mob_placement_strategy_t strategy,
                    bool feasible, mob_buf_t *why) {
  static const char *const names[] = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"};
  mob_resources_t asked = {0};
  for (size_t i = 0; i < n; i++) mob_resources_add(&asked, &bundles[i]);
  mob_buf_printf(why, "%zu bundle%s (%s) ask for ", n, n == 1 ? "" : "s", names[strategy]);
  mob_resources_print(&asked, why);
  mob_buf_puts(why, ", the largest one for ");
  size_t *order = sorted(bundles, n);
  mob_resources_print(&bundles[order[0]], why);
  free(order);
  mob_buf_puts(why, feasible ? "; free now: " : "; the cluster's nodes have: ");
  if (node_count == 0) mob_buf_puts(why, "no node");
  for (size_t i = 0; i < node_count; i++) {
    mob_buf_printf(why, "%s%s {", i ? ", " : "", nodes[i].name);
    for (size_t k = 0; k < asked.len; k++) {
      const mob_resources_t *have = feasible ? nodes[i].available : nodes[i].total;
      mob_buf_printf(why, "%s%s: %.15g", k ? ", " : "", asked.at[k].name,
                     mob_resource_double(mob_resources_get(have, asked.at[k].name)));
    }
    mob_buf_putc(why, '}');
  }
  mob_resources_free(&asked);
}

mob_place_result_t mob_place_bundles(mob_placement_strategy_t strategy,
                                     const mob_place_node_t *nodes, size_t node_count,
                                     const mob_resources_t *bundles, size_t bundle_count,
                                     size_t *chosen, mob_buf_t *why) {
  if (place(strategy, nodes, node_count, false, bundles, bundle_count, chosen)) return MOB_PLACED;
  size_t *scratch = MOB_NEW_ARRAY(size_t, bundle_count + 1);
  bool feasible = place(strategy, nodes, node_count, true, bundles, bundle_count, scratch);
  free(scratch);
  if (why) explain(nodes, node_count, bundles, bundle_count, strategy, feasible, why);
  return feasible ? MOB_PLACE_NO_RESOURCES : MOB_PLACE_INFEASIBLE;
}

// How full a node would be, by the fullest of its basic resources; below one half counts as
// nothing.
static double fullness(const mob_place_node_t *node, const mob_resources_t *demand) {
  static const char *const critical[] = {"CPU", "GPU", "memory", "object_store_memory"};
  double worst = 0;
  for (size_t i = 0; i < MOB_LEN(critical); i++) {
    int64_t total = mob_resources_get(node->total, critical[i]);
    if (total <= 0) continue;
    int64_t left =
        mob_resources_get(node->available, critical[i]) - mob_resources_get(demand, critical[i]);
    double used = 1 - (double)left / (double)total;
    if (used > worst) worst = used;
  }
  return worst < 0.5 ? 0 : worst;
}

size_t mob_place_task(const mob_place_node_t *nodes, size_t node_count,
                      const mob_resources_t *demand, bool *feasible) {
  bool wants_gpu = mob_resources_get(demand, "GPU") > 0;
  *feasible = false;
  for (int with_gpu_nodes = wants_gpu; with_gpu_nodes < 2; with_gpu_nodes++) {
    size_t best = node_count;
    double best_score = 0;
    for (size_t i = 0; i < node_count; i++) {
      if (nodes[i].excluded) continue;
      if (mob_resources_cover(nodes[i].total, demand)) *feasible = true;
      if (!with_gpu_nodes && mob_resources_get(nodes[i].total, "GPU") > 0) continue;
      if (!mob_resources_cover(nodes[i].available, demand)) continue;
      double s = fullness(&nodes[i], demand);
      bool tie = best < node_count && s == best_score;
      if (best == node_count || s < best_score ||
          (tie && nodes[i].preferred && !nodes[best].preferred)) {
        best = i;
        best_score = s;
      }
    }
    if (best < node_count) return best;
  }
  return node_count;
}
