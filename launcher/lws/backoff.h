// The kubelet's delay before a container is started again: none the first time, then 10 s, doubling
// to 300 s; a run of 10 minutes makes it new again.
#ifndef MOB_LWS_BACKOFF_H
#define MOB_LWS_BACKOFF_H

#include <stdint.h>

typedef struct mob_lws_backoff {
  uint64_t next_ms; // delay of the restart after the coming one
} mob_lws_backoff_t;

#define MOB_LWS_BACKOFF_FIRST_MS 10000u
#define MOB_LWS_BACKOFF_MAX_MS 300000u
#define MOB_LWS_BACKOFF_RESET_MS 600000u

// How long to wait now that a container ended after `ran_ms`.
uint64_t mob__lws_backoff_next(mob_lws_backoff_t *backoff, uint64_t ran_ms);

#endif
