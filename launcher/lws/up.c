// `mobula lws up`: from the command line to a runner that runs.
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/lws/commands.h"
#include "launcher/lws/loopback.h"
#include "launcher/lws/options.h"
#include "launcher/lws/run.h"
#include "launcher/lws/state.h"
#include "runtime/base/file.h"

typedef struct up {
  // the command line
  mob_lws_words_t files, pvcs, forwards, envs;
  const char *image_dir, *shell, *state_option, *name, *network;
  int64_t replicas, grace, port_base;
  double cpu, lws_delay;
  bool logs, no_logs, detach, no_forward;
  // from it
  mob_arena_t arena;
  mob_lws_manifest_t manifest;
  mob_lws_pairs_t claims, env;
  char *state_dir;
  bool has_loop;
  int lock, ready_fd;    // ready_fd: to the waiting parent of a detached runner, -1 without
  mob_lws_words_t links; // that loopback mode made on the host
  mob_lws_guard_t guard;
  mob_lws_runner_t runner;
} up_t;

// "NAME=VALUE" into a pair.
static bool split(up_t *up, const char *text, mob_lws_pair_t *out) {
  const char *equal = strchr(text, '=');
  if (!equal || equal == text) return false;
  *out = (mob_lws_pair_t){mob_arena_strndup(&up->arena, text, (size_t)(equal - text)), equal + 1};
  return true;
}

static int read_pairs(up_t *up) {
  for (size_t i = 0; i < up->pvcs.len; i++) {
    mob_lws_pair_t pair;
    char real[PATH_MAX];
    if (!split(up, up->pvcs.at[i], &pair)) {
      return mob__usage_error("up", "--pvc needs NAME=DIR, not \"%s\"", up->pvcs.at[i]);
    }
    if (!realpath(pair.value, real) || !mob_is_dir(real)) {
      fprintf(stderr, "mobula lws up: --pvc %s: there is no directory %s\n", pair.key, pair.value);
      return 1;
    }
    pair.value = mob_arena_strdup(&up->arena, real);
    *mob_vec_push(&up->claims) = pair;
  }
  for (size_t i = 0; i < up->envs.len; i++) {
    mob_lws_pair_t pair;
    if (!split(up, up->envs.at[i], &pair)) {
      return mob__usage_error("up", "--env needs NAME=VALUE, not \"%s\"", up->envs.at[i]);
    }
    *mob_vec_push(&up->env) = pair;
  }
  return 0;
}

static int read_manifests(up_t *up) {
  mob_lws_manifest_t *m = &up->manifest;
  for (size_t i = 0; i < up->files.len; i++) {
    if (mob__lws_manifest_add_file(m, up->files.at[i]) != MOB_OK) {
      fprintf(stderr, "mobula lws up: %s\n", mob_errmsg());
      return 1;
    }
  }
  mob__lws_manifest_finish(m);
  for (size_t i = 0; i < m->messages.len; i++) {
    fprintf(stderr, "%s: %s\n", m->messages.at[i].error ? "error" : "warning",
            m->messages.at[i].text);
  }
  if (m->errors) {
    fprintf(stderr, "mobula lws up: %zu error%s in the manifests; nothing was started\n", m->errors,
            m->errors == 1 ? "" : "s");
    return 1;
  }
  if (m->sets.len == 0) {
    fprintf(stderr, "mobula lws up: no LeaderWorkerSet in %s; nothing to run\n", up->files.at[0]);
    return 1;
  }
  return 0;
}

// Every claim that a pod mounts has its directory.
static int check_claims(up_t *up) {
  int missing = 0;
  for (size_t i = 0; i < up->manifest.sets.len; i++) {
    const mob_lws_set_t *set = up->manifest.sets.at[i];
    const mob_lws_template_t *templates[] = {set->leader, set->worker};
    for (int k = 0; k < (set->leader == set->worker ? 1 : 2); k++) {
      for (size_t v = 0; v < templates[k]->volume_count; v++) {
        const mob_lws_volume_t *volume = &templates[k]->volumes[v];
        mob_lws_pair_list_t claims = {up->claims.at, up->claims.len};
        if (volume->kind != MOB_LWS_VOLUME_CLAIM || mob__lws_pair_get(claims, volume->source))
          continue;
        fprintf(stderr,
                "error: %s:%d: the volume %s is the claim \"%s\", and this machine has no cluster "
                "to ask for it; "
                "add --pvc %s=DIR with the directory that holds its files\n",
                set->file, volume->line, volume->name, volume->source, volume->source);
        missing++;
      }
    }
  }
  return missing ? 1 : 0;
}

static void note_resources(const up_t *up) {
  int64_t millis = 0, memory = 0, gpus = 0, pods = 0;
  for (size_t i = 0; i < up->manifest.sets.len; i++) {
    const mob_lws_set_t *set = up->manifest.sets.at[i];
    int64_t groups = up->replicas >= 0 ? up->replicas : set->replicas;
    for (int worker = 0; worker < 2; worker++) {
      const mob_lws_template_t *t = worker ? set->worker : set->leader;
      int64_t n = worker ? groups * (set->size - 1) : groups;
      pods += n;
      for (size_t c = 0; c < t->container_count; c++) {
        millis += n * t->containers[c].cpu_millis;
        memory += n * (t->containers[c].memory >> 20);
        gpus += n * t->containers[c].gpus;
      }
    }
  }
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  int64_t have = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) >> 20;
  if (millis > cpus * 1000 || memory > have) {
    printf("note: %lld pods ask for %lld CPUs and %lld GiB of memory; this machine has %ld and "
           "%lld: requests and limits "
           "are not enforced%s\n",
           (long long)pods, (long long)(millis / 1000), (long long)(memory >> 10), cpus,
           (long long)(have >> 10), up->cpu > 0 ? ", --cpu-per-pod is" : "");
  }
  if (gpus) {
    printf("note: %lld nvidia.com/gpu are simulated: pods get MOBULA_SIMULATED_GPUS, and the CPU "
           "serves them\n",
           (long long)gpus);
  }
}

static int find_image(up_t *up) {
  char exe[PATH_MAX], real[PATH_MAX];
  const char *dir = up->image_dir;
  if (!dir) {
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    dir = dirname(exe);
  }
  if (!realpath(dir, real) || !mob_is_dir(real)) {
    fprintf(stderr, "mobula lws up: --image-dir: there is no directory %s\n", dir);
    return 1;
  }
  up->image_dir = mob_arena_strdup(&up->arena, real);
  char *script = mob_path_join(real, "ray_init.sh");
  if (access(script, X_OK) != 0) {
    printf("note: %s has no ray_init.sh; pods that call /vllm-workspace/ray_init.sh will fail\n",
           real);
  }
  free(script);
  return 0;
}

// ---- Services

// The local port of a Service's port by --forward; -1 when none names it.
static int forward_option(const up_t *up, const char *service, int port) {
  char name[80];
  int from, to;
  for (size_t i = 0; i < up->forwards.len; i++) {
    if (sscanf(up->forwards.at[i], "%79[^:]:%d=%d", name, &from, &to) == 3 &&
        strcmp(name, service) == 0 && from == port) {
      return to;
    }
  }
  return -1;
}

static int check_forwards(up_t *up) {
  for (size_t i = 0; i < up->forwards.len; i++) {
    char name[80], rest;
    int from, to;
    bool known = false;
    if (sscanf(up->forwards.at[i], "%79[^:]:%d=%d%c", name, &from, &to, &rest) != 3 || to < 1 ||
        to > 65535) {
      return mob__usage_error("up", "--forward needs SERVICE:PORT=LOCALPORT, not \"%s\"",
                              up->forwards.at[i]);
    }
    for (size_t s = 0; s < up->manifest.services.len; s++) {
      const mob_lws_service_t *service = up->manifest.services.at[s];
      for (size_t p = 0; p < service->port_count; p++) {
        known |= strcmp(service->name, name) == 0 && service->ports[p].port == from;
      }
    }
    if (!known) {
      fprintf(stderr, "mobula lws up: --forward %s: the files have no Service %s with port %d\n",
              up->forwards.at[i], name, from);
      return 1;
    }
  }
  return 0;
}

static mob_status bind_services(up_t *up) {
  int next = (int)up->port_base;
  for (size_t s = 0; s < up->manifest.services.len; s++) {
    const mob_lws_service_t *service = up->manifest.services.at[s];
    for (size_t p = 0; !service->headless && p < service->port_count; p++) {
      int local = forward_option(up, service->name, service->ports[p].port);
      if (local < 0) local = up->port_base ? next++ : service->ports[p].port;
      if (up->no_forward) local = 0;
      MOB_TRY(mob__services_bind(&up->runner.services, service, &service->ports[p], local));
    }
  }
  return MOB_OK;
}

// ---- the start

// Forks; the parent waits for the child's word and ends, the child goes on in the background.
static mob_status detach(up_t *up) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return mob_fail(MOB_E_IO, "pipe: %s", strerror(errno));
  fflush(NULL);
  pid_t pid = fork();
  if (pid < 0) return mob_fail(MOB_E_IO, "fork: %s", strerror(errno));
  if (pid > 0) {
    char text[1024];
    close(fds[1]);
    size_t len = 0;
    for (ssize_t n; (n = read(fds[0], text + len, sizeof text - 1 - len)) > 0;) len += (size_t)n;
    text[len] = 0;
    if (strcmp(text, "ok") == 0) {
      printf("runner %d is up; state in %s, events in %s/up.log\n", (int)pid, up->state_dir,
             up->state_dir);
      fflush(stdout);
      _exit(0);
    }
    fprintf(stderr, "%s",
            len ? text
                : "mobula lws up: the runner ended at once; see up.log in its state directory\n");
    _exit(1);
  }
  close(fds[0]);
  up->ready_fd = fds[1];
  setsid();
  char *log = mob_path_join(up->state_dir, "up.log");
  int out = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644),
      null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  free(log);
  dup2(null, 0);
  dup2(out, 1);
  dup2(out, 2);
  return MOB_OK;
}

static void started(void *arg) {
  up_t *up = arg;
  if (up->ready_fd < 0) return;
  ssize_t ignored = write(up->ready_fd, "ok", 2);
  (void)ignored;
  close(up->ready_fd);
  up->ready_fd = -1;
}

static void configure(up_t *up) {
  mob_lws_runner_t *r = &up->runner;
  r->name = up->name;
  r->state_dir = up->state_dir;
  r->manifest = &up->manifest;
  r->kubelet.config = (mob_lws_kubelet_config_t){
      .image_dir = up->image_dir,
      .shell = up->shell,
      .state_dir = up->state_dir,
      .claims = {up->claims.at, up->claims.len},
      .env = {up->env.at, up->env.len},
      .grace_s = up->grace,
      .lws_delay_s = up->lws_delay,
      .show_output = up->logs || (!up->no_logs && !up->detach && isatty(1)),
  };
  r->kubelet.loop = r->services.loop = &r->loop;
  r->kubelet.manifest = r->services.manifest = &up->manifest;
  r->kubelet.network = &r->network;
  r->kubelet.events = r->services.events = &r->events;
  r->services.kubelet = &r->kubelet;
}

static mob_status prepare(up_t *up) {
  mob_lws_runner_t *r = &up->runner;
  MOB_TRY(mob__state_open(up->state_dir, &up->lock));
  mob__cgroup_sweep();
  MOB_TRY(mob__lws_network_choose(up->network, &r->network));
  if (r->network.mode == MOB_LWS_LOOPBACK) {
    MOB_TRY(
        mob__loopback_prepare(&up->manifest, r->kubelet.config.claims, up->image_dir, &up->links));
  }
  // What callers reach is bound before the process leaves their network namespace.
  MOB_TRY(bind_services(up));
  if (up->detach) MOB_TRY(detach(up));
  MOB_TRY(mob__loopback_guard(&up->links, &up->guard));
  uv_loop_init(&r->loop); // not before: a loop does not survive a fork
  up->has_loop = true;
  if (ftruncate(up->lock, 0) == 0) dprintf(up->lock, "%d\n", (int)getpid());
  if (up->cpu > 0) {
    MOB_TRY(mob__cgroup_open(up->cpu, &r->cgroup));
    r->has_cgroup = true;
    r->kubelet.cgroup = &r->cgroup;
  }
  MOB_TRY(mob__control_listen(up->state_dir, &r->control));
  printf("pods run in %s mode: %s\n", mob__lws_network_name(r->network.mode), r->network.why);
  if (r->network.mode == MOB_LWS_LOOPBACK) {
    printf("note: loopback mode: pods share this machine's processes and files; each has an "
           "address of 127.83.0.0/16 in "
           "MOBULA_BIND_ADDRESS, which its servers must bind\n");
  }
  MOB_TRY(mob__lws_network_enter(&r->network));
  return mob__services_join(&r->services, &r->network);
}

static int run(up_t *up) {
  mob_lws_runner_t *r = &up->runner;
  configure(up);
  up->lock = -1;
  int code = 1;
  if (prepare(up) == MOB_OK) {
    code = mob__runner_run(r, up->replicas, started, up);
  } else {
    fprintf(stderr, "mobula lws up: %s\n", mob_errmsg());
    if (up->ready_fd >= 0) dprintf(up->ready_fd, "mobula lws up: %s\n", mob_errmsg());
    mob__services_close(&r->services);
  }
  if (up->has_loop) uv_loop_close(&r->loop);
  if (r->has_cgroup) mob__cgroup_close(&r->cgroup);
  mob__loopback_end(&up->links, &up->guard);
  if (r->network.netlink > 0) close(r->network.netlink);
  if (up->lock >= 0) mob__state_close(up->state_dir, up->lock);
  return code;
}

// -1 to go on, else the exit status.
static int parse(up_t *up, int argc, char **argv) {
  const mob_lws_option_t options[] = {
      {"pvc", "NAME=DIR", MOB_LWS_OPT_WORDS, &up->pvcs,
       "directory that holds the files of a PersistentVolumeClaim", 0},
      {"image-dir", "DIR", MOB_LWS_OPT_STRING, &up->image_dir,
       "what the image would contain: its programs are in every pod's PATH,\nray_init.sh in "
       "/vllm-workspace too "
       "(default: where mobula lies)",
       0},
      {"bin-dir", "DIR", MOB_LWS_OPT_STRING, &up->image_dir, "the same as --image-dir", 0},
      {"env", "NAME=VALUE", MOB_LWS_OPT_WORDS, &up->envs,
       "a variable for every container, as if the image set it", 0},
      {"replicas", "N", MOB_LWS_OPT_INT, &up->replicas,
       "number of groups (default: the manifest's)", 0},
      {"cpu-per-pod", "X", MOB_LWS_OPT_NUMBER, &up->cpu,
       "CPUs each pod may use at most, such as 0.5", 0},
      {"sh", "bash|dash", MOB_LWS_OPT_STRING, &up->shell,
       "what /bin/sh is in pods (default bash). With dash the shell stays PID 1,\nSIGTERM reaches "
       "no program, and every "
       "end costs the whole grace period",
       0},
      {"grace", "SECONDS", MOB_LWS_OPT_INT, &up->grace,
       "instead of the pods' terminationGracePeriodSeconds", 0},
      {"lws-delay", "SECONDS", MOB_LWS_OPT_NUMBER, &up->lws_delay,
       "how long LWS takes to hear of a container's restart (default 0). A cluster\nneeds about 1: "
       "so long the restarted "
       "container runs before its group is\nrecreated",
       0},
      {"forward", "SVC:PORT=LOCAL", MOB_LWS_OPT_WORDS, &up->forwards,
       "local port for a Service's port (default: the same number)", 0},
      {"port-base", "PORT", MOB_LWS_OPT_INT, &up->port_base,
       "number the Services' local ports from here on", 0},
      {"no-forward", NULL, MOB_LWS_OPT_FLAG, &up->no_forward, "open no local ports", 0},
      {"network", "MODE", MOB_LWS_OPT_STRING, &up->network,
       "netns (root), userns (no root), loopback (no namespaces: an address of 127/8\na pod), or "
       "auto: the first that "
       "works (default)",
       0},
      {"name", "NAME", MOB_LWS_OPT_STRING, &up->name,
       "this runner's name (default: the first LeaderWorkerSet's)", 0},
      {"state-dir", "DIR", MOB_LWS_OPT_STRING, &up->state_option,
       "for logs and the control socket (default: /run/mobula-lws/NAME for root,\nelse "
       "$XDG_RUNTIME_DIR/mobula-lws/NAME)",
       0},
      {"detach", NULL, MOB_LWS_OPT_FLAG, &up->detach,
       "go on in the background once the pods are made", 0},
      {"logs", NULL, MOB_LWS_OPT_FLAG, &up->logs, "print the pods' output (default on a terminal)",
       0},
      {"no-logs", NULL, MOB_LWS_OPT_FLAG, &up->no_logs, "do not print it", 0},
  };
  const mob_lws_usage_t usage = {
      "up",
      "FILE.yaml [FILE.yaml...]",
      "Starts the LeaderWorkerSets of the files and looks after them until Ctrl-C, SIGTERM or\n"
      "`mobula lws down`. Services are forwarded to 127.0.0.1. A second Ctrl-C does not wait\n"
      "for grace periods.",
      options,
      MOB_LEN(options),
      false};
  return mob__options_parse(&usage, argc, argv, &up->files);
}

static int check_usage(const up_t *up) {
  if (up->files.len == 0) {
    return mob__usage_error("up", "needs a manifest: mobula lws up FILE.yaml");
  }
  if (strcmp(up->shell, "bash") != 0 && strcmp(up->shell, "dash") != 0) {
    return mob__usage_error("up", "--sh must be bash or dash, not \"%s\"", up->shell);
  }
  if (up->port_base > 65535) return mob__usage_error("up", "--port-base must be at most 65535");
  if (up->name && (!*up->name || strchr(up->name, '/') || up->name[0] == '.')) {
    return mob__usage_error("up", "--name \"%s\" cannot name a directory", up->name);
  }
  return 0;
}

static int check_and_run(up_t *up) {
  int (*const checks[])(up_t *) = {read_pairs, read_manifests, check_claims, check_forwards,
                                   find_image};
  int code = check_usage(up);
  for (size_t i = 0; code == 0 && i < MOB_LEN(checks); i++) code = checks[i](up);
  if (code != 0) return code;
  if (!up->name) up->name = up->manifest.sets.at[0]->name;
  up->state_dir = mob__state_dir(up->state_option, up->name);
  note_resources(up);
  return run(up);
}

int mob__lws_up(int argc, char **argv) {
  up_t *up = MOB_NEW(up_t);
  up->shell = "bash";
  up->network = "auto";
  up->replicas = up->grace = -1;
  up->ready_fd = up->guard.fd = -1;
  int code = parse(up, argc, argv);
  if (code < 0) code = check_and_run(up);
  mob__lws_manifest_free(&up->manifest);
  mob_arena_free(&up->arena);
  mob_vec_free(&up->files);
  mob_vec_free(&up->pvcs);
  mob_vec_free(&up->forwards);
  mob_vec_free(&up->envs);
  mob_vec_free(&up->claims);
  mob_vec_free(&up->env);
  free(up->state_dir);
  free(up);
  return code;
}
