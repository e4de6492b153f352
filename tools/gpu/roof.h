// How fast a GPU reads its memory: the better of two kernels over 8 GiB, bytes a second.
#ifndef MOB_TOOLS_GPU_ROOF_H
#define MOB_TOOLS_GPU_ROOF_H
#ifdef __cplusplus
extern "C" {
#endif

typedef struct read_roof {
  double plain, bulk, best; // loads of 16 bytes; bulk copies of 16 KB to shared memory
  char device[96];
} read_roof_t;

// 0, or -1 with a line on stderr.
int measure_read_roof(int device, read_roof_t *out);

#ifdef __cplusplus
}
#endif
#endif
