// A driver that fills a cluster for the end-to-end tests of the listings: a placement group of two
// bundles, an actor in each, and a group that does not fit. Says READY, and ends when its stdin
// does.
//   actor_driver HOST:PORT actor_echo.so

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/actor/actor.h"
#include "runtime/base/mem.h"

static mob_cluster_t *cluster;
static const char *library;
static uint8_t pg[MOB_PG_ID_LEN], too_much[MOB_PG_ID_LEN];
static mob_actor_t *actors[2];
static int alive;

static const mob_resource_t wants[] = {{"GPU", 8}, {"CPU", 1}};

static void check(mob_status status, const char *why) {
  if (status == MOB_OK) return;
  fprintf(stderr, "driver: %s\n", why);
  exit(1);
}

static void on_alive(void *owner, mob_actor_t *actor) {
  (void)owner;
  (void)actor;
  if (++alive < 2) return;
  puts("READY");
  fflush(stdout);
}

static void on_dead(void *owner, mob_actor_t *actor, bool restarting, const char *why) {
  (void)owner;
  (void)actor;
  (void)restarting;
  printf("DEAD %s\n", why);
  fflush(stdout);
}

static const mob_actor_events_t events = {on_alive, on_dead};

static void on_placed(void *arg, mob_status status, const char *why) {
  (void)arg;
  check(status, why);
  for (int i = 0; i < 2; i++) {
    const char *const names[] = {"stage0", "stage1"};
    mob_actor_options_t options = {.library = library,
                                   .class_name = "Echo",
                                   .name = names[i],
                                   .name_space = "demo",
                                   .pg_id = pg,
                                   .bundle_index = i,
                                   .resources = wants,
                                   .resource_count = 2,
                                   .detached = true};
    check(mob_actor_create(cluster, &options, &events, NULL, &actors[i]), mob_errmsg());
  }
}

static void on_connected(void *arg, mob_status status, const char *why) {
  static const mob_resource_t four = {"GPU", 4};
  mob_bundle_t bundles[] = {{wants, 2}, {wants, 2}}, more = {&four, 1};
  (void)arg;
  check(status, why);
  mob_pg_create(cluster, "stages", MOB_SPREAD, bundles, 2, 0, on_placed, NULL, pg);
  mob_pg_create(cluster, "too_much", MOB_PACK, &more, 1, 0, NULL, NULL, too_much);
}

static void on_closed(void *arg, mob_status status, const char *why) {
  uv_loop_t *loop = arg;
  (void)status;
  (void)why;
  uv_stop(loop);
}

static void on_input(uv_poll_t *poll, int status, int poll_events) {
  char byte;
  (void)status;
  (void)poll_events;
  if (read(STDIN_FILENO, &byte, 1) > 0) return;
  uv_poll_stop(poll);
  for (int i = 0; i < 2; i++) {
    if (actors[i]) mob_actor_release(actors[i]);
  }
  mob_cluster_close(cluster, on_closed, poll->loop);
}

int main(int argc, char **argv) {
  uv_loop_t loop;
  uv_poll_t input;
  if (argc != 3) return 2;
  library = argv[2];
  uv_loop_init(&loop);
  uv_poll_init(&loop, &input, STDIN_FILENO);
  uv_poll_start(&input, UV_READABLE, on_input);
  check(mob_cluster_connect(&loop, argv[1], NULL, NULL, on_connected, NULL, &cluster),
        mob_errmsg());
  uv_run(&loop, UV_RUN_DEFAULT);
  return 0;
}
