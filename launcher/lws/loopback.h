// Without a mount namespace the paths that pods expect must exist on the host: links stand in for
// mounts.
#ifndef MOB_LWS_LOOPBACK_H
#define MOB_LWS_LOOPBACK_H

#include "launcher/lws/manifest.h"
#include "launcher/lws/options.h"

// Makes the missing links (/vllm-workspace/ray_init.sh, the claims' mount paths) and lists them in
// `made`. Fails with the commands to run as root where it may not.
mob_status mob__loopback_prepare(const mob_lws_manifest_t *manifest, mob_lws_pair_list_t claims,
                                 const char *image_dir, mob_lws_words_t *made);
void mob__loopback_undo(mob_lws_words_t *made); // removes them; frees the list

#endif
