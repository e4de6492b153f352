#include "engine/api/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engine/api/json_out.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

static const double ttft_bounds[] = {.001, .005, .01, .02, .04, .06, .08, .1,
                                     .25,  .5,   .75, 1,   2.5, 5,   7.5, 10};
static const double tpot_bounds[] = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5};
static const double latency_bounds[] = {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60};
static const double n_bounds[] = {1, 2, 5, 10, 20};

// One histogram may stand under several names: 0.7.2's and newer ones.
static const struct {
  mob_metric_hist_t which;
  const char *name, *help;
} hist_names[] = {
    {MOB_HIST_TTFT, "vllm:time_to_first_token_seconds",
     "Histogram of time to first token in seconds."},
    {MOB_HIST_ITL, "vllm:time_per_output_token_seconds",
     "Histogram of time per output token in seconds."},
    {MOB_HIST_ITL, "vllm:inter_token_latency_seconds",
     "Histogram of inter-token latency in seconds."},
    {MOB_HIST_TPOT, "vllm:request_time_per_output_token_seconds",
     "Histogram of mean time per output token of a request in seconds."},
    {MOB_HIST_E2E, "vllm:e2e_request_latency_seconds",
     "Histogram of end to end request latency in seconds."},
    {MOB_HIST_QUEUE, "vllm:request_queue_time_seconds",
     "Histogram of time spent before the engine has the request."},
    {MOB_HIST_QUEUE, "vllm:time_in_queue_requests",
     "Histogram of time the request spent in the queue in seconds."},
    {MOB_HIST_INFERENCE, "vllm:request_inference_time_seconds",
     "Histogram of time spent in the engine for request."},
    {MOB_HIST_PREFILL, "vllm:request_prefill_time_seconds",
     "Histogram of time spent in PREFILL phase for request."},
    {MOB_HIST_DECODE, "vllm:request_decode_time_seconds",
     "Histogram of time spent in DECODE phase for request."},
    {MOB_HIST_PROMPT, "vllm:request_prompt_tokens", "Number of prefill tokens processed."},
    {MOB_HIST_GENERATION, "vllm:request_generation_tokens",
     "Number of generation tokens processed."},
    {MOB_HIST_MAX_GENERATION, "vllm:request_max_num_generation_tokens",
     "Histogram of maximum number of requested generation tokens."},
    {MOB_HIST_PARAM_N, "vllm:request_params_n", "Histogram of the n request parameter."},
    {MOB_HIST_PARAM_MAX_TOKENS, "vllm:request_params_max_tokens",
     "Histogram of the max_tokens request parameter."},
};

static void set_bounds(mob_histogram_t *hist, const double *bounds, size_t count) {
  memcpy(hist->bounds, bounds, count * sizeof *bounds);
  hist->bound_count = count;
}

static void set_ladder(mob_histogram_t *hist, int max) { // 1, 2, 5, 10, 20, ... <= max
  static const int steps[] = {1, 2, 5};
  for (int64_t power = 1; power <= max; power *= 10) {
    for (size_t i = 0; i < MOB_LEN(steps) && steps[i] * power <= max; i++) {
      hist->bounds[hist->bound_count++] = (double)(steps[i] * power);
    }
  }
}

void mob__metrics_init(mob_metrics_t *m, int max_model_len) {
  memset(m, 0, sizeof *m);
  m->started = mob_wall_seconds();
  set_bounds(&m->hist[MOB_HIST_TTFT], ttft_bounds, MOB_LEN(ttft_bounds));
  set_bounds(&m->hist[MOB_HIST_ITL], tpot_bounds, MOB_LEN(tpot_bounds));
  set_bounds(&m->hist[MOB_HIST_TPOT], tpot_bounds, MOB_LEN(tpot_bounds));
  for (int i = MOB_HIST_E2E; i <= MOB_HIST_DECODE; i++) {
    set_bounds(&m->hist[i], latency_bounds, MOB_LEN(latency_bounds));
  }
  set_ladder(&m->hist[MOB_HIST_PROMPT], max_model_len);
  set_ladder(&m->hist[MOB_HIST_GENERATION], max_model_len);
  set_ladder(&m->hist[MOB_HIST_MAX_GENERATION], max_model_len);
  set_ladder(&m->hist[MOB_HIST_PARAM_MAX_TOKENS], max_model_len);
  set_bounds(&m->hist[MOB_HIST_PARAM_N], n_bounds, MOB_LEN(n_bounds));
}

void mob__metrics_observe(mob_metrics_t *m, mob_metric_hist_t which, double value) {
  mob_histogram_t *hist = &m->hist[which];
  hist->total++;
  hist->sum += value;
  for (size_t i = 0; i < hist->bound_count; i++) {
    if (value > hist->bounds[i]) continue;
    hist->counts[i]++;
    return;
  }
}

// --------------------------------------------------------------------------------------------
// writing

typedef struct writer {
  mob_buf_t *out;
  char label[512]; // model_name="..."
} writer_t;

static void head(writer_t *w, const char *name, const char *help, const char *type) {
  mob_buf_printf(w->out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_value(writer_t *w, const char *name, const char *labels, double value) {
  mob_buf_printf(w->out, "%s{%s%s%s} ", name, w->label, *labels ? "," : "", labels);
  mob_json_float(w->out, value);
  mob_buf_putc(w->out, '\n');
}

static void gauge(writer_t *w, const char *name, const char *help, double value) {
  head(w, name, help, "gauge");
  put_value(w, name, "", value);
}

static void counter(writer_t *w, const char *name, const char *help, double value) {
  head(w, name, help, "counter");
  put_value(w, name, "", value);
}

static void put_histogram(writer_t *w, const char *name, const char *help,
                          const mob_histogram_t *hist) {
  head(w, name, help, "histogram");
  uint64_t cumulative = 0;
  for (size_t i = 0; i < hist->bound_count; i++) {
    cumulative += hist->counts[i];
    mob_buf_printf(w->out, "%s_bucket{%s,le=\"", name, w->label);
    mob_json_float(w->out, hist->bounds[i]);
    mob_buf_printf(w->out, "\"} %llu.0\n", (unsigned long long)cumulative);
  }
  mob_buf_printf(w->out, "%s_bucket{%s,le=\"+Inf\"} %llu.0\n", name, w->label,
                 (unsigned long long)hist->total);
  mob_buf_printf(w->out, "%s_count{%s} %llu.0\n", name, w->label, (unsigned long long)hist->total);
  mob_buf_printf(w->out, "%s_sum{%s} ", name, w->label);
  mob_json_float(w->out, hist->sum);
  mob_buf_putc(w->out, '\n');
}

static void put_engine(writer_t *w, const mob_engine_stats_t *s, bool prefix_cache) {
  double used = s->pages_total > 0 ? (double)s->pages_used / (double)s->pages_total : 0;
  double hit_rate = s->prefix_queries ? (double)s->prefix_hits / (double)s->prefix_queries : 0;
  gauge(w, "vllm:num_requests_running", "Number of requests currently running on GPU.", s->running);
  gauge(w, "vllm:num_requests_waiting", "Number of requests waiting to be processed.", s->waiting);
  gauge(w, "vllm:num_requests_swapped", "Number of requests swapped to CPU.", 0);
  gauge(w, "vllm:gpu_cache_usage_perc", "GPU KV-cache usage. 1 means 100 percent usage.", used);
  gauge(w, "vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", used);
  gauge(w, "vllm:cpu_cache_usage_perc", "CPU KV-cache usage. 1 means 100 percent usage.", 0);
  gauge(w, "vllm:gpu_prefix_cache_hit_rate", "GPU prefix cache block hit rate.",
        prefix_cache ? hit_rate : -1);
  gauge(w, "vllm:cpu_prefix_cache_hit_rate", "CPU prefix cache block hit rate.", -1);
  counter(w, "vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
          (double)s->prefix_queries);
  counter(w, "vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
          (double)s->prefix_hits);
  counter(w, "vllm:num_preemptions_total", "Cumulative number of preemption from the engine.",
          (double)s->preemptions);
  counter(w, "vllm:prompt_tokens_total", "Number of prefill tokens processed.",
          (double)s->prompt_tokens);
  counter(w, "vllm:generation_tokens_total", "Number of generation tokens processed.",
          (double)s->generated_tokens);
  counter(w, "vllm:tokens_total", "Number of prefill plus generation tokens processed.",
          (double)(s->prompt_tokens + s->generated_tokens));
  counter(w, "mobula_steps_total", "Steps that the engine has finished.", (double)s->steps);
  head(w, "mobula_step_seconds", "Duration of the last 1000 steps.", "gauge");
  put_value(w, "mobula_step_seconds", "quantile=\"0.5\"", (double)s->step_p50_us / 1e6);
  put_value(w, "mobula_step_seconds", "quantile=\"0.99\"", (double)s->step_p99_us / 1e6);
}

static void put_stages(writer_t *w, const mob_engine_t *engine) {
  mob_stage_health_t stages[64];
  int count = mob_engine_stages(engine, stages, (int)MOB_LEN(stages));
  static const char *const names[] = {"mobula_stage_up", "mobula_stage_heard_seconds",
                                      "mobula_stage_step_age_seconds"};
  static const char *const help[] = {"Whether the stage's process is alive.",
                                     "Age of the stage's last sign of life.",
                                     "Age of the oldest step that the stage has not finished."};
  for (size_t m = 0; m < MOB_LEN(names) && count > 0; m++) {
    head(w, names[m], help[m], "gauge");
    for (int i = 0; i < count; i++) {
      char labels[160];
      snprintf(labels, sizeof labels, "stage=\"%d\",node=\"%s\",pid=\"%d\"", stages[i].stage,
               stages[i].node_ip, stages[i].pid); // the pid tells a stage's pods apart
      double values[] = {stages[i].alive, (double)stages[i].heard_ms / 1e3,
                         (double)stages[i].step_age_ms / 1e3};
      put_value(w, names[m], labels, values[m]);
    }
  }
}

static void put_stage_info(writer_t *w, const mob_engine_t *engine) {
  mob_stage_health_t stages[64];
  int count = mob_engine_stages(engine, stages, (int)MOB_LEN(stages));
  if (count <= 0) return;
  head(w, "mobula_stage_info", "Where a stage runs, and what of the model it has.", "gauge");
  for (int i = 0; i < count; i++) {
    char labels[200];
    snprintf(labels, sizeof labels,
             "stage=\"%d\",node=\"%s\",pid=\"%d\",layers=\"%d-%d\",ranks=\"%d\"",
             stages[i].stage, stages[i].node_ip, stages[i].pid, stages[i].first_layer,
             stages[i].last_layer - 1, stages[i].ranks);
    put_value(w, "mobula_stage_info", labels, 1);
  }
}

static void put_process(writer_t *w, const mob_metrics_t *m) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  long pages = 0, resident = 0;
  FILE *statm = fopen("/proc/self/statm", "r");
  if (statm && fscanf(statm, "%ld %ld", &pages, &resident) != 2) pages = resident = 0;
  if (statm) fclose(statm);
  w->label[0] = '\0';
  mob_buf_t *out = w->out;
  double cpu = (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6 +
               (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6;
  mob_buf_printf(
      out,
      "# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.\n"
      "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %.3f\n",
      cpu);
  mob_buf_printf(out,
                 "# HELP process_resident_memory_bytes Resident memory size in bytes.\n"
                 "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %ld\n",
                 resident * sysconf(_SC_PAGESIZE));
  mob_buf_printf(
      out,
      "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.\n"
      "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %.3f\n",
      m->started);
  mob_buf_printf(out, "# HELP http_requests_total Total number of requests by status class.\n"
                      "# TYPE http_requests_total counter\n");
  for (int i = 2; i <= 5; i++) {
    mob_buf_printf(out, "http_requests_total{status=\"%dxx\"} %llu\n", i,
                   (unsigned long long)m->http_requests[i]);
  }
}

void mob__metrics_write(const mob_metrics_t *m, const char *model_name, const mob_engine_t *engine,
                        double memory_share, bool prefix_cache, mob_buf_t *out) {
  writer_t w = {.out = out};
  mob_buf_t name = {0};
  for (const char *at = model_name; *at && name.len < 480;
       at++) { // label values escape \ " and newline
    if (*at == '\\' || *at == '"') mob_buf_putc(&name, '\\');
    mob_buf_puts(&name, *at == '\n' ? "\\n" : (char[]){*at, 0});
  }
  snprintf(w.label, sizeof w.label, "model_name=\"%s\"", mob_buf_cstr(&name));
  mob_buf_free(&name);
  if (engine) {
    mob_engine_stats_t stats = {0};
    mob_engine_stats(engine, &stats);
    put_engine(&w, &stats, prefix_cache);
    head(&w, "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge");
    char labels[256];
    snprintf(labels, sizeof labels,
             "block_size=\"%d\",num_gpu_blocks=\"%lld\",num_cpu_blocks=\"0\","
             "gpu_memory_utilization=\"%g\",enable_prefix_caching=\"%s\",cache_dtype=\"auto\"",
             MOB_PAGE_TOKENS, (long long)stats.pages_total, memory_share,
             prefix_cache ? "True" : "False");
    put_value(&w, "vllm:cache_config_info", labels, 1);
  }
  head(&w, "vllm:lora_requests_info", "Running stats on lora requests.", "gauge");
  put_value(&w, "vllm:lora_requests_info",
            "running_lora_adapters=\"\",max_lora=\"0\",waiting_lora_adapters=\"\"", 0);
  head(&w, "vllm:request_success_total", "Count of successfully processed requests.", "counter");
  put_value(&w, "vllm:request_success_total", "finished_reason=\"stop\"", (double)m->finished_stop);
  put_value(&w, "vllm:request_success_total", "finished_reason=\"length\"",
            (double)m->finished_length);
  put_value(&w, "vllm:request_success_total", "finished_reason=\"abort\"",
            (double)m->finished_abort);
  for (size_t i = 0; i < MOB_LEN(hist_names); i++) {
    put_histogram(&w, hist_names[i].name, hist_names[i].help, &m->hist[hist_names[i].which]);
  }
  head(&w, "mobula_group_lost_total", "Groups lost since the process began, by cause.", "counter");
  char cause[64];
  snprintf(cause, sizeof cause, "cause=\"%s\"", m->lost ? m->lost_cause : "none");
  put_value(&w, "mobula_group_lost_total", cause, (double)m->lost);
  if (engine) put_stages(&w, engine);
  if (engine) put_stage_info(&w, engine);
  put_process(&w, m);
}
