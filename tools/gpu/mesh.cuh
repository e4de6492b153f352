// GPUs that reach one another, as engine/cuda/comm.cu connects those of a stage, without an executor: for benches and tests.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "engine/cuda/comm.cuh"
#include "engine/cuda/kernels.h"

namespace mesh {

inline void ok(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}
#define MESH_OK(call) mesh::ok((call), #call)

struct Rank {
  int sms = 0;
  cudaStream_t stream = nullptr;
  mob::Waits *waits = nullptr;
  mob::Peers peers = {};
};

struct Mesh {
  std::vector<Rank> ranks;
  int *words = nullptr; // pinned: the host's, then what each rank missed
};

// GPUs 0 to n - 1, inboxes for sums of up to `rows` rows.
inline void open(Mesh *m, int n, int hidden, int rows, int wait_ms) {
  const mob::InboxLayout at = mob::inbox_layout(hidden, rows);
  std::vector<uint8_t *> inbox((size_t)n);
  m->ranks.assign((size_t)n, Rank());
  MESH_OK(cudaHostAlloc(&m->words, (size_t)(1 + n) * sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped));
  for (int i = 0; i <= n; i++) m->words[i] = 0;
  for (int r = 0; r < n; r++) {
    Rank &rank = m->ranks[(size_t)r];
    MESH_OK(cudaSetDevice(r));
    for (int peer = 0; peer < n; peer++) {
      const cudaError_t error = peer == r ? cudaSuccess : cudaDeviceEnablePeerAccess(peer, 0);
      if (error == cudaErrorPeerAccessAlreadyEnabled) cudaGetLastError();
      else ok(error, "cudaDeviceEnablePeerAccess");
    }
    MESH_OK(cudaDeviceGetAttribute(&rank.sms, cudaDevAttrMultiProcessorCount, r));
    MESH_OK(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking));
    MESH_OK(cudaMalloc(&rank.waits, sizeof(mob::Waits)));
    MESH_OK(cudaMalloc(&inbox[(size_t)r], at.total));
    MESH_OK(cudaMemset(inbox[(size_t)r], 0xff, at.total));
    MESH_OK(cudaDeviceSynchronize());
  }
  for (int r = 0; r < n; r++) {
    Rank &rank = m->ranks[(size_t)r];
    mob::Waits waits = {};
    waits.rank = r;
    waits.ranks = n;
    waits.limit = (uint32_t)((uint64_t)wait_ms * 1000000 >> 16);
    waits.host = m->words;
    waits.missing = m->words + 1 + r;
    for (int i = 0; i < n; i++) waits.peers[i] = &m->ranks[(size_t)i].waits->halt;
    MESH_OK(cudaSetDevice(r));
    MESH_OK(cudaMemcpy(rank.waits, &waits, sizeof waits, cudaMemcpyHostToDevice));
    rank.peers.waits = rank.waits;
    rank.peers.rank = r;
    rank.peers.ranks = n;
    rank.peers.at = at;
    for (int i = 0; i < n; i++) rank.peers.inbox[i] = inbox[(size_t)((r + i) % n)];
  }
}

inline void close(Mesh *m) {
  for (size_t r = 0; r < m->ranks.size(); r++) {
    MESH_OK(cudaSetDevice((int)r));
    MESH_OK(cudaFree(m->ranks[r].peers.inbox[0]));
    MESH_OK(cudaFree(m->ranks[r].waits));
    MESH_OK(cudaStreamDestroy(m->ranks[r].stream));
  }
  MESH_OK(cudaFreeHost(m->words));
}

} // namespace mesh
