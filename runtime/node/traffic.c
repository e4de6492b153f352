#include "runtime/node/traffic.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"

// A line of /proc/net/dev: "  eth0: " and 8 counters received, 8 sent.
static bool read_line(char *line, mob_interface_traffic_t *out) {
  char *colon = strrchr(line, ':');
  if (!colon) return false;
  *colon = '\0';
  while (isspace((unsigned char)*line)) line++;
  snprintf(out->name, sizeof out->name, "%s", line);
  uint64_t n[16];
  char *at = colon + 1;
  for (int i = 0; i < 16; i++) {
    char *end;
    n[i] = strtoull(at, &end, 10);
    if (end == at) return false;
    at = end;
  }
  out->received = n[0];
  out->sent = n[8];
  out->errors = n[2] + n[10];
  out->dropped = n[3] + n[11];
  return n[1] + n[9] > 0;
}

void mob_traffic_interfaces(const char *path, mob_interfaces_t *out) {
  mob_buf_t text = {0};
  if (mob_file_read(path, 1 << 20, &text) == MOB_OK) {
    char *rest = (char *)mob_buf_cstr(&text), *line;
    while ((line = strsep(&rest, "\n"))) {
      mob_interface_traffic_t one = {0};
      if (read_line(line, &one)) *mob_vec_push(out) = one;
    }
  }
  mob_buf_free(&text);
}

static bool read_word(char *out, size_t cap, const char *path) {
  mob_buf_t text = {0};
  bool ok = mob_file_read(path, 4096, &text) == MOB_OK;
  if (ok) snprintf(out, cap, "%s", mob_buf_cstr(&text));
  mob_buf_free(&text);
  return ok;
}

// The files count words of 4 bytes.
static bool read_words(const char *folder, const char *name, uint64_t *bytes) {
  char text[64];
  char *path = mob_sprintf("%s/counters/%s", folder, name);
  bool ok = read_word(text, sizeof text, path);
  if (ok) *bytes = strtoull(text, NULL, 10) * 4;
  free(path);
  return ok;
}

static void read_ports(const char *root, const char *device, mob_rdma_ports_t *out) {
  char *ports = mob_sprintf("%s/%s/ports", root, device);
  DIR *dir = opendir(ports);
  struct dirent *entry;
  while (dir && (entry = readdir(dir))) {
    if (!isdigit((unsigned char)entry->d_name[0])) continue;
    char *folder = mob_sprintf("%s/%s", ports, entry->d_name), *state = NULL, text[64];
    mob_rdma_traffic_t one = {.port = atoi(entry->d_name)};
    snprintf(one.device, sizeof one.device, "%s", device);
    state = mob_sprintf("%s/state", folder); // "4: ACTIVE"
    one.active = read_word(text, sizeof text, state) && strstr(text, "ACTIVE");
    if (read_words(folder, "port_rcv_data", &one.received) &&
        read_words(folder, "port_xmit_data", &one.sent))
      *mob_vec_push(out) = one;
    free(state);
    free(folder);
  }
  if (dir) closedir(dir);
  free(ports);
}

static int by_place(const void *a, const void *b) {
  const mob_rdma_traffic_t *x = a, *y = b;
  int order = strcmp(x->device, y->device);
  return order ? order : x->port - y->port;
}

void mob_traffic_rdma(const char *path, mob_rdma_ports_t *out) {
  DIR *dir = opendir(path);
  struct dirent *entry;
  while (dir && (entry = readdir(dir)))
    if (entry->d_name[0] != '.') read_ports(path, entry->d_name, out);
  if (dir) closedir(dir);
  if (out->len) qsort(out->at, out->len, sizeof *out->at, by_place);
}
