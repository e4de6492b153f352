// Steps and results as messages of the step stream (proto/mobula/step.proto), both directions. What
// arrives is checked whole before anybody uses it: an executor may trust a decoded step.
#ifndef MOB_STAGE_WIRE_H
#define MOB_STAGE_WIRE_H

#include "engine/step.h"
#include "mobula/stage.pb-c.h"
#include "runtime/base/arena.h"
#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

enum { MOB__STAGE_PROTOCOL = 2 };

// A block table as both ends of the stream remember it between the steps of a slot.
typedef struct mob__table {
  bool open;
  MOB_VEC(uint32_t) pages;
} mob__table_t;

typedef struct mob__tables {
  mob__table_t *slot; // [count]
  uint32_t count;
} mob__tables_t;

void mob__tables_init(mob__tables_t *tables, uint32_t slots);
void mob__tables_free(mob__tables_t *tables);

// Appends a packed message; both kinds go to the peer as they are.
void mob__wire_down(const Mobula__StageDown *message, mob_buf_t *out);
void mob__wire_up(const Mobula__StageUp *message, mob_buf_t *out);

// Appends a packed StageDown with the plan. `tables` is of the sender; every plan of the stream
// goes through it in order.
void mob__wire_plan(mob__tables_t *tables, uint64_t epoch, const mob_step_t *step, mob_buf_t *out);

typedef struct mob__step_limits {
  int64_t pages;
  uint32_t max_tokens, max_len, vocab;
} mob__step_limits_t;

// The step lives in `arena`, `tables` and `plan` until the next call with them. MOB_E_FORMAT,
// saying what is wrong.
mob_status mob__wire_read_plan(mob__tables_t *tables, const mob__step_limits_t *limits,
                               const Mobula__StepPlan *plan, mob_arena_t *arena, mob_step_t *out);

void mob__wire_result(uint64_t epoch, const mob_step_result_t *result, mob_buf_t *out);
// The result lives in `arena`.
mob_status mob__wire_read_result(const Mobula__StepResult *message, mob_arena_t *arena,
                                 mob_step_result_t *out);

#endif
