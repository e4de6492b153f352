// The pure parts: resource sets, label conditions, and which node gets which bundle.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/gcs/base64.h"
#include "runtime/gcs/ids.h"
#include "runtime/gcs/labels.h"
#include "runtime/gcs/placement.h"

// "CPU=4 GPU=8"
static mob_resources_t parse(const char *text) {
  mob_resources_t set = {0};
  char *copy = strdup(text), *save = NULL;
  for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
    char *equals = strchr(word, '=');
    *equals = 0;
    mob_resources_set(&set, word, mob_resource_fixed(strtod(equals + 1, NULL)));
  }
  free(copy);
  return set;
}

static void test_fixed_point(void **state) {
  (void)state;
  assert_int_equal(mob_resource_fixed(0.0001), 1);
  assert_int_equal(mob_resource_fixed(0.1 + 0.2), 3000);
  assert_int_equal(mob_resource_fixed(1e14), 1000000000000000000);
  assert_int_equal(mob_resource_fixed(1e300), 1000000000000000000);
  assert_int_equal(mob_resource_fixed(-1.0 / 0.0), -1000000000000000000);
  assert_int_equal(mob_resource_fixed(0.0 / 0.0), 0);
  mob_resources_t huge = {0};
  mob_resources_set(&huge, "x", INT64_MAX - 1);
  mob_resources_add(&huge, &huge);
  assert_int_equal(mob_resources_get(&huge, "x"), INT64_MAX);
  mob_resources_free(&huge);
  assert_true(mob_resource_double(mob_resource_fixed(7152435609.0)) == 7152435609.0);
  mob_resources_t have = parse("CPU=1"), tenth = parse("CPU=0.1");
  for (int i = 0; i < 10; i++) {
    assert_true(mob_resources_cover(&have, &tenth));
    mob_resources_sub(&have, &tenth);
  }
  assert_int_equal(mob_resources_get(&have, "CPU"), 0); // exactly
  assert_false(mob_resources_cover(&have, &tenth));
  mob_resources_free(&have);
  mob_resources_free(&tenth);
}

static void test_sets(void **state) {
  (void)state;
  mob_resources_t a = parse("GPU=8 CPU=4"), b = parse("CPU=1 memory=5"), none = {0};
  assert_string_equal(a.at[0].name, "CPU"); // sorted
  assert_false(mob_resources_cover(&a, &b));
  assert_true(mob_resources_cover(&a, &none));
  mob_resources_add(&a, &b);
  assert_int_equal(mob_resources_get(&a, "CPU"), 50000);
  assert_true(mob_resources_cover(&a, &b));
  mob_buf_t text = {0};
  mob_resources_print(&a, &text);
  assert_string_equal(mob_buf_cstr(&text), "{CPU: 5, GPU: 8, memory: 5}");
  mob_buf_free(&text);
  mob_resources_t zero = parse("TPU=0");
  assert_true(mob_resources_cover(&none, &zero)); // nothing asked
  assert_false(mob_resources_equal(&none, &zero));
  mob_resources_free(&a);
  mob_resources_free(&b);
  mob_resources_free(&zero);
}

// As `ray list actors --detail` shows them for an actor in bundle 1 of a group.
static void test_group_names(void **state) {
  (void)state;
  const char *hex = "ec0735df77f58be45a2dd039c38001000000";
  mob_resources_t plain = parse("CPU=1 GPU=8"), out = {0};
  mob_resources_in_group(&out, &plain, hex, 1);
  mob_resources_t expect = parse("CPU_group_1_ec0735df77f58be45a2dd039c38001000000=1 "
                                 "CPU_group_ec0735df77f58be45a2dd039c38001000000=1 "
                                 "GPU_group_1_ec0735df77f58be45a2dd039c38001000000=8 "
                                 "GPU_group_ec0735df77f58be45a2dd039c38001000000=8 "
                                 "bundle_group_1_ec0735df77f58be45a2dd039c38001000000=0.001 "
                                 "bundle_group_ec0735df77f58be45a2dd039c38001000000=0.001");
  assert_true(mob_resources_equal(&out, &expect));
  mob_resources_in_group(&out, &plain, hex, -1);
  assert_int_equal(out.len, 3);
  mob_resources_of_bundle(&out, &plain, hex, 0);
  assert_int_equal(mob_resources_get(&out, "bundle_group_0_ec0735df77f58be45a2dd039c38001000000"),
                   10000000);
  assert_int_equal(mob_resources_get(&out, "GPU_group_0_ec0735df77f58be45a2dd039c38001000000"),
                   80000);
  assert_true(mob_resource_is_group("GPU_group_0_ec0735df77f58be45a2dd039c38001000000"));
  assert_true(mob_resource_is_group("bundle_group_ec0735df77f58be45a2dd039c38001000000"));
  assert_false(mob_resource_is_group("GPU"));
  assert_false(mob_resource_is_group("my_group_of_things"));
  mob_resources_free(&plain);
  mob_resources_free(&out);
  mob_resources_free(&expect);
}

static void test_labels(void **state) {
  (void)state;
  assert_true(mob_label_matches("us", "us"));
  assert_false(mob_label_matches("us", "eu"));
  assert_false(mob_label_matches(NULL, "us"));
  assert_true(mob_label_matches("us", "!eu"));
  assert_true(mob_label_matches(NULL, "!eu"));
  assert_true(mob_label_matches("b", "in(a, b,c)"));
  assert_false(mob_label_matches("d", "in(a,b,c)"));
  assert_false(mob_label_matches("ab", "in(a,b)"));
  assert_true(mob_label_matches("d", "!in(a,b,c)"));
  assert_false(mob_label_matches("a", "!in(a)"));
  assert_false(mob_label_matches("a", "in()"));
}

static void test_base64(void **state) {
  (void)state;
  mob_buf_t out = {0};
  assert_int_equal(mob__base64_decode("eyJhIjogMX0=", &out), MOB_OK);
  assert_string_equal(mob_buf_cstr(&out), "{\"a\": 1}");
  assert_int_equal(mob__base64_decode("", &out), MOB_OK);
  assert_int_equal(mob__base64_decode("a", &out), MOB_E_FORMAT);
  assert_int_equal(mob__base64_decode("a*bc", &out), MOB_E_FORMAT);
  mob_buf_free(&out);
}

static void test_ids(void **state) {
  (void)state;
  uint8_t id[28];
  memset(id, 0xff, sizeof id);
  assert_true(mob_id_is_nil((ProtobufCBinaryData){28, id}));
  assert_true(mob_id_is_nil((ProtobufCBinaryData){0, NULL}));
  id[27] = 0;
  assert_false(mob_id_is_nil((ProtobufCBinaryData){28, id}));
  assert_string_equal(mob_id_text_of("\x01\x00\x00\x00", 4).text, "01000000");
}

// -------------------------------------------------------------------------------------- strategies

typedef struct scene {
  mob_resources_t total[8], available[8];
  mob_place_node_t nodes[8];
  size_t n;
} scene_t;

static void add_node(scene_t *s, const char *total, const char *available) {
  static const char *const names[] = {"A", "B", "C", "D", "E", "F", "G", "H"};
  s->total[s->n] = parse(total);
  s->available[s->n] = parse(available);
  s->nodes[s->n] = (mob_place_node_t){
      .name = names[s->n], .total = &s->total[s->n], .available = &s->available[s->n]};
  s->n++;
}

static void free_scene(scene_t *s) {
  for (size_t i = 0; i < s->n; i++) {
    mob_resources_free(&s->total[i]);
    mob_resources_free(&s->available[i]);
  }
  *s = (scene_t){0};
}

// The nodes' letters in the order of the bundles, or the failure.
static const char *place(scene_t *s, mob_placement_strategy_t strategy, size_t n,
                         const char *const *bundles, mob_buf_t *why) {
  static char letters[16];
  mob_resources_t needs[8];
  size_t chosen[8];
  for (size_t i = 0; i < n; i++) needs[i] = parse(bundles[i]);
  mob_place_result_t result = mob_place_bundles(strategy, s->nodes, s->n, needs, n, chosen, why);
  for (size_t i = 0; i < n; i++) mob_resources_free(&needs[i]);
  if (result == MOB_PLACE_NO_RESOURCES) return "no resources";
  if (result == MOB_PLACE_INFEASIBLE) return "infeasible";
  for (size_t i = 0; i < n; i++) letters[i] = (char)('A' + chosen[i]);
  letters[n] = 0;
  return letters;
}

#define PLACE(s, strategy, ...)                                                                    \
  place((s), (strategy), sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *),                   \
        (const char *[]){__VA_ARGS__}, NULL)

static void test_pack(void **state) {
  (void)state;
  scene_t s = {0};
  add_node(&s, "CPU=4 GPU=8", "CPU=4 GPU=8");
  add_node(&s, "CPU=4 GPU=8", "CPU=4 GPU=8");
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=4", "GPU=4"), "AA");
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=4", "GPU=4", "GPU=4"), "AAB");
  // The scarcest goes first: the big bundle gets a whole node though it is named last.
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=4", "GPU=4", "GPU=8"), "BBA");
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=9"), "infeasible");
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=8", "GPU=8", "GPU=1"), "infeasible");
  free_scene(&s);
  add_node(&s, "GPU=8", "GPU=2");
  add_node(&s, "GPU=8", "GPU=8");
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=2"), "B"); // the emptier one scores higher
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=8", "GPU=8"), "no resources");
  free_scene(&s);
}

static void test_spread(void **state) {
  (void)state;
  scene_t s = {0};
  for (int i = 0; i < 3; i++) add_node(&s, "CPU=4 GPU=8", "CPU=4 GPU=8");
  assert_string_equal(PLACE(&s, MOB_PLACE_SPREAD, "GPU=2", "GPU=2", "GPU=2"), "ABC");
  const char *four = PLACE(&s, MOB_PLACE_SPREAD, "GPU=2", "GPU=2", "GPU=2", "GPU=2");
  assert_int_equal(strlen(four), 4); // the fourth shares
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_SPREAD, "GPU=2", "GPU=2", "GPU=2"), "ABC");
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_SPREAD, "GPU=2", "GPU=2", "GPU=2", "GPU=2"),
                      "infeasible");
  s.nodes[0].excluded = true; // holds a bundle of the group already
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_SPREAD, "GPU=2", "GPU=2"), "BC");
  free_scene(&s);
}

static void test_strict_pack(void **state) {
  (void)state;
  scene_t s = {0};
  add_node(&s, "GPU=8", "GPU=8");
  add_node(&s, "GPU=16", "GPU=12");
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_PACK, "GPU=4", "GPU=4"), "BB");
  s.nodes[0].preferred = true;
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_PACK, "GPU=4", "GPU=4"), "AA");
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_PACK, "GPU=8", "GPU=4"), "BB"); // only a wish
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_PACK, "GPU=8", "GPU=8"), "no resources");
  assert_string_equal(PLACE(&s, MOB_PLACE_STRICT_PACK, "GPU=12", "GPU=8"), "infeasible");
  free_scene(&s);
}

// One bundle per stage, the first one on the head's node: what the engine asks for.
static void test_pinned_to_a_node(void **state) {
  (void)state;
  scene_t s = {0};
  add_node(&s, "CPU=4 GPU=8 node:10.0.0.2=1", "CPU=4 GPU=8 node:10.0.0.2=1");
  add_node(&s, "CPU=4 GPU=8 node:10.0.0.1=1", "CPU=4 GPU=8 node:10.0.0.1=1");
  assert_string_equal(PLACE(&s, MOB_PLACE_PACK, "GPU=8 node:10.0.0.1=0.001", "GPU=8"), "BA");
  free_scene(&s);
}

static void test_reason(void **state) {
  (void)state;
  scene_t s = {0};
  mob_buf_t why = {0};
  add_node(&s, "CPU=4 GPU=8", "CPU=4 GPU=1");
  const char *two[] = {"GPU=4", "GPU=8"};
  assert_string_equal(place(&s, MOB_PLACE_SPREAD, 2, two, &why), "infeasible");
  assert_string_equal(mob_buf_cstr(&why),
                      "2 bundles (SPREAD) ask for {GPU: 12}, the largest one for {GPU: 8}; "
                      "the cluster's nodes have: A {GPU: 8}");
  why.len = 0;
  assert_string_equal(place(&s, MOB_PLACE_PACK, 1, two, &why), "no resources");
  assert_string_equal(
      mob_buf_cstr(&why),
      "1 bundle (PACK) ask for {GPU: 4}, the largest one for {GPU: 4}; free now: A {GPU: 1}");
  free_scene(&s);
  why.len = 0;
  assert_string_equal(place(&s, MOB_PLACE_PACK, 1, two, &why), "infeasible");
  assert_non_null(strstr(mob_buf_cstr(&why), "no node"));
  mob_buf_free(&why);
}

static size_t place_task(scene_t *s, const char *demand, bool *feasible) {
  mob_resources_t need = parse(demand);
  size_t node = mob_place_task(s->nodes, s->n, &need, feasible);
  mob_resources_free(&need);
  return node;
}

static void test_task(void **state) {
  (void)state;
  scene_t s = {0};
  bool feasible;
  add_node(&s, "CPU=8 GPU=8", "CPU=8 GPU=8");
  add_node(&s, "CPU=8", "CPU=8");
  add_node(&s, "CPU=8", "CPU=3");
  assert_int_equal(place_task(&s, "CPU=1", &feasible), 1); // no GPU node for a task without GPU
  assert_int_equal(place_task(&s, "GPU=1", &feasible), 0);
  s.nodes[2].preferred = true;
  assert_int_equal(place_task(&s, "CPU=1", &feasible),
                   1); // the preferred one is more than half full
  mob_resources_set(&s.available[2], "CPU", 60000);
  assert_int_equal(place_task(&s, "CPU=1", &feasible),
                   2); // now it counts as empty, and wins the tie
  assert_int_equal(place_task(&s, "CPU=9", &feasible), 3);
  assert_false(feasible);
  mob_resources_set(&s.available[0], "GPU", 0);
  assert_int_equal(place_task(&s, "GPU=1", &feasible), 3);
  assert_true(feasible);
  s.nodes[1].excluded = s.nodes[2].excluded = true;
  assert_int_equal(place_task(&s, "CPU=1", &feasible), 0); // rather a GPU node than none
  free_scene(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_fixed_point), cmocka_unit_test(test_sets),
      cmocka_unit_test(test_group_names), cmocka_unit_test(test_labels),
      cmocka_unit_test(test_base64),      cmocka_unit_test(test_ids),
      cmocka_unit_test(test_pack),        cmocka_unit_test(test_spread),
      cmocka_unit_test(test_strict_pack), cmocka_unit_test(test_pinned_to_a_node),
      cmocka_unit_test(test_reason),      cmocka_unit_test(test_task),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
