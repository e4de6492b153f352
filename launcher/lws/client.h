// The other side of the control socket: one request, one answer.
#ifndef MOB_LWS_CLIENT_H
#define MOB_LWS_CLIENT_H

#include <jansson.h>

#include "launcher/lws/options.h"
#include "runtime/base/status.h"

// Options that every client command has.
#define MOB_LWS_CLIENT_OPTIONS(name, state)                                                        \
  {"name", "NAME", MOB_LWS_OPT_STRING, (name), "which runner (default: the only one that is up)",  \
   0},                                                                                             \
  {                                                                                                \
    "state-dir", "DIR", MOB_LWS_OPT_STRING, (state), "which runner, by its state directory", 0     \
  }

// Takes over `request`. `timeout_s` may be INFINITY; MOB_E_TIMEOUT after it. An answer with "ok":
// false becomes a failure with its text.
mob_status mob__client_ask(const char *dir, json_t *request, double timeout_s, json_t **out);

// Finds the runner, asks, and prints the answer's "text"; returns the exit status.
int mob__client_command(const char *command, const char *dir, const char *name, json_t *request,
                        double timeout_s);

#endif
