#include "runtime/node/session.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/file.h"

char *mob_temp_dir(const char *option) {
  if (option && *option) return mob_strdup(option);
  const char *base = getenv("RAY_TMPDIR");
  if (!base || !*base) base = getenv("TMPDIR");
  if (!base || !*base) base = "/tmp";
  const char *pod = getenv("MOBULA_BIND_ADDRESS");
  return pod && *pod ? mob_sprintf("%s/ray/pod_%s", base, pod) : mob_path_join(base, "ray");
}

char *mob_session_new_name(void) {
  struct timeval now;
  struct tm tm;
  char text[64];
  gettimeofday(&now, NULL);
  localtime_r(&now.tv_sec, &tm);
  strftime(text, sizeof text, "%Y-%m-%d_%H-%M-%S", &tm);
  return mob_sprintf("session_%s_%06ld_%d", text, (long)now.tv_usec, (int)getpid());
}

// A name from the network becomes a path: only one plain component will do.
static bool plain_name(const char *name) {
  return *name && *name != '.' && !strchr(name, '/') && strlen(name) < 200;
}

static const char *const folders[] = {"logs", "nodes", "sockets"};

mob_status mob_session_open(const char *temp_dir, const char *name, char **dir) {
  *dir = NULL;
  if (!plain_name(name)) return mob_fail(MOB_E_INVALID, "'%s' is not a session's name", name);
  char *path = mob_path_join(temp_dir, name);
  for (size_t i = 0; i < MOB_LEN(folders); i++) {
    char *folder = mob_path_join(path, folders[i]);
    mob_status status = mob_mkdirs(folder);
    free(folder);
    if (status == MOB_OK) continue;
    free(path);
    return status;
  }
  *dir = path;
  return MOB_OK;
}

mob_status mob_session_set_latest(const char *temp_dir, const char *dir) {
  const char *slash = strrchr(dir, '/');
  char *link = mob_path_join(temp_dir, "session_latest");
  char *fresh = mob_sprintf("%s.%d", link, (int)getpid());
  mob_status status = MOB_OK;
  unlink(fresh);
  if (symlink(slash ? slash + 1 : dir, fresh) || rename(fresh, link)) {
    status = mob_fail(MOB_E_IO, "cannot make %s: %s", link, strerror(errno));
    unlink(fresh);
  }
  free(link);
  free(fresh);
  return status;
}

void mob_session_discard(const char *dir) {
  for (size_t i = 0; i < MOB_LEN(folders); i++) {
    char *folder = mob_path_join(dir, folders[i]);
    rmdir(folder);
    free(folder);
  }
  rmdir(dir);
}

mob_status mob_current_cluster_write(const char *temp_dir, const char *address) {
  char *path = mob_path_join(temp_dir, "ray_current_cluster");
  mob_status status = mob_mkdirs(temp_dir);
  if (status == MOB_OK) status = mob_file_write(path, address, strlen(address));
  free(path);
  return status;
}

mob_status mob_current_cluster_read(const char *temp_dir, char **address) {
  mob_buf_t text = {0};
  char *path = mob_path_join(temp_dir, "ray_current_cluster");
  mob_status status = mob_file_read(path, 1024, &text);
  free(path);
  while (text.len && text.data[text.len - 1] <= ' ') text.len--;
  if (status == MOB_OK && !text.len)
    status = mob_fail(MOB_E_NOT_FOUND, "ray_current_cluster is empty");
  *address = status == MOB_OK ? mob_buf_steal(&text) : NULL;
  mob_buf_free(&text);
  return status;
}

void mob_current_cluster_clear(const char *temp_dir, const char *address) {
  char *now = NULL;
  char *path = mob_path_join(temp_dir, "ray_current_cluster");
  if (mob_current_cluster_read(temp_dir, &now) == MOB_OK &&
      (!address || strcmp(now, address) == 0)) {
    unlink(path);
  }
  free(now);
  free(path);
}

// Fields 3 (state), 4 (parent) and 22 (start) of /proc/PID/stat; the name before them may hold
// anything.
static bool read_stat(pid_t pid, char *state, pid_t *parent, uint64_t *started) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  FILE *file = fopen(path, "re");
  if (!file) return false;
  size_t n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[n] = 0;
  char *p = strrchr(text, ')');
  int parent_pid;
  unsigned long long ticks;
  if (!p ||
      sscanf(p + 1,
             " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
             state, &parent_pid, &ticks) != 3) {
    return false;
  }
  *parent = parent_pid;
  *started = ticks;
  return true;
}

bool mob_process_read(pid_t pid, mob_process_t *out) {
  char state;
  pid_t parent;
  out->pid = pid;
  return pid > 0 && read_stat(pid, &state, &parent, &out->started);
}

bool mob_process_alive(mob_process_t process) {
  char state;
  pid_t parent;
  uint64_t started;
  return process.pid > 0 && read_stat(process.pid, &state, &parent, &started) &&
         started == process.started && state != 'Z' && state != 'X';
}

void mob_process_children(pid_t pid, mob_processes_t *out) {
  DIR *dir = opendir("/proc");
  struct dirent *entry;
  while (dir && (entry = readdir(dir))) {
    pid_t child = atoi(entry->d_name), parent;
    uint64_t started;
    char state;
    if (child <= 0 || !read_stat(child, &state, &parent, &started) || parent != pid ||
        state == 'Z') {
      continue;
    }
    *mob_vec_push(out) = (mob_process_t){child, started};
  }
  if (dir) closedir(dir);
}

mob_status mob_node_record_write(const char *session_dir, const char *node_id_hex, bool head,
                                 const char *address, char **path) {
  mob_process_t self;
  *path = NULL;
  if (!mob_process_read(getpid(), &self)) return mob_fail(MOB_E_IO, "/proc cannot be read");
  json_t *json =
      json_pack("{s:i, s:I, s:b, s:s, s:s}", "pid", (int)self.pid, "started",
                (json_int_t)self.started, "head", head, "address", address, "node_id", node_id_hex);
  char *text = json_dumps(json, JSON_COMPACT);
  char *file = mob_sprintf("%s/nodes/%s.json", session_dir, node_id_hex);
  mob_status status = mob_file_write(file, text, strlen(text));
  json_decref(json);
  free(text);
  if (status == MOB_OK) {
    *path = file;
  } else {
    free(file);
  }
  return status;
}

static void read_record(const char *path, mob_node_records_t *out) {
  mob_buf_t text = {0};
  int pid = 0, head = 0;
  json_int_t started = 0;
  const char *address = NULL, *node_id = NULL;
  if (mob_file_read(path, 1 << 16, &text) != MOB_OK) return;
  json_t *json = json_loadb((const char *)text.data, text.len, 0, NULL);
  bool ok = json && json_unpack(json, "{s:i, s:I, s:b, s:s, s:s}", "pid", &pid, "started", &started,
                                "head", &head, "address", &address, "node_id", &node_id) == 0;
  mob_process_t process = {pid, (uint64_t)started};
  if (ok && mob_process_alive(process)) {
    *mob_vec_push(out) = (mob_node_record_t){process, head, mob_strdup(address),
                                             mob_strdup(node_id), mob_strdup(path)};
  } else {
    unlink(path);
  }
  json_decref(json);
  mob_buf_free(&text);
}

mob_status mob_node_records_list(const char *temp_dir, mob_node_records_t *out) {
  DIR *dir = opendir(temp_dir);
  struct dirent *entry;
  if (!dir)
    return errno == ENOENT ? MOB_OK : mob_fail(MOB_E_IO, "%s: %s", temp_dir, strerror(errno));
  while ((entry = readdir(dir))) {
    if (strncmp(entry->d_name, "session_", 8) || strcmp(entry->d_name, "session_latest") == 0)
      continue;
    char *nodes = mob_sprintf("%s/%s/nodes", temp_dir, entry->d_name);
    DIR *inner = opendir(nodes);
    struct dirent *file;
    while (inner && (file = readdir(inner))) {
      size_t len = strlen(file->d_name);
      if (len < 6 || strcmp(file->d_name + len - 5, ".json")) continue;
      char *path = mob_path_join(nodes, file->d_name);
      read_record(path, out);
      free(path);
    }
    if (inner) closedir(inner);
    free(nodes);
  }
  closedir(dir);
  return MOB_OK;
}

void mob_node_records_free(mob_node_records_t *records) {
  for (size_t i = 0; i < records->len; i++) {
    free(records->at[i].address);
    free(records->at[i].node_id);
    free(records->at[i].path);
  }
  mob_vec_free(records);
}
