// `mobula gcs-server`: the GCS as a process of its own, with the flags of Ray's gcs_server, so that
// it can stand in for that program.
#define MOB_LOG_COMPONENT "gcs"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/base64.h"
#include "runtime/gcs/gcs.h"

typedef enum flag_type { TEXT, NUMBER, TRUTH } flag_type_t;

typedef struct flags {
  const char *redis_address, *redis_username, *redis_password, *log_dir, *stdout_filepath,
      *stderr_filepath;
  const char *config_list, *node_ip_address, *session_name, *session_dir, *ray_commit, *node_id;
  const char *python_version, *temp_dir;
  long redis_port, gcs_server_port, metrics_agent_port;
  bool redis_enable_ssl, retry_redis, head;
} flags_t;

typedef struct flag {
  const char *name;
  flag_type_t type;
  size_t offset;
  const char *help;
} flag_t;

#define FLAG(name, type, help)                                                                     \
  { #name, type, offsetof(flags_t, name), help }
static const flag_t table[] = {
    FLAG(gcs_server_port, NUMBER, "port to listen on; 0 picks a free one"),
    FLAG(node_ip_address, TEXT, "this node's address (stated, not bound)"),
    FLAG(session_name, TEXT, "name of the session"),
    FLAG(session_dir, TEXT, "directory of the session; the bound port is written there"),
    FLAG(node_id, TEXT, "hex id of the head's node, part of the port file's name"),
    FLAG(config_list, TEXT, "Ray's system configuration, base64 of JSON"),
    FLAG(log_dir, TEXT, "accepted; the log goes to standard error"),
    FLAG(stdout_filepath, TEXT, "file that takes standard output"),
    FLAG(stderr_filepath, TEXT, "file that takes standard error"),
    FLAG(metrics_agent_port, NUMBER, "accepted; nothing is sent there"),
    FLAG(ray_commit, TEXT, "accepted"),
    FLAG(redis_address, TEXT, "host of the Redis that keeps the state, or HOST:PORT"),
    FLAG(redis_port, NUMBER, "and its port"),
    FLAG(redis_enable_ssl, TRUTH, "refused: TLS is not spoken"),
    FLAG(redis_username, TEXT, "its user"),
    FLAG(redis_password, TEXT, "its password"),
    FLAG(retry_redis, TRUTH, "accepted"),
    FLAG(head, TRUTH, "be a whole head: write the keys that Ray's own scripts write"),
    FLAG(python_version, TEXT, "with --head: the Python version that clients compare with theirs"),
    FLAG(temp_dir, TEXT, "with --head: the temporary directory that clients are told"),
};

static void print_help(void) {
  printf(
      "usage: mobula gcs-server [--FLAG=VALUE]...\n\nThe cluster's state server, alone. Flags:\n");
  for (size_t i = 0; i < MOB_LEN(table); i++)
    printf("  --%-22s %s\n", table[i].name, table[i].help);
  puts("\nThe state ends with the process unless --redis_address or the environment says where to "
       "keep it:\n"
       "  RAY_REDIS_ADDRESS=HOST:PORT  in Redis, under RAY_external_storage_namespace (default)\n"
       "  RAY_gcs_storage=file         in a log in the folder RAY_gcs_storage_path "
       "(<temp_dir>/gcs)");
}

// gflags takes '-' and '_' in names alike.
static const flag_t *find_flag(const char *name, size_t len) {
  for (size_t i = 0; i < MOB_LEN(table); i++) {
    if (strlen(table[i].name) != len) continue;
    size_t k = 0;
    while (k < len && (table[i].name[k] == name[k] || (table[i].name[k] == '_' && name[k] == '-')))
      k++;
    if (k == len) return &table[i];
  }
  return NULL;
}

static mob_status set_flag(flags_t *flags, const flag_t *flag, const char *value) {
  void *at = (char *)flags + flag->offset;
  char *end;
  switch (flag->type) {
  case TEXT:
    *(const char **)at = value;
    break;
  case NUMBER:
    *(long *)at = strtol(value, &end, 10);
    if (!*value || *end) return mob_fail(MOB_E_INVALID, "--%s=%s is no number", flag->name, value);
    break;
  case TRUTH:
    *(bool *)at = strcmp(value, "true") == 0 || strcmp(value, "1") == 0 ||
                  strcmp(value, "t") == 0 || strcmp(value, "yes") == 0;
    break;
  }
  return MOB_OK;
}

static mob_status parse(int argc, char **argv, flags_t *flags, bool *help) {
  for (int i = 1; i < argc; i++) {
    const char *arg = argv[i];
    if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
      *help = true;
      return MOB_OK;
    }
    if (arg[0] != '-') return mob_fail(MOB_E_INVALID, "'%s' is no flag; see --help", arg);
    const char *name = arg + (arg[1] == '-' ? 2 : 1);
    const char *equals = strchr(name, '=');
    const flag_t *flag = find_flag(name, equals ? (size_t)(equals - name) : strlen(name));
    if (!flag) return mob_fail(MOB_E_INVALID, "unknown flag '%s'; see --help", arg);
    const char *value = equals ? equals + 1 : NULL;
    if (!value && flag->type == TRUTH) value = "true";
    if (!value && i + 1 < argc) value = argv[++i];
    if (!value) return mob_fail(MOB_E_INVALID, "%s needs a value", arg);
    MOB_TRY(set_flag(flags, flag, value));
  }
  if (flags->redis_address && flags->redis_address[0] && flags->redis_enable_ssl) {
    return mob_fail(MOB_E_UNSUPPORTED, "--redis_enable_ssl: this build speaks no TLS to Redis");
  }
  if (flags->gcs_server_port < 0 || flags->gcs_server_port > 65535) {
    return mob_fail(MOB_E_INVALID, "--gcs_server_port=%ld is no port", flags->gcs_server_port);
  }
  return MOB_OK;
}

static mob_status open_store(uv_loop_t *loop, const flags_t *flags, mob_store_t **out) {
  const char *host = flags->redis_address;
  char *address = NULL, *dir = NULL;
  if (host && host[0]) {
    address = flags->redis_port > 0
                  ? mob_sprintf(strchr(host, ':') && host[0] != '[' ? "[%s]:%ld" : "%s:%ld", host,
                                flags->redis_port)
                  : mob_strdup(host);
  }
  const mob_store_redis_t redis = {address, flags->redis_username, flags->redis_password, NULL};
  dir = mob_path_join(flags->temp_dir ? flags->temp_dir : "/tmp/ray", "gcs");
  mob_status status = mob_store_open(loop, &redis, dir, out);
  free(dir);
  free(address);
  return status;
}

typedef struct program {
  uv_loop_t loop;
  mob_rpc_t *rpc;
  mob_gcs_t *gcs;
  uv_signal_t term, interrupt;
  bool stopping;
} program_t;

static void on_gcs_closed(void *arg) {
  program_t *p = arg;
  mob_rpc_close(p->rpc, NULL, NULL);
}

static void on_signal(uv_signal_t *handle, int number) {
  program_t *p = handle->data;
  if (p->stopping) return;
  p->stopping = true;
  MOB_INFO("stopping on signal %d", number);
  uv_close((uv_handle_t *)&p->term, NULL);
  uv_close((uv_handle_t *)&p->interrupt, NULL);
  mob_gcs_close(p->gcs, on_gcs_closed, p);
}

// Whoever asked for port 0 reads it from a file, as with Ray.
static mob_status write_port(const flags_t *flags, int port) {
  if (!flags->session_dir || !flags->node_id) return MOB_OK;
  char *name = mob_sprintf("gcs_server_port_%s", flags->node_id);
  char *path = mob_path_join(flags->session_dir, name);
  char text[16];
  int len = snprintf(text, sizeof text, "%d", port);
  mob_status status = mob_file_write(path, text, (size_t)len);
  free(path);
  free(name);
  return status;
}

static mob_status redirect(const char *path, FILE *stream) {
  if (path && path[0] && !freopen(path, "a", stream)) {
    return mob_fail(MOB_E_IO, "cannot write to %s", path);
  }
  return MOB_OK;
}

static mob_status run(const flags_t *flags) {
  program_t p = {0};
  mob_buf_t config = {0};
  MOB_TRY(redirect(flags->stdout_filepath, stdout));
  MOB_TRY(redirect(flags->stderr_filepath, stderr));
  if (flags->config_list) MOB_TRY(mob__base64_decode(flags->config_list, &config));
  mob_gcs_config_t gcs = {
      .port = (int)flags->gcs_server_port,
      .session_name = flags->session_name,
      .session_dir = flags->head ? (flags->session_dir ? flags->session_dir : "") : NULL,
      .temp_dir = flags->temp_dir,
      .python_version = flags->python_version,
      .system_config = config.len ? mob_buf_cstr(&config) : NULL,
  };
  int port;
  uv_loop_init(&p.loop);
  signal(SIGPIPE, SIG_IGN); // a Redis that goes away is told by errno
  mob_status status = open_store(&p.loop, flags, &gcs.store);
  if (status == MOB_OK) status = mob_rpc_new(&p.loop, &p.rpc);
  if (status != MOB_OK) return status;
  status = mob_gcs_start(p.rpc, &gcs, &p.gcs, &port);
  mob_buf_free(&config);
  if (status == MOB_OK) status = write_port(flags, port);
  if (status != MOB_OK) { // the process ends: what is open goes with it
    return status;
  }
  uv_signal_init(&p.loop, &p.term);
  uv_signal_init(&p.loop, &p.interrupt);
  p.term.data = p.interrupt.data = &p;
  uv_signal_start(&p.term, on_signal, SIGTERM);
  uv_signal_start(&p.interrupt, on_signal, SIGINT);
  printf("%d\n", port);
  fflush(stdout);
  uv_run(&p.loop, UV_RUN_DEFAULT);
  uv_loop_close(&p.loop);
  return MOB_OK;
}

int mob_gcs_server_main(int argc, char **argv) {
  flags_t flags = {0};
  bool help = false;
  mob_status status = parse(argc, argv, &flags, &help);
  if (help) {
    print_help();
    return 0;
  }
  if (status == MOB_OK) status = run(&flags);
  if (status == MOB_OK) return 0;
  fprintf(stderr, "gcs-server: %s\n", mob_errmsg());
  return status == MOB_E_INVALID || status == MOB_E_FORMAT || status == MOB_E_UNSUPPORTED ? 2 : 1;
}
