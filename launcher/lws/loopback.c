#include "launcher/lws/loopback.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/file.h"

static bool same_file(const char *a, const char *b) {
  char x[PATH_MAX], y[PATH_MAX];
  return realpath(a, x) && realpath(b, y) && strcmp(x, y) == 0;
}

// Directories that are made on the way are listed, too, so that they go again.
static bool make_parents(const char *path, mob_lws_words_t *made) {
  for (const char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
    char *dir = mob_strndup(path, (size_t)(p - path));
    if (mob_is_dir(dir)) {
      free(dir);
    } else if (mob_mkdirs(dir) == MOB_OK) {
      *mob_vec_push(made) = dir;
    } else {
      free(dir);
      return false;
    }
  }
  return true;
}

static void stand_in(const char *target, const char *path, mob_lws_words_t *made,
                     mob_buf_t *missing) {
  char *link = mob_strdup(path);
  for (size_t n = strlen(link); n > 1 && link[n - 1] == '/'; n--) link[n - 1] = 0;
  if (same_file(link, target)) {
    free(link);
  } else if (make_parents(link, made) && symlink(target, link) == 0) {
    *mob_vec_push(made) = link;
  } else {
    char *line = mob_sprintf("\n  ln -s %s %s", target, link);
    if (!strstr(mob_buf_cstr(missing), line))
      mob_buf_puts(missing, line); // leader and workers often mount the same
    free(line);
    free(link);
  }
}

static void stand_in_for_mounts(const mob_lws_template_t *t, mob_lws_pair_list_t claims,
                                mob_lws_words_t *made, mob_buf_t *missing) {
  for (size_t i = 0; i < t->container_count; i++) {
    const mob_lws_container_t *c = &t->containers[i];
    for (size_t k = 0; k < c->mount_count; k++) {
      const mob_lws_mount_t *m = &c->mounts[k];
      for (size_t v = 0; v < t->volume_count; v++) {
        const mob_lws_volume_t *volume = &t->volumes[v];
        if (strcmp(volume->name, m->volume) != 0 || !volume->source) continue;
        const char *dir = volume->kind == MOB_LWS_VOLUME_CLAIM
                              ? mob__lws_pair_get(claims, volume->source)
                          : volume->kind == MOB_LWS_VOLUME_HOSTPATH ? volume->source
                                                                    : NULL;
        if (!dir) continue;
        char *target = m->sub_path ? mob_path_join(dir, m->sub_path) : mob_strdup(dir);
        stand_in(target, m->path, made, missing);
        free(target);
      }
    }
  }
}

mob_status mob__loopback_prepare(const mob_lws_manifest_t *manifest, mob_lws_pair_list_t claims,
                                 const char *image_dir, mob_lws_words_t *made) {
  mob_buf_t missing = {0};
  char *script = mob_path_join(image_dir, "ray_init.sh");
  if (mob_file_exists(script)) {
    stand_in(script, "/vllm-workspace/ray_init.sh", made, &missing);
    stand_in(script, "/vllm-workspace/examples/online_serving/multi-node-serving.sh", made,
             &missing);
  }
  free(script);
  for (size_t i = 0; i < manifest->sets.len; i++) {
    const mob_lws_set_t *set = manifest->sets.at[i];
    stand_in_for_mounts(set->leader, claims, made, &missing);
    if (set->worker != set->leader) stand_in_for_mounts(set->worker, claims, made, &missing);
  }
  mob_status status = MOB_OK;
  if (missing.len) {
    status = mob_fail(MOB_E_UNSUPPORTED,
                      "loopback mode cannot mount anything, and the pods' paths are not there; "
                      "make them once, as root (mkdir -p their parents first):%s",
                      mob_buf_cstr(&missing));
  }
  mob_buf_free(&missing);
  return status;
}

static void undo(mob_lws_words_t *made) {
  while (made->len > 0) {
    char *path = (char *)(uintptr_t)made->at[--made->len];
    remove(path); // a directory that is not empty stays
    free(path);
  }
  mob_vec_free(made);
}

mob_status mob__loopback_guard(mob_lws_words_t *made, mob_lws_guard_t *out) {
  int fds[2];
  out->fd = -1;
  if (made->len == 0) return MOB_OK;
  if (pipe2(fds, O_CLOEXEC) != 0) return mob_fail(MOB_E_IO, "pipe: %s", strerror(errno));
  fflush(NULL);
  out->pid = fork();
  if (out->pid < 0) return mob_fail(MOB_E_IO, "fork: %s", strerror(errno));
  if (out->pid > 0) {
    close(fds[0]);
    out->fd = fds[1];
    return MOB_OK;
  }
  setsid(); // Ctrl-C is not for this process
  dup2(fds[0], 0);
  close_range(1, ~0u, 0);
  char byte;
  while (read(0, &byte, 1) < 0 && errno == EINTR) continue;
  undo(made);
  _exit(0);
}

void mob__loopback_end(mob_lws_words_t *made, mob_lws_guard_t *guard) {
  if (guard->fd < 0) {
    undo(made); // no guard was needed, or it could not start
    return;
  }
  close(guard->fd);
  while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR) continue;
  for (size_t i = 0; i < made->len; i++) free((char *)(uintptr_t)made->at[i]);
  mob_vec_free(made);
}
