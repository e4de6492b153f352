// `ray start`: a node daemon in the background, or with --block in this process.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/cmd_ray.h"
#include "runtime/node/node.h"
#include "runtime/node/say.h"

#define CONNECT_TIMEOUT_MS 30000

static const char rule[] = "--------------------";

static void say_banner(void) {
  mob_say_gap();
  MOB_SAY_OK("%s", rule);
  MOB_SAY_OK("Ray runtime started.");
  MOB_SAY_OK("%s", rule);
  mob_say_gap();
}

void mob_say_started(const mob_start_options_t *options, const char *ip, const char *address) {
  if (options->head) MOB_SAY("Usage stats collection is disabled.");
  mob_say_gap();
  MOB_SAY("Local node IP: %s", ip);
  say_banner();
  if (options->head) {
    MOB_SAY("Next steps");
    mob_say_indent(2);
    MOB_SAY("To add another node to this Ray cluster, run");
    MOB_SAY("  ray start --address='%s'", address);
    mob_say_gap();
    MOB_SAY("To serve a model on this Ray cluster, run");
    MOB_SAY("  vllm serve MODEL_DIR");
    mob_say_gap();
  }
  MOB_SAY("To terminate the Ray runtime, run");
  MOB_SAY("  ray stop");
  if (options->head) {
    mob_say_gap();
    MOB_SAY("To view the status of the cluster, use");
    MOB_SAY("  ray status");
  }
  mob_say_indent(0);
  if (options->block) {
    mob_say_gap();
    MOB_SAY("--block");
    mob_say_indent(2);
    MOB_SAY("This command will now block forever until terminated by a signal.");
    MOB_SAY(
        "Running subprocesses are monitored and a message will be printed if any of them terminate "
        "unexpectedly. Subprocesses exit with SIGTERM will be treated as graceful, thus NOT "
        "reported.");
    mob_say_indent(0);
  }
}

static void on_ready(void *arg, mob_node_t *node) {
  const mob_start_options_t *options = arg;
  mob_say_started(options, mob_node_ip_address(node), mob_node_gcs_address(node));
}

static int run_here(mob_start_options_t *options) {
  char *why = NULL;
  options->log_to_stderr = true;
  int code = mob_node_run(options, CONNECT_TIMEOUT_MS, on_ready, options, &why);
  if (code) MOB_SAY_ERROR("%s", why ? why : "the node ended");
  free(why);
  return code;
}

static int run_detached(const mob_start_options_t *options, int argc, char **argv) {
  mob_daemon_t daemon;
  mob_status status = mob_daemon_start(argc, argv, options->no_redirect_output, &daemon);
  if (status == MOB_OK) {
    mob_say_started(options, daemon.ip, daemon.address);
  } else {
    fprintf(stderr, "%s%s\n",
            status == MOB_E_EXISTS ? "ConnectionError: " : "Error: ", mob_errmsg());
  }
  mob_daemon_free(&daemon);
  return status == MOB_OK ? 0 : 1;
}

int mob_ray_start_main(int argc, char **argv) {
  mob_start_options_t options;
  int code = 2;
  mob_start_options_init(&options);
  if (mob_start_options_parse(&options, argc, argv) != MOB_OK) {
    fprintf(stderr, "Usage: ray start [OPTIONS]\nTry 'ray start --help' for help.\n\n%s\n",
            mob_errmsg());
    goto cleanup;
  }
  if (options.help) {
    mob_buf_t text = {0};
    mob_start_options_help(&text, "ray start");
    fputs(mob_buf_cstr(&text), stdout);
    mob_buf_free(&text);
    code = 0;
    goto cleanup;
  }
  mob_say_setup(options.log_style, options.color);
  if (mob_start_options_check(&options) != MOB_OK) {
    MOB_SAY_FATAL("%s", mob_errmsg());
    code = 1;
    goto cleanup;
  }
  if (options.ignored.len) {
    MOB_SAY_WARNING("Accepted without effect, since nothing here has what they set: %s",
                    mob_buf_cstr(&options.ignored));
  }
  code = options.block ? run_here(&options) : run_detached(&options, argc, argv);
cleanup:
  mob_start_options_free(&options);
  return code;
}
