// Source to tokens, with Jinja's handling of white space around tags.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

typedef struct lexer {
  mob_arena_t *arena;
  const char *in;
  size_t len, pos;
  int line;
  bool line_start; // the last tag ended a line
  mob__jtokens_t *out;
} lexer_t;

static mob_status lex_error(const lexer_t *x, const char *what) {
  return mob_fail(MOB_E_FORMAT, "template line %d: %s", x->line, what);
}

static void emit(lexer_t *x, mob__jtoken_type_t type, mob__jstring_t s) {
  *mob_vec_push(x->out) = (mob__jtoken_t){.type = type, .line = x->line, .s = s};
}

static bool at(const lexer_t *x, size_t pos, const char *text) {
  size_t n = strlen(text);
  return pos <= x->len && x->len - pos >= n && memcmp(x->in + pos, text, n) == 0;
}

static bool is_space(uint32_t c) { // Python's str.isspace()
  if ((c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85) return true;
  if (c < 0x80) return false;
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return cat == UTF8PROC_CATEGORY_ZS || cat == UTF8PROC_CATEGORY_ZL || cat == UTF8PROC_CATEGORY_ZP;
}

// Moves on to `end`, counting lines.
static void advance(lexer_t *x, size_t end) {
  for (; x->pos < end; x->pos++) x->line += x->in[x->pos] == '\n';
}

static void skip_space(lexer_t *x) {
  while (x->pos < x->len) {
    size_t width;
    if (!is_space(mob_utf8_decode(x->in + x->pos, &width))) break;
    advance(x, x->pos + width);
  }
}

// End of text[start..end) without the white space at its end; not before `floor`.
static size_t strip_right(const lexer_t *x, size_t floor, size_t end) {
  while (end > floor) {
    size_t back = mob_utf8_back(x->in, end), width;
    if (!is_space(mob_utf8_decode(x->in + end - back, &width))) break;
    end -= back;
  }
  return end;
}

// The text from pos to a tag at `end`; `sign` is what follows the tag's opening.
static void data(lexer_t *x, size_t end, char sign, bool variable) {
  size_t start = x->pos, stop = end;
  if (sign == '-') {
    stop = strip_right(x, start, end);
  } else if (sign != '+' && !variable) { // lstrip_blocks
    size_t line = end;
    while (line > start && x->in[line - 1] != '\n') line--;
    if ((line > start || x->line_start) && strip_right(x, line, end) == line) stop = line;
  }
  if (stop > start) emit(x, MOB__JT_DATA, (mob__jstring_t){x->in + start, stop - start});
  advance(x, end);
}

// Behind a block's or comment's closing: trim_blocks takes the newline, a minus all white space.
static void after_tag(lexer_t *x, char sign, bool trim) {
  size_t before = x->pos;
  if (sign == '-') {
    skip_space(x);
  } else if (trim && sign != '+' && x->pos < x->len && x->in[x->pos] == '\n') {
    advance(x, x->pos + 1);
  }
  x->line_start = x->pos > before && x->in[x->pos - 1] == '\n';
}

static char sign_at(const lexer_t *x, size_t pos) {
  return pos < x->len && (x->in[pos] == '-' || x->in[pos] == '+') ? x->in[pos] : 0;
}

// A digit run with single underscores between digits.
static size_t digits(const lexer_t *x, size_t i) {
  while (i < x->len) {
    bool digit = x->in[i] >= '0' && x->in[i] <= '9';
    bool gap = x->in[i] == '_' && i + 1 < x->len && x->in[i + 1] >= '0' && x->in[i + 1] <= '9';
    if (!digit && !gap) break;
    i++;
  }
  return i;
}

static mob_status number(lexer_t *x) {
  size_t start = x->pos, i = digits(x, start);
  bool real = false, after_dot = start > 0 && x->in[start - 1] == '.'; // a.0.1 holds no float
  if (!after_dot && i + 1 < x->len && x->in[i] == '.' && x->in[i + 1] >= '0' &&
      x->in[i + 1] <= '9') {
    real = true;
    i = digits(x, i + 1);
  }
  if (!after_dot && i < x->len && (x->in[i] == 'e' || x->in[i] == 'E')) {
    size_t k = i + 1;
    if (k < x->len && (x->in[k] == '+' || x->in[k] == '-')) k++;
    if (k < x->len && x->in[k] >= '0' && x->in[k] <= '9') {
      real = true;
      i = digits(x, k);
    }
  }
  char text[64];
  size_t n = 0;
  for (size_t k = start; k < i; k++) {
    if (x->in[k] == '_') continue;
    if (n + 1 == sizeof text) return lex_error(x, "a number is too long");
    text[n++] = x->in[k];
  }
  text[n] = 0;
  emit(x, real ? MOB__JT_FLOAT : MOB__JT_INT, (mob__jstring_t){x->in + start, i - start});
  mob__jtoken_t *t = &x->out->at[x->out->len - 1];
  errno = 0;
  if (real) {
    t->f = strtod(text, NULL);
  } else {
    t->i = strtoll(text, NULL, 10);
    if (errno == ERANGE) return lex_error(x, "a whole number does not fit in 64 bits");
  }
  x->pos = i;
  return MOB_OK;
}

// \x41, \u0041, \U00000041: `n` digits at pos. Python's rules.
static bool hex_escape(const lexer_t *x, size_t pos, size_t end, size_t n, uint32_t *out) {
  uint32_t value = 0;
  if (end - pos < n) return false;
  for (size_t i = 0; i < n; i++) {
    char c = x->in[pos + i];
    int digit = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
    if (digit < 0) return false;
    value = value << 4 | (uint32_t)digit;
  }
  *out = value;
  return value < 0x110000 && (value < 0xD800 || value > 0xDFFF);
}

static mob_status unescape(lexer_t *x, size_t start, size_t end, mob__jstring_t *out) {
  char *text = mob_arena_alloc(x->arena, end - start + 1);
  size_t n = 0;
  for (size_t i = start; i < end;) {
    if (x->in[i] != '\\') {
      text[n++] = x->in[i++];
      continue;
    }
    char c = x->in[i + 1]; // there is one: the closing quote is not escaped
    static const char from[] = "ntrabfv\\'\"", to[] = "\n\t\r\a\b\f\v\\'\"";
    const char *simple = c ? strchr(from, c) : NULL;
    i += 2;
    if (simple) {
      text[n++] = to[simple - from];
    } else if (c == '\n') {
      continue; // an escaped line end joins the lines
    } else if (c == 'x' || c == 'u' || c == 'U') {
      uint32_t cp;
      size_t width = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      if (!hex_escape(x, i, end, width, &cp))
        return lex_error(x, "bad \\x, \\u or \\U in a string");
      n += mob_utf8_encode(cp, text + n);
      i += width;
    } else if (c >= '0' && c <= '7') {
      uint32_t cp = (uint32_t)(c - '0');
      for (int k = 0; k < 2 && i < end && x->in[i] >= '0' && x->in[i] <= '7'; k++) {
        cp = cp * 8 + (uint32_t)(x->in[i++] - '0');
      }
      n += mob_utf8_encode(cp, text + n);
    } else {
      text[n++] = '\\';
      text[n++] = c;
    }
  }
  *out = (mob__jstring_t){text, n};
  return MOB_OK;
}

static mob_status string(lexer_t *x) {
  char quote = x->in[x->pos];
  size_t i = x->pos + 1;
  while (i < x->len && x->in[i] != quote) i += x->in[i] == '\\' ? 2 : 1;
  if (i >= x->len) return lex_error(x, "a string is not closed");
  mob__jstring_t s;
  MOB_TRY(unescape(x, x->pos + 1, i, &s));
  emit(x, MOB__JT_STRING, s);
  advance(x, i + 1);
  return MOB_OK;
}

static bool name_start(uint32_t c) {
  if (c < 0x80) return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_LO;
}

static bool name_goes_on(uint32_t c) {
  if (c < 0x80) return name_start(c) || (c >= '0' && c <= '9');
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return name_start(c) || (cat >= UTF8PROC_CATEGORY_MN && cat <= UTF8PROC_CATEGORY_ND);
}

static mob_status operator_token(lexer_t *x) {
  static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
  for (size_t i = 0; i < MOB_LEN(two); i++) {
    if (!at(x, x->pos, two[i])) continue;
    emit(x, MOB__JT_OP, (mob__jstring_t){two[i], 2});
    x->pos += 2;
    return MOB_OK;
  }
  if (!strchr("+-/*%~[](){}><=.:|,;", x->in[x->pos]) || !x->in[x->pos]) {
    return mob_fail(MOB_E_FORMAT, "template line %d: unexpected character at '%.*s'", x->line,
                    (int)(x->len - x->pos < 12 ? x->len - x->pos : 12), x->in + x->pos);
  }
  emit(x, MOB__JT_OP, (mob__jstring_t){x->in + x->pos, 1});
  x->pos++;
  return MOB_OK;
}

// The inside of {{ }} or {% %}, up to and with the closing.
static mob_status tag(lexer_t *x, bool variable) {
  const char *close = variable ? "}}" : "%}";
  char brackets[MOB__JINJA_MAX_NESTING];
  size_t open = 0;
  for (;;) {
    skip_space(x);
    if (x->pos >= x->len) return lex_error(x, variable ? "{{ without }}" : "{% without %}");
    char sign = sign_at(x, x->pos);
    if (variable && sign == '+') sign = 0;
    if (open == 0 && at(x, x->pos + (sign ? 1 : 0), close)) {
      emit(x, variable ? MOB__JT_VAR_END : MOB__JT_BLOCK_END, (mob__jstring_t){close, 2});
      x->pos += sign ? 3 : 2;
      after_tag(x, sign, !variable);
      return MOB_OK;
    }
    char c = x->in[x->pos];
    size_t width;
    if (c >= '0' && c <= '9') {
      MOB_TRY(number(x));
    } else if (c == '"' || c == '\'') {
      MOB_TRY(string(x));
    } else if (name_start(mob_utf8_decode(x->in + x->pos, &width))) {
      size_t i = x->pos + width;
      while (i < x->len && name_goes_on(mob_utf8_decode(x->in + i, &width))) i += width;
      emit(x, MOB__JT_NAME, (mob__jstring_t){x->in + x->pos, i - x->pos});
      x->pos = i;
    } else {
      if (c == '(' || c == '[' || c == '{') {
        if (open == sizeof brackets) return lex_error(x, "brackets are nested too deeply");
        brackets[open++] = c == '(' ? ')' : (char)(c + 2);
      } else if (c == ')' || c == ']' || c == '}') {
        if (open == 0 || brackets[open - 1] != c) return lex_error(x, "brackets do not match");
        open--;
      }
      MOB_TRY(operator_token(x));
    }
  }
}

// {% raw %}: when the tag at `pos` is one, the position behind it.
static size_t raw_tag(const lexer_t *x, size_t pos, const char *name, char *end_sign) {
  pos += 2;
  if (sign_at(x, pos)) pos++;
  while (pos < x->len && is_space((uint8_t)x->in[pos])) pos++;
  if (!at(x, pos, name)) return 0;
  pos += strlen(name);
  while (pos < x->len && is_space((uint8_t)x->in[pos])) pos++;
  *end_sign = sign_at(x, pos);
  if (*end_sign) pos++;
  return at(x, pos, "%}") ? pos + 2 : 0;
}

static mob_status raw(lexer_t *x, size_t body, char sign) {
  advance(x, body);
  if (sign == '-') skip_space(x);
  x->line_start = x->pos > body && x->in[x->pos - 1] == '\n';
  for (size_t i = x->pos; i < x->len; i++) {
    char end_sign;
    size_t end = at(x, i, "{%") ? raw_tag(x, i, "endraw", &end_sign) : 0;
    if (!end) continue;
    data(x, i, sign_at(x, i + 2), false);
    advance(x, end);
    after_tag(x, end_sign, true);
    return MOB_OK;
  }
  return lex_error(x, "{% raw %} without {% endraw %}");
}

static mob_status comment(lexer_t *x) {
  const char *end = memmem(x->in + x->pos + 2, x->len - x->pos - 2, "#}", 2);
  if (!end) return lex_error(x, "{# without #}");
  size_t close = (size_t)(end - x->in);
  char sign = close > x->pos + 2 ? sign_at(x, close - 1) : 0;
  advance(x, close + 2);
  after_tag(x, sign, true);
  return MOB_OK;
}

static mob_status lex(lexer_t *x) {
  while (x->pos < x->len) {
    size_t i = x->pos;
    while (i < x->len &&
           !(x->in[i] == '{' && i + 1 < x->len && x->in[i + 1] && strchr("{%#", x->in[i + 1])))
      i++;
    if (i == x->len) {
      emit(x, MOB__JT_DATA, (mob__jstring_t){x->in + x->pos, x->len - x->pos});
      break;
    }
    char kind = x->in[i + 1], sign = sign_at(x, i + 2), raw_sign;
    data(x, i, sign, kind == '{');
    size_t body = kind == '%' ? raw_tag(x, i, "raw", &raw_sign) : 0;
    if (kind == '#') {
      MOB_TRY(comment(x));
    } else if (body) {
      MOB_TRY(raw(x, body, raw_sign));
    } else {
      emit(x, kind == '{' ? MOB__JT_VAR_BEGIN : MOB__JT_BLOCK_BEGIN,
           (mob__jstring_t){x->in + i, 2});
      x->pos = i + (sign ? 3 : 2);
      MOB_TRY(tag(x, kind == '{'));
    }
  }
  emit(x, MOB__JT_END, MOB__JSTR(""));
  return MOB_OK;
}

mob_status mob__jinja_lex(mob_arena_t *arena, const char *source, size_t len, mob__jtokens_t *out) {
  if (len > MOB__JINJA_MAX_SOURCE) {
    return mob_fail(MOB_E_FORMAT, "a template of %zu bytes is too long", len);
  }
  if (mob_utf8_valid_prefix(source, len) != len)
    return mob_fail(MOB_E_FORMAT, "the template is not UTF-8");
  char *text = mob_arena_alloc(arena, len + 1);
  size_t n = 0;
  for (size_t i = 0; i < len; i++) { // line ends become \n
    if (source[i] == '\r' && i + 1 < len && source[i + 1] == '\n') continue;
    text[n++] = source[i] == '\r' ? '\n' : source[i];
  }
  if (n && text[n - 1] == '\n') n--; // keep_trailing_newline is off
  lexer_t x = {.arena = arena, .in = text, .len = n, .line = 1, .line_start = true, .out = out};
  return lex(&x);
}
