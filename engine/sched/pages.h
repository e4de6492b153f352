// The pages of the KV cache as the scheduler sees them: numbers, reference counts and, for full
// pages, the hash of everything from the beginning of the sequence to the page's end. A page nobody
// refers to any more keeps its hash and contents until it is needed for something else: that is the
// prefix cache.
#ifndef MOB_SCHED_PAGES_H
#define MOB_SCHED_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/map.h"
#include "runtime/base/vec.h"

enum { MOB_PAGE_NONE = UINT32_MAX };

// Hash of a chain of full pages: of the previous chain and the tokens of the last page.
typedef struct mob_chain {
  uint64_t lo, hi;
} mob_chain_t;

typedef struct mob_page {
  uint32_t refs;
  bool hashed;         // `chain` is valid and the index points here
  uint32_t prev, next; // in the list of unreferenced hashed pages, oldest first
  mob_chain_t chain;
} mob_page_t;

typedef struct mob_pages {
  mob_page_t *page; // [count]
  uint32_t count;
  MOB_VEC(uint32_t) free;  // unreferenced pages without a hash
  uint32_t oldest, newest; // unreferenced pages with one
  uint32_t cached;         // their number
  mob_map_t index;         // chain -> page + 1
} mob_pages_t;

void mob_pages_init(mob_pages_t *pages, uint32_t count);
void mob_pages_free(mob_pages_t *pages);

// Pages that mob_pages_take() can hand out now.
uint32_t mob_pages_available(const mob_pages_t *pages);
uint32_t mob_pages_used(const mob_pages_t *pages); // referenced
// A page with one reference and no hash; the longest unused cached page loses its contents when no
// other is free. MOB_PAGE_NONE when all are referenced.
uint32_t mob_pages_take(mob_pages_t *pages);
void mob_pages_ref(mob_pages_t *pages, uint32_t page);
void mob_pages_unref(mob_pages_t *pages, uint32_t page);

// `tokens` are the MOB_PAGE_TOKENS tokens of the chain's next page. The first page continues an
// all-zero chain.
mob_chain_t mob_chain_next(mob_chain_t chain, const int32_t *tokens, uint64_t seed);
// The page that ends this chain, or MOB_PAGE_NONE. Takes no reference.
uint32_t mob_pages_find(const mob_pages_t *pages, mob_chain_t chain);
// Makes a referenced page findable. Does nothing when another page holds the same.
void mob_pages_publish(mob_pages_t *pages, uint32_t page, mob_chain_t chain);

#endif
