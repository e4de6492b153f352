#include "runtime/node/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/mem.h"

bool mob_ifname_matches(const char *selector, const char *name) {
  bool exclude = *selector == '^', exact;
  if (exclude) selector++;
  exact = *selector == '=';
  if (exact) selector++;
  bool found = false;
  while (*selector) {
    size_t len = strcspn(selector, ",");
    if (len && strncmp(name, selector, len) == 0 && (!exact || strlen(name) == len)) found = true;
    selector += len + (selector[len] != 0);
  }
  return found != exclude;
}

// The text of an interface's address, NULL when it is of no use to a peer.
static const char *usable(const struct ifaddrs *entry, char *text) {
  if (!entry->ifa_addr || !(entry->ifa_flags & IFF_UP)) return NULL;
  if (entry->ifa_addr->sa_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)entry->ifa_addr;
    return inet_ntop(AF_INET, &in->sin_addr, text, INET6_ADDRSTRLEN);
  }
  if (entry->ifa_addr->sa_family == AF_INET6) {
    const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)entry->ifa_addr;
    if (IN6_IS_ADDR_LINKLOCAL(&in->sin6_addr)) return NULL;
    return inet_ntop(AF_INET6, &in->sin6_addr, text, INET6_ADDRSTRLEN);
  }
  return NULL;
}

bool mob_is_local_ip(const char *ip) {
  char text[INET6_ADDRSTRLEN];
  if (strncmp(ip, "127.", 4) == 0) return true;
  struct ifaddrs *list = NULL;
  bool found = false;
  if (getifaddrs(&list)) return false;
  for (struct ifaddrs *e = list; e && !found; e = e->ifa_next) {
    const char *own = usable(e, text);
    found = own && strcmp(own, ip) == 0;
  }
  freeifaddrs(list);
  return found;
}

// IPv4 is preferred; loopback serves only when the selector asks for nothing else.
static char *ip_of_interface(const char *selector) {
  char text[INET6_ADDRSTRLEN];
  struct ifaddrs *list = NULL;
  char *best = NULL;
  int best_rank = 0;
  if (getifaddrs(&list)) return NULL;
  for (struct ifaddrs *e = list; e; e = e->ifa_next) {
    const char *ip = usable(e, text);
    if (!ip || !mob_ifname_matches(selector, e->ifa_name)) continue;
    int rank = 1 + (e->ifa_addr->sa_family == AF_INET) + 2 * !(e->ifa_flags & IFF_LOOPBACK);
    if (rank <= best_rank) continue;
    free(best);
    best = mob_strdup(ip);
    best_rank = rank;
  }
  freeifaddrs(list);
  return best;
}

// Connecting a UDP socket sends nothing; it asks the kernel for the route.
static char *ip_towards(const char *target) {
  struct addrinfo hints = {
      .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST};
  struct addrinfo *info = NULL;
  char *ip = NULL;
  if (getaddrinfo(target, "53", &hints, &info)) return NULL;
  int fd = socket(info->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct sockaddr_storage own;
  socklen_t len = sizeof own;
  char text[INET6_ADDRSTRLEN];
  if (fd >= 0 && connect(fd, info->ai_addr, info->ai_addrlen) == 0 &&
      getsockname(fd, (struct sockaddr *)&own, &len) == 0 &&
      getnameinfo((struct sockaddr *)&own, len, text, sizeof text, NULL, 0, NI_NUMERICHOST) == 0) {
    ip = mob_strdup(text);
  }
  if (fd >= 0) close(fd);
  freeaddrinfo(info);
  return ip;
}

mob_status mob_resolve(const char *host, char **ip) {
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  struct addrinfo *list = NULL;
  char text[INET6_ADDRSTRLEN];
  int error = getaddrinfo(host, NULL, &hints, &list);
  if (error) return mob_fail(MOB_E_NOT_FOUND, "cannot resolve '%s': %s", host, gai_strerror(error));
  struct addrinfo *best = list;
  for (struct addrinfo *e = list; e; e = e->ai_next) {
    if (e->ai_family == AF_INET) {
      best = e;
      break;
    }
  }
  error = getnameinfo(best->ai_addr, best->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
  freeaddrinfo(list);
  if (error) return mob_fail(MOB_E_NOT_FOUND, "cannot resolve '%s': %s", host, gai_strerror(error));
  *ip = mob_strdup(text);
  return MOB_OK;
}

static mob_status checked(const char *source, const char *given, char **ip) {
  MOB_TRY(mob_resolve(given, ip));
  if (mob_is_local_ip(*ip)) return MOB_OK;
  mob_status status =
      mob_fail(MOB_E_INVALID, "%s is %s, which no interface of this machine has", source, *ip);
  free(*ip);
  *ip = NULL;
  return status;
}

mob_status mob_node_ip(const char *option, const char *towards, char **ip) {
  *ip = NULL;
  // Ray maps "localhost" forms to a real address; an explicit 127.x is taken at its word, since
  // that is how several nodes are told apart on one machine.
  if (option && *option && strcmp(option, "localhost") != 0) {
    return checked("--node-ip-address", option, ip);
  }
  const char *pod = getenv("MOBULA_BIND_ADDRESS");
  if (pod && *pod) return checked("MOBULA_BIND_ADDRESS", pod, ip);
  const char *host_ip = getenv("VLLM_HOST_IP");
  if (host_ip && *host_ip) return checked("VLLM_HOST_IP", host_ip, ip);
  const char *selector = getenv("NCCL_SOCKET_IFNAME");
  if (selector && *selector) *ip = ip_of_interface(selector);
  if (!*ip && towards) *ip = ip_towards(towards);
  if (!*ip) *ip = ip_towards("8.8.8.8");
  if (!*ip) *ip = ip_towards("2001:4860:4860::8888");
  if (!*ip) *ip = ip_of_interface("^lo"); // no route out, yet an interface to the peers
  if (!*ip) *ip = mob_strdup("127.0.0.1");
  return MOB_OK;
}
