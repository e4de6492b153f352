// A pod and its containers as the kubelet keeps them.
#ifndef MOB_LWS_POD_H
#define MOB_LWS_POD_H

#include "launcher/lws/backoff.h"
#include "launcher/lws/events.h"
#include "launcher/lws/loop.h"
#include "launcher/lws/sandbox.h"

typedef struct mob_lws_kubelet mob_lws_kubelet_t;
typedef struct mob_lws_pod mob_lws_pod_t;
typedef struct mob_lws_instance mob_lws_instance_t;

// What the controller decides about a pod. Copied on creation, except the template and the strings
// of the manifest that it points to.
typedef struct mob_lws_pod_identity {
  const mob_lws_set_t *set;
  const mob_lws_template_t *template_;
  int64_t group, worker; // worker 0: the leader
  char name[80], subdomain[80], leader_name[80];
} mob_lws_pod_identity_t;

typedef struct mob_lws_prober {
  mob_lws_instance_t *instance;
  int kind; // MOB_LWS_STARTUP, ...
  mob_lws_timer_t *next, *timeout;
  uint32_t exec_id; // 0: none under way
  struct mob_lws_net_check *check;
  int successes, failures; // in a row
} mob_lws_prober_t;

typedef enum mob_lws_instance_state {
  MOB_LWS_WAITING,
  MOB_LWS_RUNNING,
  MOB_LWS_TERMINATED
} mob_lws_instance_state_t;

// One container of a pod.
struct mob_lws_instance {
  mob_lws_pod_t *pod;
  const mob_lws_container_t *spec;
  size_t index;
  mob_lws_instance_state_t state;
  const char *reason; // of waiting or of the end; a static string
  bool init, done;    // init container; it ended with 0
  bool starting;      // the start command is out, the program does not run yet
  bool ready, startup_passed;
  unsigned restarts, starts;
  unsigned seen_restarts; // as LWS knows them by now
  mob_lws_backoff_t backoff;
  uint64_t started_ms;     // monotonic
  int last_status;         // of waitpid, of the last end; -1 when there was none
  pid_t pid;               // as this process sees it; 0 when not running
  int pidfd;               // -1 when not running
  int output, status_pipe; // read ends, -1 when closed
  mob_lws_watch_t *output_watch, *status_watch;
  mob_buf_t line;  // of output, not yet ended
  mob_buf_t error; // why it could not start
  mob_lws_timer_t *restart, *seen, *term, *kill, *pre_stop_wait;
  uint32_t pre_stop_id, post_start_id; // execs under way
  struct mob_lws_net_check *hook_check;
  bool stopping; // asked to end
  mob_lws_prober_t probers[MOB_LWS_PROBES];
};

struct mob_lws_pod {
  mob_lws_kubelet_t *kubelet;
  mob_lws_pod_identity_t id;
  char uid[37], address[16];
  unsigned link;      // index of its network link
  int64_t created_ms; // wall clock
  mob_arena_t arena;  // of its specification
  mob_lws_pairs_t labels, annotations;
  mob_lws_sandbox_spec_t spec;
  mob_lws_instance_t *instances;
  size_t instance_count, init_count;
  pid_t sandbox; // 0: none
  int sandbox_pidfd, sock;
  mob_lws_watch_t *sandbox_watch, *sock_watch;
  int log;       // file descriptor
  char log_last; // byte written there
  bool set_up, deleting, gone;
  bool was_ready;
  bool link_down, frozen;
  uint64_t delete_ms;
  int64_t grace_s;
  mob_lws_timer_t *grace;
};

bool mob__pod_ready(const mob_lws_pod_t *pod);
bool mob__pod_pending(const mob_lws_pod_t *pod);      // phase Pending: some container never ran
unsigned mob__pod_restarts(const mob_lws_pod_t *pod); // of all its containers
unsigned mob__pod_seen_restarts(const mob_lws_pod_t *pod); // those that LWS has heard of
// "Running", "Pending", "Terminating", "CrashLoopBackOff", ... as the STATUS column of kubectl.
const char *mob__pod_status(const mob_lws_pod_t *pod);

// ---- pod_spec.c: labels, variables and volumes of a new pod
mob_status mob__pod_build(mob_lws_pod_t *pod);

// ---- probe.c
void mob__probe_start_all(mob_lws_instance_t *instance); // the container runs
void mob__probe_stop_all(mob_lws_instance_t *instance);
// An exec ended; true when it was one of this container's probes.
bool mob__probe_exec_done(mob_lws_instance_t *instance, uint32_t id, int status);
// One httpGet or tcpSocket check against the pod; `fn` gets whether it passed and why not, once.
struct mob_lws_net_check *mob__net_check(mob_lws_instance_t *instance,
                                         const mob_lws_handler_t *handler,
                                         void (*fn)(void *arg, bool ok, const char *why),
                                         void *arg);
void mob__net_check_cancel(struct mob_lws_net_check **check);

// ---- kubelet.c, for probe.c
uint32_t mob__kubelet_exec(mob_lws_instance_t *instance, uint32_t handler); // the exec's id
void mob__kubelet_cancel_exec(mob_lws_instance_t *instance, uint32_t id);
void mob__kubelet_changed(mob_lws_pod_t *pod);
void mob__instance_stop(mob_lws_instance_t *instance, int64_t grace_s,
                        const char *why); // hook, TERM, KILL

#endif
