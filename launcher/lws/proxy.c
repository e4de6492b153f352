#include "launcher/lws/proxy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/mem.h"

#define MAX_QUEUED ((size_t)256 << 10) // bytes not yet taken by one side before the other waits

typedef struct end {
  uv_tcp_t tcp;
  struct mob_lws_proxy *proxy;
  struct end *other;
  uv_shutdown_t shutdown;
  bool reading, ended; // ended: its peer sent its last byte
} end_t;

struct mob_lws_proxy {
  mob_lws_proxies_t *list;
  struct mob_lws_proxy *next, **link;
  end_t client, pod;
  uv_connect_t connect;
  char address[46]; // of the pod
  int open;         // handles
  bool closing;
};
typedef struct mob_lws_proxy proxy_t;

typedef struct chunk {
  uv_write_t write;
  end_t *to;
  char data[];
} chunk_t;

static void on_closed(uv_handle_t *handle) {
  proxy_t *p = ((end_t *)handle->data)->proxy;
  if (--p->open == 0) free(p);
}

static void unlink_proxy(proxy_t *p) {
  if (!p->list) return;
  *p->link = p->next;
  if (p->next) p->next->link = p->link;
  p->list->active--;
  p->list = NULL;
}

static void close_both(proxy_t *p, bool reset) {
  if (p->closing) return;
  p->closing = true;
  unlink_proxy(p);
  end_t *ends[] = {&p->client, &p->pod};
  for (int i = 0; i < 2; i++) {
    // A reset must stay a reset: a client has to see that an answer was cut short.
    if (!reset || uv_tcp_close_reset(&ends[i]->tcp, on_closed) != 0) {
      uv_close((uv_handle_t *)&ends[i]->tcp, on_closed);
    }
  }
}

static void start_reading(end_t *from);

static void on_written(uv_write_t *write, int status) {
  chunk_t *chunk = (chunk_t *)write;
  end_t *to = chunk->to;
  proxy_t *p = to->proxy;
  free(chunk);
  if (p->closing) return;
  if (status < 0) {
    close_both(p, true);
  } else if (!to->other->reading && !to->other->ended &&
             uv_stream_get_write_queue_size((uv_stream_t *)&to->tcp) < MAX_QUEUED / 2) {
    start_reading(to->other);
  }
}

static void on_shut(uv_shutdown_t *req, int status) {
  end_t *end = req->data;
  proxy_t *p = end->proxy;
  if (p->closing) return;
  if (status < 0) {
    close_both(p, true);
  } else if (p->client.ended && p->pod.ended) {
    close_both(p, false);
  }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  (void)handle, (void)suggested;
  // The chunk that will carry the bytes on: they are not copied.
  chunk_t *chunk = mob_malloc(sizeof *chunk + 65536);
  *buf = uv_buf_init(chunk->data, 65536);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  end_t *from = stream->data;
  proxy_t *p = from->proxy;
  end_t *to = from->other;
  chunk_t *chunk = buf->base ? (chunk_t *)(void *)(buf->base - offsetof(chunk_t, data)) : NULL;
  if (n > 0 && !p->closing) {
    chunk->to = to;
    uv_buf_t out = uv_buf_init(chunk->data, (unsigned)n);
    if (uv_write(&chunk->write, (uv_stream_t *)&to->tcp, &out, 1, on_written) != 0) {
      free(chunk);
      close_both(p, true);
      return;
    }
    if (uv_stream_get_write_queue_size((uv_stream_t *)&to->tcp) > MAX_QUEUED) {
      from->reading = false;
      uv_read_stop(stream);
    }
    return;
  }
  free(chunk);
  if (n == UV_EOF) {
    from->reading = false;
    from->ended = true;
    uv_read_stop(stream);
    to->shutdown.data = to;
    if (uv_shutdown(&to->shutdown, (uv_stream_t *)&to->tcp, on_shut) != 0) close_both(p, true);
  } else if (n < 0) {
    close_both(p, true);
  }
}

static void start_reading(end_t *from) {
  from->reading = true;
  uv_read_start((uv_stream_t *)&from->tcp, on_alloc, on_read);
}

static void on_connected(uv_connect_t *req, int status) {
  proxy_t *p = req->data;
  if (p->closing) return;
  if (status < 0) { // nobody listens in the pod: what a client without a proxy sees as a refusal
    close_both(p, true);
    return;
  }
  start_reading(&p->client);
  start_reading(&p->pod);
}

static void init_end(proxy_t *p, uv_loop_t *loop, end_t *end, end_t *other) {
  uv_tcp_init(loop, &end->tcp);
  end->tcp.data = end;
  end->proxy = p;
  end->other = other;
  p->open++;
}

void mob__proxy_start(mob_lws_proxies_t *list, uv_loop_t *loop, int client, const char *address,
                      int port) {
  proxy_t *p = MOB_NEW(proxy_t);
  struct sockaddr_in to;
  init_end(p, loop, &p->client, &p->pod);
  init_end(p, loop, &p->pod, &p->client);
  p->list = list;
  p->link = &list->first;
  p->next = list->first;
  if (p->next) p->next->link = &p->next;
  list->first = p;
  list->active++;
  p->connect.data = p;
  snprintf(p->address, sizeof p->address, "%s", address);
  if (uv_tcp_open(&p->client.tcp, client) != 0) {
    close(client);
    close_both(p, false);
    return;
  }
  uv_tcp_nodelay(&p->client.tcp, 1);
  if (uv_ip4_addr(address, port, &to) != 0 ||
      uv_tcp_connect(&p->connect, &p->pod.tcp, (const struct sockaddr *)&to, on_connected) != 0) {
    close_both(p, true);
    return;
  }
  uv_tcp_nodelay(&p->pod.tcp, 1);
}

void mob__proxy_close_address(mob_lws_proxies_t *list, const char *address) {
  for (proxy_t *p = list->first, *next; p; p = next) {
    next = p->next;
    if (strcmp(p->address, address) == 0) close_both(p, true);
  }
}

void mob__proxy_close_all(mob_lws_proxies_t *list) {
  while (list->first) close_both(list->first, true);
}
