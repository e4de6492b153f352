// How much memory there is, and the working memory of a rank.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/cpu/tiles.h"
#include "runtime/base/cpus.h"
#include "runtime/base/mem.h"

// First number of a one-line file; -1 when there is none ("max", no such file).
static int64_t read_number(const char *path) {
  FILE *file = fopen(path, "re");
  long long value = -1;
  if (file) {
    if (fscanf(file, "%lld", &value) != 1) value = -1;
    fclose(file);
  }
  return value;
}

int mob__cpu_count(void) {
  return mob_cpu_count();
}

// A line "NAME value" of a statistics file; -1 when there is none.
static int64_t read_field(const char *path, const char *name) {
  FILE *file = fopen(path, "re");
  char line[256];
  long long value = -1;
  size_t len = strlen(name);
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, name, len) == 0 && sscanf(line + len, "%*[: \t]%lld", &value) == 1) break;
  if (file) fclose(file);
  return value;
}

// What the cgroup leaves: its limit less what cannot be dropped. Page cache can, and mapped weights
// are page cache.
static int64_t cgroup_left(void) {
  int64_t limit = read_number("/sys/fs/cgroup/memory.max"),
          used = read_number("/sys/fs/cgroup/memory.current");
  int64_t cache = read_field("/sys/fs/cgroup/memory.stat", "file");
  if (limit < 0) {
    limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes");
    cache = read_field("/sys/fs/cgroup/memory/memory.stat", "total_cache");
  }
  if (limit < 0 || used < 0 || limit > (int64_t)1 << 60) return -1;
  int64_t left = limit - used + (cache > 0 ? cache : 0);
  return left < 0 ? 0 : left;
}

uint64_t mob__memory_available(void) {
  int64_t kib = read_field("/proc/meminfo", "MemAvailable"), left = cgroup_left();
  int64_t bytes = kib < 0 ? 0 : kib * 1024;
  if (left >= 0 && left < bytes) bytes = left;
  return (uint64_t)bytes;
}

// The arrays of a rank, in one block: the first pass (rank->memory NULL) measures, the second hands
// out.
typedef struct arena {
  uint8_t *block;
  size_t used;
} arena_t;

static void *take(arena_t *arena, size_t count, size_t size) {
  size_t at = arena->used;
  arena->used += (count * size + 127) & ~(size_t)127;
  return arena->block ? arena->block + at : NULL;
}

static void lay_out(mob_rank_t *rank, arena_t *a) {
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  size_t rows = (size_t)exec->spec.max_tokens, tp = (size_t)exec->spec.tp, f = sizeof(float);
  size_t hidden = (size_t)d->hidden, heads = (size_t)d->n_heads / tp;
  size_t kv_heads = (size_t)d->n_kv_heads >= tp ? (size_t)d->n_kv_heads / tp : 1;
  size_t logit_rows = rows > MOB_LOGIT_ROWS ? rows : MOB_LOGIT_ROWS;
  bool mla = d->attn == MOB_ATTN_MLA;
  take(a, 1, 128); // a message header is written right in front of x
  rank->x = (float *)take(a, rows * hidden, f);
  rank->norm = take(a, logit_rows * hidden, f);
  rank->part = take(a, rows * hidden, f);
  rank->q_lora = take(a, rows * (size_t)d->q_lora, f);
  rank->q = take(a, rows * heads * (size_t)d->head_dim, f);
  rank->kv_new = take(
      a, rows * (mla ? (size_t)(d->kv_lora + d->qk_rope) : 2 * kv_heads * (size_t)d->head_dim), f);
  rank->attn = take(a, rows * heads * (size_t)d->v_head_dim, f);
  size_t dense = rows * (size_t)d->intermediate / tp;
  size_t moe =
      rows * (size_t)d->moe_intermediate *
      ((size_t)d->top_k * tp / (exec->spec.expert_parallel ? 1 : tp) + (size_t)d->n_shared) / tp;
  rank->act = take(a, dense > moe ? dense : moe, f);
  rank->packed = take(a, mob__tiles_memory(exec), 1);
  rank->tasks = take(a, mob__ffn_task_bytes(exec), 1);
  rank->expert_ids = take(a, rows * (size_t)d->top_k, sizeof(int32_t));
  rank->expert_weights = take(a, rows * (size_t)d->top_k, f);
  rank->router = take(a, rows * (size_t)d->n_experts, f);
  rank->group_rows = take(a, rows * (size_t)d->top_k, sizeof(int32_t));
  rank->group_weights = take(a, rows * (size_t)d->top_k, f);
  rank->cos_sin = take(a, rows * (size_t)d->rope.dim, f);
  for (int t = 0; t < exec->team; t++) {
    float *scratch = take(a, exec->scratch_floats, f);
    if (a->block) rank->scratch[t] = scratch;
  }
}

uint64_t mob__workspace_bytes(const mob_exec_t *exec) {
  mob_rank_t rank = {.exec = (mob_exec_t *)exec};
  arena_t measure = {0};
  lay_out(&rank, &measure);
  // Logits and the samplers' working memory, shared out.
  uint64_t vocab = (uint64_t)exec->desc->vocab;
  return measure.used + vocab * 24 * (uint64_t)exec->team +
         MOB_LOGIT_ROWS * vocab * 4 / (uint64_t)exec->spec.tp;
}

mob_status mob__rank_alloc(mob_rank_t *rank) {
  mob_exec_t *exec = rank->exec;
  arena_t arena = {0};
  lay_out(rank, &arena);
  rank->scratch = MOB_NEW_ARRAY(float *, (size_t)exec->team);
  void *block = mmap(NULL, arena.used, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED)
    return mob_fail(MOB_E_NO_RESOURCES, "no memory for %zu bytes of activations (%d tokens a step)",
                    arena.used, exec->spec.max_tokens);
  rank->memory = block;
  exec->memory_bytes = arena.used;
  exec->packed_bytes = mob__tiles_memory(exec);
  arena = (arena_t){block, 0};
  lay_out(rank, &arena);
  return MOB_OK;
}

void mob__rank_free(mob_rank_t *rank) {
  if (rank->memory) munmap(rank->memory, rank->exec->memory_bytes);
  free(rank->scratch);
  for (int t = 0; rank->samplers && t < rank->exec->team; t++) mob_sampler_free(rank->samplers[t]);
  free(rank->samplers);
  if (rank->kv)
    munmap(rank->kv, rank->exec->kv_layer_bytes *
                         (size_t)(rank->exec->spec.last_layer - rank->exec->spec.first_layer));
}
