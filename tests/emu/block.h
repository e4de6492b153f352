// Running blocks; the inner side of include/emu/block.h.
#ifndef MOB_EMU_BLOCK_INNER_H
#define MOB_EMU_BLOCK_INNER_H

#include <functional>

#include "emu/block.h"

namespace emu {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 * 1024; // dynamic and static, of a block

struct Launch;

// Runs blocks `first` to first + size - 1 of this OS thread's gridDim, of blockDim threads each, as a cluster. `stuck` is called when all threads
// spin: others must get their turn.
void run_cluster(const std::function<void()> &kernel, unsigned first, int size, size_t shared, const char *name, void (*stuck)(Launch *),
                 Launch *launch);

} // namespace emu

#endif
