// Collectives among threads of one process, through shared memory. Ranks may be many more than CPUs
// (16 ranks on 2 cores), so a waiting rank sleeps on a futex, and spins a moment first only where
// every rank has a CPU of its own. A barrier is one atomic counter and one wake-up of all. Small
// all-reduces cross it once: parts are copied to a buffer of the call's parity, and the next
// barrier proves that everybody has read them. Large ones cross it twice: rank r adds slice r of
// all ranks and writes the sum to all.
#include <errno.h>
#include <linux/futex.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/comm/comm.h"
#include "runtime/base/mem.h"

enum { SMALL = 16384, SPINS = 1000 }; // floats a rank; pause instructions

typedef struct rank_state {
  float *small[2]; // [SMALL] each
  void *published; // the caller's buffer during a large call
  const void *part;
  uint32_t parity;
  char pad[64];
} rank_state_t;

struct mob_comm {
  int size;
  int spins;
  _Atomic uint32_t arrived;
  _Atomic uint32_t generation;
  _Atomic uint32_t aborted;
  rank_state_t *ranks;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static mob_status host_open(int size, mob_comm_t **out) {
  if (size < 1) return mob_fail(MOB_E_INVALID, "a group needs at least one rank, not %d", size);
  cpu_set_t cpus;
  int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  mob_comm_t *comm = MOB_NEW(mob_comm_t);
  comm->size = size;
  comm->spins = size <= count ? SPINS : 0;
  comm->ranks = MOB_NEW_ARRAY(rank_state_t, (size_t)size);
  for (int i = 0; i < size; i++)
    for (int p = 0; p < 2; p++) comm->ranks[i].small[p] = mob_malloc(SMALL * sizeof(float));
  *out = comm;
  return MOB_OK;
}

static void host_close(mob_comm_t *comm) {
  if (!comm) return;
  for (int i = 0; i < comm->size; i++) {
    free(comm->ranks[i].small[0]);
    free(comm->ranks[i].small[1]);
  }
  free(comm->ranks);
  free(comm);
}

static mob_status aborted(void) {
  return mob_fail(MOB_E_ABORTED, "the group was aborted");
}

static mob_status host_barrier(mob_comm_t *comm, int rank) {
  (void)rank;
  if (atomic_load(&comm->aborted)) return aborted();
  if (comm->size == 1) return MOB_OK;
  uint32_t generation = atomic_load(&comm->generation);
  if (atomic_fetch_add(&comm->arrived, 1) + 1 == (uint32_t)comm->size) {
    atomic_store(&comm->arrived, 0);
    atomic_fetch_add(&comm->generation, 1);
    futex_wake_all(&comm->generation);
  } else {
    for (int i = 0; i < comm->spins && atomic_load(&comm->generation) == generation; i++)
      __builtin_ia32_pause();
    while (atomic_load(&comm->generation) == generation && !atomic_load(&comm->aborted))
      futex_wait(&comm->generation, generation);
  }
  return atomic_load(&comm->aborted) ? aborted() : MOB_OK;
}

static void add(float *restrict into, const float *restrict from, size_t n) {
  for (size_t i = 0; i < n; i++) into[i] += from[i];
}

static mob_status host_all_reduce(mob_comm_t *comm, int rank, float *data, size_t n) {
  if (comm->size == 1) return host_barrier(comm, rank);
  rank_state_t *own = &comm->ranks[rank];
  if (n <= SMALL) {
    uint32_t parity = own->parity++ & 1;
    memcpy(own->small[parity], data, n * sizeof *data);
    MOB_TRY(host_barrier(comm, rank));
    memcpy(data, comm->ranks[0].small[parity], n * sizeof *data);
    for (int r = 1; r < comm->size; r++) add(data, comm->ranks[r].small[parity], n);
    return MOB_OK;
  }
  own->published = data;
  MOB_TRY(host_barrier(comm, rank));
  // Slices of whole cache lines; every rank's buffer is touched in slice `rank` by this rank alone.
  size_t slice = ((n + (size_t)comm->size - 1) / (size_t)comm->size + 15) & ~(size_t)15;
  size_t begin = slice * (size_t)rank < n ? slice * (size_t)rank : n;
  size_t end = begin + slice < n ? begin + slice : n;
  if (end > begin) {
    float *sum = (float *)comm->ranks[0].published + begin;
    for (int r = 1; r < comm->size; r++)
      add(sum, (float *)comm->ranks[r].published + begin, end - begin);
    for (int r = 1; r < comm->size; r++)
      memcpy((float *)comm->ranks[r].published + begin, sum, (end - begin) * sizeof *sum);
  }
  return host_barrier(comm, rank);
}

static mob_status host_all_gather(mob_comm_t *comm, int rank, const float *part, float *out,
                                  size_t n) {
  comm->ranks[rank].part = part;
  MOB_TRY(host_barrier(comm, rank));
  for (int r = 0; r < comm->size; r++)
    memmove(out + (size_t)r * n, comm->ranks[r].part, n * sizeof *out);
  return host_barrier(comm, rank);
}

static mob_status host_broadcast(mob_comm_t *comm, int rank, int root, void *data, size_t bytes) {
  comm->ranks[rank].published = data;
  MOB_TRY(host_barrier(comm, rank));
  if (rank != root) memcpy(data, comm->ranks[root].published, bytes);
  return host_barrier(comm, rank);
}

static void host_abort(mob_comm_t *comm) {
  atomic_store(&comm->aborted, 1);
  // Sleepers compare the generation before they sleep: changing it loses no wake-up.
  atomic_fetch_add(&comm->generation, 1);
  futex_wake_all(&comm->generation);
}

const mob_comm_ops_t mob_comm_host = {"host",          host_open,       host_close,
                                      host_all_reduce, host_all_gather, host_broadcast,
                                      host_barrier,    host_abort};
