#include "engine/api/reasoning.h"

#include <string.h>

static const char open_tag[] = "<think>", close_tag[] = "</think>";
enum { OPEN_LEN = sizeof open_tag - 1, CLOSE_LEN = sizeof close_tag - 1 };

void mob__reasoning_init(mob_reasoning_t *r, const char *prompt, size_t len) {
  while (len > 0 && (prompt[len - 1] == '\n' || prompt[len - 1] == ' ')) len--;
  bool opened = len >= OPEN_LEN && memcmp(prompt + len - OPEN_LEN, open_tag, OPEN_LEN) == 0;
  r->state = opened ? MOB_THINK_INSIDE : MOB_THINK_START;
  r->at = 0;
}

// Bytes at the end of the text that a closing tag could begin with.
static size_t held_back(const char *text, size_t len) {
  size_t n = len < CLOSE_LEN - 1 ? len : CLOSE_LEN - 1;
  while (n > 0 && memcmp(text + len - n, close_tag, n) != 0) n--;
  return n;
}

mob_reasoning_delta_t mob__reasoning_next(mob_reasoning_t *r, const char *text, size_t len,
                                          bool final) {
  mob_reasoning_delta_t out = {0};
  if (r->at == 0 && r->state != MOB_THINK_DONE) { // a model may open again what its prompt opened
    size_t n = len < OPEN_LEN ? len : OPEN_LEN;
    bool like_tag = memcmp(text, open_tag, n) == 0;
    if (like_tag && n < OPEN_LEN && !final) return out;
    if (like_tag && n == OPEN_LEN) {
      r->state = MOB_THINK_INSIDE;
      r->at = OPEN_LEN;
    } else if (r->state == MOB_THINK_START) {
      r->state = MOB_THINK_DONE;
    }
  }
  if (r->state == MOB_THINK_INSIDE && len > r->at) {
    const char *close = memmem(text + r->at, len - r->at, close_tag, CLOSE_LEN);
    size_t end = close   ? (size_t)(close - text)
                 : final ? len
                         : len - held_back(text + r->at, len - r->at);
    out.reasoning = text + r->at;
    out.reasoning_len = end - r->at;
    r->at = end;
    if (close) {
      r->at += CLOSE_LEN;
      r->state = MOB_THINK_DONE;
    }
  }
  if (r->state == MOB_THINK_DONE && len > r->at) {
    out.content = text + r->at;
    out.content_len = len - r->at;
    r->at = len;
  }
  return out;
}
