// The LeaderWorkerSet controller against pods that exist only here.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/lws/controller.h"

#define MAX_PODS 64

typedef struct fake_pod {
  mob_lws_pod_identity_t id;
  int uid;
  bool exists, deleting, ready, pending;
  unsigned restarts;
} fake_pod_t;

typedef struct world {
  fake_pod_t pods[MAX_PODS];
  int uids;
  char events[8192]; // reasons, each behind a blank
  mob_lws_controller_t controller;
  mob_lws_template_t leader, worker;
  mob_lws_set_t set;
} world_t;

static void *create(void *owner, const mob_lws_pod_identity_t *id) {
  world_t *w = owner;
  for (int i = 0; i < MAX_PODS; i++) {
    fake_pod_t *p = &w->pods[i];
    // One name, one pod: a StatefulSet cannot make it while the old one ends.
    if (p->exists) assert_string_not_equal(p->id.name, id->name);
  }
  for (int i = 0; i < MAX_PODS; i++) {
    fake_pod_t *p = &w->pods[i];
    if (p->exists) continue;
    *p = (fake_pod_t){.id = *id, .uid = ++w->uids, .exists = true, .pending = true};
    return p;
  }
  fail_msg("too many pods");
  return NULL;
}

static void delete_(void *owner, void *pod) {
  (void)owner;
  fake_pod_t *p = pod;
  assert_false(p->deleting);
  p->deleting = true;
}

static mob_lws_pod_state_t state_of(void *owner, void *pod) {
  (void)owner;
  fake_pod_t *p = pod;
  return (mob_lws_pod_state_t){p->ready && !p->deleting, p->pending, p->restarts};
}

static void event(void *owner, bool warning, const char *object, const char *reason,
                  const char *text) {
  (void)warning, (void)object, (void)text;
  world_t *w = owner;
  size_t n = strlen(w->events);
  assert_true(n + strlen(reason) + 2 < sizeof w->events);
  strcat(strcat(w->events, " "), reason);
}

static fake_pod_t *pod(world_t *w, const char *name) {
  for (int i = 0; i < MAX_PODS; i++) {
    if (w->pods[i].exists && strcmp(w->pods[i].id.name, name) == 0) return &w->pods[i];
  }
  return NULL;
}

static fake_pod_t *must(world_t *w, const char *name) {
  fake_pod_t *p = pod(w, name);
  if (!p) fail_msg("no pod %s", name);
  return p;
}

static size_t count(const world_t *w) {
  size_t n = 0;
  for (int i = 0; i < MAX_PODS; i++) n += w->pods[i].exists;
  return n;
}

static void run_pod(world_t *w, const char *name) {
  fake_pod_t *p = must(w, name);
  p->pending = false;
  p->ready = true;
  mob__controller_reconcile(&w->controller);
}

static void gone(world_t *w, const char *name) {
  fake_pod_t *p = must(w, name);
  assert_true(p->deleting);
  p->exists = false;
  mob__controller_pod_gone(&w->controller, p);
}

static world_t *start(int64_t replicas, int64_t size) {
  world_t *w = calloc(1, sizeof *w);
  w->set = (mob_lws_set_t){.name = "s",
                           .namespace_ = "default",
                           .size = size,
                           .leader = &w->leader,
                           .worker = &w->worker};
  w->controller.owner = w;
  w->controller.ops = (mob_lws_controller_ops_t){create, delete_, state_of, event};
  mob__controller_add(&w->controller, &w->set, replicas);
  return w;
}

static void go(world_t *w) {
  mob__controller_reconcile(&w->controller);
}

static void end(world_t *w) {
  mob__controller_free(&w->controller);
  free(w);
}

static void test_names(void **state) {
  (void)state;
  world_t *w = start(2, 3);
  go(w);
  assert_int_equal(count(w), 6);
  fake_pod_t *p = must(w, "s-1-2");
  assert_int_equal(p->id.group, 1);
  assert_int_equal(p->id.worker, 2);
  assert_ptr_equal(p->id.template_, &w->worker);
  assert_string_equal(p->id.leader_name, "s-1");
  assert_string_equal(p->id.subdomain, "s");
  assert_ptr_equal(must(w, "s-0")->id.template_, &w->leader);
  end(w);
  w = start(1, 1);
  w->set.unique_subdomain = true;
  go(w);
  assert_int_equal(count(w), 1); // a group of one has no workers
  assert_string_equal(must(w, "s-0")->id.subdomain, "s-0");
  end(w);
}

static void test_leader_ready(void **state) {
  (void)state;
  world_t *w = start(1, 2);
  w->set.leader_ready = true;
  go(w);
  assert_null(pod(w, "s-0-1"));
  run_pod(w, "s-0");
  assert_non_null(pod(w, "s-0-1"));
  run_pod(w, "s-0-1");
  assert_non_null(strstr(w->events, "AllGroupsReady"));
  end(w);
}

static void test_restart_recreates(void **state) {
  (void)state;
  world_t *w = start(2, 3);
  go(w);
  int leader = must(w, "s-0")->uid, other = must(w, "s-1")->uid;
  must(w, "s-0-1")->restarts = 1;
  go(w);
  assert_non_null(strstr(w->events, " RecreateGroup"));
  assert_true(must(w, "s-0")->deleting && must(w, "s-0-1")->deleting && must(w, "s-0-2")->deleting);
  assert_false(must(w, "s-1")->deleting);
  gone(w, "s-0");
  assert_null(pod(w, "s-0")); // foreground: the leader's name is taken until its workers are gone
  gone(w, "s-0-2");
  assert_null(pod(w, "s-0"));
  gone(w, "s-0-1");
  assert_int_not_equal(must(w, "s-0")->uid, leader);
  assert_non_null(pod(w, "s-0-1"));
  assert_non_null(pod(w, "s-0-2"));
  assert_int_equal(must(w, "s-1")->uid, other);
  assert_null(strstr(strstr(w->events, " RecreateGroup") + 1, " RecreateGroup")); // once
  end(w);
}

static void test_leader_restart(void **state) {
  (void)state;
  world_t *w = start(1, 2);
  go(w);
  must(w, "s-0")->restarts = 1;
  go(w);
  assert_true(must(w, "s-0")->deleting && must(w, "s-0-1")->deleting);
  gone(w, "s-0-1");
  assert_null(pod(w, "s-0-1")); // its StatefulSet is going, too
  gone(w, "s-0");
  assert_int_equal(count(w), 2);
  end(w);
}

static void test_deleted_worker(void **state) {
  (void)state;
  world_t *w = start(1, 3);
  go(w);
  mob__controller_delete_pod(&w->controller, must(w, "s-0-2"));
  assert_true(must(w, "s-0")->deleting && must(w, "s-0-1")->deleting);
  end(w);
}

static void test_deleted_leader(void **state) {
  (void)state;
  world_t *w = start(1, 2);
  go(w);
  int worker = must(w, "s-0-1")->uid;
  mob__controller_delete_pod(&w->controller, must(w, "s-0"));
  assert_false(
      must(w, "s-0-1")->deleting); // in the background: the workers end when the leader is gone
  gone(w, "s-0");
  assert_true(must(w, "s-0-1")->deleting);
  assert_non_null(pod(w, "s-0"));         // the new leader does not wait for them
  assert_false(must(w, "s-0")->deleting); // and stale workers do not count against it
  gone(w, "s-0-1");
  assert_int_not_equal(must(w, "s-0-1")->uid, worker);
  assert_false(must(w, "s-0")->deleting);
  end(w);
}

static void test_policy_none(void **state) {
  (void)state;
  world_t *w = start(1, 3);
  w->set.restart = MOB_LWS_RESTART_NONE;
  go(w);
  int leader = must(w, "s-0")->uid, worker = must(w, "s-0-1")->uid;
  must(w, "s-0-1")->restarts = 3;
  go(w);
  assert_false(must(w, "s-0")->deleting);
  mob__controller_delete_pod(&w->controller, must(w, "s-0-1"));
  assert_false(must(w, "s-0")->deleting);
  gone(w, "s-0-1");
  assert_int_not_equal(must(w, "s-0-1")->uid, worker); // its StatefulSet replaces it alone
  assert_int_equal(must(w, "s-0")->uid, leader);
  end(w);
}

static void test_policy_after_start(void **state) {
  (void)state;
  world_t *w = start(1, 2);
  w->set.restart = MOB_LWS_RECREATE_AFTER_START;
  go(w);
  run_pod(w, "s-0");
  must(w, "s-0")->restarts = 1;
  go(w);
  assert_false(must(w, "s-0")->deleting); // the worker is pending still
  run_pod(w, "s-0-1");
  assert_true(must(w, "s-0")->deleting);
  end(w);
}

static void test_scale(void **state) {
  (void)state;
  world_t *w = start(1, 2);
  go(w);
  mob_lws_controlled_set_t *set = mob__controller_find(&w->controller, "s");
  mob__controller_scale(&w->controller, set, 3);
  assert_int_equal(count(w), 6);
  int kept = must(w, "s-0")->uid;
  mob__controller_scale(&w->controller, set, 1);
  assert_true(must(w, "s-2")->deleting && must(w, "s-1")->deleting);
  assert_false(must(w, "s-1-1")->deleting); // the leader first
  gone(w, "s-2");
  gone(w, "s-1");
  assert_true(must(w, "s-1-1")->deleting);
  mob__controller_scale(&w->controller, set, 2); // while the old worker ends
  assert_non_null(pod(w, "s-1"));
  gone(w, "s-1-1");
  gone(w, "s-2-1");
  assert_int_equal(count(w), 4);
  assert_int_equal(must(w, "s-0")->uid, kept);
  assert_int_equal(set->groups.len, 2);
  mob__controller_scale(&w->controller, set, 0);
  gone(w, "s-0");
  gone(w, "s-1");
  gone(w, "s-0-1");
  gone(w, "s-1-1");
  assert_int_equal(count(w), 0);
  assert_int_equal(set->groups.len, 0);
  end(w);
}

static void test_end(void **state) {
  (void)state;
  world_t *w = start(2, 2);
  go(w);
  must(w, "s-1")->restarts = 1;
  go(w);
  mob__controller_end(&w->controller); // one group is being recreated at the moment
  static const char *const names[] = {"s-0", "s-0-1", "s-1", "s-1-1"};
  for (int i = 0; i < 4; i++) {
    assert_false(mob__controller_empty(&w->controller));
    gone(w, names[i]);
  }
  assert_true(mob__controller_empty(&w->controller));
  assert_int_equal(count(w), 0);
  end(w);
}

static void test_ready(void **state) {
  (void)state;
  world_t *w = start(2, 2);
  go(w);
  mob_lws_controlled_set_t *set = mob__controller_find(&w->controller, "s");
  assert_int_equal(mob__ready_groups(&w->controller, set), 0);
  run_pod(w, "s-0");
  assert_int_equal(mob__ready_groups(&w->controller, set), 0); // the worker counts
  run_pod(w, "s-0-1");
  assert_int_equal(mob__ready_groups(&w->controller, set), 1);
  must(w, "s-0-1")->ready = false;
  assert_int_equal(mob__ready_groups(&w->controller, set), 0);
  end(w);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_names),
      cmocka_unit_test(test_leader_ready),
      cmocka_unit_test(test_restart_recreates),
      cmocka_unit_test(test_leader_restart),
      cmocka_unit_test(test_deleted_worker),
      cmocka_unit_test(test_deleted_leader),
      cmocka_unit_test(test_policy_none),
      cmocka_unit_test(test_policy_after_start),
      cmocka_unit_test(test_scale),
      cmocka_unit_test(test_end),
      cmocka_unit_test(test_ready),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
