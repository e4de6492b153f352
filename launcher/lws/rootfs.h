// What a container sees as its file system: the host's as an overlay that keeps its writes to
// itself, with own /tmp, /dev, /run and /proc, the image's programs, and the pod's volumes.
#ifndef MOB_LWS_ROOTFS_H
#define MOB_LWS_ROOTFS_H

#include "launcher/lws/sandbox.h"

// In the sandbox, once: a tmpfs on spec->stage and the volumes on it.
mob_status mob__rootfs_prepare(const mob_lws_sandbox_spec_t *spec);

// In the container's own mount namespace: builds its root and moves into it. `attempt` counts the
// container's starts, each of which has a fresh root. `note` gets a line when the host's file
// system could not be overlaid as a whole, "" otherwise.
mob_status mob__rootfs_enter(const mob_lws_sandbox_spec_t *spec, size_t container, unsigned attempt,
                             char note[200]);

#endif
