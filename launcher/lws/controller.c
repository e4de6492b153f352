#include "launcher/lws/controller.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void event(mob_lws_controller_t *c, const mob_lws_controlled_set_t *s, bool warning,
                  const char *reason, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

static void event(mob_lws_controller_t *c, const mob_lws_controlled_set_t *s, bool warning,
                  const char *reason, const char *fmt, ...) {
  char object[96], text[400];
  snprintf(object, sizeof object, "lws/%s", s->set->name);
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  c->ops.event(c->owner, warning, object, reason, text);
}

static size_t worker_count(const mob_lws_controlled_set_t *s) {
  return (size_t)(s->set->size - 1);
}

static void slot_name(const mob_lws_controlled_set_t *s, const mob_lws_group_t *g, int64_t worker,
                      char out[80]) {
  if (worker == 0) {
    snprintf(out, 80, "%s-%lld", s->set->name, (long long)g->index);
  } else {
    snprintf(out, 80, "%s-%lld-%lld", s->set->name, (long long)g->index, (long long)worker);
  }
}

// ---- actions

static void create(mob_lws_controller_t *c, mob_lws_controlled_set_t *s, mob_lws_group_t *g,
                   mob_lws_slot_t *slot) {
  mob_lws_pod_identity_t id = {.set = s->set, .group = g->index, .worker = slot->worker};
  id.template_ = slot->worker ? s->set->worker : s->set->leader;
  slot_name(s, g, slot->worker, id.name);
  slot_name(s, g, 0, id.leader_name);
  snprintf(id.subdomain, sizeof id.subdomain, "%s",
           s->set->unique_subdomain ? id.leader_name : s->set->name);
  event(c, s, false, "SuccessfulCreate", "create Pod %s in StatefulSet %s successful", id.name,
        slot->worker ? id.leader_name : s->set->name);
  slot->deleting = false;
  slot->pod = c->ops.create(c->owner, &id);
}

static void delete_slot(mob_lws_controller_t *c, mob_lws_slot_t *slot) {
  if (!slot->pod || slot->deleting) return;
  slot->deleting = true;
  c->ops.delete_(c->owner, slot->pod);
}

static void delete_workers(mob_lws_controller_t *c, mob_lws_controlled_set_t *s,
                           mob_lws_group_t *g) {
  g->sts_ending = g->sts;
  for (size_t i = 0; i < worker_count(s); i++) delete_slot(c, &g->workers[i]);
}

// Foreground propagation: leader and workers end at the same time, and the leader's name is free
// only when all of them are gone.
static void delete_group(mob_lws_controller_t *c, mob_lws_controlled_set_t *s, mob_lws_group_t *g) {
  g->foreground = true;
  delete_slot(c, &g->leader);
  delete_workers(c, s, g);
}

// ---- rules

static bool any_worker(const mob_lws_controlled_set_t *s, const mob_lws_group_t *g) {
  for (size_t i = 0; i < worker_count(s); i++) {
    if (g->workers[i].pod) return true;
  }
  return false;
}

static bool any_pending(mob_lws_controller_t *c, const mob_lws_controlled_set_t *s,
                        const mob_lws_group_t *g) {
  if (!g->leader.pod || c->ops.state(c->owner, g->leader.pod).pending) return true;
  for (size_t i = 0; i < worker_count(s); i++) {
    if (!g->workers[i].pod || c->ops.state(c->owner, g->workers[i].pod).pending) return true;
  }
  return false;
}

// RecreateGroupOnPodRestart: a restarted container or a deleted pod takes the group with it.
static void apply_restart_policy(mob_lws_controller_t *c, mob_lws_controlled_set_t *s,
                                 mob_lws_group_t *g) {
  if (s->set->restart == MOB_LWS_RESTART_NONE || !g->leader.pod || g->leader.deleting) return;
  const mob_lws_slot_t *failed = NULL;
  for (size_t i = 0; !failed && i <= worker_count(s); i++) {
    const mob_lws_slot_t *slot = i == 0 ? &g->leader : &g->workers[i - 1];
    // Workers of a StatefulSet that is going belong to an earlier leader.
    if (!slot->pod || (i > 0 && g->sts_ending)) continue;
    if (slot->deleting || c->ops.state(c->owner, slot->pod).restarts > 0) failed = slot;
  }
  if (!failed) return;
  if (s->set->restart == MOB_LWS_RECREATE_AFTER_START && any_pending(c, s, g)) return;
  char pod[80], leader[80];
  slot_name(s, g, failed->worker, pod);
  slot_name(s, g, 0, leader);
  // The word "Worker" stands there for leaders, too, in LWS itself.
  event(c, s, false, "RecreateGroup",
        "Worker pod %s failed, deleted leader pod %s to recreate group %lld", pod, leader,
        (long long)g->index);
  delete_group(c, s, g);
}

static void reconcile_workers(mob_lws_controller_t *c, mob_lws_controlled_set_t *s,
                              mob_lws_group_t *g) {
  if (g->sts_ending && !any_worker(s, g)) g->sts = g->sts_ending = false;
  if (worker_count(s) == 0 || !g->leader.pod || g->leader.deleting || g->sts_ending || c->ending)
    return;
  char leader[80];
  slot_name(s, g, 0, leader);
  if (!g->sts) {
    if (s->set->leader_ready && !c->ops.state(c->owner, g->leader.pod).ready) return;
    g->sts = true;
    event(c, s, false, "GroupsProgressing", "Created worker statefulset for leader pod %s", leader);
  }
  for (size_t i = 0; i < worker_count(s); i++) {
    if (!g->workers[i].pod) create(c, s, g, &g->workers[i]);
  }
}

static void reconcile_group(mob_lws_controller_t *c, mob_lws_controlled_set_t *s,
                            mob_lws_group_t *g) {
  bool wanted = !c->ending && g->index < s->replicas;
  if (g->leader_ended && !any_worker(s, g)) {
    g->leader_ended = g->foreground = false;
    g->sts = g->sts_ending = false;
  }
  if (!g->leader.pod && !g->leader_ended) {
    // The owner of the workers is gone: the garbage collector comes.
    if (g->sts && !g->sts_ending) delete_workers(c, s, g);
    if (wanted) create(c, s, g, &g->leader);
  } else if (g->leader.pod && !wanted) {
    delete_slot(c, &g->leader); // scale-in: the leader first, its workers when it is gone
    return;
  }
  apply_restart_policy(c, s, g);
  reconcile_workers(c, s, g);
}

static void reconcile_set(mob_lws_controller_t *c, mob_lws_controlled_set_t *s) {
  while (!c->ending && (int64_t)s->groups.len < s->replicas) {
    mob_lws_group_t *g = MOB_NEW(mob_lws_group_t);
    g->index = (int64_t)s->groups.len;
    g->workers = MOB_NEW_ARRAY(mob_lws_slot_t, worker_count(s) + 1);
    for (size_t i = 0; i < worker_count(s); i++) g->workers[i].worker = (int64_t)i + 1;
    *mob_vec_push(&s->groups) = g;
  }
  for (size_t i = 0; i < s->groups.len; i++) reconcile_group(c, s, s->groups.at[i]);
  // Highest index first, so that the position in the list stays the index.
  while (s->groups.len > 0) {
    mob_lws_group_t *g = s->groups.at[s->groups.len - 1];
    bool wanted = !c->ending && g->index < s->replicas;
    if (wanted || g->leader.pod || g->leader_ended || any_worker(s, g)) break;
    free(g->workers);
    free(g);
    s->groups.len--;
  }
  if (c->ending) return;
  bool available = mob__ready_groups(c, s) == s->replicas;
  if (available != s->was_available) {
    s->was_available = available;
    event(c, s, false, available ? "AllGroupsReady" : "GroupsProgressing",
          available ? "All replicas are ready, %lld of %lld"
                    : "Replicas are progressing, %lld of %lld ready",
          (long long)mob__ready_groups(c, s), (long long)s->replicas);
  }
}

void mob__controller_reconcile(mob_lws_controller_t *c) {
  c->again = true;
  if (c->busy) return;
  c->busy = true;
  while (c->again) {
    c->again = false;
    for (size_t i = 0; i < c->sets.len; i++) reconcile_set(c, c->sets.at[i]);
  }
  c->busy = false;
}

// ---- inputs

void mob__controller_add(mob_lws_controller_t *c, const mob_lws_set_t *set, int64_t replicas) {
  mob_lws_controlled_set_t *s = MOB_NEW(mob_lws_controlled_set_t);
  s->set = set;
  s->replicas = replicas;
  s->was_available = replicas == 0;
  *mob_vec_push(&c->sets) = s;
}

void mob__controller_free(mob_lws_controller_t *c) {
  for (size_t i = 0; i < c->sets.len; i++) {
    mob_lws_controlled_set_t *s = c->sets.at[i];
    for (size_t k = 0; k < s->groups.len; k++) {
      free(s->groups.at[k]->workers);
      free(s->groups.at[k]);
    }
    mob_vec_free(&s->groups);
    free(s);
  }
  mob_vec_free(&c->sets);
}

// The slot that holds the pod, with its group and set; false when none does.
static bool find_pod(mob_lws_controller_t *c, void *pod, mob_lws_controlled_set_t **set,
                     mob_lws_group_t **group, mob_lws_slot_t **slot) {
  for (size_t i = 0; i < c->sets.len; i++) {
    *set = c->sets.at[i];
    for (size_t k = 0; k < (*set)->groups.len; k++) {
      *group = (*set)->groups.at[k];
      for (size_t w = 0; w <= worker_count(*set); w++) {
        *slot = w == 0 ? &(*group)->leader : &(*group)->workers[w - 1];
        if ((*slot)->pod == pod) return true;
      }
    }
  }
  return false;
}

void mob__controller_pod_gone(mob_lws_controller_t *c, void *pod) {
  mob_lws_controlled_set_t *set;
  mob_lws_group_t *group;
  mob_lws_slot_t *slot;
  if (find_pod(c, pod, &set, &group, &slot)) {
    slot->pod = NULL;
    slot->deleting = false;
    if (slot == &group->leader && group->foreground) group->leader_ended = true;
  }
  mob__controller_reconcile(c);
}

void mob__controller_delete_pod(mob_lws_controller_t *c, void *pod) {
  mob_lws_controlled_set_t *set;
  mob_lws_group_t *group;
  mob_lws_slot_t *slot;
  if (find_pod(c, pod, &set, &group, &slot)) delete_slot(c, slot);
  mob__controller_reconcile(c);
}

void mob__controller_scale(mob_lws_controller_t *c, mob_lws_controlled_set_t *set,
                           int64_t replicas) {
  event(c, set, false, "Scaled", "replicas %lld -> %lld", (long long)set->replicas,
        (long long)replicas);
  set->replicas = replicas;
  mob__controller_reconcile(c);
}

void mob__controller_end(mob_lws_controller_t *c) {
  c->ending = true;
  for (size_t i = 0; i < c->sets.len; i++) {
    mob_lws_controlled_set_t *s = c->sets.at[i];
    for (size_t k = 0; k < s->groups.len; k++) delete_group(c, s, s->groups.at[k]);
  }
  mob__controller_reconcile(c);
}

bool mob__controller_empty(const mob_lws_controller_t *c) {
  for (size_t i = 0; i < c->sets.len; i++) {
    if (c->sets.at[i]->groups.len) return false;
  }
  return true;
}

mob_lws_controlled_set_t *mob__controller_find(const mob_lws_controller_t *c, const char *name) {
  for (size_t i = 0; i < c->sets.len; i++) {
    if (strcmp(c->sets.at[i]->set->name, name) == 0) return c->sets.at[i];
  }
  return NULL;
}

bool mob__group_ready(const mob_lws_controller_t *c, const mob_lws_controlled_set_t *s,
                      const mob_lws_group_t *g) {
  for (size_t i = 0; i <= worker_count(s); i++) {
    const mob_lws_slot_t *slot = i == 0 ? &g->leader : &g->workers[i - 1];
    if (!slot->pod || slot->deleting || !c->ops.state(c->owner, slot->pod).ready) return false;
  }
  return true;
}

int64_t mob__ready_groups(const mob_lws_controller_t *c, const mob_lws_controlled_set_t *s) {
  int64_t n = 0;
  for (size_t i = 0; i < s->groups.len; i++) {
    n += s->groups.at[i]->index < s->replicas && mob__group_ready(c, s, s->groups.at[i]);
  }
  return n;
}
