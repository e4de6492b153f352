// The files of a cluster's life on this machine.
//
//   <temp>/ray_current_cluster         "ip:port" of the cluster that was started or joined last
//   <temp>/session_latest              link to the newest session
//   <temp>/session_<time>_<pid>/       one cluster's life; its name is chosen by the head
//       logs/                          of the daemon and of every actor
//       nodes/<node id>.json           one for each node daemon alive here: how `ray stop` finds it
//
// <temp> is --temp-dir, else $RAY_TMPDIR/ray, $TMPDIR/ray or /tmp/ray. Pods that share this
// machine's /tmp (they are told their address by MOBULA_BIND_ADDRESS) have a folder below it each.
#ifndef MOB_NODE_SESSION_H
#define MOB_NODE_SESSION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/status.h"
#include "runtime/base/vec.h"

char *mob_temp_dir(const char *option); // the caller frees

// "session_2026-11-21_21-00-18_566330_24256"; the caller frees.
char *mob_session_new_name(void);

// Makes the session's folders; those that are there already do. The caller frees *dir.
mob_status mob_session_open(const char *temp_dir, const char *name, char **dir);
// Points session_latest at it.
mob_status mob_session_set_latest(const char *temp_dir, const char *dir);
// Removes a session that was opened and never used; one with any file in it stays.
void mob_session_discard(const char *dir);

mob_status mob_current_cluster_write(const char *temp_dir, const char *address);
// MOB_E_NOT_FOUND when there is none. The caller frees *address.
mob_status mob_current_cluster_read(const char *temp_dir, char **address);
// Removes the file if it still holds `address` (NULL: whatever it holds).
void mob_current_cluster_clear(const char *temp_dir, const char *address);

// A process, safe against its number being used again.
typedef struct mob_process {
  pid_t pid;
  uint64_t started; // clock ticks since boot, from /proc/PID/stat
} mob_process_t;

bool mob_process_read(pid_t pid, mob_process_t *out); // false: no such process
bool mob_process_alive(mob_process_t process);        // a zombie is not alive

// A node daemon alive on this machine, as its record says.
typedef struct mob_node_record {
  mob_process_t process;
  bool head;
  char *address; // of the GCS, "ip:port"
  char *node_id; // hex
  char *path;    // of the record
} mob_node_record_t;
typedef MOB_VEC(mob_node_record_t) mob_node_records_t;

// Writes the record of this process; the caller frees *path.
mob_status mob_node_record_write(const char *session_dir, const char *node_id_hex, bool head,
                                 const char *address, char **path);
// All records of living daemons under `temp_dir`; records of dead ones are removed.
mob_status mob_node_records_list(const char *temp_dir, mob_node_records_t *out);
void mob_node_records_free(mob_node_records_t *records);

// The children of a process (the actors of a daemon), for counting.
typedef MOB_VEC(mob_process_t) mob_processes_t;
void mob_process_children(pid_t pid, mob_processes_t *out);

#endif
