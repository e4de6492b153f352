// `mobula lws status`.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/lws/client.h"
#include "launcher/lws/commands.h"
#include "launcher/lws/events.h"
#include "launcher/lws/state.h"

static const char *text(const json_t *object, const char *key) {
  const char *value = json_string_value(json_object_get(object, key));
  return value ? value : "";
}

static long long number(const json_t *object, const char *key) {
  return (long long)json_integer_value(json_object_get(object, key));
}

static void age(long long ms, char out[24]) {
  long long s = ms / 1000;
  if (s < 120) {
    snprintf(out, 24, "%llds", s);
  } else if (s < 7200) {
    snprintf(out, 24, "%lldm%llds", s / 60, s % 60);
  } else {
    snprintf(out, 24, "%lldh%lldm", s / 3600, s % 3600 / 60);
  }
}

// kubectl's layout: columns as wide as their widest cell, three blanks between.
#define COLUMNS 8
typedef struct table {
  char cells[4096][COLUMNS][96];
  size_t rows;
} table_t;

static void print_table(const table_t *t, size_t columns) {
  size_t width[COLUMNS] = {0};
  for (size_t r = 0; r < t->rows; r++) {
    for (size_t c = 0; c < columns; c++) {
      size_t n = strlen(t->cells[r][c]);
      if (n > width[c]) width[c] = n;
    }
  }
  for (size_t r = 0; r < t->rows; r++) {
    for (size_t c = 0; c < columns; c++) {
      if (c + 1 < columns) {
        printf("%-*s", (int)width[c] + 3, t->cells[r][c]);
      } else {
        printf("%s\n", t->cells[r][c]);
      }
    }
  }
  putchar('\n');
}

static void add_row(table_t *t, const char *const cells[COLUMNS]) {
  if (t->rows == MOB_LEN(t->cells)) return;
  for (size_t c = 0; c < COLUMNS; c++)
    snprintf(t->cells[t->rows][c], sizeof t->cells[0][0], "%s", cells[c] ? cells[c] : "");
  t->rows++;
}

static void add_pod(table_t *t, const json_t *pod, long long group, long long now) {
  char ready[40], restarts[24], old[24], index[24];
  snprintf(ready, sizeof ready, "%lld/%lld", number(pod, "ready_containers"),
           number(pod, "containers_total"));
  snprintf(restarts, sizeof restarts, "%lld", number(pod, "restarts"));
  snprintf(index, sizeof index, "%lld", group);
  age(now - number(pod, "created_ms"), old);
  const char *status = text(pod, "status");
  char with_link[96];
  snprintf(with_link, sizeof with_link, "%s%s", status,
           json_is_true(json_object_get(pod, "link_down")) ? ",LinkDown" : "");
  add_row(t, (const char *const[COLUMNS]){text(pod, "name"), ready, with_link, restarts, old,
                                          text(pod, "ip"), index});
}

static void print_sets(const json_t *status, table_t *sets, table_t *pods) {
  long long now = number(status, "now_ms");
  size_t i, g, p;
  json_t *set, *group, *pod;
  add_row(sets, (const char *const[COLUMNS]){"LEADERWORKERSET", "READY", "DESIRED", "SIZE"});
  add_row(pods,
          (const char *const[COLUMNS]){"POD", "READY", "STATUS", "RESTARTS", "AGE", "IP", "GROUP"});
  json_array_foreach(json_object_get(status, "sets"), i, set) {
    char ready[24], desired[24], size[24];
    snprintf(ready, sizeof ready, "%lld", number(set, "ready"));
    snprintf(desired, sizeof desired, "%lld", number(set, "desired"));
    snprintf(size, sizeof size, "%lld", number(set, "size"));
    add_row(sets, (const char *const[COLUMNS]){text(set, "name"), ready, desired, size});
    json_array_foreach(json_object_get(set, "groups"), g, group) {
      json_array_foreach(json_object_get(group, "pods"), p, pod)
          add_pod(pods, pod, number(group, "index"), now);
    }
  }
  print_table(sets, 4);
  print_table(pods, 7);
}

static void print_services(const json_t *status, table_t *t) {
  size_t i, k;
  json_t *service, *endpoint;
  add_row(t, (const char *const[COLUMNS]){"SERVICE", "CLUSTER-IP", "PORT", "LOCAL", "CONNECTIONS",
                                          "ENDPOINTS"});
  json_array_foreach(json_object_get(status, "services"), i, service) {
    char port[24], local[48], connections[24], list[96] = "";
    snprintf(port, sizeof port, "%lld", number(service, "port"));
    snprintf(local, sizeof local, "127.0.0.1:%lld%s", number(service, "local_port"),
             json_is_true(json_object_get(service, "open")) ? "" : " (refuses)");
    if (number(service, "local_port") == 0) snprintf(local, sizeof local, "<none>");
    snprintf(connections, sizeof connections, "%lld", number(service, "connections"));
    size_t count = json_array_size(json_object_get(service, "endpoints"));
    json_array_foreach(json_object_get(service, "endpoints"), k, endpoint) {
      size_t n = strlen(list);
      if (k == 3) { // as kubectl shortens them
        snprintf(list + n, sizeof list - n, " + %zu more...", count - 3);
        break;
      }
      snprintf(list + n, sizeof list - n, "%s%s:%lld", n ? "," : "", text(endpoint, "address"),
               number(endpoint, "port"));
    }
    add_row(t, (const char *const[COLUMNS]){text(service, "name"), text(service, "cluster_ip"),
                                            port, local, connections, *list ? list : "<none>"});
  }
  if (t->rows > 1) print_table(t, 6);
}

static void print_status(const json_t *status) {
  printf("runner %s, process %lld, %s mode, state in %s\n\n", text(status, "name"),
         number(status, "pid"), text(status, "network"), text(status, "state_dir"));
  for (int part = 0; part < 2; part++) {
    table_t *a = mob_calloc(1, sizeof *a), *b = mob_calloc(1, sizeof *b);
    if (part == 0) {
      print_sets(status, a, b);
    } else {
      print_services(status, a);
    }
    free(a);
    free(b);
  }
  size_t i;
  json_t *event;
  json_array_foreach(json_object_get(status, "events"), i, event) {
    char time[16];
    mob__event_time(number(event, "time_ms"), time);
    printf("%s %-7s %-20s %s: %s\n", time, text(event, "type"), text(event, "reason"),
           text(event, "object"), text(event, "message"));
  }
}

int mob__lws_status(int argc, char **argv) {
  const char *name = NULL, *dir = NULL;
  bool json = false;
  double wait = 0;
  int64_t events = 10;
  mob_lws_words_t words = {0};
  const mob_lws_option_t options[] = {
      {"wait", "SECONDS", MOB_LWS_OPT_MAYBE, &wait,
       "wait until all groups are ready, at most so long (default: for ever)", 0},
      {"json", NULL, MOB_LWS_OPT_FLAG, &json, "print everything as JSON", 0},
      {"events", "N", MOB_LWS_OPT_INT, &events, "show the last N events (default 10)", 0},
      MOB_LWS_CLIENT_OPTIONS(&name, &dir),
  };
  const mob_lws_usage_t usage = {
      "status",
      "",
      "Shows groups, pods, Services and the latest events. Exit status 0 when all "
      "groups are ready, else 1.",
      options,
      MOB_LEN(options),
      false};
  int code = mob__options_parse(&usage, argc, argv, &words);
  if (code < 0 && words.len)
    code = mob__usage_error("status", "takes no \"%s\"; choose a runner with --name", words.at[0]);
  mob_vec_free(&words);
  if (code >= 0) return code;
  char *path = NULL;
  json_t *status = NULL;
  mob_status result = mob__state_find(dir, name, &path);
  bool timed_out = false;
  if (result == MOB_OK && wait > 0) {
    result = mob__client_ask(path, json_pack("{s:s}", "op", "wait"), wait, &status);
    json_decref(status);
    status = NULL;
    timed_out = result == MOB_E_TIMEOUT;
    if (timed_out) result = MOB_OK;
  }
  if (result == MOB_OK) {
    result = mob__client_ask(
        path, json_pack("{s:s, s:I}", "op", "status", "events", (json_int_t)events), 30, &status);
  }
  free(path);
  if (result != MOB_OK) {
    fprintf(stderr, "mobula lws status: %s\n", mob_errmsg());
    return 1;
  }
  if (json) {
    json_dumpf(status, stdout, JSON_INDENT(2));
    putchar('\n');
  } else {
    print_status(status);
  }
  if (timed_out)
    fprintf(stderr, "mobula lws status: not all groups were ready within %g s\n", wait);
  bool ready = json_is_true(json_object_get(status, "ready"));
  json_decref(status);
  return ready ? 0 : 1;
}
