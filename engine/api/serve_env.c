#include "engine/api/serve_env.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "vllm"
#include "runtime/base/log.h"

extern char **environ;

// NULL as the reason: it acts, or there is nothing to say about it.
static const struct {
  const char *name; // a trailing * stands for anything
  const char *why;
} known[] = {
    {"VLLM_API_KEY", NULL},
    {"VLLM_HOST_IP", NULL},
    {"VLLM_NCCL_SO_PATH", NULL},
    {"VLLM_LOGGING_LEVEL", NULL},
    {"VLLM_PP_LAYER_PARTITION", NULL},
    {"VLLM_ALLOW_LONG_MAX_MODEL_LEN", NULL},
    {"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", NULL},
    {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE", NULL},
    {"VLLM_ENGINE_READY_TIMEOUT_S", NULL},
    {"VLLM_USAGE_SOURCE", NULL},
    {"VLLM_NO_USAGE_STATS", NULL}, // none are sent
    {"VLLM_DO_NOT_TRACK", NULL},
    {"VLLM_*", "this program has no part that reads them"},
    {"NCCL_SOCKET_IFNAME", NULL}, // chooses the address of the node
    {"NCCL_*", "between stages, activations travel over TCP on the interface of NCCL_SOCKET_IFNAME; a "
               "stage that spans pods uses NCCL, which reads them in its own pods"},
    {"GLOO_*", "NCCL_SOCKET_IFNAME or VLLM_HOST_IP choose the interface"},
};

static size_t family_of(const char *entry) {
  for (size_t i = 0; i < MOB_LEN(known); i++) {
    size_t len = strlen(known[i].name);
    bool any = known[i].name[len - 1] == '*';
    if (any ? strncmp(entry, known[i].name, len - 1) == 0
            : strncmp(entry, known[i].name, len) == 0 && entry[len] == '=') {
      return i;
    }
  }
  return MOB_LEN(known);
}

static void set_level(void) {
  const char *level = getenv("VLLM_LOGGING_LEVEL");
  if (!level) return;
  if (strcasecmp(level, "debug") == 0)
    mob_log_set_level(MOB_LOG_DEBUG);
  else if (strcasecmp(level, "info") == 0)
    mob_log_set_level(MOB_LOG_INFO);
  else if (strcasecmp(level, "warning") == 0 || strcasecmp(level, "warn") == 0)
    mob_log_set_level(MOB_LOG_WARNING);
  else if (strcasecmp(level, "error") == 0 || strcasecmp(level, "critical") == 0)
    mob_log_set_level(MOB_LOG_ERROR);
  else
    MOB_WARN("VLLM_LOGGING_LEVEL=%s is not one of debug, info, warning, error, critical", level);
}

void mob__env_report(void) {
  set_level();
  mob_buf_t unused[MOB_LEN(known)];
  memset(unused, 0, sizeof unused);
  for (char **at = environ; *at; at++) {
    size_t i = family_of(*at);
    // A Kubernetes Service named vllm makes VLLM_SERVICE_HOST and VLLM_PORT_...: nobody set those.
    if (i == MOB_LEN(known) || !known[i].why || strncmp(*at, "VLLM_SERVICE_", 13) == 0 ||
        strncmp(*at, "VLLM_PORT", 9) == 0) {
      continue;
    }
    mob_buf_printf(&unused[i], "%s%.*s", unused[i].len ? ", " : "", (int)strcspn(*at, "="), *at);
  }
  for (size_t i = 0; i < MOB_LEN(known); i++) {
    if (unused[i].len) MOB_INFO("without effect: %s (%s)", mob_buf_cstr(&unused[i]), known[i].why);
    mob_buf_free(&unused[i]);
  }
}

bool mob__env_true(const char *name) {
  const char *value = getenv(name);
  return value && (strcmp(value, "1") == 0 || strcasecmp(value, "true") == 0 ||
                   strcasecmp(value, "yes") == 0 || strcasecmp(value, "on") == 0);
}

mob_status mob__env_layer_split(int pp, int layers, int **out) {
  *out = NULL;
  const char *text = getenv("VLLM_PP_LAYER_PARTITION");
  if (!text || !*text) return MOB_OK;
  int *split = MOB_NEW_ARRAY(int, (size_t)pp);
  long sum = 0;
  int count = 0;
  const char *at = text;
  for (;;) {
    char *end;
    long n = strtol(at, &end, 10);
    if (end == at || n < 1 || n > layers || (*end && *end != ',')) break;
    if (count < pp) split[count] = (int)n;
    count++;
    sum += n;
    if (!*end) {
      if (count != pp || sum != layers) break;
      *out = split;
      return MOB_OK;
    }
    at = end + 1;
  }
  free(split);
  return mob_fail(
      MOB_E_INVALID,
      "VLLM_PP_LAYER_PARTITION=%s must name %d positive numbers of layers that add up to "
      "the model's %d",
      text, pp, layers);
}
