// InternalKVGcsService: byte-string keys and values in namespaces.
#include <stdlib.h>
#include <string.h>

#include "runtime/gcs/acknowledge.h"
#include "runtime/gcs/restore.h"

#define NAMESPACE_MARK "@namespace_"

typedef struct value {
  size_t len;
  uint8_t data[];
} value_t;

struct mob__kv {
  mob_gcs_t *gcs;
  mob_map_t spaces; // namespace -> mob_map_t of key -> value_t
};

static mob_map_t *space_of(mob__kv_t *kv, ProtobufCBinaryData ns, bool make) {
  mob_map_t *space = mob_map_get(&kv->spaces, ns.data, ns.len);
  if (!space && make) {
    space = MOB_NEW(mob_map_t);
    mob_map_put(&kv->spaces, ns.data, ns.len, space);
  }
  return space;
}

static value_t *find(mob__kv_t *kv, ProtobufCBinaryData ns, ProtobufCBinaryData key) {
  mob_map_t *space = space_of(kv, ns, false);
  return space ? mob_map_get(space, key.data, key.len) : NULL;
}

// The key in the store: Ray's form, "@namespace_<ns>:<key>", or the key alone in the empty
// namespace.
static void *store_key(ProtobufCBinaryData ns, ProtobufCBinaryData key, size_t *len) {
  mob_buf_t buf = {0};
  if (ns.len) {
    mob_buf_puts(&buf, NAMESPACE_MARK);
    mob_buf_append(&buf, ns.data, ns.len);
    mob_buf_putc(&buf, ':');
  }
  mob_buf_append(&buf, key.data, key.len);
  *len = buf.len;
  return mob_buf_steal(&buf);
}

static void remember(mob__kv_t *kv, ProtobufCBinaryData ns, ProtobufCBinaryData key,
                     ProtobufCBinaryData data) {
  value_t *value = mob_malloc(sizeof *value + data.len);
  value->len = data.len;
  if (data.len) memcpy(value->data, data.data, data.len);
  free(mob_map_put(space_of(kv, ns, true), key.data, key.len, value));
}

// Keys that could be mistaken for another namespace's are refused.
static Ray__Rpc__GcsStatus *check_key(mob_gcs_t *gcs, ProtobufCBinaryData key) {
  size_t mark = strlen(NAMESPACE_MARK);
  if (key.len >= mark && memcmp(key.data, NAMESPACE_MARK, mark) == 0) {
    return mob__gcs_status(gcs, MOB__GCS_KEY_ERROR, "Key can't start with %s", NAMESPACE_MARK);
  }
  return MOB__OK(gcs);
}

static bool is_report_key(mob__kv_t *kv, ProtobufCBinaryData ns, ProtobufCBinaryData key) {
  return kv->gcs->own_head && ns.len == 0 && mob_pb_bytes_equal(key, "__autoscaling_status", 20);
}

static void on_get(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__kv_t *kv = owner;
  const Ray__Rpc__InternalKVGetRequest *req = request;
  Ray__Rpc__InternalKVGetReply reply = RAY__RPC__INTERNAL_KVGET_REPLY__INIT;
  char *report = NULL;
  reply.status = check_key(kv->gcs, req->key);
  if (reply.status->code == MOB__GCS_OK) {
    value_t *value = find(kv, req->namespace_, req->key);
    if (value) {
      reply.value = mob_pb_bytes(value->data, value->len);
    } else if (is_report_key(kv, req->namespace_, req->key)) {
      // What Ray's monitor writes every 5 s, made anew for every reader.
      report = mob__status_report(kv->gcs, &reply.value.len);
      reply.value.data = (uint8_t *)report;
      reply.status = MOB__OK(kv->gcs);
    } else {
      reply.status = mob__gcs_status(kv->gcs, MOB__GCS_NOT_FOUND, "Failed to find the key");
    }
  }
  mob_rpc_reply(call, &reply);
  free(report);
}

static void on_multi_get(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__kv_t *kv = owner;
  const Ray__Rpc__InternalKVMultiGetRequest *req = request;
  Ray__Rpc__InternalKVMultiGetReply reply = RAY__RPC__INTERNAL_KVMULTI_GET_REPLY__INIT;
  Ray__Rpc__MapFieldEntry *entries = MOB_NEW_ARRAY(Ray__Rpc__MapFieldEntry, req->n_keys + 1);
  Ray__Rpc__MapFieldEntry **list = MOB_NEW_ARRAY(Ray__Rpc__MapFieldEntry *, req->n_keys + 1);
  reply.status = MOB__OK(kv->gcs);
  for (size_t i = 0; i < req->n_keys && reply.status->code == MOB__GCS_OK; i++) {
    reply.status = check_key(kv->gcs, req->keys[i]);
    value_t *value = find(kv, req->namespace_, req->keys[i]);
    if (!value) continue;
    Ray__Rpc__MapFieldEntry *entry = &entries[reply.n_results];
    ray__rpc__map_field_entry__init(entry);
    entry->key = req->keys[i];
    entry->value = mob_pb_bytes(value->data, value->len);
    list[reply.n_results++] = entry;
  }
  reply.results = list;
  mob_rpc_reply(call, &reply);
  free(list);
  free(entries);
}

static void on_put(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__kv_t *kv = owner;
  const Ray__Rpc__InternalKVPutRequest *req = request;
  Ray__Rpc__InternalKVPutReply reply = RAY__RPC__INTERNAL_KVPUT_REPLY__INIT;
  reply.status = check_key(kv->gcs, req->key);
  bool exists = find(kv, req->namespace_, req->key) != NULL;
  if (reply.status->code != MOB__GCS_OK || (exists && !req->overwrite)) {
    mob_rpc_reply(call, &reply);
    return;
  }
  reply.added = !exists;
  remember(kv, req->namespace_, req->key, req->value);
  size_t len;
  void *key = store_key(req->namespace_, req->key, &len);
  mob__gcs_put_bytes_reply(kv->gcs, MOB_TABLE_KV, key, len, req->value.data, req->value.len, call,
                           &reply);
  free(key);
}

static bool has_prefix(const mob_map_entry_t *e, ProtobufCBinaryData prefix) {
  return e->key_len >= prefix.len &&
         (prefix.len == 0 || memcmp(e->key, prefix.data, prefix.len) == 0);
}

static void on_del(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__kv_t *kv = owner;
  const Ray__Rpc__InternalKVDelRequest *req = request;
  Ray__Rpc__InternalKVDelReply reply = RAY__RPC__INTERNAL_KVDEL_REPLY__INIT;
  reply.status = check_key(kv->gcs, req->key);
  mob_map_t *space = space_of(kv, req->namespace_, false);
  if (reply.status->code != MOB__GCS_OK || !space) {
    mob_rpc_reply(call, &reply);
    return;
  }
  MOB_VEC(ProtobufCBinaryData) doomed = {0};
  if (req->del_by_prefix) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(space, e));) {
      if (has_prefix(e, req->key)) *mob_vec_push(&doomed) = mob_pb_bytes_dup(e->key, e->key_len);
    }
  } else if (mob_map_get(space, req->key.data, req->key.len)) {
    *mob_vec_push(&doomed) = mob_pb_bytes_dup(req->key.data, req->key.len);
  }
  reply.deleted_num = (int32_t)doomed.len;
  if (doomed.len == 0) mob_rpc_reply(call, &reply);
  for (size_t i = 0; i < doomed.len; i++) {
    free(mob_map_remove(space, doomed.at[i].data, doomed.at[i].len));
    size_t len;
    void *key = store_key(req->namespace_, doomed.at[i], &len);
    // The store keeps the order of changes: the last one's answer is the answer for all.
    if (i + 1 == doomed.len) {
      mob__gcs_del_reply(kv->gcs, MOB_TABLE_KV, key, len, call, &reply);
    } else {
      mob__gcs_store_del(kv->gcs, MOB_TABLE_KV, key, len);
    }
    free(key);
    free(doomed.at[i].data);
  }
  mob_vec_free(&doomed);
}

static void on_exists(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__kv_t *kv = owner;
  const Ray__Rpc__InternalKVExistsRequest *req = request;
  Ray__Rpc__InternalKVExistsReply reply = RAY__RPC__INTERNAL_KVEXISTS_REPLY__INIT;
  reply.status = check_key(kv->gcs, req->key);
  reply.exists =
      find(kv, req->namespace_, req->key) != NULL || is_report_key(kv, req->namespace_, req->key);
  mob_rpc_reply(call, &reply);
}

static void on_keys(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__kv_t *kv = owner;
  const Ray__Rpc__InternalKVKeysRequest *req = request;
  Ray__Rpc__InternalKVKeysReply reply = RAY__RPC__INTERNAL_KVKEYS_REPLY__INIT;
  reply.status = check_key(kv->gcs, req->prefix);
  MOB_VEC(ProtobufCBinaryData) keys = {0};
  mob_map_t *space = space_of(kv, req->namespace_, false);
  if (space && reply.status->code == MOB__GCS_OK) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(space, e));) {
      if (has_prefix(e, req->prefix)) *mob_vec_push(&keys) = mob_pb_bytes(e->key, e->key_len);
    }
  }
  reply.results = keys.at;
  reply.n_results = keys.len;
  mob_rpc_reply(call, &reply);
  mob_vec_free(&keys);
}

static void on_internal_config(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob__kv_t *kv = owner;
  Ray__Rpc__GetInternalConfigReply reply = RAY__RPC__GET_INTERNAL_CONFIG_REPLY__INIT;
  reply.status = MOB__OK(kv->gcs);
  reply.config = kv->gcs->system_config;
  mob_rpc_reply(call, &reply);
}

#define KV "/ray.rpc.InternalKVGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(KV "InternalKVGet", ray__rpc__internal_kvget, on_get),
    MOB_RPC_METHOD(KV "InternalKVMultiGet", ray__rpc__internal_kvmulti_get, on_multi_get),
    MOB_RPC_METHOD(KV "InternalKVPut", ray__rpc__internal_kvput, on_put),
    MOB_RPC_METHOD(KV "InternalKVDel", ray__rpc__internal_kvdel, on_del),
    MOB_RPC_METHOD(KV "InternalKVExists", ray__rpc__internal_kvexists, on_exists),
    MOB_RPC_METHOD(KV "InternalKVKeys", ray__rpc__internal_kvkeys, on_keys),
    MOB_RPC_METHOD(KV "GetInternalConfig", ray__rpc__get_internal_config, on_internal_config),
};

mob__kv_t *mob__kv_new(mob_gcs_t *gcs) {
  mob__kv_t *kv = MOB_NEW(mob__kv_t);
  kv->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), kv);
  return kv;
}

// store_key() backwards. A namespace ends at the first ':', as with Ray.
void mob__kv_restore(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                     size_t value_len) {
  ProtobufCBinaryData ns = {0}, name = mob_pb_bytes(key, key_len);
  size_t mark = strlen(NAMESPACE_MARK);
  if (key_len >= mark && memcmp(key, NAMESPACE_MARK, mark) == 0) {
    const char *start = (const char *)key + mark;
    const char *colon = memchr(start, ':', key_len - mark);
    if (colon) {
      ns = mob_pb_bytes(start, (size_t)(colon - start));
      name = mob_pb_bytes(colon + 1, key_len - mark - ns.len - 1);
    }
  }
  remember(gcs->kv, ns, name, mob_pb_bytes(value, value_len));
}

void mob__kv_free(mob__kv_t *kv) {
  for (mob_map_entry_t *s = NULL; (s = mob_map_next(&kv->spaces, s));) {
    mob_map_t *space = s->value;
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(space, e));) free(e->value);
    mob_map_free(space);
    free(space);
  }
  mob_map_free(&kv->spaces);
  free(kv);
}

void mob_gcs_kv_put(mob_gcs_t *gcs, const char *ns, const char *key, const void *value,
                    size_t len) {
  ProtobufCBinaryData space = mob_pb_bytes(ns, strlen(ns)), name = mob_pb_bytes(key, strlen(key));
  remember(gcs->kv, space, name, mob_pb_bytes(value, len));
  size_t key_len;
  void *stored = store_key(space, name, &key_len);
  gcs->store->put(gcs->store, MOB_TABLE_KV, stored, key_len, value, len, NULL, NULL);
  free(stored);
}

const void *mob__kv_get(mob_gcs_t *gcs, const char *ns, const char *key, size_t *len) {
  value_t *value = find(gcs->kv, mob_pb_bytes(ns, strlen(ns)), mob_pb_bytes(key, strlen(key)));
  if (!value) return NULL;
  *len = value->len;
  return value->data;
}
