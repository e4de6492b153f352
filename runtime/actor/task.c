#include "runtime/actor/task.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/hex.h"
#include "runtime/rpc/message.h"

static Ray__Rpc__FunctionDescriptor *cpp_function(const char *class_name, const char *function) {
  Ray__Rpc__FunctionDescriptor *descriptor = mob_malloc(sizeof *descriptor);
  Ray__Rpc__CppFunctionDescriptor *cpp = mob_malloc(sizeof *cpp);
  ray__rpc__function_descriptor__init(descriptor);
  ray__rpc__cpp_function_descriptor__init(cpp);
  cpp->class_name = mob_strdup(class_name);
  cpp->function_name = mob_strdup(function);
  descriptor->function_descriptor_case =
      RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR;
  descriptor->cpp_function_descriptor = cpp;
  return descriptor;
}

// {"env_vars": {"NAME": "value"}}, as Ray's runtime environments say it.
static mob_status runtime_env(const char *const *env, Ray__Rpc__RuntimeEnvInfo **out) {
  json_t *vars = json_object();
  for (; env && *env; env++) {
    const char *sign = strchr(*env, '=');
    if (!sign || sign == *env) {
      json_decref(vars);
      return mob_fail(MOB_E_INVALID, "the actor's environment: '%s' is not NAME=value", *env);
    }
    char *name = mob_strndup(*env, (size_t)(sign - *env));
    int bad = json_object_set_new(vars, name, json_string(sign + 1));
    free(name);
    if (bad) {
      json_decref(vars);
      return mob_fail(MOB_E_INVALID, "the actor's environment: '%s' is not UTF-8", *env);
    }
  }
  json_t *json = json_object_size(vars) ? json_pack("{s:o}", "env_vars", vars) : vars;
  Ray__Rpc__RuntimeEnvInfo *info = mob_malloc(sizeof *info);
  ray__rpc__runtime_env_info__init(info);
  char *text = json_dumps(json, JSON_COMPACT);
  info->serialized_runtime_env = mob_strdup(text);
  free(text);
  json_decref(json);
  *out = info;
  return MOB_OK;
}

// What the actor asks for, in Ray's names: inside a placement group a share of its bundle.
static void put_resources(const mob_actor_options_t *options, Ray__Rpc__TaskSpec *task) {
  char pg[2 * MOB_PG_ID_LEN + 1];
  if (options->pg_id) mob_hex(options->pg_id, MOB_PG_ID_LEN, pg);
  for (size_t i = 0; i <= options->resource_count; i++) {
    bool marker = i == options->resource_count; // every task in a group takes a bit of "bundle"
    const char *name = marker ? "bundle" : options->resources[i].name;
    double amount = marker ? 0.001 : options->resources[i].amount;
    if (marker && !options->pg_id) break;
    if (amount <= 0) continue;
    if (!options->pg_id || strncmp(name, "node:", 5) == 0) {
      mob_pb_double_put(&task->required_resources, &task->n_required_resources, name, amount);
      continue;
    }
    char *plain = mob_sprintf("%s_group_%s", name, pg);
    mob_pb_double_put(&task->required_resources, &task->n_required_resources, plain, amount);
    free(plain);
    if (options->bundle_index < 0) continue;
    char *indexed = mob_sprintf("%s_group_%d_%s", name, options->bundle_index, pg);
    mob_pb_double_put(&task->required_resources, &task->n_required_resources, indexed, amount);
    free(indexed);
  }
  mob_pb_double_copy(&task->required_placement_resources, &task->n_required_placement_resources,
                     task->required_resources, task->n_required_resources);
}

static Ray__Rpc__SchedulingStrategy *strategy(const mob_actor_options_t *options) {
  Ray__Rpc__SchedulingStrategy *out = mob_malloc(sizeof *out);
  ray__rpc__scheduling_strategy__init(out);
  if (options->pg_id) {
    Ray__Rpc__PlacementGroupSchedulingStrategy *group = mob_malloc(sizeof *group);
    ray__rpc__placement_group_scheduling_strategy__init(group);
    group->placement_group_id = mob_pb_bytes_dup(options->pg_id, MOB_PG_ID_LEN);
    group->placement_group_bundle_index = options->bundle_index;
    out->scheduling_strategy_case =
        RAY__RPC__SCHEDULING_STRATEGY__SCHEDULING_STRATEGY_PLACEMENT_GROUP_SCHEDULING_STRATEGY;
    out->placement_group_scheduling_strategy = group;
  } else {
    Ray__Rpc__DefaultSchedulingStrategy *none = mob_malloc(sizeof *none);
    ray__rpc__default_scheduling_strategy__init(none);
    out->scheduling_strategy_case =
        RAY__RPC__SCHEDULING_STRATEGY__SCHEDULING_STRATEGY_DEFAULT_SCHEDULING_STRATEGY;
    out->default_scheduling_strategy = none;
  }
  return out;
}

static Ray__Rpc__ActorCreationTaskSpec *creation(const mob_cluster_t *cluster,
                                                 const mob_actor_options_t *options,
                                                 const uint8_t *actor_id) {
  Ray__Rpc__ActorCreationTaskSpec *out = mob_malloc(sizeof *out);
  ray__rpc__actor_creation_task_spec__init(out);
  out->actor_id = mob_pb_bytes_dup(actor_id, MOB_ACTOR_ID_LEN);
  out->max_actor_restarts = options->max_restarts;
  out->max_concurrency = 1;
  out->is_detached = options->detached;
  mob_pb_set_string(&out->name, options->name ? options->name : "");
  mob_pb_set_string(&out->ray_namespace,
                    options->name_space ? options->name_space : cluster->name_space);
  out->max_pending_calls = -1;
  return out;
}

mob_status mob__creation_task(const mob_cluster_t *cluster, const mob_actor_options_t *options,
                              const uint8_t actor_id[MOB_ACTOR_ID_LEN], Ray__Rpc__TaskSpec **out) {
  Ray__Rpc__RuntimeEnvInfo *env = NULL;
  uint8_t task_id[MOB_TASK_ID_LEN];
  if (!options->class_name || !*options->class_name)
    return mob_fail(MOB_E_INVALID, "the actor has no class");
  MOB_TRY(runtime_env(options->env, &env));
  Ray__Rpc__TaskSpec *task = mob_malloc(sizeof *task);
  ray__rpc__task_spec__init(task);
  memset(task_id, 0xff, sizeof task_id); // a creation task's own part is nil
  memcpy(task_id + MOB_TASK_ID_LEN - MOB_ACTOR_ID_LEN, actor_id, MOB_ACTOR_ID_LEN);
  task->type = RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK;
  mob_pb_set_string(&task->name, options->class_name);
  task->language = RAY__RPC__LANGUAGE__CPP;
  task->function_descriptor = cpp_function(options->class_name, "create");
  task->job_id = mob_pb_bytes_dup(cluster->job_id, MOB_JOB_ID_LEN);
  task->task_id = mob_pb_bytes_dup(task_id, sizeof task_id);
  task->caller_id = mob_pb_bytes_dup(task_id, sizeof task_id);
  Ray__Rpc__Address address;
  mob__cluster_address(cluster, &address);
  task->caller_address = mob_pb_clone(&address);
  task->num_returns = 1;
  task->runtime_env_info = env;
  task->scheduling_strategy = strategy(options);
  task->actor_creation_task_spec = creation(cluster, options, actor_id);
  put_resources(options, task);
  task->n_args = 1;
  task->args = mob_malloc(sizeof *task->args);
  task->args[0] = mob_malloc(sizeof **task->args);
  ray__rpc__task_arg__init(task->args[0]);
  task->args[0]->data = mob_pb_bytes_dup(options->args.data, options->args.len);
  task->args[0]->is_inlined = true;
  if (options->library) {
    // Where Ray's C++ workers look for the code of a job.
    Ray__Rpc__JobConfig *config = mob_malloc(sizeof *config);
    ray__rpc__job_config__init(config);
    config->n_code_search_path = 1;
    config->code_search_path = mob_malloc(sizeof(char *));
    config->code_search_path[0] = mob_strdup(options->library);
    mob_pb_set_string(&config->ray_namespace, cluster->name_space);
    task->job_config = config;
  }
  *out = task;
  return MOB_OK;
}

char *mob__death_text(const Ray__Rpc__ActorTableData *data) {
  const Ray__Rpc__ActorDeathCause *cause = data->death_cause;
  const char *ip = data->address ? data->address->ip_address : "";
  unsigned pid = data->pid;
  if (cause &&
      cause->context_case == RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_DIED_ERROR_CONTEXT) {
    const Ray__Rpc__ActorDiedErrorContext *died = cause->actor_died_error_context;
    if (*died->node_ip_address) ip = died->node_ip_address;
    if (died->pid) pid = died->pid;
  }
  const char *name = *data->name ? data->name : data->class_name;
  char *where =
      pid ? mob_sprintf(" (process %u on %s)", pid, *ip ? ip : "an unknown node") : mob_strdup("");
  const char *why = mob_pb_death_text(cause);
  char *text = mob_sprintf("actor %s%s died: %s", name, where, why ? why : "no cause was given");
  free(where);
  return text;
}

char *mob__error_text(mob_status status, const char *message) {
  return mob_sprintf("%s: %s", mob_status_name(status), message);
}

mob_status mob__error_status(const char *text, const char **message) {
  for (int code = MOB_E_INVALID; code <= MOB_E_INTERNAL; code++) {
    const char *name = mob_status_name((mob_status)code);
    size_t len = strlen(name);
    if (strncmp(text, name, len) == 0 && strncmp(text + len, ": ", 2) == 0) {
      *message = text + len + 2;
      return (mob_status)code;
    }
  }
  *message = text;
  return MOB_E_INTERNAL;
}
