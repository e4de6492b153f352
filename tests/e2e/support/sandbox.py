"""A place of its own for a test process: network with only a loopback interface, private mounts, empty /tmp and /dev/shm.

So fixed ports are free, the cluster of nobody else is found in /tmp/ray, and what a test leaves behind is visible exactly:
`Traces` compares processes, mounts, files, links and cgroups with what was there before.
"""

import ctypes
import os
import subprocess
import time
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def enter():
    """Moves this process into namespaces of its own. Call it before any thread is started."""
    uid, gid = os.getuid(), os.getgid()
    _check(libc.unshare(CLONE_NEWNS | CLONE_NEWNET | (CLONE_NEWUSER if uid != 0 else 0)), "unshare")
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    commands = ["mount --make-rprivate /", "ip link set lo up", "mount -t tmpfs -o mode=1777 shm /dev/shm"]
    venv = os.environ.get("MOB_TEST_VENV", "")
    source = os.environ.get("MOB_SOURCE_DIR", "")
    if not any(Path(p).resolve().is_relative_to("/tmp") for p in (venv, source, os.environ["MOB_BIN_DIR"]) if p):
        commands.append("mount -t tmpfs -o mode=1777 tmp /tmp")  # unless what is tested lies there
    for command in commands:
        subprocess.run(command.split(), check=True)
    # Whose parent ends becomes a child of this process: so no leftover escapes the comparison.
    _check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def network_of(fd):
    """Moves the calling thread alone into the network namespace of an open descriptor."""
    _check(libc.setns(fd, CLONE_NEWNET), "setns")


def processes():
    """pid -> (state, parent, command) of every process of this machine that is visible here."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry)] = (fields[0], int(fields[1]), command)
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def descendants(pid):
    """pid -> command of the living processes below pid."""
    table = processes()
    below, todo = {}, [pid]
    while todo:
        parent = todo.pop()
        for child, (state, its_parent, command) in table.items():
            if its_parent == parent:
                todo.append(child)
                if state not in "ZX":
                    below[child] = command
    return below


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _files():
    skip = ("pytest-of-",)
    return {str(p) for top in ("/tmp", "/dev/shm") for p in Path(top).iterdir() if not p.name.startswith(skip)}


class Traces:
    """What is there now; `assert_none_new` says what is there in addition, giving it a moment to go."""

    def __init__(self):
        self.before = self._look()

    @staticmethod
    def _look():
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        groups = [p for pattern in ("mobula-lws-*", "*/mobula-lws-*") for p in Path("/sys/fs/cgroup").glob(pattern)]
        return {
            "process": {f"{pid} {command}" for pid, command in descendants(os.getpid()).items()},
            "mount": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
            "file": _files(),
            "network link": {line.split(":")[1] for line in links.splitlines()},
            "cgroup": {str(g) for g in groups if not alive(g.name.rpartition("-")[2])},
        }

    def assert_none_new(self, seconds=3):
        deadline = time.monotonic() + seconds
        while True:
            now = self._look()
            left = [f"{kind} {thing}" for kind in now for thing in sorted(now[kind] - self.before[kind])]
            if not left or time.monotonic() > deadline:
                assert not left, "left behind: " + "; ".join(left)
                return
            time.sleep(0.02)
