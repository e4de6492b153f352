#include "launcher/lws/rootfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/file.h"
#include "runtime/base/mem.h"

#define HOST "/.host" // where a container under construction still sees the host

static mob_status failed(const char *what, const char *path) {
  return mob_fail(MOB_E_IO, "%s %s: %s", what, path, strerror(errno));
}

static mob_status bind(const char *from, const char *to, bool read_only) {
  if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) != 0) {
    return mob_fail(MOB_E_IO, "cannot mount %s on %s: %s", from, to, strerror(errno));
  }
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
  if (read_only && mount_setattr(AT_FDCWD, to, AT_RECURSIVE, &attr, sizeof attr) != 0) {
    return failed("cannot make read-only", to);
  }
  return MOB_OK;
}

static mob_status tmpfs(const char *path, const char *options) {
  if (mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options) != 0) {
    return failed("cannot mount a tmpfs on", path);
  }
  return MOB_OK;
}

static mob_status text_file(const char *path, const char *text) {
  unlink(path); // whatever stands there may be a link to elsewhere
  return mob_file_write(path, text, strlen(text));
}

static mob_status link_to(const char *target, const char *path) {
  if (unlink(path) != 0 && errno != ENOENT) return failed("cannot replace", path);
  if (symlink(target, path) != 0) return failed("cannot create the link", path);
  return MOB_OK;
}

// A directory of the host that nobody may write to here (read-only, or of an owner that the user
// namespace does not know) becomes a tmpfs that shows the same entries.
static mob_status ensure_writable(const char *dir) {
  if (access(dir, W_OK) == 0) return MOB_OK;
  char host[PATH_MAX], from[PATH_MAX], to[PATH_MAX], target[PATH_MAX];
  snprintf(host, sizeof host, HOST "%s", dir);
  DIR *entries = opendir(host);
  if (!entries) return failed("cannot read", dir);
  mob_status status = tmpfs(dir, "mode=755");
  for (struct dirent *e; status == MOB_OK && (e = readdir(entries));) {
    struct stat st;
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    snprintf(from, sizeof from, "%s/%s", host, e->d_name);
    snprintf(to, sizeof to, "%s/%s", dir, e->d_name);
    if (lstat(from, &st) != 0) continue;
    if (S_ISLNK(st.st_mode)) {
      ssize_t n = readlink(from, target, sizeof target - 1);
      target[n > 0 ? n : 0] = 0;
      status = link_to(target, to);
    } else if (S_ISDIR(st.st_mode) || S_ISREG(st.st_mode)) {
      if (S_ISDIR(st.st_mode)) {
        mkdir(to, 0755);
      } else {
        int fd = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
        if (fd >= 0) close(fd);
      }
      status = bind(from, to, true);
    }
  }
  closedir(entries);
  return status;
}

// mkdir -p below the entered root.
static mob_status make_dirs(const char *path) {
  char dir[PATH_MAX], parent[PATH_MAX] = "/";
  for (const char *p = path; *p;) {
    p += strspn(p, "/");
    p += strcspn(p, "/");
    snprintf(dir, sizeof dir, "%.*s", (int)(p - path), path);
    if (!mob_is_dir(dir)) {
      MOB_TRY(ensure_writable(parent));
      if (mkdir(dir, 0755) != 0 && errno != EEXIST)
        return failed("cannot create the directory", dir);
    }
    snprintf(parent, sizeof parent, "%s", dir);
  }
  return MOB_OK;
}

// ---- the sandbox's part

static mob_status volume_path(const mob_lws_sandbox_spec_t *spec, size_t i, char out[PATH_MAX]) {
  snprintf(out, PATH_MAX, "%s/volumes/%zu", spec->stage, i);
  return MOB_OK;
}

static mob_status prepare_volume(const mob_lws_sandbox_spec_t *spec, size_t i) {
  const mob_lws_sandbox_volume_t *v = &spec->volumes[i];
  char path[PATH_MAX], options[64];
  if (v->host_path) return MOB_OK;
  MOB_TRY(volume_path(spec, i, path));
  MOB_TRY(mob_mkdirs(path));
  if (v->volume->kind == MOB_LWS_VOLUME_EMPTYDIR) {
    if (v->volume->memory || v->volume->size_limit) {
      int n = snprintf(options, sizeof options, "mode=1777");
      if (v->volume->size_limit) {
        snprintf(options + n, sizeof options - (size_t)n, ",size=%lld",
                 (long long)v->volume->size_limit);
      }
      return tmpfs(path, options);
    }
    if (chmod(path, 0777) != 0) return failed("cannot open to all", path);
    return MOB_OK;
  }
  for (size_t k = 0; k < v->files.len; k++) {
    char *file = mob_path_join(path, v->files.at[k].key);
    mob_status status = mob_file_write(file, v->files.at[k].value, strlen(v->files.at[k].value));
    free(file);
    MOB_TRY(status);
  }
  return MOB_OK;
}

mob_status mob__rootfs_prepare(const mob_lws_sandbox_spec_t *spec) {
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
    return failed("cannot make private", "/");
  // Containers' writes land here, too. It is memory, as little or as much as they write.
  MOB_TRY(tmpfs(spec->stage, "mode=755,size=75%"));
  for (size_t i = 0; i < spec->volume_count; i++) MOB_TRY(prepare_volume(spec, i));
  char shm[PATH_MAX];
  snprintf(shm, sizeof shm, "%s/shm", spec->stage);
  MOB_TRY(mob_mkdirs(shm));
  return tmpfs(shm, "mode=1777,size=64m"); // what a pod gets without a volume of its own there
}

// ---- the host's file system as an overlay

// Mounts LOWER with writes kept in DIR on ROOT.
static bool overlay(const char *lower, const char *dir, const char *root) {
  char upper[PATH_MAX], work[PATH_MAX], options[3 * PATH_MAX];
  snprintf(upper, sizeof upper, "%s/upper", dir);
  snprintf(work, sizeof work, "%s/work", dir);
  if (strpbrk(lower, ":,\\") || strpbrk(dir, ":,\\"))
    return false; // overlayfs cannot be told such names
  if (mob_mkdirs(upper) != MOB_OK || mob_mkdirs(work) != MOB_OK) return false;
  struct stat st;
  if (stat(lower, &st) == 0) chmod(upper, st.st_mode & 07777);
  snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work);
  if (mount("overlay", root, "overlay", 0, options) == 0) return true;
  strcat(options, ",userxattr"); // all that a user namespace may use
  return mount("overlay", root, "overlay", 0, options) == 0;
}

static bool is_own(const char *name) {
  static const char *const own[] = {"proc", "sys", "dev", "tmp", "run", "lost+found"};
  for (size_t i = 0; i < MOB_LEN(own); i++) {
    if (strcmp(name, own[i]) == 0) return true;
  }
  return false;
}

// Without an overlay of "/" (a user namespace refuses it for the mounts below): a tmpfs that holds
// each top-level directory as an overlay or, where that fails too, read-only.
static mob_status mirror(const char *dir, const char *root, char note[200]) {
  DIR *entries = opendir("/");
  if (!entries) return failed("cannot read", "/");
  mob_status status = MOB_OK;
  size_t used =
      (size_t)snprintf(note, 200, "the host's / cannot be overlaid as a whole; read-only in pods:");
  bool any = false;
  for (struct dirent *e; status == MOB_OK && (e = readdir(entries));) {
    if (e->d_name[0] == '.') continue;
    char from[PATH_MAX], to[PATH_MAX], keep[PATH_MAX], target[PATH_MAX];
    struct stat st;
    snprintf(from, sizeof from, "/%s", e->d_name);
    snprintf(to, sizeof to, "%s/%s", root, e->d_name);
    snprintf(keep, sizeof keep, "%s/over/%s", dir, e->d_name);
    if (lstat(from, &st) != 0) continue;
    if (S_ISLNK(st.st_mode)) {
      ssize_t n = readlink(from, target, sizeof target - 1);
      if (n > 0) {
        target[n] = 0;
        status = link_to(target, to);
      }
    } else if (S_ISDIR(st.st_mode)) {
      if (mkdir(to, 0755) != 0) status = failed("cannot create", to);
      // A home that its mapped owner cannot enter is replaced by an empty one.
      if (is_own(e->d_name) || access(from, R_OK | X_OK) != 0) continue;
      if (status == MOB_OK && !overlay(from, keep, to)) {
        status = bind(from, to, true);
        if (used < 180) used += (size_t)snprintf(note + used, 200 - used, " %s", from);
        any = true;
      }
    }
  }
  closedir(entries);
  if (!any) snprintf(note, 200, "the host's / is overlaid directory by directory");
  return status;
}

// An overlay of "/" shows the bare directories below other mounts; real file systems get one of
// their own.
static void overlay_submounts(const char *dir, const char *root, const char *stage) {
  FILE *mounts = fopen("/proc/self/mounts", "re");
  char line[2 * PATH_MAX], from[PATH_MAX], type[64];
  for (unsigned i = 0; mounts && fgets(line, sizeof line, mounts);) {
    static const char *const real[] = {"ext4",     "ext3",    "ext2",    "xfs",  "btrfs",
                                       "zfs",      "f2fs",    "nfs",     "nfs4", "9p",
                                       "virtiofs", "overlay", "fuseblk", "vfat", "squashfs"};
    bool found = false;
    if (sscanf(line, "%*s %4095s %63s", from, type) != 2 || strchr(from, '\\')) continue;
    for (size_t k = 0; k < MOB_LEN(real); k++) found |= strcmp(type, real[k]) == 0;
    if (!found || strcmp(from, "/") == 0 || strncmp(from, stage, strlen(stage)) == 0 ||
        !mob_is_dir(from))
      continue;
    char top[NAME_MAX + 1];
    snprintf(top, sizeof top, "%.*s", (int)strcspn(from + 1, "/"), from + 1);
    if (is_own(top)) continue;
    char keep[PATH_MAX], to[PATH_MAX];
    snprintf(keep, sizeof keep, "%s/sub/%u", dir, i++);
    snprintf(to, sizeof to, "%s%s", root, from);
    if (!overlay(from, keep, to)) {
      mob_status ignored = bind(from, to, true);
      (void)ignored;
    }
  }
  if (mounts) fclose(mounts);
}

// ---- the container's own parts, with its root entered and the host still visible below HOST

static mob_status make_dev(void) {
  static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
  static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
                                         {"/proc/self/fd/0", "/dev/stdin"},
                                         {"/proc/self/fd/1", "/dev/stdout"},
                                         {"/proc/self/fd/2", "/dev/stderr"},
                                         {"pts/ptmx", "/dev/ptmx"}};
  if (mount("tmpfs", "/dev", "tmpfs", MS_NOSUID, "mode=755,size=64k") != 0)
    return failed("cannot mount", "/dev");
  for (size_t i = 0; i < MOB_LEN(nodes); i++) {
    char from[64], to[64];
    snprintf(from, sizeof from, HOST "/dev/%s", nodes[i]);
    snprintf(to, sizeof to, "/dev/%s", nodes[i]);
    int fd = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    if (fd >= 0) close(fd);
    if (strcmp(nodes[i], "tty") == 0 && !mob_file_exists(from)) continue;
    MOB_TRY(bind(from, to, false));
  }
  for (size_t i = 0; i < MOB_LEN(links); i++) MOB_TRY(link_to(links[i][0], links[i][1]));
  mkdir("/dev/pts", 0755);
  mkdir("/dev/shm", 01777);
  mkdir("/dev/mqueue", 01777);
  // A terminal and message queues are a convenience: not every machine allows them.
  if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=620") != 0)
    rmdir("/dev/pts");
  if (mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
    rmdir("/dev/mqueue");
  return MOB_OK;
}

static mob_status make_system_dirs(void) {
  static const char *const dirs[] = {"/proc", "/sys", "/dev", "/tmp", "/run"};
  for (size_t i = 0; i < MOB_LEN(dirs); i++) {
    if (mkdir(dirs[i], 0755) != 0 && errno != EEXIST) return failed("cannot create", dirs[i]);
  }
  unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  // Inside another container the kernel may refuse a fresh /proc; the namespace's own is still the
  // right one, because a bind of the host's would show other ids.
  if (mount("proc", "/proc", "proc", plain, NULL) != 0) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "cannot mount /proc in the pod: %s (inside a container, run it with "
                    "--security-opt systempaths=unconfined, or use --network loopback)",
                    strerror(errno));
  }
  if (mount("sysfs", "/sys", "sysfs", plain | MS_RDONLY, NULL) != 0) {
    MOB_TRY(bind(HOST "/sys", "/sys", true));
  } else if (mob_is_dir(HOST "/sys/fs/cgroup")) {
    mob_status ignored = bind(HOST "/sys/fs/cgroup", "/sys/fs/cgroup", true);
    (void)ignored;
  }
  MOB_TRY(tmpfs("/tmp", "mode=1777"));
  MOB_TRY(tmpfs("/run", "mode=755"));
  return make_dev();
}

// The image's programs: the directory itself, so that programs find what lies beside them, and
// links.
static mob_status install_image(const mob_lws_sandbox_spec_t *spec) {
  char from[PATH_MAX];
  MOB_TRY(make_dirs("/opt/mobula/bin"));
  snprintf(from, sizeof from, HOST "%s", spec->image_dir);
  MOB_TRY(bind(from, "/opt/mobula/bin", true));
  snprintf(from, sizeof from, HOST "%s/../lib", spec->image_dir);
  const char *base = strrchr(spec->image_dir, '/');
  if (base && strcmp(base, "/bin") == 0 && mob_is_dir(from)) { // an installation's own libraries
    MOB_TRY(make_dirs("/opt/mobula/lib"));
    MOB_TRY(bind(from, "/opt/mobula/lib", true));
  }
  MOB_TRY(make_dirs("/usr/local/bin"));
  MOB_TRY(ensure_writable("/usr/local/bin"));
  MOB_TRY(make_dirs("/vllm-workspace"));
  MOB_TRY(ensure_writable("/vllm-workspace"));
  MOB_TRY(make_dirs("/vllm-workspace/examples/online_serving"));
  MOB_TRY(ensure_writable("/vllm-workspace/examples/online_serving"));
  DIR *dir = opendir("/opt/mobula/bin");
  if (!dir) return failed("cannot read the image's programs in", spec->image_dir);
  mob_status status = MOB_OK;
  for (struct dirent *e; status == MOB_OK && (e = readdir(dir));) {
    char target[PATH_MAX], link[PATH_MAX];
    snprintf(target, sizeof target, "/opt/mobula/bin/%s", e->d_name);
    snprintf(link, sizeof link, "/usr/local/bin/%s", e->d_name);
    struct stat st;
    if (stat(target, &st) != 0 || !S_ISREG(st.st_mode) || access(target, X_OK) != 0) continue;
    status = link_to(target, link);
  }
  closedir(dir);
  MOB_TRY(status);
  MOB_TRY(link_to("/opt/mobula/bin/ray_init.sh", "/vllm-workspace/ray_init.sh"));
  bool own = mob_file_exists("/opt/mobula/bin/multi-node-serving.sh");
  return link_to(own ? "/opt/mobula/bin/multi-node-serving.sh" : "/opt/mobula/bin/ray_init.sh",
                 "/vllm-workspace/examples/online_serving/multi-node-serving.sh");
}

static mob_status install_shell(const char *shell) {
  char path[64], real[PATH_MAX];
  snprintf(path, sizeof path, "/bin/%s", shell);
  if (!mob_file_exists(path)) {
    return mob_fail(MOB_E_NOT_FOUND,
                    "%s is not installed on this machine, but pods shall have it as /bin/sh; "
                    "install it or choose the other with --sh",
                    path);
  }
  if (realpath("/bin/sh", real)) {
    char *wanted = realpath(path, NULL);
    bool same = wanted && strcmp(real, wanted) == 0;
    free(wanted);
    if (same) return MOB_OK;
  }
  if (link_to(shell, "/bin/sh") == MOB_OK) return MOB_OK;
  return bind(path, real, false); // a read-only /bin: the file behind the link
}

static mob_status install_names(const mob_lws_sandbox_spec_t *spec) {
  char hostname[256], from[PATH_MAX];
  MOB_TRY(make_dirs("/run/mobula"));
  MOB_TRY(ensure_writable("/etc"));
  snprintf(from, sizeof from, HOST "%s", spec->hosts_dir);
  MOB_TRY(bind(from, "/run/mobula", true));
  // A link into a directory, because the file is replaced whole: a reader sees the old or the new
  // names.
  MOB_TRY(link_to("/run/mobula/hosts", "/etc/hosts"));
  MOB_TRY(text_file("/etc/resolv.conf", spec->resolv));
  snprintf(hostname, sizeof hostname, "%s\n", spec->hostname);
  return text_file("/etc/hostname", hostname);
}

static mob_status mount_volume(const mob_lws_sandbox_spec_t *spec, const mob_lws_mount_t *m) {
  char from[PATH_MAX], volume[PATH_MAX];
  size_t i = 0;
  while (strcmp(spec->volumes[i].volume->name, m->volume) != 0) i++; // the manifest was checked
  const mob_lws_sandbox_volume_t *v = &spec->volumes[i];
  MOB_TRY(volume_path(spec, i, volume));
  snprintf(from, sizeof from, HOST "%s%s%s", v->host_path ? v->host_path : volume,
           m->sub_path ? "/" : "", m->sub_path ? m->sub_path : "");
  if (m->sub_path && !mob_file_exists(from) && !v->host_path) MOB_TRY(make_dirs(from));
  struct stat st;
  if (stat(from, &st) != 0) return failed("no such volume directory:", from + strlen(HOST));
  if (S_ISDIR(st.st_mode)) {
    MOB_TRY(make_dirs(m->path));
  } else {
    char *parent = mob_strdup(m->path);
    *strrchr(parent, '/') = 0;
    mob_status status = *parent ? make_dirs(parent) : MOB_OK;
    if (status == MOB_OK) status = ensure_writable(*parent ? parent : "/");
    free(parent);
    MOB_TRY(status);
    int fd = open(m->path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (fd >= 0) close(fd);
  }
  bool files =
      v->volume->kind == MOB_LWS_VOLUME_SECRET || v->volume->kind == MOB_LWS_VOLUME_CONFIGMAP;
  return bind(from, m->path, m->read_only || v->volume->read_only || files);
}

static mob_status enter_root(const char *root) {
  char old[PATH_MAX];
  snprintf(old, sizeof old, "%s%s", root, HOST);
  if (mkdir(old, 0700) != 0) return failed("cannot create", old);
  if (syscall(SYS_pivot_root, root, old) != 0) return failed("cannot enter the root", root);
  if (chdir("/") != 0) return failed("cannot change to", "/");
  return MOB_OK;
}

mob_status mob__rootfs_enter(const mob_lws_sandbox_spec_t *spec, size_t container, unsigned attempt,
                             char note[200]) {
  char dir[PATH_MAX], root[PATH_MAX];
  note[0] = 0;
  snprintf(dir, sizeof dir, "%s/c%zu-%u", spec->stage, container, attempt);
  snprintf(root, sizeof root, "%s/root", dir);
  MOB_TRY(mob_mkdirs(root));
  if (overlay("/", dir, root)) {
    overlay_submounts(dir, root, spec->stage);
  } else {
    MOB_TRY(tmpfs(root, "mode=755"));
    MOB_TRY(mirror(dir, root, note));
  }
  MOB_TRY(enter_root(root));
  MOB_TRY(make_system_dirs());
  MOB_TRY(install_image(spec));
  MOB_TRY(install_shell(spec->shell));
  MOB_TRY(install_names(spec));
  char shm[PATH_MAX];
  snprintf(shm, sizeof shm, HOST "%s/shm", spec->stage);
  MOB_TRY(bind(shm, "/dev/shm", false));
  const mob_lws_container_t *c = spec->containers[container].container;
  for (size_t i = 0; i < c->mount_count; i++) MOB_TRY(mount_volume(spec, &c->mounts[i]));
  if (umount2(HOST, MNT_DETACH) != 0) return failed("cannot leave the host's root", HOST);
  rmdir(HOST);
  return MOB_OK;
}
