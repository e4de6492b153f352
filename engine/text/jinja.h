// The parts of the template evaluator: values, syntax tree, and what its files call of each other.
// The language is Jinja 3 as transformers sets it up (trim_blocks, lstrip_blocks, loop controls,
// sandbox, no autoescape). Everything lives in arenas: the tree in the template's, values in the
// rendering's.
#ifndef MOB_TEXT_JINJA_H
#define MOB_TEXT_JINJA_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/base/buf.h"
#include "runtime/base/map.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

// Bounds for hostile templates and inputs.
#define MOB__JINJA_MAX_SOURCE ((size_t)4 << 20)
#define MOB__JINJA_MAX_NESTING 150     // of syntax
#define MOB__JINJA_MAX_DEPTH 600       // of evaluation
#define MOB__JINJA_MAX_STEPS 30000000u // nodes evaluated; about a second
#define MOB__JINJA_MAX_MEMORY ((size_t)512 << 20)
#define MOB__JINJA_MAX_STRING ((size_t)64 << 20) // the output too
#define MOB__JINJA_MAX_RANGE 100000              // as Jinja's sandbox
#define MOB__JINJA_MAX_DATA_DEPTH 200            // nesting of lists and objects

// --- Values
// ---------------------------------------------------------------------------------------------------

typedef enum mob__jtype {
  MOB__J_UNDEFINED, // u.s: why, for the error
  MOB__J_NONE,
  MOB__J_BOOL,
  MOB__J_INT,
  MOB__J_FLOAT,
  MOB__J_STRING,
  MOB__J_LIST,
  MOB__J_TUPLE,
  MOB__J_DICT,
  MOB__J_NAMESPACE, // u.dict
  MOB__J_LOOP,
  MOB__J_METHOD,   // a string's, list's, dict's or loop's
  MOB__J_FUNCTION, // a global one: u.name
  MOB__J_MACRO,
} mob__jtype_t;

typedef struct mob__jlist mob__jlist_t;
typedef struct mob__jdict mob__jdict_t;
typedef struct mob__jloop mob__jloop_t;
typedef struct mob__jmacro mob__jmacro_t;
typedef struct mob__jmethod mob__jmethod_t;

typedef struct mob__jstring {
  const char *text; // UTF-8, not NUL-terminated
  size_t len;
} mob__jstring_t;

typedef struct mob__jvalue {
  mob__jtype_t type;
  union {
    bool b;
    int64_t i;
    double f;
    mob__jstring_t s;
    mob__jlist_t *list;
    mob__jdict_t *dict;
    mob__jloop_t *loop;
    mob__jmacro_t *macro;
    mob__jmethod_t *method;
    const char *name;
  } u;
} mob__jvalue_t;

struct mob__jlist {
  mob__jvalue_t *at;
  size_t len, cap;
  uint32_t depth; // of nesting; 0 when it holds no list and no dict
};

typedef struct mob__jentry {
  mob__jvalue_t key, value;
} mob__jentry_t;

struct mob__jdict { // in order of insertion
  mob__jentry_t *at;
  size_t len, cap;
  uint32_t depth;
};

struct mob__jmethod {
  mob__jvalue_t self;
  mob__jstring_t name;
};

struct mob__jloop {
  const mob__jlist_t *items;
  size_t index, depth;
  mob__jvalue_t changed; // what loop.changed() was last called with
  bool has_changed;
};

// --- Syntax tree
// ----------------------------------------------------------------------------------------------

typedef enum mob__jkind {
  // expressions
  MOB__JE_CONST,   // value
  MOB__JE_NAME,    // name
  MOB__JE_LIST,    // items
  MOB__JE_TUPLE,   // items
  MOB__JE_DICT,    // items: key, value, key, value ...
  MOB__JE_ATTR,    // a . name
  MOB__JE_ITEM,    // a [ b ]
  MOB__JE_SLICE,   // a [ items[0] : items[1] : items[2] ], NULL for an absent one
  MOB__JE_CALL,    // a ( args )
  MOB__JE_FILTER,  // a | name ( args ); a is NULL for the body of a filter or set block
  MOB__JE_TEST,    // a is name ( args )
  MOB__JE_NOT,     // a
  MOB__JE_NEG,     // a
  MOB__JE_POS,     // a
  MOB__JE_AND,     // a, b
  MOB__JE_OR,      // a, b
  MOB__JE_BINARY,  // a op b: op is + - * / f(floor division) % p(power) ~
  MOB__JE_COMPARE, // a, then items with ops: = ! < l(<=) > g(>=) i(in) n(not in)
  MOB__JE_COND,    // a if b else c (c may be NULL)
  // statements
  MOB__JS_TEXT,         // value
  MOB__JS_PRINT,        // a
  MOB__JS_IF,           // a, body, orelse (an elif is an if in orelse)
  MOB__JS_FOR,          // target a in b if c: body, orelse
  MOB__JS_SET,          // target a = b
  MOB__JS_SET_BLOCK,    // target a, filters b (NULL for none), body
  MOB__JS_MACRO,        // name, args are the parameters, body
  MOB__JS_CALL,         // a: the call; args are the caller's parameters; body
  MOB__JS_FILTER_BLOCK, // filters b, body
  MOB__JS_WITH,         // items: target, value, target, value ...; body
  MOB__JS_BREAK,
  MOB__JS_CONTINUE,
} mob__jkind_t;

typedef struct mob__jnode mob__jnode_t;

typedef struct mob__jnodes {
  mob__jnode_t **at;
  size_t len, cap;
} mob__jnodes_t;

typedef struct mob__jarg {
  mob__jstring_t name; // text NULL: positional. Of a macro's parameters: always set
  mob__jnode_t *value; // of a parameter: its default or NULL
  char spread;         // '*' for *list, 'd' for **dict, else 0
} mob__jarg_t;

struct mob__jnode {
  mob__jkind_t kind;
  char op;      // MOB__JE_BINARY
  bool negated; // MOB__JE_TEST: is not
  int line;
  mob__jnode_t *a, *b, *c;
  mob__jstring_t name;
  mob__jvalue_t value;
  mob__jnodes_t items;
  char *ops; // MOB__JE_COMPARE: one a item
  mob__jarg_t *args;
  size_t arg_count;
  mob__jnodes_t body, orelse;
};

// --- Lexer (jinja_lex.c)
// --------------------------------------------------------------------------------------

typedef enum mob__jtoken_type {
  MOB__JT_END,
  MOB__JT_DATA,        // text between the tags
  MOB__JT_VAR_BEGIN,   // {{
  MOB__JT_VAR_END,     // }}
  MOB__JT_BLOCK_BEGIN, // {%
  MOB__JT_BLOCK_END,   // %}
  MOB__JT_NAME,
  MOB__JT_STRING, // s: the text without quotes and escapes
  MOB__JT_INT,
  MOB__JT_FLOAT,
  MOB__JT_OP, // s
} mob__jtoken_type_t;

typedef struct mob__jtoken {
  mob__jtoken_type_t type;
  int line;
  mob__jstring_t s;
  int64_t i;
  double f;
} mob__jtoken_t;
typedef MOB_VEC(mob__jtoken_t) mob__jtokens_t;

// Cuts the source into tokens; their texts live in `arena`.
mob_status mob__jinja_lex(mob_arena_t *arena, const char *source, size_t len, mob__jtokens_t *out);

// --- Parser (jinja_parse.c, jinja_parse_statement.c)
// ----------------------------------------------------------

typedef struct mob__jparser {
  mob_arena_t *arena;
  const mob__jtoken_t *token; // the current one; the last is MOB__JT_END
  int depth, loops;
} mob__jparser_t;

mob_status mob__jinja_parse(mob__jparser_t *p, mob__jnodes_t *body);
mob__jnode_t *mob__jinja_node(mob__jparser_t *p, mob__jkind_t kind);
void mob__jinja_add(mob__jparser_t *p, mob__jnodes_t *list, mob__jnode_t *node);
mob_status mob__jinja_syntax_error(const mob__jparser_t *p, const char *what);
bool mob__jinja_is_op(const mob__jparser_t *p, const char *op);
bool mob__jinja_is_name(const mob__jparser_t *p, const char *name);
bool mob__jinja_skip_op(mob__jparser_t *p, const char *op);
bool mob__jinja_skip_name(mob__jparser_t *p, const char *name);
// `conditional`: "a if b else c" is allowed.
mob_status mob__jinja_expression(mob__jparser_t *p, bool conditional, mob__jnode_t **out);
// An expression, or several with commas between: a tuple.
mob_status mob__jinja_expressions(mob__jparser_t *p, bool conditional, mob__jnode_t **out);
mob_status mob__jinja_postfix(mob__jparser_t *p, mob__jnode_t *node, mob__jnode_t **out);
// `| name(args) | name ...` behind `node`; the current token is the first `|`, or with `first` the
// first name.
mob_status mob__jinja_filters(mob__jparser_t *p, mob__jnode_t *node, bool first,
                              mob__jnode_t **out);

// --- Rendering
// ------------------------------------------------------------------------------------------------

typedef struct mob__jvariable {
  mob__jstring_t name;
  mob__jvalue_t value;
} mob__jvariable_t;

typedef struct mob__jscope {
  struct mob__jscope *parent;
  mob__jvariable_t *at;
  size_t len, cap;
} mob__jscope_t;

struct mob__jmacro {
  const mob__jnode_t *node; // MOB__JS_MACRO, or MOB__JS_CALL for a caller()
  mob__jscope_t *scope;     // where it was defined
};

typedef enum mob__jflow { MOB__J_NEXT, MOB__J_BREAK, MOB__J_CONTINUE } mob__jflow_t;

typedef struct mob__jinja {
  mob_arena_t arena;
  size_t memory;
  uint64_t steps;
  int depth;
  mob_buf_t *out;
  mob__jscope_t *scope;
  size_t loop_depth;
  bool too_deep; // a value of more than MOB__JINJA_MAX_DATA_DEPTH levels was made: the next step
                 // fails
  bool raised;   // the error message is complete: it names its line, or is the text of
                 // raise_exception()
} mob__jinja_t;

typedef struct mob__jargs { // of a call, evaluated
  mob__jvalue_t *at;        // positional
  size_t len;
  mob__jvariable_t *named;
  size_t named_len;
} mob__jargs_t;

// jinja_eval.c
mob_status mob__jinja_eval(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out);
mob_status mob__jinja_eval_args(mob__jinja_t *r, const mob__jnode_t *node, mob__jargs_t *out);
mob_status mob__jinja_get_attr(mob__jinja_t *r, mob__jvalue_t v, mob__jstring_t name,
                               mob__jvalue_t *out);
mob_status mob__jinja_get_item(mob__jinja_t *r, mob__jvalue_t v, mob__jvalue_t key,
                               mob__jvalue_t *out);
mob_status mob__jinja_enter(mob__jinja_t *r); // counts a step and a level
void mob__jinja_leave(mob__jinja_t *r);
// jinja_exec.c
mob_status mob__jinja_exec(mob__jinja_t *r, const mob__jnodes_t *body, mob__jflow_t *flow);
mob_status mob__jinja_call_macro(mob__jinja_t *r, mob__jmacro_t *m, const mob__jargs_t *args,
                                 mob__jvalue_t *out);
void mob__jinja_assign(mob__jinja_t *r, mob__jscope_t *scope, mob__jstring_t name, mob__jvalue_t v);
bool mob__jinja_lookup(const mob__jscope_t *scope, mob__jstring_t name, mob__jvalue_t *out);
// jinja_call.c: functions and methods
mob_status mob__jinja_call(mob__jinja_t *r, mob__jvalue_t f, const mob__jargs_t *args,
                           mob__jvalue_t *out);
bool mob__jinja_is_function(mob__jstring_t name, const char **interned);
bool mob__jinja_has_method(mob__jvalue_t v, mob__jstring_t name);
// jinja_string.c: methods of strings, which the filters use too
bool mob__jinja_is_string_method(mob__jstring_t name);
mob_status mob__jinja_string_method(mob__jinja_t *r, mob__jstring_t self, mob__jstring_t name,
                                    const mob__jargs_t *args, mob__jvalue_t *out);
// jinja_format.c: text % values, and text.format(values)
mob_status mob__jinja_percent(mob__jinja_t *r, mob__jstring_t format, mob__jvalue_t values,
                              mob__jvalue_t *out);
mob_status mob__jinja_str_format(mob__jinja_t *r, mob__jstring_t format, const mob__jargs_t *args,
                                 mob__jvalue_t *out);
// jinja_filter.c, jinja_test.c
bool mob__jinja_is_filter(mob__jstring_t name);
mob_status mob__jinja_filter(mob__jinja_t *r, mob__jstring_t name, mob__jvalue_t v,
                             const mob__jargs_t *args, mob__jvalue_t *out);
bool mob__jinja_is_test(mob__jstring_t name);
mob_status mob__jinja_test(mob__jinja_t *r, mob__jstring_t name, mob__jvalue_t v,
                           const mob__jargs_t *args, bool *out);

// --- Values (jinja_value.c)
// -----------------------------------------------------------------------------------

#define MOB__JSTR(literal) ((mob__jstring_t){(literal), sizeof(literal) - 1})

bool mob__jstr_is(mob__jstring_t s, const char *text);
bool mob__jstr_eq(mob__jstring_t a, mob__jstring_t b);
mob__jvalue_t mob__j_string(mob__jstring_t s);
mob__jvalue_t mob__j_int(int64_t i);
mob__jvalue_t mob__j_bool(bool b);
mob__jvalue_t mob__j_float(double f);
mob__jvalue_t mob__j_none(void);
// Memory of the rendering; zeroed. Counted: the next step fails when it was too much.
void *mob__j_alloc(mob__jinja_t *r, size_t size);
mob__jvalue_t mob__j_undefined(mob__jinja_t *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
mob__jvalue_t mob__j_new_list(mob__jinja_t *r, mob__jtype_t type); // list or tuple
void mob__j_push(mob__jinja_t *r, mob__jlist_t *list, mob__jvalue_t v);
mob__jvalue_t mob__j_new_dict(mob__jinja_t *r, mob__jtype_t type);           // dict or namespace
mob__jvalue_t *mob__j_dict_get(const mob__jdict_t *dict, mob__jvalue_t key); // NULL when absent
mob__jvalue_t *mob__j_dict_gets(const mob__jdict_t *dict, mob__jstring_t key);
void mob__j_dict_put(mob__jinja_t *r, mob__jdict_t *dict, mob__jvalue_t key, mob__jvalue_t v);
// The bytes of `buf` as a string of the rendering; frees `buf`. MOB_E_INVALID when it is too long.
mob_status mob__j_take(mob__jinja_t *r, mob_buf_t *buf, mob__jvalue_t *out);
mob_status mob__j_check_size(size_t len); // of a string or the output

const char *mob__j_type_name(mob__jvalue_t v); // as Python names it
bool mob__j_truth(mob__jvalue_t v);
bool mob__j_is_number(mob__jvalue_t v); // int, float or bool
double mob__j_number(mob__jvalue_t v);
bool mob__j_equal(mob__jvalue_t a, mob__jvalue_t b);
mob_status mob__j_compare(mob__jvalue_t a, mob__jvalue_t b,
                          int *out); // <0, 0, >0; an error when there is no order
mob_status mob__j_contains(mob__jinja_t *r, mob__jvalue_t needle, mob__jvalue_t hay, bool *out);
mob_status mob__j_binary(mob__jinja_t *r, char op, mob__jvalue_t a, mob__jvalue_t b,
                         mob__jvalue_t *out);
// What iterating over `v` gives: characters, keys, items.
mob_status mob__j_iterate(mob__jinja_t *r, mob__jvalue_t v, mob__jlist_t **out);
mob_status mob__j_defined(mob__jvalue_t v); // the error of using an undefined value

// jinja_print.c: text of values, JSON
mob_status mob__j_print(mob__jinja_t *r, mob__jvalue_t v, mob_buf_t *out); // str()
mob_status mob__j_repr(mob__jinja_t *r, mob__jvalue_t v, mob_buf_t *out);
mob_status mob__j_to_string(mob__jinja_t *r, mob__jvalue_t v, mob__jstring_t *out);
void mob__j_print_float(double f, mob_buf_t *out);
typedef struct mob__jjson {
  bool ensure_ascii, sort_keys, has_indent;
  mob__jstring_t indent; // of one level
  mob__jstring_t item_separator, key_separator;
} mob__jjson_t;
mob_status mob__j_json(mob__jinja_t *r, mob__jvalue_t v, const mob__jjson_t *style, mob_buf_t *out);
mob_status mob__j_from_json(mob__jinja_t *r, json_t *json, int depth, mob__jvalue_t *out);

#endif
