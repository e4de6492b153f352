// Devices, the memory that lies on them, and the calling thread's part of the runtime.
#ifndef MOB_EMU_RUNTIME_INNER_H
#define MOB_EMU_RUNTIME_INNER_H

#include <cuda_runtime.h>

namespace emu {

int device_count();
int device_places(); // blocks that a device runs at the same time
int current_device();
cudaError_t result(cudaError_t error); // which the thread remembers
// Is every byte of [p, p + bytes) memory of one device / pinned? Memory that is neither is the host's.
bool on_device(const void *p, size_t bytes);
bool pinned(const void *p, size_t bytes);
bool recording(); // this thread records a graph: calls that a GPU refuses then are refused
void synchronize_device(int device);

} // namespace emu

#endif
