// The weights' way from the files to the devices, and dummy values in their place.
//
// Files: every byte is read once, whatever the number of ranks. A chunk is some rows of one tensor. Reader threads take chunks in the
// order of the files; a reader has its chunk copied by the kernel from the page cache into a pinned buffer (read(2): no page is
// mapped, a short file is an error), queues copies of what each rank needs of it, and the kernels that pack it there, and takes the next
// free buffer. Reading, the copies of all devices and packing so run beside each other; the buffers bound what is under way.
//
// Shards: of rows, a rank gets its own by address. Of columns, the copy engine cuts them out of the pinned rows; where whole rows are
// so short that cutting costs the engine more than they do, they go to every rank and the packing kernel cuts.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>
#include <unordered_map>

extern "C" {
#include "runtime/base/cpus.h"
}
#include "engine/cuda/weights.h"

namespace mob {
namespace {

constexpr size_t kRingBytes = (size_t)256 << 20, kLargestChunk = (size_t)4 << 20; // larger ones take longer to pin than they save
constexpr int kStreams = 4; // per device: one slot's kernels run beside the next one's copies
constexpr long kRowCost = 256; // what a row of a copy with a pitch costs at least, as bytes of a plain copy

struct Item { // a tensor
  mob_slot_t slot;
  const mob_tensor_t *tensor, *scales;
  std::vector<WeightTarget> targets;
  size_t row_bytes() const { return (size_t)slot.cols * mob_dtype_size(tensor->dtype); }
};

struct Chunk {
  int item;
  int64_t row0, rows;
};

struct Lane { // of a slot on one device
  uint8_t *device = nullptr;
  cudaEvent_t done = nullptr;
  bool busy = false;
};
struct Slot {
  uint8_t *host = nullptr;
  std::vector<Lane> lanes; // [ranks]
  int stream = 0;
};

struct Loading {
  Exec *exec;
  void (*progress)(void *arg, const mob_load_progress_t *p);
  void *arg;
  std::vector<Item> items;
  std::vector<Chunk> chunks;
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<bool> stop{false};
  std::mutex lock; // of what follows
  mob_status status = MOB_OK;
  std::string why;
  std::deque<Slot *> free; // the one whose work was queued first in front
  std::condition_variable freed;
  // the ring
  size_t slot_bytes = 0, row_cost = kRowCost;
  std::vector<Slot> slots;
  std::vector<cudaStream_t> streams; // [rank][kStreams]

  void fail(mob_status code) { // with this thread's message
    std::lock_guard<std::mutex> hold(lock);
    if (status == MOB_OK) {
      status = code;
      why = mob_errmsg();
    }
    stop = true;
    freed.notify_all();
  }
  void give(Slot *slot) {
    {
      std::lock_guard<std::mutex> hold(lock);
      free.push_back(slot);
    }
    freed.notify_one();
  }
  void report(uint64_t bytes) {
    const mob_load_progress_t now = {done.fetch_add(bytes) + bytes, exec->file_bytes};
    if (progress) progress(arg, &now);
  }
};

mob_status list_items(Loading *l) {
  std::unordered_map<const mob_tensor_t *, int> seen;
  return weights_targets(l->exec, [&](const mob_slot_t &slot, const mob_tensor_t *tensor, const mob_tensor_t *scales,
                                      const std::vector<WeightTarget> &targets) {
    const auto at = seen.emplace(tensor, (int)l->items.size());
    if (at.second) l->items.push_back({slot, tensor, scales, {}});
    std::vector<WeightTarget> &all = l->items[(size_t)at.first->second].targets;
    all.insert(all.end(), targets.begin(), targets.end());
    return MOB_OK;
  });
}

int64_t block_rows(const Exec *exec) { return exec->desc->quant_block_rows ? exec->desc->quant_block_rows : 1; }
int64_t block_cols(const Exec *exec) { return exec->desc->quant_block_cols ? exec->desc->quant_block_cols : 1; }

// Rows of scales that rows [row0, row0 + rows) need.
void scale_rows(const Exec *exec, int64_t row0, int64_t rows, int64_t *first, int64_t *count) {
  *first = row0 / block_rows(exec);
  *count = (row0 + rows - 1) / block_rows(exec) + 1 - *first;
}
size_t scale_row_bytes(const Item &item) { return item.scales ? (size_t)item.scales->shape[1] * 4 : 0; }
size_t scales_at(const Item &item, int64_t rows) { return (item.row_bytes() * (size_t)rows + 255) / 256 * 256; }

// ------------------------------------------------------------------------------------------ the ring

long setting(const char *name, long otherwise) { // for measurements
  const char *text = getenv(name);
  const long value = text ? atol(text) : 0;
  return value > 0 ? value : otherwise;
}

// A small model is read before many threads and their pinned buffers are there.
int reader_count(uint64_t bytes) {
  const long cpus = mob_cpu_count(), most = cpus < 4 ? 4 : cpus > 32 ? 32 : cpus, useful = (long)(bytes / kLargestChunk) + 2;
  return (int)setting("MOB_LOAD_THREADS", useful < most ? useful : most);
}

// Of the scales that rows [begin, end) do not need; ones that they share with the rows before, load_chunk() takes as counted.
uint64_t scale_bytes_left(const Loading *l, const Item &item, int64_t begin, int64_t end) {
  if (!item.scales) return 0;
  int64_t first, count = 0;
  if (end > begin) scale_rows(l->exec, begin, end - begin, &first, &count);
  if (end > begin && begin % block_rows(l->exec)) count--;
  return (uint64_t)(item.scales->shape[0] - count) * scale_row_bytes(item);
}

// Whole experts lie in a file one rank's behind another's, and in that order only one device's link would be busy at a time. So the
// chunks of one rank alone are dealt out in turns, each rank's in the order of the files; all others stay where they are.
void deal(Loading *l) {
  const size_t ranks = l->exec->ranks.size();
  if (!l->exec->spec.expert_parallel || ranks == 1) return;
  std::vector<std::vector<size_t>> of(ranks);
  const auto only = [&](const Chunk &chunk) -> int {
    const std::vector<WeightTarget> &targets = l->items[(size_t)chunk.item].targets;
    for (const WeightTarget &t : targets)
      if (t.rank != targets[0].rank) return -1;
    return targets[0].rank->index;
  };
  std::vector<size_t> places;
  for (size_t i = 0; i < l->chunks.size(); i++) {
    const int rank = only(l->chunks[i]);
    if (rank < 0) continue;
    of[(size_t)rank].push_back(i);
    places.push_back(i);
  }
  const std::vector<Chunk> before = l->chunks;
  size_t to = 0;
  for (size_t turn = 0; to < places.size(); turn++)
    for (const std::vector<size_t> &mine : of)
      if (turn < mine.size()) l->chunks[places[to++]] = before[mine[turn]];
}

// Cuts tensors into chunks, in the order of the files. Rows that only ranks in other processes need are not read.
void cut(Loading *l, size_t chunk_bytes) {
  for (size_t i = 0; i < l->items.size(); i++) {
    const Item &item = l->items[i];
    int64_t begin = item.slot.rows, end = 0;
    for (const WeightTarget &t : item.targets) begin = std::min(begin, t.from.row0), end = std::max(end, t.from.row0 + t.from.rows);
    if (begin >= end) begin = end = 0;
    l->done += (uint64_t)(item.slot.rows - (end - begin)) * item.row_bytes() + scale_bytes_left(l, item, begin, end);
    int64_t step = (int64_t)(chunk_bytes / item.row_bytes());
    const int64_t whole = std::max<int64_t>(64, block_rows(l->exec)); // so that tiles and blocks of scales stay whole
    if (step > whole) step -= step % whole;
    if (step < 1) step = 1;
    for (int64_t r = begin, rows; r < end; r += rows) {
      rows = std::min(step > whole ? step - r % whole : step, end - r);
      int64_t first, count = 0;
      if (item.scales) scale_rows(l->exec, r, rows, &first, &count);
      l->slot_bytes = std::max(l->slot_bytes, scales_at(item, rows) + (size_t)count * scale_row_bytes(item));
      l->chunks.push_back({(int)i, r, rows});
    }
  }
  std::sort(l->chunks.begin(), l->chunks.end(), [&](const Chunk &a, const Chunk &b) {
    const mob_tensor_t *x = l->items[(size_t)a.item].tensor, *y = l->items[(size_t)b.item].tensor;
    if (x->file != y->file) return x->file < y->file;
    return x->offset != y->offset ? x->offset < y->offset : a.row0 < b.row0;
  });
  deal(l);
}

mob_status make_streams(Loading *l) {
  l->streams.assign(l->exec->ranks.size() * kStreams, nullptr);
  return on_ranks(l->exec, [&](Rank *rank) {
    for (int s = 0; s < kStreams; s++)
      CU_TRY(cudaStreamCreateWithFlags(&l->streams[(size_t)(rank->index * kStreams + s)], cudaStreamNonBlocking));
    return MOB_OK;
  });
}

mob_status make_slot(Loading *l, Slot *slot) {
  // Any device's copies may come from it: pinned memory is portable under unified addressing.
  CU_TRY(cudaMallocHost(&slot->host, l->slot_bytes));
  for (Rank &rank : l->exec->ranks) {
    CU_TRY(cudaSetDevice(rank.device));
    Lane *lane = &slot->lanes[(size_t)rank.index];
    CU_TRY(cudaMalloc(&lane->device, l->slot_bytes));
    CU_TRY(cudaEventCreateWithFlags(&lane->done, cudaEventDisableTiming | cudaEventBlockingSync));
  }
  return MOB_OK;
}

// Pinning memory takes a tenth of a second: readers begin with the first slot, while the others are made.
void make_slots(Loading *l) {
  for (Slot &slot : l->slots) {
    if (l->stop) return;
    const mob_status status = make_slot(l, &slot);
    if (status != MOB_OK) {
      l->fail(status);
      return;
    }
    l->give(&slot);
  }
}

// Waits for what is under way, then frees.
void free_ring(Loading *l) {
  for (Rank &rank : l->exec->ranks) {
    cudaSetDevice(rank.device);
    for (int s = 0; s < kStreams && !l->streams.empty(); s++) {
      cudaStream_t stream = l->streams[(size_t)(rank.index * kStreams + s)];
      if (stream && cudaStreamSynchronize(stream) == cudaSuccess) cudaStreamDestroy(stream);
    }
    for (Slot &slot : l->slots) {
      if (slot.lanes.empty()) continue;
      Lane *lane = &slot.lanes[(size_t)rank.index];
      if (lane->done) cudaEventDestroy(lane->done);
      cudaFree(lane->device);
    }
  }
  for (Slot &slot : l->slots) cudaFreeHost(slot.host);
}

// There are more slots than readers, so that one is free as soon as all are made. NULL: another thread has failed.
mob_status take_slot(Loading *l, Slot **out) {
  {
    std::unique_lock<std::mutex> hold(l->lock);
    l->freed.wait(hold, [&] { return l->stop || !l->free.empty(); });
    if (l->free.empty()) return MOB_OK;
    *out = l->free.front();
    l->free.pop_front();
  }
  for (Lane &lane : (*out)->lanes) {
    if (!lane.busy) continue;
    CU_TRY(cudaEventSynchronize(lane.done));
    lane.busy = false;
  }
  return MOB_OK;
}

// ------------------------------------------------------------------------------------------ a chunk

mob_status read_chunk(const Loading *l, const Chunk &chunk, uint8_t *to) {
  const mob_model_t *model = l->exec->spec.model;
  const Item &item = l->items[(size_t)chunk.item];
  MOB_TRY(mob_model_read(model, item.tensor, (uint64_t)chunk.row0 * item.row_bytes(), (size_t)chunk.rows * item.row_bytes(), to));
  if (!item.scales) return MOB_OK;
  int64_t first, count;
  scale_rows(l->exec, chunk.row0, chunk.rows, &first, &count);
  const size_t row = scale_row_bytes(item);
  return mob_model_read(model, item.scales, (uint64_t)first * row, (size_t)count * row, to + scales_at(item, chunk.rows));
}

void pack(const PackSource &s, const WeightTarget &t, cudaStream_t stream) {
  if (t.kind == WeightTarget::TILES) pack_tiles(s, (uint8_t *)t.dst, t.ld, t.tiles, stream);
  else if (t.kind == WeightTarget::PLAIN) pack_plain(s, (bf16 *)t.dst, t.ld, stream);
  else pack_float(s, (float *)t.dst, stream);
}

// A rank's targets [begin, end) of the chunk's tensor: one copy of all that they need, then their kernels.
mob_status send_to_rank(const Loading *l, const Chunk &chunk, Slot *slot, const WeightTarget *begin, const WeightTarget *end) {
  const Item &item = l->items[(size_t)chunk.item];
  const Rank *rank = begin->rank;
  int64_t r0 = INT64_MAX, r1 = 0, c0 = INT64_MAX, c1 = 0;
  for (const WeightTarget *t = begin; t < end; t++) {
    r0 = std::min(r0, t->from.row0), r1 = std::max(r1, t->from.row0 + t->from.rows);
    c0 = std::min(c0, t->from.col0), c1 = std::max(c1, t->from.col0 + t->from.cols);
  }
  r0 = std::max(r0, chunk.row0), r1 = std::min(r1, chunk.row0 + chunk.rows);
  if (r0 >= r1) return MOB_OK;
  CU_TRY(cudaSetDevice(rank->device));
  Lane *lane = &slot->lanes[(size_t)rank->index];
  cudaStream_t stream = l->streams[(size_t)(rank->index * kStreams + slot->stream)];
  lane->busy = true; // from the first copy on; the event is recorded behind the last kernel
  const size_t size = mob_dtype_size(item.tensor->dtype), row = item.row_bytes(), width = (size_t)(c1 - c0) * size;
  const uint8_t *host = slot->host + (size_t)(r0 - chunk.row0) * row;
  int64_t ld = item.slot.cols;
  if (std::max(width, l->row_cost) < row) {
    const size_t pitch = (width + 15) / 16 * 16;
    CU_TRY(cudaMemcpy2DAsync(lane->device, pitch, host + (size_t)c0 * size, row, width, (size_t)(r1 - r0), cudaMemcpyHostToDevice, stream));
    ld = (int64_t)(pitch / size);
  } else {
    CU_TRY(cudaMemcpyAsync(lane->device, host, (size_t)(r1 - r0) * row, cudaMemcpyHostToDevice, stream));
    c0 = 0;
  }
  const size_t at = scales_at(item, chunk.rows);
  int64_t scale_first = 0, scale_count = 0;
  if (item.scales) {
    scale_rows(l->exec, chunk.row0, chunk.rows, &scale_first, &scale_count);
    CU_TRY(cudaMemcpyAsync(lane->device + at, slot->host + at, (size_t)scale_count * scale_row_bytes(item), cudaMemcpyHostToDevice, stream));
  }
  for (const WeightTarget *t = begin; t < end; t++) {
    const int64_t first = std::max(t->from.row0, r0), last = std::min(t->from.row0 + t->from.rows, r1);
    if (first >= last) continue;
    PackSource s = {};
    s.src = lane->device + ((size_t)((first - r0) * ld + t->from.col0 - c0)) * size;
    s.dtype = item.tensor->dtype;
    s.rows = last - first;
    s.cols = t->from.cols;
    s.row0 = t->row0 + first - t->from.row0;
    s.scales = item.scales ? (const float *)(lane->device + at) : nullptr;
    s.scale_ld = item.scales ? item.scales->shape[1] : 0;
    s.scale_row0 = first - scale_first * block_rows(l->exec);
    s.scale_col0 = t->from.col0;
    s.block_rows = (int)block_rows(l->exec);
    s.block_cols = (int)block_cols(l->exec);
    s.bad = rank->bad;
    s.ld = ld;
    s.tag = chunk.item;
    pack(s, *t, stream);
  }
  CU_TRY(cudaGetLastError());
  CU_TRY(cudaEventRecord(lane->done, stream));
  return MOB_OK;
}

mob_status load_chunk(Loading *l, const Chunk &chunk, Slot *slot) {
  const Item &item = l->items[(size_t)chunk.item];
  MOB_TRY(read_chunk(l, chunk, slot->host));
  const WeightTarget *t = item.targets.data(), *end = t + item.targets.size();
  while (t < end) {
    const WeightTarget *next = t;
    while (next < end && next->rank == t->rank) next++;
    MOB_TRY(send_to_rank(l, chunk, slot, t, next));
    t = next;
  }
  int64_t first, count = 0;
  if (item.scales) scale_rows(l->exec, chunk.row0, chunk.rows, &first, &count);
  // Scales that two chunks share count once.
  const bool shared = item.scales && chunk.row0 % block_rows(l->exec);
  l->report((uint64_t)chunk.rows * item.row_bytes() + (uint64_t)(count - shared) * scale_row_bytes(item));
  return MOB_OK;
}

void reader_main(Loading *l) {
  size_t i;
  while (!l->stop && (i = l->next.fetch_add(1)) < l->chunks.size()) {
    if (l->exec->aborted) {
      l->fail(mob_fail(MOB_E_ABORTED, "the executor was aborted while it loaded"));
      return;
    }
    Slot *slot = nullptr;
    mob_status status = take_slot(l, &slot);
    if (status == MOB_OK && !slot) return;
    if (status == MOB_OK) status = load_chunk(l, l->chunks[i], slot);
    if (status != MOB_OK) {
      l->fail(status);
      return; // with the slot: nobody takes one any more
    }
    l->give(slot);
  }
}

mob_status load_files(Loading *l) {
  size_t readers = (size_t)reader_count(l->exec->file_bytes);
  l->row_cost = (size_t)setting("MOB_LOAD_ROW_COST", kRowCost);
  const auto slots_for = [](size_t n) { return n + std::max<size_t>(2, n / 2); };
  cut(l, (size_t)setting("MOB_LOAD_CHUNK_KIB", (long)(std::min(kLargestChunk, kRingBytes / slots_for(readers)) >> 10)) << 10);
  readers = std::min(readers, l->chunks.size());
  l->slots.resize(slots_for(readers));
  l->slot_bytes = (l->slot_bytes + 255) / 256 * 256;
  for (size_t i = 0; i < l->slots.size(); i++) {
    l->slots[i].lanes.resize(l->exec->ranks.size());
    l->slots[i].stream = (int)(i % kStreams);
  }
  mob_status status = make_streams(l);
  if (status == MOB_OK) {
    std::vector<std::thread> threads;
    try {
      for (size_t i = 1; i < readers; i++) threads.emplace_back(reader_main, l);
    } catch (const std::system_error &) { // fewer, then
    }
    make_slots(l);
    reader_main(l);
    for (std::thread &t : threads) t.join();
    status = l->status;
    if (status != MOB_OK) mob_fail(status, "%s", l->why.c_str());
  }
  // Freeing sets no message of its own.
  free_ring(l);
  return status;
}

// ------------------------------------------------------------------------------------------ dummy values

// Half of the tables of quantiles: the other half mirrors it.
mob_status upload_tables(void **out) {
  mob_slot_t any = {};
  mob_dummy_rule_t rule;
  mob_dummy_rule(&any, &rule);
  for (int i = 0; i < kDummyHalf; i++)
    MOB_ASSERT(rule.quantile[i] == -rule.quantile[65535 - i] && rule.quantile_f8[i] == (rule.quantile_f8[65535 - i] | 0x80));
  CU_TRY(cudaMalloc(out, kDummyHalf * 5));
  CU_TRY(cudaMemcpy(*out, rule.quantile, kDummyHalf * 4, cudaMemcpyHostToDevice));
  CU_TRY(cudaMemcpy((uint8_t *)*out + kDummyHalf * 4, rule.quantile_f8, kDummyHalf, cudaMemcpyHostToDevice));
  return MOB_OK;
}

void fill(const Loading *l, const Item &item, const WeightTarget &t, const void *tables) {
  mob_dummy_rule_t rule;
  mob_dummy_rule(&item.slot, &rule);
  DummySource d = {};
  d.key = rule.key;
  d.dtype = item.tensor->dtype;
  d.rows = t.from.rows;
  d.cols = t.from.cols;
  d.row0 = t.row0;
  d.from_row = t.from.row0;
  d.from_col = t.from.col0;
  d.whole_cols = item.slot.cols;
  d.std = std::isnan(rule.constant) ? rule.std : NAN;
  d.constant = rule.constant;
  d.scale = item.scales ? mob_dummy_scale(l->exec->desc, &item.slot) : 1.0f;
  d.quantile = (const float *)tables;
  d.codes = (const uint8_t *)tables + kDummyHalf * 4;
  cudaStream_t stream = t.rank->stream;
  if (t.kind == WeightTarget::TILES) dummy_tiles(d, (uint8_t *)t.dst, t.ld, t.tiles, stream);
  else if (t.kind == WeightTarget::PLAIN) dummy_plain(d, (bf16 *)t.dst, t.ld, stream);
  else dummy_float(d, (float *)t.dst, stream);
}

mob_status fill_rank(Loading *l, Rank *rank, const void *tables) {
  const uint64_t ranks = l->exec->ranks.size();
  for (const Item &item : l->items) {
    if (l->exec->aborted) return mob_fail(MOB_E_ABORTED, "the executor was aborted while it loaded");
    for (const WeightTarget &t : item.targets)
      if (t.rank == rank) fill(l, item, t, tables);
    CU_TRY(cudaGetLastError());
    l->report((item.tensor->bytes + (item.scales ? item.scales->bytes : 0)) / ranks);
  }
  CU_TRY(cudaStreamSynchronize(rank->stream));
  return MOB_OK;
}

mob_status load_dummy(Loading *l) {
  return on_ranks(l->exec, [&](Rank *rank) {
    void *tables = nullptr;
    mob_status status = upload_tables(&tables);
    if (status == MOB_OK) status = fill_rank(l, rank, tables);
    cudaStreamSynchronize(rank->stream);
    cudaFree(tables);
    return status;
  });
}

// ------------------------------------------------------------------------------------------ afterwards

// What is made from loaded weights: transposed UK, merged biases.
mob_status finish(const Loading *l, Rank *rank) {
  for (Layer &layer : rank->layers) {
    if (layer.uk) pack_uk(layer.g[G_KV_B].m.data, layer.uk, rank->heads, rank->stream);
    if (!layer.a_bias) continue;
    const Group &a = layer.g[G_A];
    if (layer.v[MOB_W_Q_A_BIAS])
      CU_TRY(cudaMemcpyAsync(layer.a_bias + a.at[0], layer.v[MOB_W_Q_A_BIAS], (size_t)a.rows[0] * 4, cudaMemcpyDeviceToDevice,
                             rank->stream));
    CU_TRY(cudaMemcpyAsync(layer.a_bias + a.at[1], layer.v[MOB_W_KV_A_BIAS], (size_t)a.rows[1] * 4, cudaMemcpyDeviceToDevice,
                           rank->stream));
  }
  CU_TRY(cudaGetLastError());
  int bad = 0;
  CU_TRY(cudaMemcpyAsync(&bad, rank->bad, 4, cudaMemcpyDeviceToHost, rank->stream));
  CU_TRY(cudaStreamSynchronize(rank->stream));
  if (!bad) return MOB_OK;
  const mob_tensor_t *tensor = l->items[(size_t)bad - 1].tensor;
  return mob_fail(MOB_E_FORMAT, "%s: tensor %s holds the FP8 code 0x7F or 0xFF, which is not a number: the file is damaged",
                  mob_model_file(l->exec->spec.model, tensor), tensor->name);
}

// Launches of a step are timed one by one on request (profile.cu); those of many threads here are not.
struct Unprofiled {
  decltype(launch_hook) saved = launch_hook;
  Unprofiled() { launch_hook = nullptr; }
  ~Unprofiled() { launch_hook = saved; }
};

} // namespace

mob_status weights_load(Exec *exec, void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  const Unprofiled unprofiled;
  MOB_TRY(weights_allocate(exec));
  const std::unique_ptr<Loading> l(new Loading());
  l->exec = exec;
  l->progress = progress;
  l->arg = arg;
  MOB_TRY(list_items(l.get()));
  const bool dummy = !l->items.empty() && l->items[0].tensor->data == nullptr;
  MOB_TRY(dummy ? load_dummy(l.get()) : load_files(l.get()));
  MOB_TRY(on_ranks(exec, [&](Rank *rank) { return finish(l.get(), rank); }));
  const mob_load_progress_t all = {exec->file_bytes, exec->file_bytes};
  if (progress) progress(arg, &all);
  exec->loaded = true;
  return MOB_OK;
}

} // namespace mob
