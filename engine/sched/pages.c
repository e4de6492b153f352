#include "engine/sched/pages.h"

#include <xxhash.h>

#include "engine/step.h"
#include "runtime/base/status.h"

void mob_pages_init(mob_pages_t *pages, uint32_t count) {
  *pages = (mob_pages_t){.count = count, .oldest = MOB_PAGE_NONE, .newest = MOB_PAGE_NONE};
  pages->page = MOB_NEW_ARRAY(mob_page_t, count ? count : 1);
  for (uint32_t i = count; i-- > 0;) *mob_vec_push(&pages->free) = i; // page 0 goes out first
}

void mob_pages_free(mob_pages_t *pages) {
  free(pages->page);
  mob_vec_free(&pages->free);
  mob_map_free(&pages->index);
  *pages = (mob_pages_t){0};
}

uint32_t mob_pages_available(const mob_pages_t *pages) {
  return (uint32_t)pages->free.len + pages->cached;
}

uint32_t mob_pages_used(const mob_pages_t *pages) {
  return pages->count - mob_pages_available(pages);
}

static void unlink_cached(mob_pages_t *pages, uint32_t id) {
  mob_page_t *p = &pages->page[id];
  if (p->prev == MOB_PAGE_NONE)
    pages->oldest = p->next;
  else
    pages->page[p->prev].next = p->next;
  if (p->next == MOB_PAGE_NONE)
    pages->newest = p->prev;
  else
    pages->page[p->next].prev = p->prev;
  pages->cached--;
}

static void append_cached(mob_pages_t *pages, uint32_t id) {
  mob_page_t *p = &pages->page[id];
  p->prev = pages->newest;
  p->next = MOB_PAGE_NONE;
  if (pages->newest == MOB_PAGE_NONE)
    pages->oldest = id;
  else
    pages->page[pages->newest].next = id;
  pages->newest = id;
  pages->cached++;
}

uint32_t mob_pages_take(mob_pages_t *pages) {
  uint32_t id;
  if (pages->free.len) {
    id = pages->free.at[--pages->free.len];
  } else if (pages->oldest != MOB_PAGE_NONE) {
    id = pages->oldest;
    unlink_cached(pages, id);
    mob_map_remove(&pages->index, &pages->page[id].chain, sizeof(mob_chain_t));
    pages->page[id].hashed = false;
  } else {
    return MOB_PAGE_NONE;
  }
  pages->page[id].refs = 1;
  return id;
}

void mob_pages_ref(mob_pages_t *pages, uint32_t id) {
  mob_page_t *p = &pages->page[id];
  if (p->refs == 0) {
    MOB_ASSERT(p->hashed);
    unlink_cached(pages, id);
  }
  p->refs++;
}

void mob_pages_unref(mob_pages_t *pages, uint32_t id) {
  mob_page_t *p = &pages->page[id];
  MOB_ASSERT(p->refs > 0);
  if (--p->refs > 0) return;
  if (p->hashed)
    append_cached(pages, id);
  else
    *mob_vec_push(&pages->free) = id;
}

mob_chain_t mob_chain_next(mob_chain_t chain, const int32_t *tokens, uint64_t seed) {
  struct {
    mob_chain_t chain;
    int32_t tokens[MOB_PAGE_TOKENS];
  } block = {.chain = chain};
  memcpy(block.tokens, tokens, sizeof block.tokens);
  XXH128_hash_t h = XXH3_128bits_withSeed(&block, sizeof block, seed);
  return (mob_chain_t){.lo = h.low64, .hi = h.high64};
}

uint32_t mob_pages_find(const mob_pages_t *pages, mob_chain_t chain) {
  uintptr_t found = (uintptr_t)mob_map_get(&pages->index, &chain, sizeof chain);
  return found ? (uint32_t)(found - 1) : MOB_PAGE_NONE;
}

void mob_pages_publish(mob_pages_t *pages, uint32_t id, mob_chain_t chain) {
  mob_page_t *p = &pages->page[id];
  MOB_ASSERT(p->refs > 0);
  if (p->hashed || mob_map_get(&pages->index, &chain, sizeof chain)) return;
  p->hashed = true;
  p->chain = chain;
  mob_map_put(&pages->index, &chain, sizeof chain, (void *)((uintptr_t)id + 1));
}
