// Manifests: the deployment documents as they are, and every rule that refuses one.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/lws/manifest.h"

static mob_lws_manifest_t manifest;

static int tear_down(void **state) {
  (void)state;
  mob__lws_manifest_free(&manifest);
  return 0;
}

static void add(const char *text) {
  mob__lws_manifest_add(&manifest, "f.yaml", text, strlen(text));
  mob__lws_manifest_finish(&manifest);
}

static void add_seed(const char *name) {
  char path[512];
  snprintf(path, sizeof path, "%s/deploy/seed/%s", MOB_SOURCE_DIR, name);
  assert_int_equal(mob__lws_manifest_add_file(&manifest, path), MOB_OK);
}

static bool told(bool error, const char *text) {
  for (size_t i = 0; i < manifest.messages.len; i++) {
    if (manifest.messages.at[i].error == error && strstr(manifest.messages.at[i].text, text))
      return true;
  }
  return false;
}

// A small valid set in which tests replace one line.
static const char base[] = "apiVersion: leaderworkerset.x-k8s.io/v1\n"
                           "kind: LeaderWorkerSet\n"
                           "metadata:\n"
                           "  name: s\n"
                           "spec:\n"
                           "  replicas: 1\n"
                           "  leaderWorkerTemplate:\n"
                           "    size: 2\n"
                           "    workerTemplate:\n"
                           "      spec:\n"
                           "        containers:\n"
                           "          - name: c\n"
                           "            image: i\n"
                           "            command: [sh]\n";

// Replaces the first `from` by `to` and expects the error to hold `message`.
static void refuse(const char *from, const char *to, const char *message) {
  char text[2000];
  const char *at = strstr(base, from);
  assert_non_null(at);
  snprintf(text, sizeof text, "%.*s%s%s", (int)(at - base), base, to, at + strlen(from));
  add(text);
  if (!told(true, message)) {
    fail_msg("no error with \"%s\"; the first message is \"%s\"", message,
             manifest.messages.len ? manifest.messages.at[0].text : "");
  }
  mob__lws_manifest_free(&manifest);
}

static void test_seeds(void **state) {
  (void)state;
  add_seed("lws-standard.yaml");
  add_seed("service.yaml");
  mob__lws_manifest_finish(&manifest);
  assert_int_equal(manifest.errors, 0);
  assert_int_equal(manifest.messages.len, 2); // the two placeholders
  assert_true(told(false, "lws-standard.yaml:16: "));
  assert_true(told(false, "\"<example-model>\" is a placeholder"));
  assert_int_equal(manifest.sets.len, 1);
  const mob_lws_set_t *set = manifest.sets.at[0];
  assert_string_equal(set->name, "deepseek-r1-671b-fp8-distrubution");
  assert_int_equal(set->replicas, 1);
  assert_int_equal(set->size, 2);
  assert_int_equal(set->restart, MOB_LWS_RECREATE_ON_RESTART);
  assert_false(set->leader_ready);
  const mob_lws_template_t *leader = set->leader;
  assert_string_equal(mob__lws_pair_get(leader->labels, "role"), "leader");
  assert_null(mob__lws_pair_get(set->worker->labels, "role"));
  assert_int_equal(leader->grace_s, 30);
  assert_int_equal(leader->volume_count, 2);
  assert_int_equal(leader->volumes[0].kind, MOB_LWS_VOLUME_CLAIM);
  assert_string_equal(leader->volumes[0].source, "llm-model");
  assert_true(leader->volumes[1].memory);
  assert_int_equal(leader->volumes[1].size_limit, 32LL << 30);
  const mob_lws_container_t *c = &leader->containers[0];
  assert_int_equal(c->command.len, 3);
  assert_string_equal(
      c->command.at[2],
      "/vllm-workspace/ray_init.sh leader --ray_cluster_size=$(LWS_GROUP_SIZE);vllm serve "
      "/models/DeepSeek-R1/ --port 8000 --trust-remote-code --served-model-name ds --max-model-len "
      "2048 "
      "--gpu-memory-utilization 0.95 --tensor-parallel-size 8 --pipeline-parallel-size 2 "
      "--enforce-eager");
  assert_int_equal(c->gpus, 8);
  assert_int_equal(c->cpu_millis, 64000);
  assert_int_equal(c->memory, 512000000000);
  assert_int_equal(c->mount_count, 2);
  assert_string_equal(c->mounts[0].path, "/models/DeepSeek-R1");
  assert_int_equal(manifest.services.len, 1);
  const mob_lws_service_t *service = manifest.services.at[0];
  assert_int_equal(service->ports[0].target, 8000);
  assert_string_equal(mob__lws_pair_get(service->selector, "role"), "leader");
}

static void test_rdma_seed(void **state) {
  (void)state;
  add_seed("lws-rdma.yaml");
  mob__lws_manifest_finish(&manifest);
  assert_int_equal(manifest.errors, 0);
  const mob_lws_container_t *c = &manifest.sets.at[0]->worker->containers[0];
  assert_int_equal(c->env_count, 7);
  assert_string_equal(c->env[1].name, "NCCL_IB_TC");
  assert_string_equal(c->env[1].value, "136");
}

static void test_defaults(void **state) {
  (void)state;
  add(base);
  assert_int_equal(manifest.errors, 0);
  const mob_lws_set_t *set = manifest.sets.at[0];
  assert_ptr_equal(set->leader, set->worker); // no leaderTemplate
  assert_int_equal(set->leader->grace_s, 30);
  assert_string_equal(set->namespace_, "default");
}

static void test_refused_fields(void **state) {
  (void)state;
  refuse("size: 2", "size: 0", "f.yaml:8: spec.leaderWorkerTemplate.size: must be from 1");
  refuse("size: 2", "size: two", "must be an integer, here is a string two");
  refuse("size: 2", "siez: 2", "did you mean size?");
  refuse("replicas: 1", "replicas: 1000001", "must be from 0 to 1000000");
  refuse("name: s", "name: S_1", "must be at most 51 of a-z");
  refuse("name: s", "name: 1s", "beginning with a letter");
  refuse("name: s", "name:", "metadata.name: is missing");
  refuse("x-k8s.io/v1", "x-k8s.io/v2", "leaderworkerset.x-k8s.io/v1");
  refuse("size: 2", "size: 2\n    restartPolicy: Always",
         "it must be one of: RecreateGroupOnPodRestart");
  refuse("replicas: 1", "startupPolicy: Later", "LeaderCreated, LeaderReady");
  refuse("replicas: 1", "networkConfig: {subdomainPolicy: x}", "Shared, UniquePerReplica");
  refuse("replicas: 1", "rolloutStrategy: {rollingUpdateConfiguration: {maxUnavailable: 0}}",
         "must not both be 0");
  refuse("replicas: 1", "rolloutStrategy: {rollingUpdateConfiguration: {maxSurge: 101%}}",
         "percentage up to 100%");
  refuse("size: 2", "size: 8\n    subGroupPolicy: {subGroupSize: 3}", "must be a multiple of 3");
  refuse("    workerTemplate:", "    workTemplate:", "did you mean workerTemplate?");
  refuse("containers:", "restartPolicy: Never\n        containers:", "allow only Always");
  refuse("            image: i\n", "", "containers[0].image: is missing");
  refuse("            command: [sh]\n", "", "entry point is not known here");
  refuse("command: [sh]", "command: sh", "must be a list, here is a string");
  refuse("command: [sh]", "command: [1]", "write \"1\"");
  refuse("command: [sh]", "command: [sh]\n            env: [{name: A, value: 8}]", "write \"8\"");
  refuse("command: [sh]", "command: [sh]\n            env: [{name: 1A, value: x}]",
         "is no variable name");
  refuse("command: [sh]", "command: [sh]\n            ports: [{containerPort: 70000}]",
         "from 1 to 65535");
  refuse("command: [sh]", "command: [sh]\n            volumeMounts: [{name: v, mountPath: /a}]",
         "which spec.volumes lacks");
  refuse("command: [sh]", "command: [sh]\n            volumeMounts: [{name: v, mountPath: a}]",
         "absolute path");
  refuse("command: [sh]", "command: [sh]\n            readinessProbe: {periodSeconds: 0}",
         "from 1 to");
  refuse("command: [sh]", "command: [sh]\n            readinessProbe: {}",
         "exactly one of exec, httpGet, tcpSocket");
  refuse("command: [sh]",
         "command: [sh]\n            livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}",
         "must be 1");
  refuse("command: [sh]", "command: [sh]\n            resources: {limits: {cpu: lots}}",
         "must be an amount");
  refuse("command: [sh]",
         "command: [sh]\n            resources: {limits: {nvidia.com/gpu: 8}, requests: "
         "{nvidia.com/gpu: 4}}",
         "equal in requests and limits");
  refuse("command: [sh]",
         "command: [sh]\n          - name: c\n            image: i\n            command: [sh]",
         "two containers are named \"c\"");
  refuse(
      "command: [sh]",
      "command: [sh]\n            env: [{name: A, valueFrom: {secretKeyRef: {name: x, key: y}}}]",
      "the Secret \"x\" is in none of the files");
}

static void test_refused_documents(void **state) {
  (void)state;
  static const char *const cases[][2] = {
      {"just text\n", "a Kubernetes object is a map"},
      {"kind: LeaderWorkerSet\n", "apiVersion: is missing"},
      {"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 0}]}\n",
       "from 1 to 65535"},
      {"apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {a: b}}\n",
       "spec.ports: is missing"},
      {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {k: '%'}\n", "is not base64"},
      {"a: [\n", "not valid YAML"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    add(cases[i][0]);
    if (!told(true, cases[i][1])) fail_msg("case %zu lacks \"%s\"", i, cases[i][1]);
    mob__lws_manifest_free(&manifest);
  }
  char twice[sizeof base * 2 + 8];
  snprintf(twice, sizeof twice, "%s---\n%s", base, base);
  add(twice);
  assert_true(told(true, "a second LeaderWorkerSet is named \"s\""));
}

static void test_other_kinds(void **state) {
  (void)state;
  add("apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: a}\n---\n"
      "apiVersion: v1\nkind: Secret\nmetadata: {name: sec}\nstringData: {a: plain}\ndata: {b: "
      "aGVsbG8=}\n");
  assert_int_equal(manifest.errors, 0);
  assert_true(told(false, "PersistentVolume of v1 is skipped"));
  const mob_lws_config_t *secret = mob__lws_manifest_config(&manifest, "Secret", "sec");
  assert_string_equal(mob__lws_pair_get(secret->data, "a"), "plain");
  assert_string_equal(mob__lws_pair_get(secret->data, "b"), "hello");
}

static void test_revision(void **state) {
  (void)state;
  char text[sizeof base + 8];
  add(base);
  char first[32];
  snprintf(first, sizeof first, "%s", manifest.sets.at[0]->revision);
  mob__lws_manifest_free(&manifest);
  snprintf(text, sizeof text, "%s", base);
  memcpy(strstr(text, "image: i"), "image: j", 8);
  add(text);
  assert_string_not_equal(first, manifest.sets.at[0]->revision);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_seeds, tear_down),
      cmocka_unit_test_teardown(test_rdma_seed, tear_down),
      cmocka_unit_test_teardown(test_defaults, tear_down),
      cmocka_unit_test_teardown(test_refused_fields, tear_down),
      cmocka_unit_test_teardown(test_refused_documents, tear_down),
      cmocka_unit_test_teardown(test_other_kinds, tear_down),
      cmocka_unit_test_teardown(test_revision, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
