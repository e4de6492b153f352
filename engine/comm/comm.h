// Collectives among the CPU backend's tensor-parallel ranks (threads of one process), and links between stages (TCP). GPUs have collectives
// of their own: engine/cuda/comm.cuh within a process, engine/cuda/across.h between processes.
// Every wait ends: with its result, or with MOB_E_ABORTED after abort() or MOB_E_UNAVAILABLE when the peer died.
#ifndef MOB_COMM_COMM_H
#define MOB_COMM_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

typedef struct mob_comm mob_comm_t;

typedef struct mob_comm_ops {
  const char *name;
  // A group of `size` ranks, all in this process. Ranks call the collectives from their own threads, all in the same order.
  mob_status (*open)(int size, mob_comm_t **out);
  void (*close)(mob_comm_t *comm);
  // data[n] becomes the sum over ranks, added in rank order: the same bits on every rank and in every run.
  mob_status (*all_reduce)(mob_comm_t *comm, int rank, float *data, size_t n);
  // out[size * n]: every rank's part[n], in rank order.
  mob_status (*all_gather)(mob_comm_t *comm, int rank, const float *part, float *out, size_t n);
  // Copies root's bytes to all.
  mob_status (*broadcast)(mob_comm_t *comm, int rank, int root, void *data, size_t bytes);
  mob_status (*barrier)(mob_comm_t *comm, int rank);
  // From any thread: every waiting and later call returns MOB_E_ABORTED.
  void (*abort)(mob_comm_t *comm);
} mob_comm_ops_t;

extern const mob_comm_ops_t mob_comm_host;

// ---- links: a byte stream between two neighbouring stages, blocking with abort, used by one thread a direction.
typedef struct mob_link mob_link_t;

typedef struct mob_link_ops {
  const char *name;
  mob_status (*send)(mob_link_t *link, const void *data, size_t bytes);
  mob_status (*recv)(mob_link_t *link, void *data, size_t bytes);
  void (*abort)(mob_link_t *link); // from any thread
  void (*close)(mob_link_t *link);
} mob_link_ops_t;

extern const mob_link_ops_t mob_link_tcp;

#endif
