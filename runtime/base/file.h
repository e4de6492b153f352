// Whole small files and paths.
#ifndef MOB_BASE_FILE_H
#define MOB_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

// Appends the file's bytes to `out`. MOB_E_NOT_FOUND when there is none, MOB_E_FORMAT when it is larger
// than `max` bytes.
mob_status mob_file_read(const char *path, size_t max, mob_buf_t *out);

// Writes through a temporary file beside it and a rename: readers see the old or the new text whole.
mob_status mob_file_write(const char *path, const void *data, size_t len);

bool mob_file_exists(const char *path);
bool mob_is_dir(const char *path);
mob_status mob_mkdirs(const char *path); // like mkdir -p
char *mob_path_join(const char *dir, const char *name); // one slash between; the caller frees

#endif
