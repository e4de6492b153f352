// What the commands print, against what Ray 2.54.0 prints for the same values.

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/node/status_text.h"
#include "runtime/node/table.h"
#include "runtime/node/yaml_text.h"

static void floats(void **state) {
  (void)state;
  char out[40];
  assert_string_equal(mob_py_float(4, out), "4.0");
  assert_string_equal(mob_py_float(0.001, out), "0.001");
  assert_string_equal(mob_py_float(0.1, out), "0.1");
  assert_string_equal(mob_py_float(1e16, out), "1e+16");
  assert_string_equal(mob_py_float(123456789012345.0, out), "123456789012345.0");
  assert_string_equal(mob_py_float(0.00001, out), "1e-05");
  assert_string_equal(mob_py_float(0, out), "0.0");
  assert_string_equal(mob_py_float(-2.5, out), "-2.5");
  assert_string_equal(mob_py_memory(0, out), "0B");
  assert_string_equal(mob_py_memory(1023, out), "1023B");
  assert_string_equal(mob_py_memory(34332 * 1e6, out), "31.97GiB");
}

static void table_of_nodes(void **state) {
  (void)state;
  const char *const headers[] = {"NODE_ID",       "NODE_IP",   "IS_HEAD_NODE",    "STATE",
                                 "STATE_MESSAGE", "NODE_NAME", "RESOURCES_TOTAL", "LABELS"};
  char *cells[] = {"4088d64d243544321ea1bb1c889aa62795e36abbe8bb2a0ed355f424",
                   "10.77.0.2",
                   "False",
                   "ALIVE",
                   NULL,
                   "10.77.0.2",
                   "CPU: 4.0\nGPU: 8.0",
                   "ray.io/node-id: 4088d64d243544321ea1bb1c889aa62795e36abbe8bb2a0ed355f424"};
  mob_buf_t out = {0};
  mob_table(&out, headers, 8, cells, 1);
  assert_string_equal(mob_buf_cstr(&out),
                      "    NODE_ID                                                   NODE_IP    "
                      "IS_HEAD_NODE    STATE    "
                      "STATE_MESSAGE    NODE_NAME    RESOURCES_TOTAL    LABELS\n"
                      " 0  4088d64d243544321ea1bb1c889aa62795e36abbe8bb2a0ed355f424  10.77.0.2  "
                      "False           ALIVE                    "
                      " 10.77.0.2    CPU: 4.0           ray.io/node-id: "
                      "4088d64d243544321ea1bb1c889aa62795e36abbe8bb2a0ed355f424\n"
                      "                                                                            "
                      "                                   "
                      "                 GPU: 8.0\n");
  mob_buf_free(&out);
}

static void table_of_actors(void **state) {
  (void)state;
  const char *const headers[] = {"ACTOR_ID", "CLASS_NAME", "STATE", "JOB_ID",
                                 "NAME",     "NODE_ID",    "PID",   "RAY_NAMESPACE"};
  char *cells[] = {"2e702da2651a00f24a94e38901000000",
                   "Stage",
                   "ALIVE",
                   "01000000",
                   "stage1",
                   "4088d64d243544321ea1bb1c889aa62795e36abbe8bb2a0ed355f424",
                   "24924",
                   "demo"};
  mob_buf_t out = {0};
  mob_table(&out, headers, 8, cells, 1);
  assert_string_equal(
      mob_buf_cstr(&out),
      "    ACTOR_ID                          CLASS_NAME    STATE      JOB_ID  NAME    NODE_ID      "
      "                       "
      "                        PID  RAY_NAMESPACE\n"
      " 0  2e702da2651a00f24a94e38901000000  Stage         ALIVE    01000000  stage1  "
      "4088d64d243544321ea1bb1c889aa62795e36abbe8bb2a0ed355f424  24924  demo\n");
  mob_buf_free(&out);
}

static void yaml(void **state) {
  (void)state;
  json_t *rows = json_pack("[{s:s, s:b, s:n, s:{s:f, s:s}, s:s, s:s, s:i, s:{}, s:s}]", "node_id",
                           "4088d6", "is_head_node", 0, "state_message", "resources_total", "CPU",
                           4.0, "memory", "15.543 GiB", "job_id", "01000000", "repr_name", "",
                           "pid", 7, "labels", "env", "{}");
  mob_buf_t out = {0};
  mob_yaml_list(&out, rows);
  assert_string_equal(mob_buf_cstr(&out), "---\n"
                                          "-   node_id: 4088d6\n"
                                          "    is_head_node: false\n"
                                          "    state_message: null\n"
                                          "    resources_total:\n"
                                          "        CPU: 4.0\n"
                                          "        memory: 15.543 GiB\n"
                                          "    job_id: '01000000'\n"
                                          "    repr_name: ''\n"
                                          "    pid: 7\n"
                                          "    labels: {}\n"
                                          "    env: '{}'\n"
                                          "...\n");
  mob_buf_free(&out);
  json_decref(rows);
}

#define PG "ec0735df77f58be45a2dd039c38001000000"

static const char report[] =
    "{\"gcs_request_time\":0.002486,\"time\":1795294839.441506,\"non_terminated_nodes_time\":1.1e-"
    "05,"
    "\"autoscaler_report\":{\"active_nodes\":{\"node_593a\":1,\"node_4088\":1},\"pending_nodes\":[]"
    ","
    "\"pending_launches\":{},\"failed_nodes\":[],\"node_type_mapping\":{\"593a\":\"node_593a\","
    "\"4088\":\"node_4088\"},"
    "\"legacy\":true},\"load_metrics_report\":{\"usage\":{\"GPU\":[16.0,16.0],\"CPU\":[2.0,8.0],"
    "\"memory\":[0.0,34327526400.0],\"object_store_memory\":[0.0,14710263808.0],\"node:10.77.0.1\":"
    "[0.0,1.0],"
    "\"CPU_group_" PG "\":[2.0,2.0],\"CPU_group_0_" PG "\":[1.0,1.0],\"GPU_group_" PG
    "\":[16.0,16.0],"
    "\"bundle_group_" PG "\":[0.002,2000.0]},\"resource_demand\":[],"
    "\"pg_demand\":[[{\"strategy\":\"PACK\",\"bundles\":[[{\"GPU\":4.0},1]]},1]],\"request_"
    "demand\":[],"
    "\"usage_by_node\":{\"593a\":{\"CPU\":[1.0,4.0]}}}}";

static void status_text(void **state) {
  (void)state;
  mob_buf_t out = {0};
  setenv("TZ", "UTC", 1);
  assert_int_equal(mob_status_text(report, strlen(report), false, &out), MOB_OK);
  assert_string_equal(mob_buf_cstr(&out),
                      "======== Autoscaler status: 2026-11-21 21:00:39.441506 ========\n"
                      "Node status\n"
                      "---------------------------------------------------------------\n"
                      "Active:\n"
                      " 1 node_593a\n"
                      " 1 node_4088\n"
                      "Pending:\n"
                      " (no pending nodes)\n"
                      "Recent failures:\n"
                      " (no failures)\n"
                      "\n"
                      "Resources\n"
                      "---------------------------------------------------------------\n"
                      "Total Usage:\n"
                      " 2.0/8.0 CPU (2.0 used of 2.0 reserved in placement groups)\n"
                      " 16.0/16.0 GPU (16.0 used of 16.0 reserved in placement groups)\n"
                      " 0B/31.97GiB memory\n"
                      " 0B/13.70GiB object_store_memory\n"
                      "\n"
                      "From request_resources:\n"
                      " (none)\n"
                      "Pending Demands:\n"
                      " {'GPU': 4.0} * 1 (PACK): 1+ pending placement groups\n");
  mob_buf_free(&out);
}

static void status_of_each_node(void **state) {
  (void)state;
  mob_buf_t out = {0};
  assert_int_equal(mob_status_text(report, strlen(report), true, &out), MOB_OK);
  const char *text = mob_buf_cstr(&out);
  assert_non_null(strstr(text,
                         "========\nGCS request time: 0.002486s\n"
                         "Node Provider non_terminated_nodes time: 0.000011s\n\nNode status\n"));
  const char *tail = strstr(text, "\n\nNode: 593a (node_593a)\n Usage:\n  1.0/4.0 CPU\n");
  assert_non_null(tail);
  mob_buf_free(&out);
}

static void status_of_nonsense(void **state) {
  (void)state;
  mob_buf_t out = {0};
  assert_int_equal(mob_status_text("{", 1, false, &out), MOB_E_FORMAT);
  assert_int_equal(mob_status_text("{\"load_metrics_report\":{}}", 26, false, &out), MOB_E_FORMAT);
  mob_buf_free(&out);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(floats),
      cmocka_unit_test(table_of_nodes),
      cmocka_unit_test(table_of_actors),
      cmocka_unit_test(yaml),
      cmocka_unit_test(status_text),
      cmocka_unit_test(status_of_each_node),
      cmocka_unit_test(status_of_nonsense),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
