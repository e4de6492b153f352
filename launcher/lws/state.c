#include "launcher/lws/state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

// /run for root, the session's own directory for others.
static char *default_root(void) {
  const char *runtime = getenv("XDG_RUNTIME_DIR");
  if (geteuid() == 0) return mob_strdup("/run/mobula-lws");
  if (runtime && *runtime == '/') return mob_path_join(runtime, "mobula-lws");
  return mob_sprintf("/tmp/mobula-lws-%u", (unsigned)geteuid());
}

static char *absolute(const char *dir) {
  char cwd[PATH_MAX];
  if (*dir == '/' || !getcwd(cwd, sizeof cwd)) return mob_strdup(dir);
  return mob_path_join(cwd, dir);
}

char *mob__state_dir(const char *dir, const char *name) {
  if (dir) return absolute(dir);
  char *root = default_root();
  char *path = mob_path_join(root, name);
  free(root);
  return path;
}

static void remove_files(const char *dir, const char *sub) {
  char *path = mob_path_join(dir, sub);
  DIR *entries = opendir(path);
  for (struct dirent *e; entries && (e = readdir(entries));) {
    if (e->d_type == DT_REG) unlinkat(dirfd(entries), e->d_name, 0);
  }
  if (entries) closedir(entries);
  free(path);
}

static void remove_entry(const char *dir, const char *name) {
  char *path = mob_path_join(dir, name);
  remove(path);
  free(path);
}

mob_status mob__state_open(const char *dir, int *lock_fd) {
  char pid[32];
  char *lock = mob_path_join(dir, "lock");
  mob_status status = mob_mkdirs(dir);
  *lock_fd = -1;
  if (status != MOB_OK) goto out;
  if (strlen(dir) + sizeof "/" MOB_LWS_CONTROL > sizeof((struct sockaddr_un *)0)->sun_path) {
    status = mob_fail(MOB_E_INVALID,
                      "the state directory %s is too long for a socket's name (%zu bytes at most); "
                      "choose another with --state-dir",
                      dir, sizeof((struct sockaddr_un *)0)->sun_path - sizeof "/" MOB_LWS_CONTROL);
    goto out;
  }
  *lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (*lock_fd < 0) {
    status = mob_fail(MOB_E_IO, "cannot open %s: %s", lock, strerror(errno));
    goto out;
  }
  if (flock(*lock_fd, LOCK_EX | LOCK_NB) != 0) {
    ssize_t n = read(*lock_fd, pid, sizeof pid - 1);
    pid[n > 0 ? n : 0] = 0;
    pid[strcspn(pid, "\n")] = 0;
    status = mob_fail(MOB_E_EXISTS,
                      "a runner (process %s) uses %s already; end it with `mobula lws down "
                      "--state-dir %s`, or give this one another --name or --state-dir",
                      pid, dir, dir);
    close(*lock_fd);
    *lock_fd = -1;
    goto out;
  }
  remove_entry(dir, MOB_LWS_CONTROL);
  remove_files(dir, "logs");
  static const char *const subs[] = {"logs", "net", "stage"};
  for (size_t i = 0; status == MOB_OK && i < MOB_LEN(subs); i++) {
    char *path = mob_path_join(dir, subs[i]);
    status = mob_mkdirs(path);
    free(path);
  }
out:
  free(lock);
  return status;
}

void mob__state_close(const char *dir, int lock_fd) {
  remove_entry(dir, MOB_LWS_CONTROL);
  remove_files(dir, "net");
  remove_entry(dir, "net");
  remove_entry(dir, "stage");
  remove_entry(dir, "lock");
  close(lock_fd);
}

mob_status mob__state_connect(const char *dir, int *fd) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char *path = mob_path_join(dir, MOB_LWS_CONTROL);
  mob_status status = MOB_OK;
  *fd = -1;
  if (strlen(path) >= sizeof address.sun_path) {
    status = mob_fail(MOB_E_INVALID, "%s is too long for a socket's name", path);
    goto out;
  }
  strcpy(address.sun_path, path);
  *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (*fd < 0 || connect(*fd, (struct sockaddr *)&address, sizeof address) != 0) {
    status =
        mob_fail(MOB_E_UNAVAILABLE, "no runner answers in %s (%s); start one with `mobula lws up`",
                 dir, strerror(errno));
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
out:
  free(path);
  return status;
}

mob_status mob__state_find(const char *dir, const char *name, char **out) {
  if (dir || name) {
    *out = mob__state_dir(dir, name);
    return MOB_OK;
  }
  char *root = default_root();
  mob_buf_t found = {0};
  size_t count = 0;
  *out = NULL;
  DIR *entries = opendir(root);
  for (struct dirent *e; entries && (e = readdir(entries));) {
    if (e->d_name[0] == '.') continue;
    char *path = mob_path_join(root, e->d_name);
    int fd;
    if (mob__state_connect(path, &fd) == MOB_OK) {
      close(fd);
      mob_buf_printf(&found, "%s%s", count++ ? ", " : "", e->d_name);
      free(*out);
      *out = path;
    } else {
      free(path);
    }
  }
  if (entries) closedir(entries);
  mob_status status = MOB_OK;
  if (count != 1) {
    free(*out);
    *out = NULL;
    status = count ? mob_fail(MOB_E_INVALID, "several runners are up (%s); choose one with --name",
                              mob_buf_cstr(&found))
                   : mob_fail(MOB_E_NOT_FOUND,
                              "no runner is up in %s; start one with `mobula lws up`, or name "
                              "its directory with --state-dir",
                              root);
  }
  mob_buf_free(&found);
  free(root);
  return status;
}
