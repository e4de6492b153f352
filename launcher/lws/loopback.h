// Without a mount namespace the paths that pods expect must exist on the host: links stand in for
// mounts.
#ifndef MOB_LWS_LOOPBACK_H
#define MOB_LWS_LOOPBACK_H

#include <sys/types.h>

#include "launcher/lws/manifest.h"
#include "launcher/lws/options.h"

// Makes the missing links (/vllm-workspace/ray_init.sh, the claims' mount paths) and lists them in
// `made`. Fails with the commands to run as root where it may not.
mob_status mob__loopback_prepare(const mob_lws_manifest_t *manifest, mob_lws_pair_list_t claims,
                                 const char *image_dir, mob_lws_words_t *made);

// A process that removes the links when this one ends, however it ends.
typedef struct mob_lws_guard {
  int fd; // -1: none
  pid_t pid;
} mob_lws_guard_t;

mob_status mob__loopback_guard(mob_lws_words_t *made, mob_lws_guard_t *out);
void mob__loopback_end(mob_lws_words_t *made,
                       mob_lws_guard_t *guard); // removes them; frees the list

#endif
