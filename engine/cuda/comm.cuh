// How the ranks of a stage, GPUs of one host, send words to one another: each stores into the others' inboxes over NVLink.
//
// A word is its own flag (words.cuh). Two inboxes in turn are enough for that never to race: a rank stores into the inbox of collective n again in
// collective n + 2, after it has everything of n + 1; so every other rank began n + 1, and had ended n and put its marks back.
// A step has an even number of sums (two a layer), so that which inbox is whose turn is known when a graph is captured.
#pragma once
#include "words.cuh"

namespace mob {

// Byte places in an inbox.
constexpr int kReduceRows = 256;   // rows of one collective
constexpr int kExchangeRows = 256; // rows of logits of one
constexpr int kMeetCtas = 512;     // of a launch that ends with a meeting of all ranks
struct InboxLayout {
  size_t reduce, best, ids, ready; // `reduce`: bytes of one of the two inboxes for sums, which begin at 0
  // Of norm_shard.cu: parts of rows; the last meeting of every CTA of every rank; and of this rank.
  size_t shard, met, meeting;
  size_t total;
};
inline int shard_each(int rows, int ranks) { return ((rows + ranks - 1) / ranks + 7) / 8 * 8; } // rows of a rank, but the last ones

inline InboxLayout inbox_layout(int hidden, int rows) {
  InboxLayout l;
  const size_t most = (size_t)(rows < kReduceRows ? rows : kReduceRows);
  l.reduce = (2 * most + kMaxRanks) * (size_t)hidden * 2;
  l.best = 2 * l.reduce;
  l.ids = l.best + 2 * kMaxRanks * kExchangeRows * sizeof(uint64_t);
  l.ready = l.ids + kExchangeRows * sizeof(int);
  l.shard = (l.ready + kMaxRanks * sizeof(int) + 1023) / 1024 * 1024;
  const size_t all = (size_t)rows + 8 * kMaxRanks, listed = (size_t)kMaxRanks * (rows < kExchangeRows ? rows : kExchangeRows);
  l.met = l.shard + (all > listed ? all : listed) * (size_t)hidden * 2;
  l.meeting = l.met + kMaxRanks * kMeetCtas * sizeof(int);
  l.total = l.meeting + sizeof(int);
  return l;
}

struct Peers { // as one rank sees them
  Waits *waits;
  int rank, ranks;
  // Inboxes of this rank, the next, the one after it, ...: that all send to their next first spreads the load.
  uint8_t *inbox[kMaxRanks];
  InboxLayout at;
};

// Of any rank. (An index that is not known at compile time would copy a kernel's parameters to slow memory.)
__device__ __forceinline__ uint8_t *inbox_of(const Peers &p, int rank) {
  const int after = rank < p.rank ? rank - p.rank + p.ranks : rank - p.rank;
  uint8_t *inbox = p.inbox[0];
#pragma unroll
  for (int i = 1; i < kMaxRanks; i++)
    if (after == i) inbox = p.inbox[i];
  return inbox;
}

// Where a linear's results go as this rank's parts of rows that have owners (norm_shard.h): rank r has `each` rows, from r * each on.
struct PartsOut {
  int each;                // 0: nowhere
  uint8_t *to[kMaxRanks];  // rank r's first row, [each][n] bf16
};

// A word that is there.
__device__ __forceinline__ uint32_t sealed(uint32_t bf16_pair) { return bf16_pair == ~0u ? 0x7fc07fc0u : bf16_pair; }
__device__ __forceinline__ uint4 sealed(uint4 v) { return make_uint4(sealed(v.x), sealed(v.y), sealed(v.z), sealed(v.w)); }

// Eight columns of a row.
__device__ __forceinline__ void send_part(const PartsOut &p, int row, int col, int n, uint4 word) {
  uint8_t *to = p.to[0];
  int first = 0;
#pragma unroll
  for (int i = 1; i < kMaxRanks; i++)
    if (row >= i * p.each) to = p.to[i], first = i * p.each;
  store_relaxed_sys(to + ((size_t)(row - first) * n + col) * 2, sealed(word));
}

// Takes the 16 bytes at `from` + r * stride of every rank r < n; zeros where a wait ended without them.
template <int Max> __device__ __forceinline__ void take_all(const Peers &p, uint8_t *from, size_t stride, int n, uint4 (&v)[Max], int sender) {
  take_words(v, from, stride, 0, n, -1, n == 1 ? sender : -1, p.waits);
}

} // namespace mob
