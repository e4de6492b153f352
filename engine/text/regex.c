#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/regex.h"

#include <pcre2.h>
#include <stdint.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/base/vec.h"

#define MAX_PATTERN 65536
#define MATCH_LIMIT 20000000u        // backtracking steps of one search
#define HEAP_LIMIT_KIB (256u * 1024) // memory of one search in the interpreter
#define JIT_STACK_MAX ((size_t)64 << 20)

struct mob__regex {
  pcre2_code *code;
  bool jit;
};

typedef struct translation {
  const char *in;
  size_t len, pos;
  mob_buf_t out;
  size_t atom;            // where in `out` the last complete atom starts
  MOB_VEC(size_t) groups; // starts of the groups that are open
} translation_t;

static bool ahead(const translation_t *t, const char *text) {
  size_t n = strlen(text);
  return t->len - t->pos >= n && memcmp(t->in + t->pos, text, n) == 0;
}

static void copy(translation_t *t, size_t n) {
  mob_buf_append(&t->out, t->in + t->pos, n);
  t->pos += n;
}

// Names that PCRE2 reads as something else than a script.
static bool is_script_name(const char *name, size_t len) {
  static const char *const others[] = {"Any",
                                       "Alphabetic",
                                       "Alpha",
                                       "White_Space",
                                       "Space",
                                       "Uppercase",
                                       "Upper",
                                       "Lowercase",
                                       "Lower",
                                       "ASCII",
                                       "Emoji",
                                       "Emoji_Presentation",
                                       "Emoji_Modifier",
                                       "Emoji_Modifier_Base",
                                       "Emoji_Component",
                                       "Extended_Pictographic",
                                       "Ideographic",
                                       "Math",
                                       "Dash",
                                       "Hex_Digit",
                                       "ASCII_Hex_Digit",
                                       "ID_Start",
                                       "ID_Continue",
                                       "XID_Start",
                                       "XID_Continue",
                                       "Unified_Ideograph",
                                       "Variation_Selector",
                                       "Join_Control",
                                       "Diacritic",
                                       "Cased"};
  if (len <= 2) return false;
  for (size_t i = 0; i < MOB_LEN(others); i++) {
    if (strlen(others[i]) == len && strncasecmp(others[i], name, len) == 0) return false;
  }
  return true;
}

// Long names of general categories, which Oniguruma knows and PCRE2 does not.
static const char *short_category(const char *name, size_t len) {
  static const char *const table[][2] = {{"Letter", "L"},
                                         {"Mark", "M"},
                                         {"Number", "N"},
                                         {"Punctuation", "P"},
                                         {"Symbol", "S"},
                                         {"Separator", "Z"},
                                         {"Other", "C"},
                                         {"Uppercase_Letter", "Lu"},
                                         {"Lowercase_Letter", "Ll"},
                                         {"Titlecase_Letter", "Lt"},
                                         {"Modifier_Letter", "Lm"},
                                         {"Other_Letter", "Lo"},
                                         {"Decimal_Number", "Nd"},
                                         {"Letter_Number", "Nl"},
                                         {"Other_Number", "No"},
                                         {"Nonspacing_Mark", "Mn"},
                                         {"Spacing_Mark", "Mc"},
                                         {"Enclosing_Mark", "Me"},
                                         {"Space_Separator", "Zs"},
                                         {"Punct", "P"},
                                         {"Digit", "Nd"}};
  for (size_t i = 0; i < MOB_LEN(table); i++) {
    if (strlen(table[i][0]) == len && strncasecmp(table[i][0], name, len) == 0) return table[i][1];
  }
  return NULL;
}

static mob_status property(translation_t *t) {
  size_t start = t->pos + 2; // behind "\p"
  const char *close =
      start < t->len && t->in[start] == '{' ? memchr(t->in + start, '}', t->len - start) : NULL;
  if (!close) return mob_fail(MOB_E_UNSUPPORTED, "pattern: \\%c without {name}", t->in[t->pos + 1]);
  const char *name = t->in + start + 1;
  bool negated = t->in[t->pos + 1] == 'P';
  if (*name == '^') negated = !negated, name++;
  size_t len = (size_t)(close - name);
  if (len == 0 || len > 40) return mob_fail(MOB_E_FORMAT, "pattern: bad name in \\p{}");
  const char *category = short_category(name, len);
  mob_buf_printf(&t->out, "\\%c{", negated ? 'P' : 'p');
  if (category) {
    mob_buf_puts(&t->out, category);
  } else {
    if (is_script_name(name, len)) mob_buf_puts(&t->out, "sc:");
    mob_buf_append(&t->out, name, len);
  }
  mob_buf_putc(&t->out, '}');
  t->pos = (size_t)(close - t->in) + 1;
  return MOB_OK;
}

// An escape, inside a class or not.
static mob_status escape(translation_t *t, bool in_class) {
  if (t->len - t->pos < 2) return mob_fail(MOB_E_FORMAT, "pattern ends in a backslash");
  char c = t->in[t->pos + 1];
  const char *text = NULL;
  switch (c) {
  case 'p':
  case 'P':
    return property(t);
  case 's':
    text = "\\p{White_Space}";
    break;
  case 'S':
    text = "\\P{White_Space}";
    break;
  case 'w':
    text =
        in_class ? "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}" : "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    break;
  case 'h':
    text = in_class ? "0-9a-fA-F" : "[0-9a-fA-F]";
    break;
  case 'W':
    text = in_class ? NULL : "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    break;
  case 'H':
    text = in_class ? NULL : "[^0-9a-fA-F]";
    break;
  case 'u': // \uHHHH
    if (t->len - t->pos < 6) return mob_fail(MOB_E_FORMAT, "pattern: \\u needs four digits");
    mob_buf_printf(&t->out, "\\x{%.4s}", t->in + t->pos + 2);
    t->pos += 6;
    return MOB_OK;
  case 'R':
  case 'X':
  case 'k':
  case 'g':
  case 'K':
  case 'G':
  case 'y':
  case 'Y':
  case 'O':
  case 'N':
    return mob_fail(MOB_E_UNSUPPORTED, "pattern: \\%c is not supported", c);
  default: {
    size_t width;
    mob_utf8_decode(t->in + t->pos + 1, &width);
    copy(t, 1 + width);
    return MOB_OK;
  }
  }
  if (!text) return mob_fail(MOB_E_UNSUPPORTED, "pattern: \\%c inside [] is not supported", c);
  mob_buf_puts(&t->out, text);
  t->pos += 2;
  return MOB_OK;
}

static mob_status character_class(translation_t *t) {
  copy(t, 1);
  if (ahead(t, "^")) copy(t, 1);
  if (ahead(t, "]")) { // a literal one when it comes first
    mob_buf_puts(&t->out, "\\]");
    t->pos++;
  }
  while (t->pos < t->len && t->in[t->pos] != ']') {
    if (t->in[t->pos] == '\\') {
      MOB_TRY(escape(t, true));
    } else if (ahead(t, "&&")) {
      return mob_fail(MOB_E_UNSUPPORTED, "pattern: && inside [] is not supported");
    } else if (ahead(t, "[:")) {
      const char *end = memmem(t->in + t->pos, t->len - t->pos, ":]", 2);
      if (!end) return mob_fail(MOB_E_FORMAT, "pattern: [: without :]");
      copy(t, (size_t)(end - (t->in + t->pos)) + 2);
    } else if (t->in[t->pos] == '[') {
      return mob_fail(MOB_E_UNSUPPORTED, "pattern: [] inside [] is not supported");
    } else {
      copy(t, 1);
    }
  }
  if (t->pos == t->len) return mob_fail(MOB_E_FORMAT, "pattern: [ without ]");
  copy(t, 1);
  return MOB_OK;
}

// `{` at pos: whether it is {n}, {n,}, {,m} or {n,m}, and its length.
static size_t interval(const translation_t *t) {
  size_t i = t->pos + 1, digits = 0;
  while (i < t->len && ((t->in[i] >= '0' && t->in[i] <= '9') || t->in[i] == ',')) {
    digits += t->in[i] != ',';
    i++;
  }
  return digits && i < t->len && t->in[i] == '}' ? i + 1 - t->pos : 0;
}

static mob_status quantifier(translation_t *t, size_t n) {
  if (ahead(t, "{,")) { // {,m} is {0,m}
    mob_buf_puts(&t->out, "{0");
    t->pos++;
    n--;
  }
  copy(t, n);
  if (n > 1 && ahead(t, "+")) { // Ruby: one or more of the repetition
    size_t tail = t->out.len - t->atom;
    mob_buf_reserve(&t->out, 8);
    memmove(t->out.data + t->atom + 3, t->out.data + t->atom, tail);
    memcpy(t->out.data + t->atom, "(?:", 3);
    t->out.len += 3;
    mob_buf_puts(&t->out, ")+");
    t->pos++;
  } else if (ahead(t, "?") || (n == 1 && ahead(t, "+"))) {
    copy(t, 1);
  }
  return MOB_OK;
}

static mob_status translate(translation_t *t) {
  while (t->pos < t->len) {
    char c = t->in[t->pos];
    size_t n = c == '{' ? interval(t) : 0;
    if (c == '*' || c == '+' || c == '?' || n) {
      MOB_TRY(quantifier(t, n ? n : 1));
      continue;
    }
    if (c == ')') {
      if (t->groups.len == 0) return mob_fail(MOB_E_FORMAT, "pattern: ) without (");
      t->atom = t->groups.at[--t->groups.len];
      copy(t, 1);
      continue;
    }
    t->atom = t->out.len;
    if (c == '(') {
      *mob_vec_push(&t->groups) = t->out.len;
      if (ahead(t, "(?m") || ahead(t, "(?x") || ahead(t, "(?#") || ahead(t, "(?~")) {
        return mob_fail(MOB_E_UNSUPPORTED, "pattern: %.3s is not supported", t->in + t->pos);
      }
      // Copied with its "?" so that this is not taken for a quantifier.
      copy(t, ahead(t, "(?") ? 2 : 1);
      if (t->out.data[t->out.len - 1] == '?' && t->pos < t->len) copy(t, 1);
    } else if (c == '[') {
      MOB_TRY(character_class(t));
    } else if (c == '\\') {
      MOB_TRY(escape(t, false));
    } else if (c == '{') { // a literal one
      mob_buf_puts(&t->out, "\\{");
      t->pos++;
    } else {
      size_t width;
      mob_utf8_decode(t->in + t->pos, &width);
      copy(t, width);
    }
  }
  return MOB_OK;
}

mob_status mob__regex_compile(const char *pattern, size_t len, bool literal, mob__regex_t **out) {
  mob_status status = MOB_OK;
  translation_t t = {.in = pattern, .len = len};
  *out = NULL;
  if (len > MAX_PATTERN) return mob_fail(MOB_E_FORMAT, "pattern of %zu bytes is too long", len);
  if (mob_utf8_valid_prefix(pattern, len) != len) {
    return mob_fail(MOB_E_FORMAT, "pattern is not UTF-8");
  }
  if (literal) {
    mob_buf_append(&t.out, pattern, len);
  } else {
    MOB_TRY_GOTO(translate(&t), status, done);
  }
  uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK;
  options |= literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE;
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code *compiled =
      pcre2_compile((PCRE2_SPTR)mob_buf_cstr(&t.out), t.out.len, options, &code, &offset, NULL);
  if (!compiled) {
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(code, message, sizeof message);
    status = mob_fail(MOB_E_FORMAT, "pattern '%.*s': %s at offset %zu",
                      (int)(len < 200 ? len : 200), pattern, (char *)message, (size_t)offset);
    goto done;
  }
  *out = MOB_NEW(mob__regex_t);
  (*out)->code = compiled;
  (*out)->jit = pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE) == 0;
done:
  mob_buf_free(&t.out);
  mob_vec_free(&t.groups);
  return status;
}

void mob__regex_free(mob__regex_t *re) {
  if (!re) return;
  pcre2_code_free(re->code);
  free(re);
}

void mob__regex_scratch_free(mob__regex_scratch_t *s) {
  if (s->match_data) pcre2_match_data_free(s->match_data);
  if (s->context) pcre2_match_context_free(s->context);
  if (s->stack) pcre2_jit_stack_free(s->stack);
  *s = (mob__regex_scratch_t){0};
}

mob_status mob__regex_search(const mob__regex_t *re, mob__regex_scratch_t *s, const char *text,
                             size_t len, size_t from, bool *found, size_t *start, size_t *end) {
  if (!s->match_data) {
    s->match_data = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    MOB_ASSERT(s->match_data && s->context);
    pcre2_set_match_limit(s->context, MATCH_LIMIT);
    pcre2_set_heap_limit(s->context, HEAP_LIMIT_KIB);
  }
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (re->jit) {
    rc = pcre2_jit_match(re->code, (PCRE2_SPTR)text, len, from, 0, s->match_data, s->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !s->stack) {
      s->stack = pcre2_jit_stack_create(32 * 1024, JIT_STACK_MAX, NULL);
      if (s->stack) {
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
        rc = pcre2_jit_match(re->code, (PCRE2_SPTR)text, len, from, 0, s->match_data, s->context);
      }
    }
  }
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    rc = pcre2_match(re->code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                     s->match_data, s->context);
  }
  *found = rc >= 0;
  if (rc == PCRE2_ERROR_NOMATCH) return MOB_OK;
  if (rc < 0) {
    PCRE2_UCHAR message[128];
    pcre2_get_error_message(rc, message, sizeof message);
    return mob_fail(MOB_E_FORMAT, "the tokenizer's pattern fails on this text: %s",
                    (char *)message);
  }
  const PCRE2_SIZE *at = pcre2_get_ovector_pointer(s->match_data);
  *start = at[0];
  *end = at[1];
  return MOB_OK;
}
