// What this pod is doing: GPUs (NVML), network, CPU, memory. Sampled on a thread of its own, when
// somebody asks; a driver that hangs delays nobody.
#ifndef MOB_NODE_TELEMETRY_H
#define MOB_NODE_TELEMETRY_H

#include <stdbool.h>
#include <uv.h>

#include "mobula/node.pb-c.h"

typedef struct mob_telemetry mob_telemetry_t;
typedef Mobula__Rpc__GetTelemetryReply mob_telemetry_reply_t;

// NULL when no sample was ever finished. Valid until it returns.
typedef void (*mob_telemetry_fn)(void *arg, const mob_telemetry_reply_t *sample);

// `gpus`: whether real GPUs are to be looked at; those that CUDA_VISIBLE_DEVICES lets through.
mob_telemetry_t *mob_telemetry_new(uv_loop_t *loop, bool gpus);
// `done` runs once, on the loop: with a new sample, or after MOB_TELEMETRY_PATIENCE_MS with the
// last one there is. Samples are at least MOB_TELEMETRY_FRESH_MS apart: who asks sooner gets the
// last.
void mob_telemetry_get(mob_telemetry_t *telemetry, mob_telemetry_fn done, void *arg);
// Answers who still waits, with the last sample. `closed` may be NULL. The thread ends when it can;
// nobody waits for it.
void mob_telemetry_close(mob_telemetry_t *telemetry, void (*closed)(void *arg), void *arg);

enum { MOB_TELEMETRY_FRESH_MS = 400, MOB_TELEMETRY_PATIENCE_MS = 700 };

#endif
