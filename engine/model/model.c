#include "engine/model/model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "engine/model/directory.h"
#include "engine/model/safetensors.h"
#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/map.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

typedef struct mapped_file {
  char *path;
  void *data;
  size_t size;
  int fd; // for mob_model_read()
} mapped_file_t;

struct mob_model {
  char *dir;
  json_t *config;
  mob_model_desc_t desc;
  const mob_family_t *family;
  mob_generation_defaults_t generation;
  MOB_VEC(mapped_file_t) files;
  mob_map_t tensors; // name -> mob_tensor_t *, owned
  bool dummy;
  uint64_t bytes, fingerprint;
};

static uint64_t hash(uint64_t seed, const void *data, size_t len) { // FNV-1a
  const uint8_t *p = data;
  for (size_t i = 0; i < len; i++) seed = (seed ^ p[i]) * 0x100000001b3u;
  return seed;
}

// ------------------------------------------------------------------------------------------ files

typedef struct reading {
  mob_model_t *model;
  int file;
} reading_t;

static mob_status keep_tensor(void *arg, const mob_tensor_t *tensor) {
  const reading_t *to = arg;
  mob_model_t *model = to->model;
  const mob_tensor_t *other = mob_map_gets(&model->tensors, tensor->name);
  if (other)
    return mob_fail(MOB_E_FORMAT, "tensor %s is in two files, %s and %s", tensor->name,
                    model->files.at[other->file].path, model->files.at[to->file].path);
  mob_tensor_t *copy = MOB_NEW(mob_tensor_t);
  *copy = *tensor;
  copy->file = to->file;
  copy->name = mob_strdup(tensor->name);
  mob_map_puts(&model->tensors, copy->name, copy);
  // Added, not chained: the order of the files does not matter.
  uint64_t h = hash(0xcbf29ce484222325u, copy->name, strlen(copy->name));
  h = hash(h, &copy->dtype, sizeof copy->dtype);
  model->fingerprint += hash(h, copy->shape, sizeof copy->shape);
  return MOB_OK;
}

static mob_status map_file(mob_model_t *model, const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return mob_fail(MOB_E_IO, "%s: %s", path, strerror(errno));
  struct stat info;
  void *data = MAP_FAILED;
  bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  if (regular && info.st_size > 0)
    data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
  int error = errno;
  if (data == MAP_FAILED) close(fd);
  if (!regular || info.st_size == 0)
    return mob_fail(MOB_E_FORMAT, "%s: %s", path,
                    regular ? "the file is empty" : "not a regular file");
  if (data == MAP_FAILED) return mob_fail(MOB_E_IO, "%s: mmap: %s", path, strerror(error));
  mapped_file_t *file = mob_vec_push(&model->files);
  *file = (mapped_file_t){mob_strdup(path), data, (size_t)info.st_size, fd};
  reading_t to = {model, (int)model->files.len - 1};
  return mob_safetensors_parse(file->path, data, file->size, keep_tensor, &to);
}

// model.safetensors.index.json names the files and says which tensor is where.
static mob_status read_index(mob_model_t *model, const char *path, json_t *index) {
  const json_t *map = json_object_get(index, "weight_map");
  if (!json_is_object(map)) return mob_fail(MOB_E_FORMAT, "%s: no weight_map object", path);
  mob_status status = MOB_OK;
  mob_map_t seen = {0};
  const char *name;
  json_t *file;
  json_object_foreach((json_t *)map, name, file) {
    const char *base = json_string_value(file);
    if (!base || !*base || strchr(base, '/') || base[0] == '.') {
      status = mob_fail(MOB_E_FORMAT, "%s: weight_map %s is not a file name", path, name);
      break;
    }
    if (!mob_map_puts(&seen, base, (void *)base)) {
      char *full = mob_path_join(model->dir, base);
      status = map_file(model, full);
      free(full);
      if (status != MOB_OK) break;
    }
  }
  if (status == MOB_OK) {
    json_object_foreach((json_t *)map, name, file) {
      const mob_tensor_t *tensor = mob_map_gets(&model->tensors, name);
      const char *where = tensor ? strrchr(model->files.at[tensor->file].path, '/') + 1 : "none";
      if (strcmp(where, json_string_value(file)) != 0) {
        status = mob_fail(MOB_E_FORMAT, "%s: tensor %s should be in %s, but is in %s", path, name,
                          json_string_value(file), where);
        break;
      }
    }
  }
  mob_map_free(&seen);
  return status;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static mob_status map_all(mob_model_t *model) {
  DIR *dir = opendir(model->dir);
  if (!dir) return mob_fail(MOB_E_IO, "%s: %s", model->dir, strerror(errno));
  MOB_VEC(char *) paths = {0};
  struct dirent *entry;
  while ((entry = readdir(dir))) {
    size_t len = strlen(entry->d_name);
    if (entry->d_name[0] != '.' && len > 12 &&
        strcmp(entry->d_name + len - 12, ".safetensors") == 0)
      *mob_vec_push(&paths) = mob_path_join(model->dir, entry->d_name);
  }
  closedir(dir);
  mob_status status = MOB_OK;
  if (paths.len == 0)
    status = mob_fail(MOB_E_NOT_FOUND, "%s: there is no *.safetensors file beside config.json",
                      model->dir);
  else
    qsort(paths.at, paths.len, sizeof *paths.at, by_name);
  for (size_t i = 0; i < paths.len; i++) {
    if (status == MOB_OK) status = map_file(model, paths.at[i]);
    free(paths.at[i]);
  }
  mob_vec_free(&paths);
  return status;
}

static mob_status open_files(mob_model_t *model) {
  char *path = mob_path_join(model->dir, "model.safetensors.index.json");
  json_t *index = NULL;
  mob_status status = mob__json_file(path, &index);
  if (status == MOB_OK)
    status = read_index(model, path, index);
  else if (status == MOB_E_NOT_FOUND)
    status = map_all(model);
  json_decref(index);
  free(path);
  return status;
}

// ------------------------------------------------------------------------------------------ checks

static void describe_shape(const mob_tensor_t *tensor, char *out, size_t size) {
  int at = snprintf(out, size, "%s [", tensor->dtype_name);
  for (int i = 0; i < tensor->rank && i < 4; i++)
    at +=
        snprintf(out + at, size - (size_t)at, "%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
  snprintf(out + at, size - (size_t)at, tensor->rank > 4 ? ", ...]" : "]");
}

static mob_status mismatch(const mob_model_t *model, const mob_tensor_t *tensor,
                           const char *expected) {
  char found[160];
  describe_shape(tensor, found, sizeof found);
  return mob_fail(MOB_E_FORMAT, "%s: tensor %s is %s, but config.json makes it %s",
                  model->dummy ? model->dir : model->files.at[tensor->file].path, tensor->name,
                  found, expected);
}

static bool has_shape(const mob_tensor_t *tensor, int64_t rows, int64_t cols) {
  if (cols == 1 && tensor->rank == 1) return tensor->shape[0] == rows;
  return tensor->rank == 2 && tensor->shape[0] == rows && tensor->shape[1] == cols;
}

mob_status mob_model_slot(const mob_model_t *model, const mob_slot_t *slot,
                          const mob_tensor_t **tensor, const mob_tensor_t **scales) {
  char expected[160], name[160];
  *scales = NULL;
  *tensor = mob_map_gets(&model->tensors, slot->name);
  if (!*tensor) {
    if (slot->optional) return MOB_OK;
    return mob_fail(
        MOB_E_FORMAT, "%s: tensor %s [%lld, %lld] is missing from the %zu safetensors files",
        model->dir, slot->name, (long long)slot->rows, (long long)slot->cols, model->files.len);
  }
  if ((*tensor)->dtype == MOB_DT_COUNT || !has_shape(*tensor, slot->rows, slot->cols)) {
    if (slot->cols == 1)
      snprintf(expected, sizeof expected, "[%lld]", (long long)slot->rows);
    else
      snprintf(expected, sizeof expected, "[%lld, %lld]", (long long)slot->rows,
               (long long)slot->cols);
    size_t at = strlen(expected);
    snprintf(expected + at, sizeof expected - at, " of F32, BF16, F16 or F8_E4M3");
    return mismatch(model, *tensor, expected);
  }
  if ((*tensor)->dtype != MOB_DT_F8E4M3) return MOB_OK;
  const mob_model_desc_t *d = &model->desc;
  if (d->quant_block_rows == 0 || slot->cols == 1)
    return mob_fail(
        MOB_E_FORMAT,
        "%s: tensor %s is F8_E4M3, but config.json's quantization_config gives it no block scales",
        model->dir, slot->name);
  snprintf(name, sizeof name, "%s_scale_inv", slot->name);
  *scales = mob_map_gets(&model->tensors, name);
  int64_t rows = (slot->rows + d->quant_block_rows - 1) / d->quant_block_rows;
  int64_t cols = (slot->cols + d->quant_block_cols - 1) / d->quant_block_cols;
  if (!*scales)
    return mob_fail(MOB_E_FORMAT,
                    "%s: tensor %s F32 [%lld, %lld] is missing: %s is F8_E4M3 and needs its scales",
                    model->dir, name, (long long)rows, (long long)cols, slot->name);
  if ((*scales)->dtype != MOB_DT_F32 || (*scales)->rank != 2 || (*scales)->shape[0] != rows ||
      (*scales)->shape[1] != cols) {
    snprintf(expected, sizeof expected, "F32 [%lld, %lld]", (long long)rows, (long long)cols);
    return mismatch(model, *scales, expected);
  }
  return MOB_OK;
}

static mob_status check_slot(void *arg, const mob_slot_t *slot) {
  mob_model_t *model = arg;
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(model, slot, &tensor, &scales));
  if (tensor) model->bytes += tensor->bytes + (scales ? scales->bytes : 0);
  return MOB_OK;
}

static void add_dummy(mob_model_t *model, const char *name, mob_dtype_t dtype, int64_t rows,
                      int64_t cols) {
  static const char *const names[] = {"F32", "BF16", "F16", "F8_E4M3"};
  mob_tensor_t *tensor = MOB_NEW(mob_tensor_t);
  tensor->name = mob_strdup(name);
  tensor->dtype = dtype;
  tensor->dtype_name = names[dtype];
  tensor->rank = cols == 1 ? 1 : 2;
  tensor->shape[0] = rows;
  tensor->shape[1] = cols;
  tensor->bytes = (size_t)(rows * cols) * mob_dtype_size(dtype);
  tensor->file = -1;
  mob_map_puts(&model->tensors, tensor->name, tensor);
  model->fingerprint += hash(0xcbf29ce484222325u, name, strlen(name));
}

// A quantised checkpoint has its projections in FP8; embedding, head, norms and router keep the
// model's dtype.
static mob_status dummy_slot(void *arg, const mob_slot_t *slot) {
  mob_model_t *model = arg;
  const mob_model_desc_t *d = &model->desc;
  if (slot->optional) return MOB_OK;
  bool plain = slot->cols == 1 || slot->id == MOB_W_EMBED || slot->id == MOB_W_HEAD ||
               slot->id == MOB_W_ROUTER;
  if (d->quant_block_rows == 0 || plain) {
    mob_dtype_t dtype = slot->id == MOB_W_ROUTER_BIAS ? MOB_DT_F32 : d->dtype;
    add_dummy(model, slot->name, dtype, slot->rows, slot->cols);
    return MOB_OK;
  }
  char scales[160];
  snprintf(scales, sizeof scales, "%s_scale_inv", slot->name);
  add_dummy(model, slot->name, MOB_DT_F8E4M3, slot->rows, slot->cols);
  mob_tensor_t *tensor;
  add_dummy(model, scales, MOB_DT_F32, (slot->rows + d->quant_block_rows - 1) / d->quant_block_rows,
            (slot->cols + d->quant_block_cols - 1) / d->quant_block_cols);
  tensor = mob_map_gets(&model->tensors, scales);
  tensor->rank = 2; // even with one column
  return MOB_OK;
}

mob_status mob_model_stage_slots(const mob_model_t *model, int first, int last, mob_slot_fn emit,
                                 void *arg);

// ------------------------------------------------------------------------------------------
// opening

static mob_status open_model(mob_model_t *model, const char *dir,
                             const mob_model_options_t *options) {
  MOB_TRY(mob__model_find_dir(dir, options->trust_lookup, &model->dir));
  MOB_TRY(mob__model_config(model->dir, options->overrides, &model->config));
  MOB_TRY(mob_family_find(model->config, &model->family));
  snprintf(model->desc.family, sizeof model->desc.family, "%s", model->family->name);
  snprintf(model->desc.architecture, sizeof model->desc.architecture, "%s",
           json_string_value(json_array_get(json_object_get(model->config, "architectures"), 0)));
  mob_status status = model->family->describe(model->config, &model->desc);
  if (status != MOB_OK) return mob_wrap(status, "%s", model->dir);
  MOB_TRY(mob__model_generation(model->dir, model->config, &model->generation));
  if (model->dummy)
    MOB_TRY(mob_model_stage_slots(model, 0, model->desc.n_layers, dummy_slot, model));
  else
    MOB_TRY(open_files(model));
  MOB_TRY(mob_model_stage_slots(model, 0, model->desc.n_layers, check_slot, model));
  char *text = json_dumps(model->config, JSON_SORT_KEYS | JSON_COMPACT);
  model->fingerprint = hash(model->fingerprint ^ 0xcbf29ce484222325u, text, strlen(text));
  free(text);
  return MOB_OK;
}

mob_status mob_model_open(const char *dir, const mob_model_options_t *options, mob_model_t **out) {
  static const mob_model_options_t none;
  mob_model_t *model = MOB_NEW(mob_model_t);
  model->dummy = options && options->dummy;
  mob_status status = open_model(model, dir, options ? options : &none);
  if (status != MOB_OK) {
    mob_model_close(model);
    return status;
  }
  *out = model;
  return MOB_OK;
}

void mob_model_close(mob_model_t *model) {
  if (!model) return;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&model->tensors, e));) {
    mob_tensor_t *tensor = e->value;
    free((char *)tensor->name);
    free(tensor);
  }
  mob_map_free(&model->tensors);
  for (size_t i = 0; i < model->files.len; i++) {
    munmap(model->files.at[i].data, model->files.at[i].size);
    close(model->files.at[i].fd);
    free(model->files.at[i].path);
  }
  mob_vec_free(&model->files);
  mob_model_desc_clear(&model->desc);
  json_decref(model->config);
  free(model->dir);
  free(model);
}

const mob_model_desc_t *mob_model_desc(const mob_model_t *model) {
  return &model->desc;
}
const mob_generation_defaults_t *mob_model_generation(const mob_model_t *model) {
  return &model->generation;
}
const char *mob_model_dir(const mob_model_t *model) {
  return model->dir;
}
uint64_t mob_model_bytes(const mob_model_t *model) {
  return model->bytes;
}
uint64_t mob_model_fingerprint(const mob_model_t *model) {
  return model->fingerprint;
}
const mob_tensor_t *mob_model_tensor(const mob_model_t *model, const char *name) {
  return mob_map_gets(&model->tensors, name);
}
const char *mob_model_file(const mob_model_t *model, const mob_tensor_t *tensor) {
  return tensor->file < 0 ? model->dir : model->files.at[tensor->file].path;
}

mob_status mob_model_read(const mob_model_t *model, const mob_tensor_t *tensor, uint64_t begin,
                          size_t bytes, void *out) {
  MOB_ASSERT(tensor->file >= 0 && begin <= tensor->bytes && bytes <= tensor->bytes - begin);
  const mapped_file_t *file = &model->files.at[tensor->file];
  uint64_t at = tensor->offset + begin;
  char *to = out;
  // What the page cache holds comes at once. The rest is asked for as a whole before the first wait,
  // so that the disk sees one deep queue instead of the read-ahead's small windows.
  struct iovec whole = {to, bytes};
  ssize_t got = bytes ? preadv2(file->fd, &whole, 1, (off_t)at, RWF_NOWAIT) : 0;
  size_t done = got > 0 ? (size_t)got : 0;
  if (done < bytes)
    posix_fadvise(file->fd, (off_t)(at + done), (off_t)(bytes - done), POSIX_FADV_WILLNEED);
  while (done < bytes) {
    got = pread(file->fd, to + done, bytes - done, (off_t)(at + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return mob_fail(MOB_E_IO, "%s: tensor %s: read: %s", file->path, tensor->name,
                      strerror(errno));
    if (got == 0)
      return mob_fail(MOB_E_FORMAT,
                      "%s: tensor %s ends at byte %llu, but the file now ends at byte %llu: it was "
                      "truncated after it was opened",
                      file->path, tensor->name, (unsigned long long)(tensor->offset + tensor->bytes),
                      (unsigned long long)(at + done));
    done += (size_t)got;
  }
  return MOB_OK;
}

typedef struct outer {
  bool embed, rest;
  mob_slot_fn emit;
  void *arg;
} outer_t;

static mob_status emit_outer(void *arg, const mob_slot_t *slot) {
  const outer_t *o = arg;
  return (slot->id == MOB_W_EMBED ? o->embed : o->rest) ? o->emit(o->arg, slot) : MOB_OK;
}

mob_status mob_model_stage_slots(const mob_model_t *model, int first, int last, mob_slot_fn emit,
                                 void *arg) {
  const mob_model_desc_t *desc = &model->desc;
  bool head = last == desc->n_layers;
  outer_t outer = {first == 0 || (head && desc->tie_embeddings), head, emit, arg};
  MOB_TRY(model->family->slots(desc, -1, emit_outer, &outer));
  for (int layer = first; layer < last; layer++)
    MOB_TRY(model->family->slots(desc, layer, emit, arg));
  return MOB_OK;
}
