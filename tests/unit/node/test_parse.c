// Command lines, addresses and names.

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/node/address.h"
#include "runtime/node/init_options.h"
#include "runtime/node/options.h"

#define ARGV(...)                                                                                  \
  (char *[]) {                                                                                     \
    "x", __VA_ARGS__, NULL                                                                         \
  }

static int count(char **argv) {
  int n = 0;
  while (argv[n]) n++;
  return n;
}

static mob_status parse(mob_start_options_t *options, char **argv) {
  mob_start_options_init(options);
  return mob_start_options_parse(options, count(argv), argv);
}

static void start_takes_both_spellings(void **state) {
  (void)state;
  mob_start_options_t o;
  assert_int_equal(
      parse(&o, ARGV("--head", "--port", "1234", "--num-gpus=8", "--num-cpus", "4", "--block",
                     "--resources={\"special\": 2}", "--labels=a=b,c = d", "-v")),
      MOB_OK);
  assert_true(o.head && o.block);
  assert_int_equal(o.port, 1234);
  assert_int_equal(o.num_gpus, 8);
  assert_int_equal(o.num_cpus, 4);
  assert_int_equal(o.verbose, 1);
  assert_int_equal(o.resources.len, 1);
  assert_string_equal(o.resources.at[0].name, "special");
  assert_int_equal(o.labels.len, 2);
  assert_string_equal(o.labels.at[1].key, "c");
  assert_string_equal(o.labels.at[1].value, "d");
  assert_int_equal(mob_start_options_check(&o), MOB_OK);
  mob_start_options_free(&o);
}

static void start_names_flags_without_meaning(void **state) {
  (void)state;
  mob_start_options_t o;
  assert_int_equal(
      parse(&o, ARGV("--head", "--dashboard-host=0.0.0.0", "--metrics-export-port=8080",
                     "--disable-usage-stats", "--include-dashboard=false")),
      MOB_OK);
  assert_string_equal(mob_buf_cstr(&o.ignored), "--dashboard-host, --metrics-export-port");
  mob_start_options_free(&o);
}

static void refused(char **argv, const char *text) {
  mob_start_options_t o;
  assert_int_equal(parse(&o, argv), MOB_E_INVALID);
  assert_string_equal(mob_errmsg(), text);
  mob_start_options_free(&o);
}

static void start_refuses_what_is_wrong(void **state) {
  (void)state;
  refused(ARGV("--hed"), "Error: No such option: --hed Did you mean --head?");
  refused(ARGV("--frobnicate=1"), "Error: No such option: --frobnicate");
  refused(ARGV("--port"), "Error: Option '--port' requires an argument.");
  refused(ARGV("--port=abc"), "Error: Invalid value for '--port': 'abc' is not a valid integer.");
  refused(ARGV("--port=70000"),
          "Error: Invalid value for '--port': 70000 is not in the range 0<=x<=65535.");
  refused(ARGV("--num-gpus=-1"),
          "Error: Invalid value for '--num-gpus': -1 is not in the range 0<=x<=2147483647.");
  refused(ARGV("--head=1"), "Error: Option '--head' does not take a value.");
  refused(ARGV("extra"), "Error: Got unexpected extra argument (extra)");
  refused(ARGV("--resources={\"CPU\": 1}"),
          "Error: --resources must not hold 'CPU'. Use --num-cpus, --num-gpus, "
          "--memory or --object-store-memory instead.");
  refused(
      ARGV("--log-style=loud"),
      "Error: Invalid value for '--log-style': 'loud' is not one of 'auto', 'record', 'pretty'.");
  refused(ARGV("--labels=x"), "Error: --labels: 'x' is not of the form key=value.");
}

static void start_checks_combinations(void **state) {
  (void)state;
  mob_start_options_t o;
  assert_int_equal(parse(&o, ARGV("--num-cpus=1")), MOB_OK);
  assert_int_equal(mob_start_options_check(&o), MOB_E_INVALID);
  mob_start_options_free(&o);
  assert_int_equal(parse(&o, ARGV("--address=a:1", "--port=2")), MOB_OK);
  assert_int_equal(mob_start_options_check(&o), MOB_E_INVALID);
  assert_string_equal(mob_errmsg(), "`--port` should not be specified without `--head`.");
  mob_start_options_free(&o);
}

static mob_status init(mob_init_options_t *o, char **argv) {
  return mob_init_options_parse(o, count(argv), argv);
}

static void init_script(void **state) {
  (void)state;
  mob_init_options_t o;
  assert_int_equal(
      init(&o, ARGV("leader", "--ray_cluster_size=2", "--num-gpus=8", "--ray_port=7000")), MOB_OK);
  assert_true(o.leader);
  assert_int_equal(o.cluster_size, 2);
  assert_int_equal(o.port, 7000);
  assert_int_equal(o.timeout_s, 300);
  assert_int_equal(o.extra.len, 1);
  assert_string_equal(o.extra.at[0], "--num-gpus=8");
  mob_init_options_free(&o);
  assert_int_equal(init(&o, ARGV("worker", "--ray_address=head", "--ray_init_timeout=5")), MOB_OK);
  assert_false(o.leader);
  assert_string_equal(o.ray_address, "head");
  assert_int_equal(o.timeout_s, 5);
  assert_int_equal(o.port, 6379);
  mob_init_options_free(&o);
}

static void init_refused(char **argv, const char *text) {
  mob_init_options_t o;
  assert_int_equal(init(&o, argv), MOB_E_INVALID);
  assert_string_equal(mob_errmsg(), text);
  mob_init_options_free(&o);
}

static void init_script_refuses(void **state) {
  (void)state;
  init_refused(ARGV("leader"), "Error: Missing argument --ray_cluster_size");
  init_refused(ARGV("leader", "--ray_cluster_size="), "Error: Missing argument --ray_cluster_size");
  init_refused(ARGV("worker"), "Error: Missing argument --ray_address");
  init_refused(ARGV("manager"), "unknown subcommand: manager");
  init_refused(ARGV("leader", "--ray_cluster_size=two"),
               "Error: --ray_cluster_size must be a whole number from 1 to 100000, not 'two'");
}

static void split(const char *address, const char *host, int port) {
  char *got_host;
  int got_port;
  assert_int_equal(mob_split_address(address, &got_host, &got_port), MOB_OK);
  assert_string_equal(got_host, host);
  assert_int_equal(got_port, port);
  free(got_host);
}

static void addresses(void **state) {
  (void)state;
  char *host;
  int port;
  split("a.b:6379", "a.b", 6379);
  split("a.b", "a.b", -1);
  split("[::1]:7", "::1", 7);
  split("fe::2", "fe::2", -1);
  assert_int_equal(mob_split_address("a:b", &host, &port), MOB_E_INVALID);
  assert_int_equal(mob_split_address(":1", &host, &port), MOB_E_INVALID);
  assert_int_equal(mob_split_address("a:70000", &host, &port), MOB_E_INVALID);
  assert_int_equal(mob_split_address("[::1", &host, &port), MOB_E_INVALID);
}

static void interface_selectors(void **state) {
  (void)state;
  assert_true(mob_ifname_matches("eth", "eth0"));
  assert_false(mob_ifname_matches("eth", "ib0"));
  assert_true(mob_ifname_matches("eth0,ib", "ib0"));
  assert_true(mob_ifname_matches("=eth0", "eth0"));
  assert_false(mob_ifname_matches("=eth", "eth0"));
  assert_false(mob_ifname_matches("^lo,docker", "docker0"));
  assert_true(mob_ifname_matches("^lo,docker", "eth0"));
  assert_true(mob_ifname_matches("^=lo", "lo1"));
}

static void own_addresses(void **state) {
  (void)state;
  char *ip = NULL;
  unsetenv("VLLM_HOST_IP");
  unsetenv("NCCL_SOCKET_IFNAME");
  assert_int_equal(mob_node_ip("127.0.0.2", NULL, &ip), MOB_OK);
  assert_string_equal(ip, "127.0.0.2");
  free(ip);
  assert_int_equal(mob_node_ip("192.0.2.77", NULL, &ip),
                   MOB_E_INVALID); // documentation range: nobody's
  assert_int_equal(mob_node_ip(NULL, "127.0.0.1", &ip), MOB_OK);
  assert_string_equal(ip, "127.0.0.1");
  free(ip);
  setenv("NCCL_SOCKET_IFNAME", "=lo", 1);
  assert_int_equal(mob_node_ip(NULL, "192.0.2.1", &ip), MOB_OK);
  assert_string_equal(ip, "127.0.0.1");
  free(ip);
  setenv("VLLM_HOST_IP", "127.0.0.3", 1);
  assert_int_equal(mob_node_ip(NULL, NULL, &ip), MOB_OK);
  assert_string_equal(ip, "127.0.0.3");
  free(ip);
  setenv("MOBULA_BIND_ADDRESS", "127.0.0.4", 1);
  assert_int_equal(mob_node_ip(NULL, NULL, &ip), MOB_OK);
  assert_string_equal(ip, "127.0.0.4");
  free(ip);
  unsetenv("MOBULA_BIND_ADDRESS");
  unsetenv("VLLM_HOST_IP");
  unsetenv("NCCL_SOCKET_IFNAME");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(start_takes_both_spellings),
      cmocka_unit_test(start_names_flags_without_meaning),
      cmocka_unit_test(start_refuses_what_is_wrong),
      cmocka_unit_test(start_checks_combinations),
      cmocka_unit_test(init_script),
      cmocka_unit_test(init_script_refuses),
      cmocka_unit_test(addresses),
      cmocka_unit_test(interface_selectors),
      cmocka_unit_test(own_addresses),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
