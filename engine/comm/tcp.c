// TCP between stages. Sockets are non-blocking; a caller that has to wait sleeps in poll() on the
// socket and on an event descriptor that abort() makes readable, so no wait outlives an abort.
//
// A peer that vanishes without a FIN is noticed by keep-alive probes while we receive, and by
// transmissions that nobody acknowledges while we send. TCP_USER_TIMEOUT is not used: it also ends
// connections whose peer answers but reads nothing for a while, as a stage does that computes a
// long step.
#include "engine/comm/tcp.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#define MOB_LOG_COMPONENT "link"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"

enum {
  HELLO_TIMEOUT_MS = 2000,
  RETRY_MS = 50,
  NO_DEADLINE = 0,
  LOOK_MS = 250,  // between looks at a connection that does not take our bytes
  UNANSWERED = 4, // transmissions in a row; with their doubling pauses that is about 3 s
};

struct mob_link {
  int fd;
  int abort_fd;
  atomic_bool aborted;
  char peer[80]; // "stage 1 at 10.0.0.2:4711"
};

struct mob_ring {
  int fd;
  int abort_fd;
};

// What each end says first, all fields little-endian.
typedef struct hello {
  char magic[8];
  uint32_t protocol;
  uint32_t from, to, stages;
  uint64_t epoch, model;
  uint8_t group[16];
} hello_t;
_Static_assert(sizeof(hello_t) == 56, "the hello has no holes");

typedef struct answer {
  uint32_t refused;
  uint32_t zero;
  hello_t own; // of the end that answers
} answer_t;

static const char hello_magic[8] = "MOBLINK";

// --------------------------------------------------------------------------------- waiting, bytes

// The peer's kernel is silent. One that is alive answers even when its process does not read.
static bool unanswered(int fd) {
  struct tcp_info info;
  socklen_t len = sizeof info;
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
         (info.tcpi_retransmits >= UNANSWERED || info.tcpi_probes >= UNANSWERED);
}

// Waits for `events` on fd. `deadline` in mob_now_ms(), NO_DEADLINE for none.
static mob_status wait_for(int fd, short events, int abort_fd, uint64_t deadline,
                           const char *peer) {
  for (;;) {
    int timeout = events == POLLOUT ? LOOK_MS : -1;
    if (deadline != NO_DEADLINE) {
      uint64_t now = mob_now_ms();
      if (now >= deadline) return mob_fail(MOB_E_TIMEOUT, "no answer from %s in time", peer);
      if (timeout < 0 || deadline - now < (uint64_t)timeout) timeout = (int)(deadline - now);
    }
    struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = abort_fd, .events = POLLIN}};
    int n = poll(p, 2, timeout);
    if (n < 0 && errno != EINTR) return mob_fail(MOB_E_IO, "poll: %s", strerror(errno));
    if (n > 0 && p[1].revents) return mob_fail(MOB_E_ABORTED, "waiting for %s was aborted", peer);
    if (n > 0 && p[0].revents) return MOB_OK;
    if (n == 0 && events == POLLOUT && unanswered(fd))
      return mob_fail(MOB_E_UNAVAILABLE, "%s: send: nothing was acknowledged for about 3 s", peer);
  }
}

static mob_status lost(const char *peer, const char *what, int error) {
  return mob_fail(MOB_E_UNAVAILABLE, "%s: %s: %s", peer, what,
                  error ? strerror(error) : "the peer closed the connection");
}

static mob_status send_all(int fd, int abort_fd, uint64_t deadline, const char *peer,
                           const void *data, size_t bytes) {
  const char *at = data;
  while (bytes > 0) {
    ssize_t n = send(fd, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      at += n;
      bytes -= (size_t)n;
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      MOB_TRY(wait_for(fd, POLLOUT, abort_fd, deadline, peer));
    } else if (n < 0 && errno != EINTR) {
      return lost(peer, "send", errno);
    }
  }
  return MOB_OK;
}

static mob_status recv_all(int fd, int abort_fd, uint64_t deadline, const char *peer, void *data,
                           size_t bytes) {
  char *at = data;
  while (bytes > 0) {
    ssize_t n = recv(fd, at, bytes, MSG_DONTWAIT);
    if (n > 0) {
      at += n;
      bytes -= (size_t)n;
    } else if (n == 0) {
      return lost(peer, "receive", 0);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      MOB_TRY(wait_for(fd, POLLIN, abort_fd, deadline, peer));
    } else if (errno != EINTR) {
      return lost(peer, "receive", errno);
    }
  }
  return MOB_OK;
}

static void set_option(int fd, int level, int name, int value) {
  if (setsockopt(fd, level, name, &value, sizeof value) != 0)
    MOB_WARN("setsockopt %d/%d: %s", level, name, strerror(errno));
}

static void tune(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

// ------------------------------------------------------------------------------------------ links

static mob_status link_new(int fd, const char *peer, mob_link_t **out) {
  int abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (abort_fd < 0) return mob_fail(MOB_E_IO, "eventfd: %s", strerror(errno));
  mob_link_t *link = MOB_NEW(mob_link_t);
  link->fd = fd;
  link->abort_fd = abort_fd;
  snprintf(link->peer, sizeof link->peer, "%s", peer);
  *out = link;
  return MOB_OK;
}

static mob_status refuse_aborted(const mob_link_t *link) {
  return mob_fail(MOB_E_ABORTED, "the link to %s was aborted", link->peer);
}

static mob_status tcp_send(mob_link_t *link, const void *data, size_t bytes) {
  if (atomic_load(&link->aborted)) return refuse_aborted(link);
  return send_all(link->fd, link->abort_fd, NO_DEADLINE, link->peer, data, bytes);
}

static mob_status tcp_recv(mob_link_t *link, void *data, size_t bytes) {
  if (atomic_load(&link->aborted)) return refuse_aborted(link);
  return recv_all(link->fd, link->abort_fd, NO_DEADLINE, link->peer, data, bytes);
}

static void wake(int fd) {
  uint64_t one = 1;
  ssize_t n = write(fd, &one, sizeof one);
  (void)n; // full means it is readable already
}

static void tcp_abort(mob_link_t *link) {
  atomic_store(&link->aborted, true);
  wake(link->abort_fd);
}

static void tcp_close(mob_link_t *link) {
  if (!link) return;
  close(link->fd);
  close(link->abort_fd);
  free(link);
}

const mob_link_ops_t mob_link_tcp = {"tcp", tcp_send, tcp_recv, tcp_abort, tcp_close};

// ----------------------------------------------------------------------------------------- hellos

static hello_t make_hello(const mob_ring_self_t *self, uint32_t from, uint32_t to) {
  hello_t h = {.protocol = htole32(MOB_LINK_PROTOCOL),
               .from = htole32(from),
               .to = htole32(to),
               .stages = htole32(self->stages),
               .epoch = htole64(self->epoch),
               .model = htole64(self->model)};
  memcpy(h.magic, hello_magic, sizeof h.magic);
  memcpy(h.group, self->group, sizeof h.group);
  return h;
}

// Says in which field the two differ, with both values; "" when in none. Both are as on the wire.
static const char *difference(const hello_t *theirs, const hello_t *ours, char *text, size_t size) {
  char a[33], b[33];
  if (memcmp(theirs->magic, ours->magic, sizeof ours->magic) != 0)
    snprintf(text, size, "not a stage of an engine");
  else if (theirs->protocol != ours->protocol)
    snprintf(text, size, "link protocol %u there, %u here", le32toh(theirs->protocol),
             le32toh(ours->protocol));
  else if (memcmp(theirs->group, ours->group, sizeof ours->group) != 0)
    snprintf(text, size, "group %s there, %s here", mob_hex(theirs->group, 16, a),
             mob_hex(ours->group, 16, b));
  else if (theirs->epoch != ours->epoch)
    snprintf(text, size, "epoch %llu there, %llu here", (unsigned long long)le64toh(theirs->epoch),
             (unsigned long long)le64toh(ours->epoch));
  else if (theirs->model != ours->model)
    snprintf(text, size, "model fingerprint %016llx there, %016llx here",
             (unsigned long long)le64toh(theirs->model), (unsigned long long)le64toh(ours->model));
  else if (theirs->stages != ours->stages || theirs->from != ours->from || theirs->to != ours->to)
    snprintf(text, size, "link %u -> %u of %u stages there, %u -> %u of %u here",
             le32toh(theirs->from), le32toh(theirs->to), le32toh(theirs->stages),
             le32toh(ours->from), le32toh(ours->to), le32toh(ours->stages));
  else
    text[0] = 0;
  return text;
}

static void name_peer(int fd, uint32_t stage, char *text, size_t size) {
  struct sockaddr_storage addr;
  socklen_t len = sizeof addr;
  char host[64] = "?", port[16] = "?";
  if (getpeername(fd, (struct sockaddr *)&addr, &len) == 0)
    getnameinfo((struct sockaddr *)&addr, len, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
  snprintf(text, size, "stage %u at %s:%s", stage, host, port);
}

// ------------------------------------------------------------------------------------------- ring

static mob_status resolve(const char *ip, int port, struct addrinfo **out) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  int rc = getaddrinfo(ip, service, &hints, out);
  if (rc != 0) return mob_fail(MOB_E_INVALID, "'%s': %s", ip, gai_strerror(rc));
  return MOB_OK;
}

mob_status mob_ring_open(const char *ip, mob_ring_t **out, int *port) {
  struct addrinfo *info = NULL;
  int fd = -1, abort_fd = -1;
  mob_status status;
  MOB_TRY(resolve(ip, 0, &info));
  fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  abort_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  struct sockaddr_storage addr;
  socklen_t len = sizeof addr;
  if (fd < 0 || abort_fd < 0 || bind(fd, info->ai_addr, info->ai_addrlen) != 0 ||
      listen(fd, 16) != 0 || getsockname(fd, (struct sockaddr *)&addr, &len) != 0) {
    status = mob_fail(MOB_E_IO, "listening on %s: %s", ip, strerror(errno));
    goto failed;
  }
  *port = ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                           : ((struct sockaddr_in *)&addr)->sin_port);
  mob_ring_t *ring = MOB_NEW(mob_ring_t);
  ring->fd = fd;
  ring->abort_fd = abort_fd;
  *out = ring;
  freeaddrinfo(info);
  return MOB_OK;
failed:
  freeaddrinfo(info);
  if (fd >= 0) close(fd);
  if (abort_fd >= 0) close(abort_fd);
  return status;
}

// One try; the caller owns *out.
static mob_status try_connect(mob_ring_t *ring, const struct addrinfo *info, const char *peer,
                              uint64_t deadline, int *out) {
  int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return mob_fail(MOB_E_IO, "socket: %s", strerror(errno));
  mob_status status = MOB_OK;
  int error = connect(fd, info->ai_addr, info->ai_addrlen) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    MOB_TRY_GOTO(wait_for(fd, POLLOUT, ring->abort_fd, deadline, peer), status, failed);
    socklen_t len = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0) error = errno;
  }
  if (error) {
    status = lost(peer, "connect", error);
    goto failed;
  }
  tune(fd);
  *out = fd;
  return MOB_OK;
failed:
  close(fd);
  return status;
}

static mob_status connect_next(mob_ring_t *ring, const char *ip, int port, const char *peer,
                               uint64_t deadline, int *out) {
  struct addrinfo *info = NULL;
  MOB_TRY(resolve(ip, port, &info));
  mob_status status;
  for (;;) {
    status = try_connect(ring, info, peer, deadline, out);
    if (status != MOB_E_UNAVAILABLE || mob_now_ms() + RETRY_MS >= deadline) break;
    struct pollfd p = {.fd = ring->abort_fd, .events = POLLIN};
    if (poll(&p, 1, RETRY_MS) > 0) {
      status = mob_fail(MOB_E_ABORTED, "connecting to %s was aborted", peer);
      break;
    }
  }
  freeaddrinfo(info);
  return status;
}

// Hears one connection out. *accepted tells whether it is the one we wait for; a stranger is
// refused.
static mob_status greet(mob_ring_t *ring, int fd, const hello_t *expected, uint64_t deadline,
                        bool *accepted) {
  uint64_t limit = mob_now_ms() + HELLO_TIMEOUT_MS;
  if (limit > deadline) limit = deadline;
  char peer[80], why[256];
  name_peer(fd, le32toh(expected->from), peer, sizeof peer);
  hello_t hello;
  *accepted = false;
  mob_status status = recv_all(fd, ring->abort_fd, limit, peer, &hello, sizeof hello);
  if (status == MOB_E_ABORTED) return status;
  if (status != MOB_OK) {
    MOB_WARN("a connection said no hello: %s", mob_errmsg());
    return MOB_OK;
  }
  difference(&hello, expected, why, sizeof why);
  if (why[0]) MOB_WARN("refused a connection from %s: %s", peer, why);
  answer_t answer = {.refused = htole32(why[0] != 0), .own = *expected};
  status = send_all(fd, ring->abort_fd, limit, peer, &answer, sizeof answer);
  if (status == MOB_E_ABORTED) return status;
  *accepted = status == MOB_OK && !why[0];
  return MOB_OK;
}

static mob_status confirm(mob_ring_t *ring, int fd, const hello_t *ours, const char *peer,
                          uint64_t deadline) {
  answer_t answer;
  MOB_TRY(recv_all(fd, ring->abort_fd, deadline, peer, &answer, sizeof answer));
  if (!answer.refused) return MOB_OK;
  char why[256];
  difference(&answer.own, ours, why, sizeof why);
  return mob_fail(MOB_E_INVALID, "%s refused the link: %s", peer, why[0] ? why : "no reason given");
}

// Waits for a connection to accept or for the answer of the next stage on `out_fd` (-1 when it is
// there already): two stages that refuse each other must not both wait for a better one to come.
static mob_status wait_for_either(mob_ring_t *ring, int out_fd, const char *peer, uint64_t deadline,
                                  bool *answered) {
  for (;;) {
    uint64_t now = mob_now_ms();
    if (now >= deadline) return mob_fail(MOB_E_TIMEOUT, "no link from %s in time", peer);
    struct pollfd p[3] = {{.fd = ring->fd, .events = POLLIN},
                          {.fd = ring->abort_fd, .events = POLLIN},
                          {.fd = out_fd, .events = POLLIN}};
    int n = poll(p, 3, (int)(deadline - now));
    if (n < 0 && errno != EINTR) return mob_fail(MOB_E_IO, "poll: %s", strerror(errno));
    if (n <= 0) continue;
    if (p[1].revents) return mob_fail(MOB_E_ABORTED, "waiting for %s was aborted", peer);
    *answered = p[2].revents != 0;
    return MOB_OK;
  }
}

typedef struct end {
  hello_t hello; // what the one that connects says
  char name[80]; // of the peer
  int fd;
} end_t;

static mob_status accept_prev(mob_ring_t *ring, end_t *prev, const end_t *next, uint64_t deadline) {
  bool confirmed = false;
  while (prev->fd < 0 || !confirmed) {
    bool answered = false;
    if (prev->fd < 0)
      MOB_TRY(wait_for_either(ring, confirmed ? -1 : next->fd, prev->name, deadline, &answered));
    if (answered || prev->fd >= 0) {
      MOB_TRY(confirm(ring, next->fd, &next->hello, next->name, deadline));
      confirmed = true;
      continue;
    }
    int fd = accept4(ring->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
      return mob_fail(MOB_E_IO, "accept: %s", strerror(errno));
    }
    tune(fd);
    bool accepted;
    mob_status status = greet(ring, fd, &prev->hello, deadline, &accepted);
    if (status == MOB_OK && accepted)
      prev->fd = fd;
    else
      close(fd);
    MOB_TRY(status);
  }
  return MOB_OK;
}

mob_status mob_ring_join(mob_ring_t *ring, const char *next_ip, int next_port,
                         const mob_ring_self_t *self, uint64_t timeout_ms, mob_link_t **next,
                         mob_link_t **prev) {
  uint64_t deadline = mob_now_ms() + timeout_ms;
  uint32_t after = (self->stage + 1) % self->stages;
  uint32_t before = (self->stage + self->stages - 1) % self->stages;
  end_t out = {.hello = make_hello(self, self->stage, after), .fd = -1};
  end_t in = {.hello = make_hello(self, before, self->stage), .fd = -1};
  snprintf(out.name, sizeof out.name, "stage %u at %s:%d", after, next_ip, next_port);
  snprintf(in.name, sizeof in.name, "stage %u", before);
  mob_link_t *to = NULL;
  mob_status status;
  // Every stage first speaks and then listens, so that no two wait for each other around the ring.
  MOB_TRY_GOTO(connect_next(ring, next_ip, next_port, out.name, deadline, &out.fd), status, failed);
  MOB_TRY_GOTO(send_all(out.fd, ring->abort_fd, deadline, out.name, &out.hello, sizeof out.hello),
               status, failed);
  MOB_TRY_GOTO(accept_prev(ring, &in, &out, deadline), status, failed);
  name_peer(in.fd, before, in.name, sizeof in.name);
  MOB_TRY_GOTO(link_new(out.fd, out.name, &to), status, failed);
  out.fd = -1; // the link's now
  MOB_TRY_GOTO(link_new(in.fd, in.name, prev), status, failed);
  *next = to;
  shutdown(ring->fd, SHUT_RDWR); // the ring is complete
  return MOB_OK;
failed:
  shutdown(ring->fd, SHUT_RDWR); // whoever still stands in the queue learns that nobody will answer
  tcp_close(to);
  if (out.fd >= 0) close(out.fd);
  if (in.fd >= 0) close(in.fd);
  return status;
}

void mob_ring_abort(mob_ring_t *ring) {
  wake(ring->abort_fd);
}

void mob_ring_close(mob_ring_t *ring) {
  if (!ring) return;
  close(ring->fd);
  close(ring->abort_fd);
  free(ring);
}
