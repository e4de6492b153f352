#include "launcher/lws/backoff.h"

uint64_t mob__lws_backoff_next(mob_lws_backoff_t *backoff, uint64_t ran_ms) {
  if (ran_ms >= MOB_LWS_BACKOFF_RESET_MS) backoff->next_ms = 0;
  uint64_t delay = backoff->next_ms;
  uint64_t next = delay ? delay * 2 : MOB_LWS_BACKOFF_FIRST_MS;
  backoff->next_ms = next > MOB_LWS_BACKOFF_MAX_MS ? MOB_LWS_BACKOFF_MAX_MS : next;
  return delay;
}
