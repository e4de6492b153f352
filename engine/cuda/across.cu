#include "engine/cuda/across.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "engine/cuda/nccl.h"
#include "engine/cuda/weights.h"
#include "best.h"
#include "sample.cuh"

namespace mob {

struct Member { // of a stage's ranks, one that is here
  std::mutex lock;  // of the communicator: NCCL wants one caller at a time
  NcclComm comm = nullptr;
  std::thread ender; // within ncclCommAbort, which waits for graphs that use the communicator
  std::atomic<bool> ended{false};
};

struct Across {
  const Nccl *nccl = nullptr;
  std::vector<std::unique_ptr<Member>> members; // as exec->ranks
  std::atomic<bool> aborted{false};
  bool joined = false;
  std::mutex ending;
  uint64_t patience_ns = 0; // for a step's end
};

namespace {

constexpr uint64_t kCloseNs = 1000000000; // an actor gives its executor two seconds

template <class F> bool in_time(uint64_t until, F done) {
  while (!done()) {
    if (mob_now_ns() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

mob_status aborted() { return mob_fail(MOB_E_ABORTED, "the executor was aborted"); }

Member *member_of(Exec *exec, const Rank *r) { return exec->across->members[(size_t)r->index].get(); }

mob_status failed(Exec *exec, const Rank *r, int error, const char *what) {
  const Nccl *n = exec->across->nccl;
  const char *more = n->last_error(nullptr);
  const bool gone = error == NCCL_SYSTEM_ERROR || error == NCCL_REMOTE_ERROR; // another process, or what leads to it
  return mob_fail(gone ? MOB_E_UNAVAILABLE : MOB_E_INTERNAL, "NCCL, rank %d of %d, %s: %s%s%s", r->number, exec->spec.tp, what,
                  n->error_string(error), more && *more ? "; " : "", more ? more : "");
}

// How the communicator's last call does: 0, NCCL_IN_PROGRESS or what went wrong; -1: aborted.
int state_of(Exec *exec, Member *m) {
  std::lock_guard<std::mutex> hold(m->lock);
  if (exec->across->aborted || !m->comm) return -1;
  int state = NCCL_SUCCESS;
  const int error = exec->across->nccl->async_error(m->comm, &state);
  return error != NCCL_SUCCESS ? error : state;
}

// Calls NCCL and waits until the call is done, which is when its work is queued. until: mob_now_ns(), 0: as long as it takes.
template <class F> mob_status call(Exec *exec, Rank *r, const char *what, uint64_t until, F fn) {
  Member *m = member_of(exec, r);
  int state;
  {
    std::lock_guard<std::mutex> hold(m->lock);
    if (exec->across->aborted) return aborted();
    state = fn(&m->comm);
  }
  while (state == NCCL_IN_PROGRESS) {
    std::this_thread::yield();
    state = state_of(exec, m);
    if (until && state == NCCL_IN_PROGRESS && mob_now_ns() > until)
      return mob_fail(MOB_E_UNAVAILABLE, "rank %d: not all %d ranks of the stage are there", r->number, exec->spec.tp);
  }
  return state == NCCL_SUCCESS ? MOB_OK : state == -1 ? aborted() : failed(exec, r, state, what);
}

mob_status all_reduce(Exec *exec, Rank *r, void *data, size_t n, NcclType type, NcclOp op) {
  return call(exec, r, "all-reduce", 0,
              [&](NcclComm *comm) { return exec->across->nccl->all_reduce(data, data, n, type, op, *comm, r->stream); });
}
mob_status all_gather(Exec *exec, Rank *r, const void *from, void *to, size_t n, NcclType type) {
  return call(exec, r, "all-gather", 0, [&](NcclComm *comm) { return exec->across->nccl->all_gather(from, to, n, type, *comm, r->stream); });
}
mob_status broadcast(Exec *exec, Rank *r, void *data, size_t n, NcclType type) {
  return call(exec, r, "broadcast", 0,
              [&](NcclComm *comm) { return exec->across->nccl->broadcast(data, data, n, type, 0, *comm, r->stream); });
}

// ------------------------------------------------------------------------------------------ joining

// What each rank has and what all make of it: every collective once, so that connections stand before the first request.
mob_status check_joined(Exec *exec, Rank *r, int *data) {
  const int tp = exec->spec.tp, root = 4242;
  std::vector<int> host((size_t)tp + 2);
  const int own[2] = {r->number + 1, r->number == 0 ? root : 0};
  CU_TRY(cudaMemcpyAsync(data, own, sizeof own, cudaMemcpyHostToDevice, r->stream));
  MOB_TRY(all_gather(exec, r, data, data + 2, 1, NCCL_INT32));
  MOB_TRY(broadcast(exec, r, data + 1, 1, NCCL_INT32));
  MOB_TRY(all_reduce(exec, r, data, 1, NCCL_INT32, NCCL_SUM));
  cudaEvent_t end;
  CU_TRY(cudaEventCreateWithFlags(&end, cudaEventDisableTiming));
  cudaError_t error = cudaEventRecord(end, r->stream);
  mob_status status = error == cudaSuccess ? across_wait(exec, end) : cuda_failed(error, "cudaEventRecord");
  cudaEventDestroy(end);
  MOB_TRY(status);
  CU_TRY(cudaMemcpyAsync(host.data(), data, host.size() * 4, cudaMemcpyDeviceToHost, r->stream));
  CU_TRY(cudaStreamSynchronize(r->stream));
  bool right = host[0] == tp * (tp + 1) / 2 && host[1] == root;
  for (int i = 0; i < tp; i++) right = right && host[(size_t)i + 2] == i + 1;
  return right ? MOB_OK : mob_fail(MOB_E_INTERNAL, "NCCL, rank %d of %d: a first sum over all ranks came out wrong", r->number, tp);
}

mob_status join_rank(Exec *exec, Rank *r, const NcclId &id, uint64_t until) {
  MOB_TRY(call(exec, r, "joining", until, [&](NcclComm *comm) {
    NcclConfig config;
    return exec->across->nccl->init_rank(comm, exec->spec.tp, id, r->number, &config);
  }));
  int *data = nullptr;
  CU_TRY(cudaMalloc(&data, ((size_t)exec->spec.tp + 2) * 4));
  const mob_status status = check_joined(exec, r, data);
  if (status == MOB_OK) cudaFree(data); // else the stream may still use it, and the process ends anyway
  return status;
}

// ------------------------------------------------------------------------------------------ kernels

// What this rank adds to eight columns of a row: a projection's part, if there is one, and the experts that are here.
__global__ void __launch_bounds__(256) part_kernel(const NormIn in, bf16 *out) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.y, col = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (col >= in.hidden) return;
  float u[8], sum[8] = {};
  if (in.add) unpack_bf16(*(const uint4 *)(in.add + (size_t)row * in.hidden + col), sum);
  for (int j = 0; j < in.expert_slots; j++) {
    const int at = row * in.expert_slots + j, from = in.expert_row[at];
    if (from < 0) continue; // on another rank
    const float weight = in.expert_weight[at];
    unpack_bf16(*(const uint4 *)(in.expert_y + (size_t)from * in.hidden + col), u);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += weight * u[i];
  }
  *(uint4 *)(out + (size_t)row * in.hidden + col) = pack_bf16x8(sum);
}

// The rows of tokens [first, first + count), which are here; zeros for all others.
__global__ void __launch_bounds__(256) embed_kernel(const StepRows step, const bf16 *part, int first, int count, int vocab, int hidden,
                                                    bf16 *out, float *x) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.y, col = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (col >= hidden) return;
  int token = step.token[row];
  if (token < 0) token = step.last_token[-1 - token];
  token = min(max(token, 0), vocab - 1) - first;
  const uint4 none = make_uint4(0, 0, 0, 0);
  uint4 *to = (uint4 *)(x + (size_t)row * hidden + col);
  *(uint4 *)(out + (size_t)row * hidden + col) = token >= 0 && token < count ? *(const uint4 *)(part + (size_t)token * hidden + col) : none;
  to[0] = to[1] = none;
}

// The best of a row's pieces, its id of the whole vocabulary. A warp a row.
__global__ void __launch_bounds__(32) own_key_kernel(const Key *best, int vocab0, Key *keys) {
  depend_launch();
  depend_wait();
  const Key own = warp_best(best[(size_t)blockIdx.x * kSampleParts + threadIdx.x]);
  if (threadIdx.x == 0) keys[blockIdx.x] = own ? own - (Key)vocab0 : 0; // its low half is ~id
}

__global__ void __launch_bounds__(256) take_keys_kernel(const Waits *waits, const Key *keys, const int *slots, int *ids, int *last_token,
                                                        int rows) {
  depend_launch();
  depend_wait();
  const int row = threadIdx.x;
  if (row >= rows || halted(waits)) return;
  ids[row] = key_id(keys[row]);
  if (slots[row] >= 0) last_token[slots[row]] = ids[row];
}

// [rank][rows][each] -> [rows][vocab]
__global__ void __launch_bounds__(256) place_logits_kernel(const float *from, int each, int ranks, int rows, float *to, int vocab) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.y, rank = blockIdx.z;
  const int begin = (int)((int64_t)vocab * rank / ranks), end = (int)((int64_t)vocab * (rank + 1) / ranks);
  const float *part = from + ((size_t)rank * rows + row) * each;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < end - begin; i += gridDim.x * 256) to[(size_t)row * vocab + begin + i] = part[i];
}

__global__ void __launch_bounds__(256) take_ids_kernel(const Waits *waits, const int *slots, const int *wanted, const int *ids,
                                                       int *last_token, int rows) {
  depend_launch();
  depend_wait();
  const int row = threadIdx.x;
  if (row >= rows || halted(waits)) return;
  if (slots[row] >= 0 && wanted[row] < 0 && ids[row] >= 0) last_token[slots[row]] = ids[row];
}

} // namespace

int across_columns(const Exec *exec) { return (exec->desc->vocab + exec->spec.tp - 1) / exec->spec.tp; }

mob_status across_id(uint8_t out[MOB_GROUP_ID]) {
  static_assert(sizeof(NcclId) == MOB_GROUP_ID, "");
  const Nccl *nccl;
  NcclId id;
  MOB_TRY(nccl_open(&nccl));
  const int error = nccl->get_unique_id(&id);
  if (error != NCCL_SUCCESS)
    return mob_fail(MOB_E_INTERNAL, "NCCL cannot begin a group: %s; %s", nccl->error_string(error), nccl->last_error(nullptr));
  memcpy(out, id.internal, MOB_GROUP_ID);
  return MOB_OK;
}

mob_status across_open(Exec *exec) {
  const Nccl *nccl;
  MOB_TRY(nccl_open(&nccl));
  exec->across = new Across();
  exec->across->nccl = nccl;
  // The gateway judges a step by its age long before; this is for a stage without one.
  exec->across->patience_ns = 12 * ((uint64_t)comm_wait_ticks() << 16);
  for (size_t i = 0; i < exec->ranks.size(); i++) exec->across->members.emplace_back(new Member());
  return MOB_OK;
}

mob_status across_join(Exec *exec, const uint8_t id[MOB_GROUP_ID], uint64_t timeout_ms) {
  NcclId all;
  memcpy(all.internal, id, MOB_GROUP_ID);
  const uint64_t until = mob_now_ns() + timeout_ms * 1000000;
  MOB_TRY(on_ranks(exec, [&](Rank *r) { return join_rank(exec, r, all, until); }));
  exec->across->joined = true;
  return MOB_OK;
}

bool across_joined(const Exec *exec) { return exec->across->joined; }

void across_abort(Exec *exec) {
  Across *a = exec->across;
  if (!a || a->aborted.exchange(true)) return;
  std::lock_guard<std::mutex> hold(a->ending);
  for (std::unique_ptr<Member> &m : a->members) {
    Member *member = m.get();
    const int device = exec->ranks[(size_t)(&m - a->members.data())].device;
    member->ender = std::thread([a, member, device] {
      cudaSetDevice(device);
      NcclComm comm = nullptr;
      {
        std::lock_guard<std::mutex> only(member->lock); // a call that is being made ends first: calls do not block
        std::swap(comm, member->comm);
      }
      if (comm) a->nccl->abort(comm);
      member->ended = true;
    });
  }
}

bool across_close(Exec *exec) {
  Across *a = exec->across;
  if (!a) return true;
  const uint64_t until = mob_now_ns() + kCloseNs;
  std::lock_guard<std::mutex> hold(a->ending);
  for (Rank &rank : exec->ranks) {
    if (!rank.stream) continue;
    cudaSetDevice(rank.device);
    if (!in_time(until, [&] { return cudaStreamQuery(rank.stream) != cudaErrorNotReady; })) return false;
  }
  for (Rank &rank : exec->ranks) {
    cudaSetDevice(rank.device);
    for (auto &graph : rank.graphs) cudaGraphExecDestroy(graph.second);
    rank.graphs.clear();
  }
  for (std::unique_ptr<Member> &m : a->members) {
    if (!in_time(until, [&] { return m->ended.load(); })) return false;
    m->ender.join();
  }
  return true;
}

void across_free(Exec *exec) {
  delete exec->across;
  exec->across = nullptr;
}

mob_status across_wait(Exec *exec, cudaEvent_t event) {
  const uint64_t begin = mob_now_ns();
  uint64_t looked = begin;
  for (;;) {
    const cudaError_t error = cudaEventQuery(event);
    if (error == cudaSuccess) return MOB_OK;
    if (error != cudaErrorNotReady) return cuda_failed(error, "a step");
    cudaGetLastError();
    std::this_thread::yield();
    const uint64_t now = mob_now_ns();
    if (now - looked < 1000000) continue;
    looked = now;
    for (Rank &r : exec->ranks) {
      const int state = state_of(exec, member_of(exec, &r));
      if (state == -1) return aborted();
      if (state != NCCL_SUCCESS && state != NCCL_IN_PROGRESS) return failed(exec, &r, state, "a collective");
    }
    if (now - begin > exec->across->patience_ns)
      return mob_fail(MOB_E_UNAVAILABLE, "a step has waited %.1f s for ranks of the stage in other pods",
                      (double)(now - begin) * 1e-9);
  }
}

mob_status across_sum(Exec *exec, Rank *r, NormIn *in, int rows) {
  if (in->expert_y) {
    launch(part_kernel, dim3((in->hidden + 2047) / 2048, rows), 256, 0, r->stream, *in, r->y);
    in->expert_y = nullptr;
    in->add = r->y;
  }
  return all_reduce(exec, r, r->y, (size_t)rows * (size_t)in->hidden, NCCL_BFLOAT16, NCCL_SUM); // what `add` is
}

mob_status across_embed(Exec *exec, Rank *r, NormIn *in, int rows) {
  const int64_t vocab = exec->desc->vocab, tp = exec->spec.tp, first = vocab * r->number / tp, end = vocab * (r->number + 1) / tp;
  launch(embed_kernel, dim3((in->hidden + 2047) / 2048, rows), 256, 0, r->stream, in->step, (const bf16 *)r->embed, (int)first,
         (int)(end - first), (int)vocab, in->hidden, r->y, r->x);
  in->add = r->y;
  return all_reduce(exec, r, r->y, (size_t)rows * (size_t)in->hidden, NCCL_BFLOAT16, NCCL_SUM);
}

mob_status across_share_rows(Exec *exec, Rank *r, int rows) {
  return broadcast(exec, r, r->x, (size_t)rows * (size_t)exec->desc->hidden, NCCL_FLOAT32);
}

mob_status across_share_tokens(Exec *exec, Rank *r, int rows) {
  return broadcast(exec, r, r->meta + exec->layout.token, (size_t)rows, NCCL_INT32);
}

mob_status across_sample(Exec *exec, Rank *r, int first, int rows, bool plain) {
  const int vocab = exec->desc->vocab, tp = exec->spec.tp, each = across_columns(exec);
  const int *slots = r->meta + exec->layout.slot + first, *wanted = r->meta + exec->layout.wanted + first;
  if (plain) {
    logits_best(r->own_logits, r->outer.g[G_HEAD].m.n, each, r->best, rows, r->stream);
    launch(own_key_kernel, rows, 32, 0, r->stream, (const Key *)r->best, (int)((int64_t)vocab * r->number / tp), (Key *)r->keys);
    MOB_TRY(all_reduce(exec, r, r->keys, (size_t)rows, NCCL_UINT64, NCCL_MAX));
    launch(take_keys_kernel, 1, kExchangeRows, 0, r->stream, (const Waits *)r->waits, (const Key *)r->keys, slots, r->ids + first,
           r->last_token, rows);
    return MOB_OK;
  }
  for (int at = 0; at < rows; at += kGatherRows) {
    const int n = rows - at < kGatherRows ? rows - at : kGatherRows;
    MOB_TRY(all_gather(exec, r, r->own_logits + (size_t)at * each, r->gathered_logits, (size_t)n * (size_t)each, NCCL_FLOAT32));
    if (r->number == 0)
      launch(place_logits_kernel, dim3((each + 2047) / 2048, n, tp), 256, 0, r->stream, (const float *)r->gathered_logits, each, tp, n,
             r->logits + (size_t)at * vocab, vocab);
  }
  if (r->number == 0) sample_slots(exec, r, first, rows);
  MOB_TRY(broadcast(exec, r, r->ids + first, (size_t)rows, NCCL_INT32));
  if (r->number != 0)
    launch(take_ids_kernel, 1, kExchangeRows, 0, r->stream, (const Waits *)r->waits, slots, wanted, (const int *)(r->ids + first),
           r->last_token, rows);
  return MOB_OK;
}

} // namespace mob
