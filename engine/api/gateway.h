// The OpenAI-compatible API: routes, requests under way, replies. Everything runs on the loop's
// thread but the parsing and tokenizing of bodies, which worker threads do.
#ifndef MOB_API_GATEWAY_H
#define MOB_API_GATEWAY_H

#include "engine/api/pods.h"
#include "engine/api/serve_options.h"
#include "engine/model/model.h"
#include "engine/stage/engine.h"
#include "runtime/http/http.h"

typedef struct mob_gateway mob_gateway_t;

typedef struct mob_gateway_config {
  const mob_serve_options_t *options; // outlive the gateway, as the model does
  const mob_model_t *model;
  int max_len; // --max-model-len, derived and checked
  bool prefix_cache;
} mob_gateway_config_t;

// Opens the tokenizer and the chat template of the model.
mob_status mob_gateway_open(uv_loop_t *loop, const mob_gateway_config_t *config,
                            mob_gateway_t **out);
// The server whose handler is mob_gateway_handler() with the gateway as owner.
extern const mob_http_handler_t mob_gateway_handler;
void mob_gateway_set_engine(mob_gateway_t *gateway, mob_engine_t *engine);
void mob_gateway_set_pods(mob_gateway_t *gateway, const mob_pods_t *pods); // NULL: none (any more)
// The group is lost: every request under way ends with the group_lost error now, later ones get it
// at once, /health answers 503.
void mob_gateway_lost(mob_gateway_t *gateway, const char *cause, const char *why);
// Ends every request under way with a 503 of this text (streams: an error event).
void mob_gateway_end_all(mob_gateway_t *gateway, const char *message);
size_t mob_gateway_under_way(const mob_gateway_t *gateway);
void mob_gateway_log_routes(const mob_gateway_t *gateway);
// One line of throughput, as vLLM writes every 5 s; silent while nothing happens. `seconds` since
// the last call.
void mob_gateway_log_stats(mob_gateway_t *gateway, double seconds);
// After the HTTP server and the engine have closed.
void mob_gateway_close(mob_gateway_t *gateway);

#endif
