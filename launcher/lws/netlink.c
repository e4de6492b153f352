#include "launcher/lws/netlink.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct request {
  struct nlmsghdr header;
  unsigned char body[1024];
} request_t;

static void *put(request_t *r, const void *data, size_t len) {
  size_t at = NLMSG_ALIGN(r->header.nlmsg_len);
  MOB_ASSERT(at + NLMSG_ALIGN(len) <= sizeof *r);
  void *to = (unsigned char *)r + at;
  memset(to, 0, NLMSG_ALIGN(len));
  if (data) memcpy(to, data, len);
  r->header.nlmsg_len = (uint32_t)(at + len);
  return to;
}

static struct rtattr *put_attr(request_t *r, unsigned short type, const void *data, size_t len) {
  struct rtattr attr = {.rta_len = (unsigned short)RTA_LENGTH(len), .rta_type = type};
  struct rtattr *to = put(r, &attr, sizeof attr);
  if (len) put(r, data, len);
  return to;
}

static struct rtattr *open_nest(request_t *r, unsigned short type) {
  return put_attr(r, type, NULL, 0);
}

static void close_nest(request_t *r, struct rtattr *nest) {
  nest->rta_len =
      (unsigned short)((unsigned char *)r + r->header.nlmsg_len - (unsigned char *)nest);
}

static void begin(request_t *r, int type, int flags) {
  r->header = (struct nlmsghdr){.nlmsg_len = NLMSG_LENGTH(0),
                                .nlmsg_type = (uint16_t)type,
                                .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags),
                                .nlmsg_seq = 1};
}

// Sends and waits for the kernel's answer; the kernel answers within the send.
static mob_status talk(int fd, request_t *r, const char *what, const char *name) {
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  int error = 0;
  if (sendto(fd, r, r->header.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0) {
    error = errno;
  } else {
    unsigned char reply[4096] __attribute__((aligned(16)));
    ssize_t n;
    do n = recv(fd, reply, sizeof reply, 0);
    while (n < 0 && errno == EINTR);
    const struct nlmsghdr *h = (const struct nlmsghdr *)reply;
    if (n < 0) {
      error = errno;
    } else if (NLMSG_OK(h, (size_t)n) && h->nlmsg_type == NLMSG_ERROR) {
      error = -((const struct nlmsgerr *)NLMSG_DATA(h))->error;
    }
  }
  if (error == 0) return MOB_OK;
  return mob_fail(error == EEXIST   ? MOB_E_EXISTS
                  : error == ENODEV ? MOB_E_NOT_FOUND
                                    : MOB_E_IO,
                  "cannot %s %s: %s", what, name, strerror(error));
}

mob_status mob__nl_open(int *fd) {
  *fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (*fd < 0) return mob_fail(MOB_E_IO, "cannot open a netlink socket: %s", strerror(errno));
  return MOB_OK;
}

mob_status mob__nl_add_bridge(int fd, const char *name) {
  request_t r;
  begin(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  put(&r, &(struct ifinfomsg){.ifi_flags = IFF_UP, .ifi_change = IFF_UP}, sizeof(struct ifinfomsg));
  put_attr(&r, IFLA_IFNAME, name, strlen(name) + 1);
  // Without one of its own a bridge takes the lowest address of its links: it would change as pods
  // come and go, and the pods that stay would send to the old one until their ARP entries age.
  static const uint8_t address[6] = {0x02, 0x6d, 0x6f, 0x62, 0x00, 0x01}; // locally administered
  put_attr(&r, IFLA_ADDRESS, address, sizeof address);
  struct rtattr *info = open_nest(&r, IFLA_LINKINFO);
  put_attr(&r, IFLA_INFO_KIND, "bridge", 7);
  close_nest(&r, info);
  return talk(fd, &r, "add the bridge", name);
}

mob_status mob__nl_add_veth(int fd, const char *name, const char *bridge, const char *peer_name,
                            pid_t peer_pid) {
  unsigned master = if_nametoindex(bridge);
  uint32_t pid = (uint32_t)peer_pid;
  request_t r;
  begin(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  put(&r, &(struct ifinfomsg){.ifi_flags = IFF_UP, .ifi_change = IFF_UP}, sizeof(struct ifinfomsg));
  put_attr(&r, IFLA_IFNAME, name, strlen(name) + 1);
  put_attr(&r, IFLA_MASTER, &master, sizeof master);
  struct rtattr *info = open_nest(&r, IFLA_LINKINFO);
  put_attr(&r, IFLA_INFO_KIND, "veth", 5);
  struct rtattr *data = open_nest(&r, IFLA_INFO_DATA);
  struct rtattr *peer = open_nest(&r, VETH_INFO_PEER);
  put(&r, NULL, sizeof(struct ifinfomsg));
  put_attr(&r, IFLA_IFNAME, peer_name, strlen(peer_name) + 1);
  put_attr(&r, IFLA_NET_NS_PID, &pid, sizeof pid);
  close_nest(&r, peer);
  close_nest(&r, data);
  close_nest(&r, info);
  return talk(fd, &r, "add the virtual Ethernet pair", name);
}

mob_status mob__nl_delete_link(int fd, const char *name) {
  request_t r;
  begin(&r, RTM_DELLINK, 0);
  put(&r, NULL, sizeof(struct ifinfomsg));
  put_attr(&r, IFLA_IFNAME, name, strlen(name) + 1);
  return talk(fd, &r, "delete the link", name);
}

mob_status mob__nl_set_link(int fd, const char *name, bool up) {
  request_t r;
  begin(&r, RTM_NEWLINK, 0);
  put(&r, &(struct ifinfomsg){.ifi_flags = up ? IFF_UP : 0, .ifi_change = IFF_UP},
      sizeof(struct ifinfomsg));
  put_attr(&r, IFLA_IFNAME, name, strlen(name) + 1);
  return talk(fd, &r, up ? "bring up the link" : "take down the link", name);
}

mob_status mob__nl_add_address(int fd, const char *name, uint32_t address, int prefix) {
  request_t r;
  begin(&r, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
  struct ifaddrmsg msg = {
      .ifa_family = AF_INET, .ifa_prefixlen = (uint8_t)prefix, .ifa_index = if_nametoindex(name)};
  put(&r, &msg, sizeof msg);
  put_attr(&r, IFA_LOCAL, &address, sizeof address);
  put_attr(&r, IFA_ADDRESS, &address, sizeof address);
  return talk(fd, &r, "set the address of", name);
}

mob_status mob__nl_add_default_route(int fd, uint32_t gateway) {
  request_t r;
  begin(&r, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
  struct rtmsg msg = {.rtm_family = AF_INET,
                      .rtm_table = RT_TABLE_MAIN,
                      .rtm_protocol = RTPROT_STATIC,
                      .rtm_scope = RT_SCOPE_UNIVERSE,
                      .rtm_type = RTN_UNICAST};
  put(&r, &msg, sizeof msg);
  put_attr(&r, RTA_GATEWAY, &gateway, sizeof gateway);
  return talk(fd, &r, "add the default route", "");
}
