// Running the blocks of a launch on the process's pool of OS threads.
#ifndef MOB_EMU_GRID_H
#define MOB_EMU_GRID_H

#include <functional>
#include <memory>

#include "emu/block.h"

namespace emu {

struct LaunchSpec {
  std::function<void()> kernel;
  const void *address; // of the kernel
  dim3 grid, block;
  size_t shared;
  int places; // blocks that are there at the same time, at most
  int cluster; // blocks of a cluster
};

// Blocks until every block has ended. The calling thread computes too.
void run_grid(const std::shared_ptr<const LaunchSpec> &spec);
const char *kernel_name(const void *address); // mangled, or "?"; lives for ever

} // namespace emu

#endif
