// `vllm serve`: from parsed options to the end of the process.
#ifndef MOB_API_SERVE_H
#define MOB_API_SERVE_H

#include "engine/api/serve_options.h"

// Exit codes beside 0 (drained) and 1 (refused at start, with one line on stderr).
enum {
  MOB_EXIT_LOST_AT_START = 69, // a peer was lost, or a stage failed, before the API opened
  MOB_EXIT_LOST = 70,          // the group was lost while it served: the pod is to be recreated
  MOB_EXIT_INCOMPLETE = 75,    // the group was not whole in time
};

// Runs until the end; returns the exit code.
int mob__serve(const mob_serve_options_t *options);

#endif
