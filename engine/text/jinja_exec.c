// Statements: what they print and assign.
#include <string.h>

#include "engine/text/jinja.h"

bool mob__jinja_lookup(const mob__jscope_t *scope, mob__jstring_t name, mob__jvalue_t *out) {
  for (; scope; scope = scope->parent) {
    for (size_t i = 0; i < scope->len; i++) {
      if (mob__jstr_eq(scope->at[i].name, name)) {
        *out = scope->at[i].value;
        return true;
      }
    }
  }
  return false;
}

void mob__jinja_assign(mob__jinja_t *r, mob__jscope_t *scope, mob__jstring_t name,
                       mob__jvalue_t v) {
  for (size_t i = 0; i < scope->len; i++) {
    if (mob__jstr_eq(scope->at[i].name, name)) {
      scope->at[i].value = v;
      return;
    }
  }
  if (scope->len == scope->cap) {
    size_t cap = scope->cap ? scope->cap * 2 : 4;
    mob__jvariable_t *grown = mob__j_alloc(r, cap * sizeof *grown);
    if (scope->len) memcpy(grown, scope->at, scope->len * sizeof *grown);
    scope->at = grown;
    scope->cap = cap;
  }
  scope->at[scope->len++] = (mob__jvariable_t){name, v};
}

static mob__jscope_t *new_scope(mob__jinja_t *r, mob__jscope_t *parent) {
  mob__jscope_t *scope = mob__j_alloc(r, sizeof *scope);
  scope->parent = parent;
  return scope;
}

static mob_status assign_to(mob__jinja_t *r, const mob__jnode_t *target, mob__jvalue_t v) {
  if (target->kind == MOB__JE_NAME) {
    mob__jinja_assign(r, r->scope, target->name, v);
    return MOB_OK;
  }
  if (target->kind == MOB__JE_ATTR) { // ns.name
    mob__jvalue_t ns;
    MOB_TRY(mob__jinja_eval(r, target->a, &ns));
    if (ns.type != MOB__J_NAMESPACE)
      return mob_fail(MOB_E_INVALID, "cannot assign attribute on non-namespace object");
    mob__j_dict_put(r, ns.u.dict, mob__j_string(target->name), v);
    return MOB_OK;
  }
  mob__jlist_t *parts;
  MOB_TRY(mob__j_defined(v));
  MOB_TRY(mob__j_iterate(r, v, &parts));
  if (parts->len != target->items.len) {
    return mob_fail(MOB_E_INVALID, "cannot unpack %zu values into %zu names", parts->len,
                    target->items.len);
  }
  for (size_t i = 0; i < parts->len; i++) MOB_TRY(assign_to(r, target->items.at[i], parts->at[i]));
  return MOB_OK;
}

// Runs `body` with its output going to a string, passed through `filters`.
static mob_status capture(mob__jinja_t *r, const mob__jnodes_t *body, const mob__jnode_t *filters,
                          mob__jflow_t *flow, mob__jvalue_t *out) {
  mob_buf_t text = {0}, *before = r->out;
  r->out = &text;
  mob_status status = mob__jinja_exec(r, body, flow);
  r->out = before;
  if (status != MOB_OK) {
    mob_buf_free(&text);
    return status;
  }
  MOB_TRY(mob__j_take(r, &text, out));
  if (!filters) return MOB_OK;
  // The innermost filter's input is the captured text: the chain hangs from the last filter.
  const mob__jnode_t *chain[MOB__JINJA_MAX_NESTING];
  size_t n = 0;
  for (; filters; filters = filters->a) {
    if (n == MOB_LEN(chain)) return mob_fail(MOB_E_INVALID, "too many filters in a row");
    chain[n++] = filters;
  }
  while (n > 0) {
    mob__jargs_t args;
    mob__jvalue_t in = *out;
    MOB_TRY(mob__jinja_eval_args(r, chain[--n], &args));
    MOB_TRY(mob__jinja_filter(r, chain[n]->name, in, &args, out));
  }
  return MOB_OK;
}

// The items of a loop that pass its `if`.
static mob_status loop_items(mob__jinja_t *r, const mob__jnode_t *node, mob__jlist_t **out) {
  mob__jvalue_t source, v;
  mob__jlist_t *all;
  MOB_TRY(mob__jinja_eval(r, node->b, &source));
  MOB_TRY(mob__j_iterate(r, source, &all));
  *out = all;
  if (!node->c) return MOB_OK;
  mob__jscope_t *before = r->scope;
  *out = mob__j_new_list(r, MOB__J_LIST).u.list;
  mob_status status = MOB_OK;
  for (size_t i = 0; i < all->len; i++) {
    r->scope = new_scope(r, before);
    MOB_TRY_GOTO(assign_to(r, node->a, all->at[i]), status, done);
    MOB_TRY_GOTO(mob__jinja_eval(r, node->c, &v), status, done);
    if (mob__j_truth(v)) mob__j_push(r, *out, all->at[i]);
  }
done:
  r->scope = before;
  return status;
}

static mob_status exec_for(mob__jinja_t *r, const mob__jnode_t *node, mob__jflow_t *flow) {
  mob__jlist_t *items;
  MOB_TRY(loop_items(r, node, &items));
  if (items->len == 0) return mob__jinja_exec(r, &node->orelse, flow);
  mob__jscope_t *before = r->scope;
  mob__jloop_t *loop = mob__j_alloc(r, sizeof *loop);
  loop->items = items;
  loop->depth = 1;
  mob_status status = MOB_OK;
  for (size_t i = 0; i < items->len && status == MOB_OK; i++) {
    mob__jflow_t inner = MOB__J_NEXT;
    loop->index = i;
    r->steps++; // also of an empty body
    r->scope = new_scope(r, before);
    mob__jinja_assign(r, r->scope, MOB__JSTR("loop"),
                      (mob__jvalue_t){.type = MOB__J_LOOP, .u.loop = loop});
    status = assign_to(r, node->a, items->at[i]);
    if (status == MOB_OK) status = mob__jinja_exec(r, &node->body, &inner);
    if (inner == MOB__J_BREAK) break;
  }
  r->scope = before;
  return status;
}

// The value of a macro's parameter: given by place, by name, or by default.
static mob_status bind(mob__jinja_t *r, const mob__jnode_t *node, const mob__jargs_t *args) {
  if (args->len > node->arg_count) {
    return mob_fail(MOB_E_INVALID, "macro '%.*s' takes not more than %zu argument(s)",
                    (int)node->name.len, node->name.text ? node->name.text : "", node->arg_count);
  }
  size_t used = 0;
  for (size_t i = 0; i < node->arg_count; i++) {
    const mob__jarg_t *parameter = &node->args[i];
    mob__jvalue_t v;
    bool given = i < args->len;
    if (given) v = args->at[i];
    for (size_t k = 0; k < args->named_len; k++) {
      if (!mob__jstr_eq(args->named[k].name, parameter->name)) continue;
      if (given)
        return mob_fail(MOB_E_INVALID, "a macro's argument '%.*s' is given twice",
                        (int)parameter->name.len, parameter->name.text);
      v = args->named[k].value;
      given = true;
      used++;
    }
    if (!given && parameter->value) {
      MOB_TRY(mob__jinja_eval(r, parameter->value, &v));
    } else if (!given) {
      v = mob__j_undefined(r, "parameter '%.*s' was not provided", (int)parameter->name.len,
                           parameter->name.text);
    }
    mob__jinja_assign(r, r->scope, parameter->name, v);
  }
  for (size_t k = 0; k < args->named_len; k++) {
    if (mob__jstr_is(args->named[k].name, "caller")) {
      mob__jinja_assign(r, r->scope, MOB__JSTR("caller"), args->named[k].value);
      used++;
    }
  }
  if (used < args->named_len)
    return mob_fail(MOB_E_INVALID, "a macro takes no argument of that name");
  return MOB_OK;
}

mob_status mob__jinja_call_macro(mob__jinja_t *r, mob__jmacro_t *m, const mob__jargs_t *args,
                                 mob__jvalue_t *out) {
  mob__jscope_t *before = r->scope;
  mob__jflow_t flow = MOB__J_NEXT;
  r->scope = new_scope(r, m->scope);
  mob_status status = bind(r, m->node, args);
  if (status == MOB_OK) status = capture(r, &m->node->body, NULL, &flow, out);
  r->scope = before;
  return status;
}

static mob__jvalue_t macro_value(mob__jinja_t *r, const mob__jnode_t *node) {
  mob__jmacro_t *m = mob__j_alloc(r, sizeof *m);
  *m = (mob__jmacro_t){node, r->scope};
  return (mob__jvalue_t){.type = MOB__J_MACRO, .u.macro = m};
}

// {% call f(x) %}body{% endcall %}: f gets the body as caller().
static mob_status exec_call(mob__jinja_t *r, const mob__jnode_t *node) {
  mob__jvalue_t f, result;
  mob__jargs_t args;
  MOB_TRY(mob__jinja_eval(r, node->a->a, &f));
  MOB_TRY(mob__jinja_eval_args(r, node->a, &args));
  mob__jvariable_t *named = mob__j_alloc(r, (args.named_len + 1) * sizeof *named);
  if (args.named_len) memcpy(named, args.named, args.named_len * sizeof *named);
  named[args.named_len++] = (mob__jvariable_t){MOB__JSTR("caller"), macro_value(r, node)};
  args.named = named;
  MOB_TRY(mob__jinja_call(r, f, &args, &result));
  return mob__j_print(r, result, r->out);
}

static mob_status exec_with(mob__jinja_t *r, const mob__jnode_t *node, mob__jflow_t *flow) {
  mob__jscope_t *before = r->scope, *inner = new_scope(r, before);
  mob_status status = MOB_OK;
  for (size_t i = 0; i < node->items.len; i += 2) {
    mob__jvalue_t v;
    r->scope = before; // values see what is outside
    MOB_TRY_GOTO(mob__jinja_eval(r, node->items.at[i + 1], &v), status, done);
    r->scope = inner;
    MOB_TRY_GOTO(assign_to(r, node->items.at[i], v), status, done);
  }
  r->scope = inner;
  status = mob__jinja_exec(r, &node->body, flow);
done:
  r->scope = before;
  return status;
}

static mob_status exec_if(mob__jinja_t *r, const mob__jnode_t *node, mob__jflow_t *flow) {
  mob__jvalue_t v;
  for (;;) {
    MOB_TRY(mob__jinja_eval(r, node->a, &v));
    if (mob__j_truth(v)) return mob__jinja_exec(r, &node->body, flow);
    if (node->orelse.len != 1 || node->orelse.at[0]->kind != MOB__JS_IF) {
      return mob__jinja_exec(r, &node->orelse, flow);
    }
    node = node->orelse.at[0];
  }
}

static mob_status exec_one(mob__jinja_t *r, const mob__jnode_t *node, mob__jflow_t *flow) {
  mob__jvalue_t v;
  switch (node->kind) {
  case MOB__JS_TEXT:
    return mob__j_print(r, node->value, r->out);
  case MOB__JS_PRINT:
    MOB_TRY(mob__jinja_eval(r, node->a, &v));
    return mob__j_print(r, v, r->out);
  case MOB__JS_IF:
    return exec_if(r, node, flow);
  case MOB__JS_FOR:
    return exec_for(r, node, flow);
  case MOB__JS_SET:
    MOB_TRY(mob__jinja_eval(r, node->b, &v));
    return assign_to(r, node->a, v);
  case MOB__JS_SET_BLOCK:
    MOB_TRY(capture(r, &node->body, node->b, flow, &v));
    return assign_to(r, node->a, v);
  case MOB__JS_FILTER_BLOCK:
    MOB_TRY(capture(r, &node->body, node->b, flow, &v));
    return mob__j_print(r, v, r->out);
  case MOB__JS_MACRO:
    mob__jinja_assign(r, r->scope, node->name, macro_value(r, node));
    return MOB_OK;
  case MOB__JS_CALL:
    return exec_call(r, node);
  case MOB__JS_WITH:
    return exec_with(r, node, flow);
  case MOB__JS_BREAK:
    *flow = MOB__J_BREAK;
    return MOB_OK;
  case MOB__JS_CONTINUE:
    *flow = MOB__J_CONTINUE;
    return MOB_OK;
  default:
    return mob_fail(MOB_E_INTERNAL, "an expression where a statement belongs");
  }
}

mob_status mob__jinja_exec(mob__jinja_t *r, const mob__jnodes_t *body, mob__jflow_t *flow) {
  for (size_t i = 0; i < body->len && *flow == MOB__J_NEXT; i++) {
    MOB_TRY(mob__jinja_enter(r));
    mob_status status = exec_one(r, body->at[i], flow);
    mob__jinja_leave(r);
    if (status != MOB_OK) {
      // The innermost statement names the line; what raise_exception() said stays as it is.
      if (!r->raised) mob_wrap(status, "template line %d", body->at[i]->line);
      r->raised = true;
      return status;
    }
  }
  return MOB_OK;
}
