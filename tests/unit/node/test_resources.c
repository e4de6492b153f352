// The ledger of a node: what fits, which GPUs, bundles and their names.

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/buf.h"
#include "runtime/node/resources.h"

static const uint8_t pg[MOB_NODE_PG_LEN] = {0xab, 1,  2,  3,  4,  5, 6, 7, 8,
                                            9,    10, 11, 12, 13, 1, 0, 0, 0};
#define PG "ab0102030405060708090a0b0c0d01000000"

static void fill(mob_ledger_t *ledger) {
  memset(ledger, 0, sizeof *ledger);
  mob_pool_add(&ledger->node, "CPU", mob_fixed(4), 0);
  mob_pool_add(&ledger->node, "GPU", mob_fixed(4), 4);
}

static const mob_grant_t *grant_of(const mob_grants_t *grants, const char *name) {
  for (size_t i = 0; i < grants->len; i++) {
    if (strcmp(grants->at[i].name, name) == 0) return &grants->at[i];
  }
  return NULL;
}

static void whole_and_fractional_gpus(void **state) {
  (void)state;
  mob_ledger_t ledger;
  mob_holding_t a, b, c, d;
  fill(&ledger);
  mob_want_t half = {"GPU", 0.5}, two = {"GPU", 2}, odd = {"GPU", 1.5}, many = {"GPU", 5};
  assert_int_equal(mob_ledger_take(&ledger, &half, 1, &a), MOB_OK);
  assert_int_equal(mob_ledger_take(&ledger, &half, 1, &b), MOB_OK);
  assert_int_equal(grant_of(&a.of_node, "GPU")->shares.at[0].index, 0);
  assert_int_equal(grant_of(&b.of_node, "GPU")->shares.at[0].index, 0); // packed
  assert_int_equal(mob_ledger_take(&ledger, &two, 1, &c), MOB_OK);
  assert_int_equal(grant_of(&c.of_node, "GPU")->shares.at[0].index, 1);
  assert_int_equal(grant_of(&c.of_node, "GPU")->shares.at[1].index, 2);
  assert_int_equal(mob_ledger_take(&ledger, &odd, 1, &d), MOB_E_NO_RESOURCES);
  assert_int_equal(mob_ledger_take(&ledger, &two, 1, &d), MOB_E_NO_RESOURCES);
  assert_int_equal(mob_ledger_take(&ledger, &many, 1, &d), MOB_E_NO_RESOURCES);
  assert_string_equal(mob_errmsg(), "GPU: 5 asked, 1 free of 4");
  mob_ledger_give(&ledger, &c);
  assert_int_equal(mob_ledger_take(&ledger, &odd, 1, &d), MOB_E_INVALID);
  assert_int_equal(mob_ledger_take(&ledger, &two, 1, &d), MOB_OK);
  mob_ledger_give(&ledger, &a);
  mob_ledger_give(&ledger, &b);
  mob_ledger_give(&ledger, &d);
  assert_int_equal(ledger.node.entries.at[1].free, mob_fixed(4));
  mob_ledger_free(&ledger);
}

static void all_or_nothing(void **state) {
  (void)state;
  mob_ledger_t ledger;
  mob_holding_t held;
  fill(&ledger);
  mob_want_t wants[] = {{"CPU", 4}, {"GPU", 5}};
  assert_int_equal(mob_ledger_take(&ledger, wants, 2, &held), MOB_E_NO_RESOURCES);
  assert_int_equal(ledger.node.entries.at[0].free, mob_fixed(4));
  mob_want_t unknown = {"TPU", 1};
  assert_int_equal(mob_ledger_take(&ledger, &unknown, 1, &held), MOB_E_NO_RESOURCES);
  assert_string_equal(mob_errmsg(), "TPU: 1 asked, 0 free of 0");
  mob_ledger_free(&ledger);
}

static void put_line(void *arg, const char *name, double total, double free_now) {
  mob_buf_printf(arg, "%s %.7g/%.7g\n", name, free_now, total);
}

static void bundles(void **state) {
  (void)state;
  mob_ledger_t ledger;
  mob_holding_t a, b, c;
  mob_buf_t text = {0};
  fill(&ledger);
  mob_want_t first[] = {{"GPU", 2}, {"CPU", 1}}, second = {"GPU", 1};
  assert_int_equal(mob_ledger_prepare(&ledger, pg, 0, first, 2), MOB_OK);
  assert_int_equal(mob_ledger_prepare(&ledger, pg, 0, first, 2), MOB_OK); // a repeat
  assert_int_equal(mob_ledger_prepare(&ledger, pg, 3, &second, 1), MOB_OK);
  mob_want_t ask[] = {{"GPU_group_0_" PG, 2}, {"GPU_group_" PG, 2}, {"bundle_group_" PG, 0.001}};
  assert_int_equal(mob_ledger_take(&ledger, ask, 3, &a), MOB_E_NOT_FOUND); // not committed
  assert_int_equal(mob_ledger_commit(&ledger, pg, 0), MOB_OK);
  assert_int_equal(mob_ledger_commit(&ledger, pg, 3), MOB_OK);
  assert_int_equal(mob_ledger_commit(&ledger, pg, 9), MOB_E_NOT_FOUND);
  assert_int_equal(mob_ledger_take(&ledger, ask, 3, &a), MOB_OK);
  assert_int_equal(grant_of(&a.of_bundle, "GPU")->shares.at[0].index, 0);
  assert_int_equal(grant_of(&a.of_bundle, "GPU")->shares.at[1].index, 1);
  assert_int_equal(mob_ledger_take(&ledger, ask, 3, &b), MOB_E_NO_RESOURCES);
  mob_want_t anywhere = {"GPU_group_" PG, 1};
  assert_int_equal(mob_ledger_take(&ledger, &anywhere, 1, &b), MOB_OK);
  assert_int_equal(b.index, 3);
  assert_int_equal(grant_of(&b.of_bundle, "GPU")->shares.at[0].index, 2);
  mob_want_t plain = {"GPU", 2};
  assert_int_equal(mob_ledger_take(&ledger, &plain, 1, &c), MOB_E_NO_RESOURCES); // reserved
  mob_ledger_view(&ledger, put_line, &text);
  assert_string_equal(mob_buf_cstr(&text), "CPU 3/4\n"
                                           "GPU 1/4\n"
                                           "GPU_group_0_" PG " 0/2\n"
                                           "CPU_group_0_" PG " 1/1\n"
                                           "bundle_group_0_" PG " 999.999/1000\n"
                                           "GPU_group_" PG " 0/3\n"
                                           "CPU_group_" PG " 1/1\n"
                                           "bundle_group_" PG " 1999.999/2000\n"
                                           "GPU_group_3_" PG " 0/1\n"
                                           "bundle_group_3_" PG " 1000/1000\n");
  assert_true(mob_ledger_cancel(&ledger, pg, 0));
  assert_false(mob_ledger_cancel(&ledger, pg, 0));
  mob_ledger_give(&ledger, &a); // its bundle is gone
  mob_ledger_give(&ledger, &b);
  assert_true(mob_ledger_cancel(&ledger, pg, 3));
  assert_int_equal(ledger.node.entries.at[1].free, mob_fixed(4));
  mob_buf_free(&text);
  mob_ledger_free(&ledger);
}

// A bundle that is prepared again before what held the former one has ended.
static void a_bundle_prepared_anew(void **state) {
  (void)state;
  mob_ledger_t ledger;
  mob_holding_t former, newer, none;
  fill(&ledger);
  mob_want_t two = {"GPU", 2}, ask = {"GPU_group_0_" PG, 2};
  assert_int_equal(mob_ledger_prepare(&ledger, pg, 0, &two, 1), MOB_OK);
  assert_int_equal(mob_ledger_commit(&ledger, pg, 0), MOB_OK);
  assert_int_equal(mob_ledger_take(&ledger, &ask, 1, &former), MOB_OK);
  assert_true(mob_ledger_cancel(&ledger, pg, 0));
  assert_int_equal(mob_ledger_prepare(&ledger, pg, 0, &two, 1), MOB_OK);
  assert_int_equal(mob_ledger_commit(&ledger, pg, 0), MOB_OK);
  assert_int_equal(mob_ledger_take(&ledger, &ask, 1, &newer), MOB_OK);
  mob_ledger_give(&ledger, &former);
  assert_int_equal(mob_ledger_take(&ledger, &ask, 1, &none), MOB_E_NO_RESOURCES);
  mob_ledger_give(&ledger, &newer);
  assert_int_equal(mob_ledger_take(&ledger, &ask, 1, &newer), MOB_OK);
  mob_holding_free(&newer);
  mob_ledger_free(&ledger);
}

static void shrinking(void **state) {
  (void)state;
  mob_ledger_t ledger;
  fill(&ledger);
  mob_want_t one = {"GPU", 1};
  for (int i = 0; i < 3; i++) assert_int_equal(mob_ledger_prepare(&ledger, pg, i, &one, 1), MOB_OK);
  mob_ledger_shrink(&ledger, 1);
  assert_non_null(mob_ledger_find(&ledger, pg, 0));
  assert_null(mob_ledger_find(&ledger, pg, 1));
  assert_int_equal(ledger.node.entries.at[1].free, mob_fixed(3));
  mob_ledger_free(&ledger);
}

static void amounts_out_of_range(void **state) {
  (void)state;
  assert_int_equal(mob_fixed(NAN), 0);
  assert_int_equal(mob_fixed(-1e300), 0);
  assert_true(mob_fixed(INFINITY) > mob_fixed(1e13));
  mob_ledger_t ledger;
  mob_holding_t none;
  fill(&ledger);
  mob_want_t all = {"GPU", 1e300};
  assert_int_equal(mob_ledger_take(&ledger, &all, 1, &none), MOB_E_NO_RESOURCES);
  mob_ledger_free(&ledger);
}

static void group_names(void **state) {
  (void)state;
  char base[64];
  int index;
  uint8_t id[MOB_NODE_PG_LEN];
  assert_true(mob_parse_group_name("GPU_group_12_" PG, base, sizeof base, &index, id));
  assert_string_equal(base, "GPU");
  assert_int_equal(index, 12);
  assert_memory_equal(id, pg, sizeof pg);
  assert_true(mob_parse_group_name("my_group_res_group_" PG, base, sizeof base, &index, id));
  assert_string_equal(base, "my_group_res");
  assert_int_equal(index, -1);
  assert_false(mob_parse_group_name("GPU", base, sizeof base, &index, id));
  assert_false(mob_parse_group_name("_group_" PG, base, sizeof base, &index, id));
  assert_false(mob_parse_group_name("GPU_group_1_xb0102030405060708090a0b0c0d01000000", base,
                                    sizeof base, &index, id));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(whole_and_fractional_gpus),
      cmocka_unit_test(all_or_nothing),
      cmocka_unit_test(bundles),
      cmocka_unit_test(a_bundle_prepared_anew),
      cmocka_unit_test(shrinking),
      cmocka_unit_test(amounts_out_of_range),
      cmocka_unit_test(group_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
