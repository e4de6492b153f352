// Who is alive: silence of a stage, and steps that take too long. What the transport notices (a
// closed stream, a dead process) needs no watching.
#include <stdio.h>
#include <stdlib.h>

#include "engine/stage/engine_internal.h"
#include "engine/stage/runner.h"
#include "runtime/base/clock.h"

// A step counts as hung at HUNG_FACTOR times the slowest recent step of its size, but never before
// MIN_HUNG. Of a size that was never seen before, much more is allowed.
#define SECOND 1000000000ull
enum { HUNG_FACTOR = 20 };
static const uint64_t min_hung_ns = 5 * SECOND, new_size_ns = 30 * SECOND, new_row_ns = SECOND / 10;

static int size_class(uint32_t tokens) {
  int c = 0;
  while (tokens > 1 && c < MOB__SIZE_CLASSES - 1) {
    tokens >>= 1;
    c++;
  }
  return c;
}

static uint64_t hung_limit(const mob_engine_t *e, uint32_t tokens) {
  int c = size_class(tokens), known = c;
  while (known >= 0 && !e->slow_ns[known]) known--;
  if (known < 0) return new_size_ns + tokens * new_row_ns;
  uint64_t limit = HUNG_FACTOR * (e->slow_ns[known] << (c - known));
  if (known != c && limit < new_size_ns) limit = new_size_ns;
  return limit > min_hung_ns ? limit : min_hung_ns;
}

static uint64_t later(uint64_t a, uint64_t b) {
  return a > b ? a : b;
}

// When `stage` could begin with the step, 0 while it still waits for another stage. A stage waits
// for its predecessor's part of the same step; the first waits for ids, that is for earlier steps
// of the last. The parts of a stage begin together; of another stage, that with rank 0 tells.
static uint64_t could_begin(const mob_engine_t *e, size_t index, int stage) {
  const mob__sent_step_t *step = &e->sent.at[index];
  uint64_t begin = later(step->sent_ns, e->stages[stage].last_ack_ns);
  int own = stage - stage % e->parts, last = e->actors - e->parts;
  if (own > 0) {
    uint64_t before = step->acked_ns[own - e->parts];
    return before ? later(begin, before) : 0;
  }
  if (index > 0 && last > 0) {
    uint64_t before = e->sent.at[index - 1].acked_ns[last];
    return before ? later(begin, before) : 0;
  }
  return last > 0 ? later(begin, e->stages[last].last_ack_ns) : begin;
}

void mob__watch_sent(mob_engine_t *e, const mob_step_t *step) {
  *mob_vec_push(&e->sent) =
      (mob__sent_step_t){.id = step->id,
                         .tokens = step->token_count,
                         .sent_ns = mob_now_ns(),
                         .acked_ns = MOB_NEW_ARRAY(uint64_t, (size_t)e->actors)};
}

static bool everybody(const mob_engine_t *e, const mob__sent_step_t *step) {
  for (int s = 0; s < e->actors; s++)
    if (!step->acked_ns[s]) return false;
  return true;
}

void mob__watch_acked(mob_engine_t *e, int stage, uint64_t id) {
  uint64_t now = mob_now_ns();
  for (size_t i = 0; i < e->sent.len; i++) {
    mob__sent_step_t *step = &e->sent.at[i];
    if (step->id != id) continue;
    uint64_t begin = could_begin(e, i, stage);
    uint64_t *slow = &e->slow_ns[size_class(step->tokens)];
    if (begin)
      *slow = later(now - begin, *slow - *slow / 512); // recent: half forgotten after 350 steps
    // Without the time it stood behind another step.
    uint64_t since = later(step->sent_ns, e->stages[stage].last_ack_ns);
    if (stage == e->actors - e->parts)
      e->step_us[e->steps_timed++ % MOB__RECENT_STEPS] = (uint32_t)((now - since) / 1000);
    step->acked_ns[stage] = now;
    e->stages[stage].last_ack_ns = now;
    e->stages[stage].last_step = id;
    break;
  }
  while (e->sent.len && everybody(e, &e->sent.at[0])) {
    free(e->sent.at[0].acked_ns);
    mob_vec_remove(&e->sent, 0);
  }
}

uint64_t mob__watch_step_age(const mob_engine_t *e, int stage, uint64_t now_ns,
                             uint64_t *limit_ns) {
  for (size_t i = 0; i < e->sent.len; i++) {
    if (e->sent.at[i].acked_ns[stage]) continue;
    uint64_t begin = could_begin(e, i, stage);
    *limit_ns = hung_limit(e, e->sent.at[i].tokens);
    return begin && now_ns > begin ? now_ns - begin : 0;
  }
  *limit_ns = UINT64_MAX;
  return 0;
}

void mob__watch_check(mob_engine_t *e) {
  uint64_t now = mob_now_ns();
  char why[160];
  for (int s = 0; s < e->actors && e->state < MOB__ENGINE_LOST; s++) {
    mob__stage_t *stage = &e->stages[s];
    // Counts checks, not time: when this process was stopped for a while, the messages of that
    // while come first.
    if (stage->heard_ms && ++stage->silent_checks >= MOB__SILENCE_CHECKS) {
      snprintf(why, sizeof why, "no sign of life for %.1f s",
               (double)(mob_now_ms() - stage->heard_ms) / 1000);
      mob__engine_lose(e, s, "silent", why);
      return;
    }
    uint64_t limit, age = mob__watch_step_age(e, s, now, &limit);
    if (age <= limit) continue;
    snprintf(why, sizeof why, "a step has been under way for %.1f s (limit %.1f s)",
             (double)age / SECOND, (double)limit / SECOND);
    mob__engine_lose(e, s, "hung_step", why);
  }
}
