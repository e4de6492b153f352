#include "launcher/lws/loopback.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

void mob__loopback_undo(mob_lws_words_t *made) {
  while (made->len > 0) {
    char *path = (char *)(uintptr_t)made->at[--made->len];
    remove(path); // a directory that is not empty stays
    free(path);
  }
  mob_vec_free(made);
}
