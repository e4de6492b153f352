#include "runtime/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/mem.h"

mob_status mob_file_read(const char *path, size_t max, mob_buf_t *out) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return mob_fail(errno == ENOENT ? MOB_E_NOT_FOUND : MOB_E_IO, "cannot open %s: %s", path,
                    strerror(errno));
  }
  mob_status status = MOB_OK;
  size_t total = 0;
  for (;;) {
    mob_buf_reserve(out, 65536);
    ssize_t n = read(fd, out->data + out->len, out->cap - out->len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      status = mob_fail(MOB_E_IO, "cannot read %s: %s", path, strerror(errno));
      break;
    }
    if (n == 0) break;
    out->len += (size_t)n;
    total += (size_t)n;
    if (total > max) {
      status = mob_fail(MOB_E_FORMAT, "%s is larger than the %zu bytes allowed", path, max);
      break;
    }
  }
  close(fd);
  return status;
}

static mob_status write_all(int fd, const char *path, const uint8_t *data, size_t len) {
  while (len > 0) {
    ssize_t n = write(fd, data, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return mob_fail(MOB_E_IO, "cannot write %s: %s", path, strerror(errno));
    data += n;
    len -= (size_t)n;
  }
  return MOB_OK;
}

mob_status mob_file_write(const char *path, const void *data, size_t len) {
  char *temporary = mob_sprintf("%s.%d.tmp", path, (int)getpid());
  mob_status status;
  int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    status = mob_fail(MOB_E_IO, "cannot create %s: %s", temporary, strerror(errno));
    goto out;
  }
  status = write_all(fd, temporary, data, len);
  if (close(fd) != 0 && status == MOB_OK) {
    status = mob_fail(MOB_E_IO, "cannot write %s: %s", temporary, strerror(errno));
  }
  if (status == MOB_OK && rename(temporary, path) != 0) {
    status = mob_fail(MOB_E_IO, "cannot rename %s to %s: %s", temporary, path, strerror(errno));
  }
  if (status != MOB_OK) unlink(temporary);
out:
  free(temporary);
  return status;
}

bool mob_file_exists(const char *path) {
  return access(path, F_OK) == 0;
}

bool mob_is_dir(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

mob_status mob_mkdirs(const char *path) {
  char *copy = mob_strdup(path);
  mob_status status = MOB_OK;
  for (char *p = copy + 1; status == MOB_OK; p++) {
    if (*p != '/' && *p != 0) continue;
    char saved = *p;
    *p = 0;
    if (mkdir(copy, 0755) != 0 && errno != EEXIST) {
      status = mob_fail(MOB_E_IO, "cannot create the directory %s: %s", copy, strerror(errno));
    }
    *p = saved;
    if (saved == 0) break;
  }
  free(copy);
  return status;
}

char *mob_path_join(const char *dir, const char *name) {
  size_t n = strlen(dir);
  return mob_sprintf("%s%s%s", dir, n > 0 && dir[n - 1] == '/' ? "" : "/", name);
}
