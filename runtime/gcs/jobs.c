// JobInfoGcsService, and the streams that drivers hold as proof of life (README.md).
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/acknowledge.h"
#include "runtime/gcs/ids.h"
#include "runtime/gcs/restore.h"

enum { SILENCE_MS = 4500, BEAT_MS = 500, FINISHED_KEPT = 1000 };

typedef struct job {
  Ray__Rpc__JobTableData *data;
  mob_rpc_stream_t *stream; // its driver's; NULL when it never opened one
  uint64_t heard_at;
  uint64_t return_by; // of a former GCS's time: its driver's stream is to come; 0: no
} job_t;

struct mob__jobs {
  mob_gcs_t *gcs;
  mob_map_t all; // job id -> job_t
  uint32_t counter;
  uint64_t beat_at;
};

static job_t *find(mob__jobs_t *jobs, const void *id, size_t len) {
  return mob_map_get(&jobs->all, id, len);
}

const char *mob__job_namespace(mob_gcs_t *gcs, const void *job_id, size_t len) {
  job_t *job = find(gcs->jobs, job_id, len);
  return job && job->data->config ? job->data->config->ray_namespace : "";
}

static void free_job(job_t *job) {
  mob_pb_free(job->data);
  free(job);
}

static void publish(mob_gcs_t *gcs, job_t *job) {
  Ray__Rpc__PubMessage message = RAY__RPC__PUB_MESSAGE__INIT;
  message.inner_message_case = RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_JOB_MESSAGE;
  message.job_message = job->data;
  mob__publish(gcs, RAY__RPC__CHANNEL_TYPE__GCS_JOB_CHANNEL, job->data->job_id.data,
               job->data->job_id.len, &message);
}

static void forget_oldest(mob__jobs_t *jobs) {
  if (jobs->all.count <= FINISHED_KEPT) return;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&jobs->all, e));) {
    job_t *job = e->value;
    if (!job->data->is_dead || job->stream) continue;
    mob__gcs_store_del(jobs->gcs, MOB_TABLE_JOB, job->data->job_id.data, job->data->job_id.len);
    mob_map_remove(&jobs->all, job->data->job_id.data, job->data->job_id.len);
    free_job(job);
    return;
  }
}

// What ends with the job is ended by the others.
static void finish(mob_gcs_t *gcs, job_t *job, const char *why) {
  if (job->data->is_dead) return;
  job->data->is_dead = true;
  job->data->end_time = (uint64_t)mob_wall_ms();
  job->data->timestamp = mob_wall_ms() / 1000;
  MOB_INFO("job %s ended: %s", mob_id_text(job->data->job_id).text, why);
  mob__gcs_store_put(gcs, MOB_TABLE_JOB, job->data->job_id.data, job->data->job_id.len, job->data);
  publish(gcs, job);
  uint8_t id[MOB_JOB_ID_SIZE];
  memcpy(id, job->data->job_id.data, sizeof id);
  mob__gcs_job_finished(gcs, id);
  forget_oldest(gcs->jobs);
}

// A driver dies with its node; only those that hold no stream are not known better.
void mob__jobs_node_dead(mob_gcs_t *gcs, mob__node_t *node) {
  bool again;
  do { // one at a time: the end of a job changes the list
    again = false;
    for (mob_map_entry_t *e = NULL; !again && (e = mob_map_next(&gcs->jobs->all, e));) {
      job_t *job = e->value;
      const Ray__Rpc__Address *driver = job->data->driver_address;
      if (job->data->is_dead || job->stream || !driver) continue;
      if (!mob_pb_bytes_equal(driver->node_id, node->id, sizeof node->id)) continue;
      finish(gcs, job, "its driver's node died");
      again = true;
    }
  } while (again);
}

// ----------------------------------------------------------------------------------------- service

static void on_add(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__jobs_t *jobs = owner;
  mob_gcs_t *gcs = jobs->gcs;
  const Ray__Rpc__AddJobRequest *req = request;
  Ray__Rpc__AddJobReply reply = RAY__RPC__ADD_JOB_REPLY__INIT;
  if (!req->data || req->data->job_id.len != MOB_JOB_ID_SIZE) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_INVALID, "The job id is not 4 bytes long.");
    mob_rpc_reply(call, &reply);
    return;
  }
  ProtobufCBinaryData id = req->data->job_id;
  job_t *job = find(jobs, id.data, id.len);
  if (!job) {
    job = MOB_NEW(job_t);
    mob_map_put(&jobs->all, id.data, id.len, job);
  }
  mob_pb_free(job->data);
  job->data = mob_pb_clone(req->data);
  job->data->is_dead = false;
  if (!job->data->start_time) job->data->start_time = (uint64_t)mob_wall_ms();
  job->data->timestamp = mob_wall_ms() / 1000;
  MOB_INFO("job %s started from %s, process %lld", mob_id_text(id).text,
           job->data->driver_ip_address, (long long)job->data->driver_pid);
  reply.status = MOB__OK(gcs);
  mob__gcs_put_reply(gcs, MOB_TABLE_JOB, job->data->job_id.data, job->data->job_id.len, job->data,
                     call, &reply);
  publish(gcs, job);
}

static void on_finished(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__jobs_t *jobs = owner;
  const Ray__Rpc__MarkJobFinishedRequest *req = request;
  Ray__Rpc__MarkJobFinishedReply reply = RAY__RPC__MARK_JOB_FINISHED_REPLY__INIT;
  job_t *job = find(jobs, req->job_id.data, req->job_id.len);
  if (job) finish(jobs->gcs, job, "its driver is done");
  reply.status = job ? MOB__OK(jobs->gcs)
                     : mob__gcs_status(jobs->gcs, MOB__GCS_NOT_FOUND, "There is no job %s.",
                                       mob_id_text(req->job_id).text);
  mob__gcs_reply_stored(jobs->gcs, call, &reply);
}

static void on_get_all(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__jobs_t *jobs = owner;
  const Ray__Rpc__GetAllJobInfoRequest *req = request;
  Ray__Rpc__GetAllJobInfoReply reply = RAY__RPC__GET_ALL_JOB_INFO_REPLY__INIT;
  size_t limit = jobs->all.count;
  if (req->opt_limit_case == RAY__RPC__GET_ALL_JOB_INFO_REQUEST__OPT_LIMIT_LIMIT) {
    if (req->limit < 0) {
      reply.status = mob__gcs_status(jobs->gcs, MOB__GCS_INVALID, "Invalid limit");
      mob_rpc_reply(call, &reply);
      return;
    }
    if ((size_t)req->limit < limit) limit = (size_t)req->limit;
  }
  bool one = req->opt_job_or_submission_id_case ==
             RAY__RPC__GET_ALL_JOB_INFO_REQUEST__OPT_JOB_OR_SUBMISSION_ID_JOB_OR_SUBMISSION_ID;
  Ray__Rpc__JobTableData **rows = MOB_NEW_ARRAY(Ray__Rpc__JobTableData *, limit + 1);
  for (mob_map_entry_t *e = NULL;
       (e = mob_map_next(&jobs->all, e)) && reply.n_job_info_list < limit;) {
    job_t *job = e->value;
    if (one && strcmp(mob_id_text(job->data->job_id).text, req->job_or_submission_id) != 0)
      continue;
    rows[reply.n_job_info_list++] = job->data;
  }
  reply.status = MOB__OK(jobs->gcs);
  reply.job_info_list = rows;
  mob_rpc_reply(call, &reply);
  free(rows);
}

static void on_error(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__jobs_t *jobs = owner;
  const Ray__Rpc__ReportJobErrorRequest *req = request;
  Ray__Rpc__ReportJobErrorReply reply = RAY__RPC__REPORT_JOB_ERROR_REPLY__INIT;
  const Ray__Rpc__ErrorTableData *error = req->job_error;
  if (error) {
    const uint8_t *job = error->job_id.len == MOB_JOB_ID_SIZE ? error->job_id.data : NULL;
    mob__publish_error(jobs->gcs, job, error->type, error->error_message);
  }
  reply.status = MOB__OK(jobs->gcs);
  mob_rpc_reply(call, &reply);
}

static void on_next_id(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob__jobs_t *jobs = owner;
  Ray__Rpc__GetNextJobIDReply reply = RAY__RPC__GET_NEXT_JOB_IDREPLY__INIT;
  reply.status = MOB__OK(jobs->gcs);
  reply.job_id = (int32_t)++jobs->counter;
  char text[16];
  int len = snprintf(text, sizeof text, "%u", jobs->counter);
  mob__gcs_put_bytes_reply(jobs->gcs, MOB_TABLE_META, MOB_STORE_JOB_COUNTER,
                           strlen(MOB_STORE_JOB_COUNTER), text, (size_t)len, call, &reply);
}

#define JOBS "/ray.rpc.JobInfoGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(JOBS "AddJob", ray__rpc__add_job, on_add),
    MOB_RPC_METHOD(JOBS "MarkJobFinished", ray__rpc__mark_job_finished, on_finished),
    MOB_RPC_METHOD(JOBS "GetAllJobInfo", ray__rpc__get_all_job_info, on_get_all),
    MOB_RPC_METHOD(JOBS "ReportJobError", ray__rpc__report_job_error, on_error),
    {JOBS "GetNextJobID", &ray__rpc__get_next_job_idrequest__descriptor,
     &ray__rpc__get_next_job_idreply__descriptor, on_next_id},
};

// ---------------------------------------------------------------------------------------- drivers'
// streams

typedef struct hold {
  mob_gcs_t *gcs;
  uint8_t job_id[MOB_JOB_ID_SIZE];
} hold_t;

static void on_beat(void *owner, mob_rpc_stream_t *stream, const uint8_t *data, size_t len) {
  (void)data, (void)len;
  hold_t *hold = owner;
  job_t *job = find(hold->gcs->jobs, hold->job_id, sizeof hold->job_id);
  if (job && job->stream == stream) job->heard_at = mob_now_ms();
}

static void on_hold_closed(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                           const char *why) {
  (void)code, (void)why;
  hold_t *hold = owner;
  job_t *job = find(hold->gcs->jobs, hold->job_id, sizeof hold->job_id);
  if (job && job->stream == stream) {
    job->stream = NULL;
    if (!hold->gcs->closing) finish(hold->gcs, job, "its driver's process is gone");
  }
  free(hold);
}

static const mob_rpc_stream_events_t hold_events = {on_beat, on_hold_closed, NULL};

static void on_hold(void *owner, mob_rpc_stream_t *stream) {
  mob__jobs_t *jobs = owner;
  hold_t *hold = MOB_NEW(hold_t);
  hold->gcs = jobs->gcs;
  mob_rpc_stream_listen(stream, &hold_events, hold);
  const char *hex = mob_rpc_stream_metadata(stream, "job_id");
  if (!hex || mob_unhex(hex, hold->job_id, sizeof hold->job_id) != MOB_OK) {
    mob_rpc_stream_close(stream, GRPC_STATUS_INVALID_ARGUMENT,
                         "the metadata holds no job_id of 8 hex digits");
    return;
  }
  job_t *job = find(jobs, hold->job_id, sizeof hold->job_id);
  if (!job || job->data->is_dead) {
    mob_rpc_stream_close(stream, GRPC_STATUS_NOT_FOUND, "no such job is running");
    return;
  }
  mob_rpc_stream_t *former = job->stream;
  job->stream = stream;
  job->return_by = 0;
  job->heard_at = mob_now_ms();
  if (former) mob_rpc_stream_close(former, GRPC_STATUS_ABORTED, "the driver opened another stream");
}

void mob__jobs_tick(mob_gcs_t *gcs) {
  mob__jobs_t *jobs = gcs->jobs;
  uint64_t now = mob_now_ms();
  bool beat = now >= jobs->beat_at;
  if (beat) jobs->beat_at = now + BEAT_MS;
  job_t *silent = NULL, *missing = NULL;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&jobs->all, e));) {
    job_t *job = e->value;
    if (!job->stream) {
      if (job->return_by && now > job->return_by && !job->data->is_dead) missing = job;
      continue;
    }
    if (now - job->heard_at > SILENCE_MS && !job->data->is_dead) silent = job;
    if (beat && mob_rpc_stream_queued(job->stream) == 0) mob_rpc_stream_send(job->stream, "", 0);
  }
  if (missing) finish(gcs, missing, "its driver did not come back after the GCS's restart");
  if (!silent || missing) return; // another one is found by the next tick
  mob_rpc_stream_close(silent->stream, GRPC_STATUS_DEADLINE_EXCEEDED,
                       "nothing was heard of the driver");
  silent->stream = NULL;
  finish(gcs, silent, "its driver hangs or its network is down");
}

// --------------------------------------------------------------------------------- after a restart

void mob__jobs_restore_counter(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                               size_t value_len) {
  (void)key, (void)key_len;
  char text[16] = "";
  memcpy(text, value, value_len < sizeof text ? value_len : sizeof text - 1);
  gcs->jobs->counter = (uint32_t)strtoul(text, NULL, 10);
}

void mob__jobs_restore(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                       size_t value_len) {
  if (key_len != MOB_JOB_ID_SIZE || find(gcs->jobs, key, key_len)) return;
  Ray__Rpc__JobTableData *data = mob__restore_row("job", &ray__rpc__job_table_data__descriptor, key,
                                                  key_len, value, value_len);
  if (!data) return;
  mob_pb_set_bytes(&data->job_id, key, key_len);
  job_t *job = MOB_NEW(job_t);
  job->data = data;
  mob_map_put(&gcs->jobs->all, key, key_len, job);
}

void mob__jobs_resume(mob_gcs_t *gcs) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->jobs->all, e));) {
    job_t *job = e->value;
    const Ray__Rpc__Address *driver = job->data->driver_address;
    if (job->data->is_dead) { // its end may have been cut short
      mob__gcs_job_finished(gcs, job->data->job_id.data);
    } else if (driver && driver->port == 0) { // a driver that serves nothing holds a stream
      job->return_by = mob_now_ms() + MOB__RETURN_MS;
    }
  }
}

mob__jobs_t *mob__jobs_new(mob_gcs_t *gcs) {
  mob__jobs_t *jobs = MOB_NEW(mob__jobs_t);
  jobs->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), jobs);
  mob_rpc_server_add_stream(gcs->server, "/mobula.Driver/Hold", on_hold, jobs);
  return jobs;
}

void mob__jobs_free(mob__jobs_t *jobs) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&jobs->all, e));) free_job(e->value);
  mob_map_free(&jobs->all);
  free(jobs);
}
