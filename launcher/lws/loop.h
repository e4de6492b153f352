// One-shot timers and watched descriptors on a libuv loop, whose owners need not wait for close
// callbacks: a slot holds one, cancelling empties the slot at once.
#ifndef MOB_LWS_LOOP_H
#define MOB_LWS_LOOP_H

#include <stdint.h>
#include <uv.h>

typedef struct mob_lws_timer mob_lws_timer_t;
typedef struct mob_lws_watch mob_lws_watch_t;

// Replaces what the slot holds. The slot is empty when `fn` runs.
void mob__timer_set(mob_lws_timer_t **slot, uv_loop_t *loop, uint64_t ms, void (*fn)(void *arg),
                    void *arg);
void mob__timer_cancel(mob_lws_timer_t **slot); // an empty slot is fine

// Calls `fn` as often as `fd` is readable (UV_READABLE), writable, or at its end, until stopped.
// The descriptor stays the caller's.
void mob__watch_start(mob_lws_watch_t **slot, uv_loop_t *loop, int fd, int events,
                      void (*fn)(void *arg), void *arg);
void mob__watch_stop(mob_lws_watch_t **slot);

#endif
