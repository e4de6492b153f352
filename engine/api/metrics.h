// What /metrics shows, in Prometheus' text format, under the names of vLLM 0.7.2 and of newer
// releases alike.
#ifndef MOB_API_METRICS_H
#define MOB_API_METRICS_H

#include "engine/stage/engine.h"
#include "runtime/base/buf.h"

enum { MOB__BUCKETS = 40 };

typedef struct mob_histogram {
  double bounds[MOB__BUCKETS];
  uint64_t counts[MOB__BUCKETS]; // not cumulative
  size_t bound_count;
  uint64_t total;
  double sum;
} mob_histogram_t;

typedef enum mob_metric_hist {
  MOB_HIST_TTFT,           // seconds from arrival to the first token
  MOB_HIST_ITL,            // seconds between tokens of a sequence
  MOB_HIST_TPOT,           // mean of those over a request
  MOB_HIST_E2E,            // seconds from arrival to the end
  MOB_HIST_QUEUE,          // seconds from arrival until the engine has it
  MOB_HIST_INFERENCE,      // seconds from there to the end
  MOB_HIST_PREFILL,        // seconds from there to the first token
  MOB_HIST_DECODE,         // seconds from the first token to the last
  MOB_HIST_PROMPT,         // tokens
  MOB_HIST_GENERATION,     // tokens
  MOB_HIST_MAX_GENERATION, // most tokens of the sequences of a request
  MOB_HIST_PARAM_N,
  MOB_HIST_PARAM_MAX_TOKENS,
  MOB_HIST_COUNT
} mob_metric_hist_t;

typedef struct mob_metrics {
  mob_histogram_t hist[MOB_HIST_COUNT];
  uint64_t finished_stop, finished_length, finished_abort;
  uint64_t prompt_tokens, generation_tokens; // of requests that ended or run
  uint64_t http_requests[6];                 // by first digit of the status
  uint64_t lost;                             // 0 or 1
  char lost_cause[32];
  double started; // wall clock
} mob_metrics_t;

void mob__metrics_init(mob_metrics_t *metrics, int max_model_len);
void mob__metrics_observe(mob_metrics_t *metrics, mob_metric_hist_t which, double value);
// `engine` may be NULL.
void mob__metrics_write(const mob_metrics_t *metrics, const char *model_name,
                        const mob_engine_t *engine, double memory_share, bool prefix_cache,
                        mob_buf_t *out);

#endif
