#include "launcher/lws/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/netlink.h"
#include "runtime/base/mem.h"

// 10.244.0.0/16, the range most clusters give their pods; .0.1 is the bridge.
#define POD_NET ((uint32_t)0x0af40000)
// 10.96.0.0/16, the usual range of Services.
#define SERVICE_NET ((uint32_t)0x0a600000)
// 127.83.0.0/16 in loopback mode.
#define LOOPBACK_NET ((uint32_t)0x7f530000)

const char *mob__lws_network_name(mob_lws_network_mode_t mode) {
  static const char *const names[] = {"netns", "userns", "loopback"};
  return names[mode];
}

static mob_status write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return mob_fail(MOB_E_IO, "cannot open %s: %s", path, strerror(errno));
  ssize_t n = write(fd, text, strlen(text));
  int error = errno;
  close(fd);
  if (n < 0) return mob_fail(MOB_E_IO, "cannot write %s: %s", path, strerror(error));
  return MOB_OK;
}

static mob_status enter_user_namespace(void) {
  unsigned uid = geteuid(), gid = getegid();
  if (unshare(CLONE_NEWUSER) != 0) {
    return mob_fail(
        MOB_E_UNSUPPORTED,
        "user namespaces are not allowed here (%s; see "
        "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, "
        "user.max_user_namespaces)",
        strerror(errno));
  }
  char map[64];
  MOB_TRY(write_file("/proc/self/setgroups", "deny"));
  snprintf(map, sizeof map, "0 %u 1", uid);
  MOB_TRY(write_file("/proc/self/uid_map", map));
  snprintf(map, sizeof map, "0 %u 1", gid);
  return write_file("/proc/self/gid_map", map);
}

static mob_status make_bridge(int netlink) {
  MOB_TRY(mob__nl_set_link(netlink, "lo", true));
  MOB_TRY(mob__nl_add_bridge(netlink, MOB_LWS_BRIDGE));
  return mob__nl_add_address(netlink, MOB_LWS_BRIDGE, mob__lws_network_gateway(),
                             MOB_LWS_POD_PREFIX);
}

static mob_status enter(mob_lws_network_mode_t mode, int *netlink) {
  if (mode == MOB_LWS_USERNS) MOB_TRY(enter_user_namespace());
  if (unshare(CLONE_NEWNET) != 0) {
    return mob_fail(MOB_E_UNSUPPORTED, "network namespaces are not allowed here: %s",
                    strerror(errno));
  }
  MOB_TRY(mob__nl_open(netlink));
  return make_bridge(*netlink);
}

// Everything a pod needs, once, in a child process that leaves no trace.
static mob_status try_mode(mob_lws_network_mode_t mode) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return mob_fail(MOB_E_IO, "pipe: %s", strerror(errno));
  pid_t pid = fork();
  if (pid == 0) {
    int netlink = -1;
    mob_status status = enter(mode, &netlink);
    if (status == MOB_OK &&
        unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC) != 0) {
      status =
          mob_fail(MOB_E_UNSUPPORTED, "mount, PID, UTS or IPC namespaces are not allowed here: %s",
                   strerror(errno));
    }
    if (status == MOB_OK && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
      status = mob_fail(MOB_E_UNSUPPORTED, "mounting is not allowed here: %s", strerror(errno));
    }
    if (status == MOB_OK && mount("tmpfs", "/tmp", "tmpfs", 0, NULL) != 0) {
      status =
          mob_fail(MOB_E_UNSUPPORTED, "mounting a tmpfs is not allowed here: %s", strerror(errno));
    }
    if (status == MOB_OK)
      status = mob__nl_add_veth(netlink, "mob-try", MOB_LWS_BRIDGE, "mob-peer", getpid());
    if (status != MOB_OK) {
      ssize_t ignored = write(pipe_fds[1], mob_errmsg(), strlen(mob_errmsg()));
      (void)ignored;
    }
    _exit(status == MOB_OK ? 0 : 1);
  }
  close(pipe_fds[1]);
  char why[256];
  ssize_t n = pid < 0 ? 0 : read(pipe_fds[0], why, sizeof why - 1);
  close(pipe_fds[0]);
  int status = -1;
  if (pid > 0) {
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  }
  if (status == 0) return MOB_OK;
  why[n > 0 ? n : 0] = 0;
  return mob_fail(MOB_E_UNSUPPORTED, "%s", *why ? why : "the trial process failed");
}

mob_status mob__lws_network_choose(const char *wanted, mob_lws_network_t *net) {
  net->netlink = -1;
  net->next_host = 2;
  bool automatic = strcmp(wanted, "auto") == 0;
  char reasons[200] = "";
  for (int mode = MOB_LWS_NETNS; mode <= MOB_LWS_USERNS; mode++) {
    const char *name = mob__lws_network_name((mob_lws_network_mode_t)mode);
    if (!automatic && strcmp(wanted, name) != 0) continue;
    mob_status status = mode == MOB_LWS_NETNS && geteuid() != 0
                            ? mob_fail(MOB_E_UNSUPPORTED, "not run as root")
                            : try_mode((mob_lws_network_mode_t)mode);
    if (status == MOB_OK) {
      net->mode = (mob_lws_network_mode_t)mode;
      snprintf(net->why, sizeof net->why, "%s%s",
               mode == MOB_LWS_NETNS ? "run as root" : "user namespaces work here",
               automatic ? "" : ", and asked for");
      return MOB_OK;
    }
    if (!automatic) return mob_wrap(status, "--network %s does not work here", name);
    size_t used = strlen(reasons);
    snprintf(reasons + used, sizeof reasons - used, "%s%s: %.90s", used ? "; " : "", name,
             mob_errmsg());
  }
  if (!automatic && strcmp(wanted, "loopback") != 0) {
    return mob_fail(MOB_E_INVALID,
                    "--network is \"%s\"; it must be auto, netns, userns or loopback", wanted);
  }
  net->mode = MOB_LWS_LOOPBACK;
  snprintf(net->why, sizeof net->why, "%s", automatic ? reasons : "asked for");
  return MOB_OK;
}

mob_status mob__lws_network_enter(mob_lws_network_t *net) {
  if (net->mode == MOB_LWS_LOOPBACK) return MOB_OK;
  return enter(net->mode, &net->netlink);
}

uint32_t mob__lws_network_gateway(void) {
  return htonl(POD_NET | 1);
}

uint32_t mob__lws_network_service_address(uint32_t index) {
  return htonl(SERVICE_NET | (index + 10));
}

mob_status mob__lws_network_add_address(const mob_lws_network_t *net, uint32_t address) {
  return mob__nl_add_address(net->netlink, MOB_LWS_BRIDGE, address, 32);
}

void mob__lws_network_address(mob_lws_network_t *net, char out[16]) {
  uint32_t host = net->next_host++;
  // Round again after 65000 pods, past the network's own address and the bridge's.
  if (net->next_host > 0xfffe) net->next_host = 2;
  struct in_addr address = {htonl((net->mode == MOB_LWS_LOOPBACK ? LOOPBACK_NET : POD_NET) | host)};
  inet_ntop(AF_INET, &address, out, 16);
}

static void link_name(unsigned index, char out[IFNAMSIZ]) {
  snprintf(out, IFNAMSIZ, "mob-%u", index);
}

mob_status mob__lws_network_attach(mob_lws_network_t *net, unsigned index, pid_t pid) {
  char name[IFNAMSIZ];
  link_name(index, name);
  return mob__nl_add_veth(net->netlink, name, MOB_LWS_BRIDGE, "eth0", pid);
}

mob_status mob__lws_network_set_link(mob_lws_network_t *net, unsigned index, bool up) {
  if (net->mode == MOB_LWS_LOOPBACK) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "in loopback mode pods have no link of their own to take down; "
                    "run as root or allow user namespaces");
  }
  char name[IFNAMSIZ];
  link_name(index, name);
  return mob__nl_set_link(net->netlink, name, up);
}

void mob__lws_network_detach(mob_lws_network_t *net, unsigned index) {
  if (net->mode == MOB_LWS_LOOPBACK) return;
  char name[IFNAMSIZ];
  link_name(index, name);
  // Not there any more when the kernel was faster to end the pod's namespace.
  mob__nl_delete_link(net->netlink, name);
}

mob_status mob__lws_network_configure_pod(const char *address) {
  struct in_addr in;
  if (inet_pton(AF_INET, address, &in) != 1)
    return mob_fail(MOB_E_INTERNAL, "bad pod address %s", address);
  int fd;
  MOB_TRY(mob__nl_open(&fd));
  mob_status status;
  MOB_TRY_GOTO(mob__nl_set_link(fd, "lo", true), status, out);
  MOB_TRY_GOTO(mob__nl_add_address(fd, "eth0", in.s_addr, MOB_LWS_POD_PREFIX), status, out);
  MOB_TRY_GOTO(mob__nl_set_link(fd, "eth0", true), status, out);
  MOB_TRY_GOTO(mob__nl_add_default_route(fd, mob__lws_network_gateway()), status, out);
out:
  close(fd);
  return status;
}
