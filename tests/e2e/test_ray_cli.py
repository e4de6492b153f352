"""ray_init.sh and the `ray` commands, as a pod and a user run them: two nodes on loopback addresses."""

import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

BIN = os.environ.get("MOB_BIN_DIR", "build/release/bin")
READY = "All ray workers are active and the ray cluster is initialized successfully."
SLOW = 5 if os.environ.get("MOB_SLOW_TESTS") else 1  # for sanitizer builds


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def stat_fields(pid):
    """State and parent of a process; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return None


def alive(pid):
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def until(condition, seconds=10.0, what="condition"):
    end = time.monotonic() + seconds * SLOW
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f"{what}: not within {seconds} s")


class Machine:
    """A temporary folder per pod, and what was started; everything is gone afterwards."""

    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="mob_ray_cli_")
        self.port = free_port()
        self.started = []
        self.logs = 0

    def env(self, pod, **more):
        env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "VLLM_HOST_IP", "NCCL_SOCKET_IFNAME")}
        folder = os.path.join(self.root, pod)
        os.makedirs(folder, exist_ok=True)
        env["RAY_TMPDIR"] = folder
        env.update(more)
        return env

    def run(self, pod, *command, timeout=60, **env):
        """Runs to the end. A daemon left behind holds stderr, so output goes to files."""
        self.logs += 1
        out, err = (os.path.join(self.root, f"{self.logs}.{n}") for n in ("out", "err"))
        with open(out, "w") as o, open(err, "w") as e:
            done = subprocess.run([os.path.join(BIN, command[0]), *command[1:]], stdin=subprocess.DEVNULL, stdout=o,
                                  stderr=e, env=self.env(pod, **env), timeout=timeout)
        with open(out) as o, open(err) as e:
            done.stdout, done.stderr = o.read(), e.read()
        return done

    def start(self, pod, *command, prefix=(), **env):
        self.logs += 1
        log = os.path.join(self.root, f"{self.logs}.log")
        with open(log, "w") as o:
            process = subprocess.Popen([*prefix, os.path.join(BIN, command[0]), *command[1:]], stdin=subprocess.DEVNULL,
                                       stdout=o, stderr=subprocess.STDOUT, env=self.env(pod, **env))
        process.text = lambda: open(log).read()
        self.started.append(process)
        return process

    def leader(self, size, *more, pod="leader", ip="127.0.0.1", **kw):
        return self.run(pod, "ray_init.sh", "leader", f"--ray_cluster_size={size}", f"--ray_port={self.port}",
                        f"--node-ip-address={ip}", "--num-gpus=8", "--num-cpus=4", *more, **kw)

    def worker(self, n, *more, **kw):
        return self.start(f"worker{n}", "ray_init.sh", "worker", "--ray_address=127.0.0.1", f"--ray_port={self.port}",
                          f"--node-ip-address=127.0.0.{n + 1}", "--num-gpus=8", "--num-cpus=4", *more, **kw)

    def head_pids(self):
        pids = []
        for path in glob.glob(f"{self.root}/*/ray/session_2*/nodes/*.json"):
            with open(path) as f:
                record = json.load(f)
            if record["head"]:
                pids.append(record["pid"])
        return pids

    def end(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pid in self.head_pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
                until(lambda: not alive(pid), what="end of a head")
        shutil.rmtree(self.root)


@pytest.fixture
def machine():
    m = Machine()
    yield m
    m.end()


def nodes(machine, *more):
    done = machine.run("leader", "ray", "list", "nodes", "--format=json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_group_comes_up_and_goes(machine):
    begin = time.monotonic()
    worker = machine.worker(1)
    leader = machine.leader(2)
    took = time.monotonic() - begin
    assert leader.returncode == 0, leader.stdout + leader.stderr
    print(f"both pods' start to ready: {took * 1000:.0f} ms")
    assert took < 2 * SLOW  # the goal is 0.2 s; this only guards against the seconds of a poll
    lines = leader.stdout.splitlines()
    assert lines[-1] == READY
    assert "Ray runtime started." in leader.stdout
    assert f"ray start --address='127.0.0.1:{machine.port}'" in leader.stdout
    until(lambda: f"Worker: Ray runtime started with head address 127.0.0.1:{machine.port}" in worker.text())

    assert machine.run("leader", "ray", "health-check").returncode == 0
    with open(f"{machine.root}/leader/ray/ray_current_cluster") as f:
        assert f.read() == f"127.0.0.1:{machine.port}"
    listed = nodes(machine)
    assert [n["state"] for n in listed] == ["ALIVE", "ALIVE"]
    assert sorted((n["node_ip"], n["is_head_node"]) for n in listed) == [("127.0.0.1", True), ("127.0.0.2", False)]

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5 * SLOW) == 0
    states = {n["node_ip"]: n["state"] for n in nodes(machine)}
    assert states == {"127.0.0.1": "ALIVE", "127.0.0.2": "DEAD"}
    head = machine.head_pids()
    assert len(head) == 1
    stop = machine.run("leader", "ray", "stop")
    assert stop.returncode == 0 and "Stopped all 1 Ray processes." in stop.stdout
    assert not alive(head[0])
    assert not os.path.exists(f"{machine.root}/leader/ray/ray_current_cluster")
    assert "Did not find any active Ray processes." in machine.run("leader", "ray", "stop").stdout


def test_worker_waits_for_its_leader(machine):
    worker = machine.worker(1)
    until(lambda: "Waiting until the ray worker is active..." in worker.text())
    time.sleep(1.0)  # several failed tries, with their back-off
    begin = time.monotonic()
    assert machine.leader(2).returncode == 0
    print(f"leader after a late start: {(time.monotonic() - begin) * 1000:.0f} ms")
    assert time.monotonic() - begin < 3 * SLOW


def test_extra_nodes_do_not_block(machine):
    machine.run("leader", "ray", "start", "--head", f"--port={machine.port}", "--node-ip-address=127.0.0.1")
    a, b = machine.worker(1), machine.worker(2)
    for w in (a, b):
        until(lambda: "Ray runtime started with head" in w.text())
    again = machine.leader(2)  # three nodes, and a head that runs already
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.splitlines()[-1] == READY
    a.kill()
    until(lambda: [n["state"] for n in nodes(machine)].count("DEAD") == 1)
    assert machine.leader(2).returncode == 0


@pytest.mark.parametrize("how", ["kill", "stop", "term"])
def test_worker_ends_with_its_head(machine, how):
    worker = machine.worker(1)
    assert machine.leader(2).returncode == 0
    (head,) = machine.head_pids()
    begin = time.monotonic()
    os.kill(head, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[how])
    limit = 5.5 if how == "stop" else 1.0
    assert worker.wait(limit + 4 * SLOW) == 1
    took = time.monotonic() - begin
    print(f"head {how}: worker exited after {took * 1000:.0f} ms")
    assert took < limit * SLOW
    assert "is gone" in worker.text()
    if how == "stop":
        os.kill(head, signal.SIGKILL)


def test_dead_worker_is_known_at_once(machine):
    worker = machine.worker(1)
    assert machine.leader(2).returncode == 0
    worker.kill()
    begin = time.monotonic()
    until(lambda: "DEAD" in [n["state"] for n in nodes(machine)], what="DEAD")
    took = time.monotonic() - begin
    print(f"worker daemon killed: DEAD in `ray list nodes` after {took * 1000:.0f} ms")
    assert took < 0.5 * SLOW  # most of it is the command's own start


def test_timeouts(machine):
    begin = time.monotonic()
    leader = machine.leader(2, "--ray_init_timeout=1")
    assert leader.returncode == 1
    assert 0.9 < time.monotonic() - begin < 2.5 * SLOW
    assert "Wait for all ray workers to be active. 1/2 is active" in leader.stdout
    assert leader.stdout.splitlines()[-1] == "Waiting for all ray workers to be active timed out."
    begin = time.monotonic()
    lost = machine.start("w", "ray_init.sh", "worker", "--ray_address=127.0.0.1", f"--ray_port={free_port()}",
                         "--ray_init_timeout=1")
    assert lost.wait(5 * SLOW) == 1
    assert 0.9 < time.monotonic() - begin < 2.5 * SLOW
    assert "Ray worker starts timeout, head address: 127.0.0.1:" in lost.text()


def test_unknown_host_is_tried_until_the_timeout(machine):
    lost = machine.start("w", "ray_init.sh", "worker", "--ray_address=no-such-host.invalid", "--ray_init_timeout=1")
    assert lost.wait(15 * SLOW) == 1
    assert "Ray worker starts timeout, head address: no-such-host.invalid:6379" in lost.text()


@pytest.mark.parametrize("args, code, text", [
    (["ray_init.sh"], 1, "unknown subcommand: "),
    (["ray_init.sh", "chief"], 1, "unknown subcommand: chief"),
    (["ray_init.sh", "leader"], 1, "Error: Missing argument --ray_cluster_size"),
    (["ray_init.sh", "worker"], 1, "Error: Missing argument --ray_address"),
    (["ray_init.sh", "leader", "--ray_cluster_size=two"], 1, "--ray_cluster_size must be a whole number"),
    (["ray_init.sh", "leader", "--ray_cluster_size=1", "--no-such-flag"], 1, "No such option: --no-such-flag"),
    (["ray", "start"], 1, "`--address` must be set"),
    (["ray", "start", "--address=127.0.0.1"], 1, "has no port"),
    (["ray", "start", "--address=a:1", "--port=3"], 1, "`--port` should not be specified without `--head`."),
    (["ray", "start", "--hed"], 2, "No such option: --hed Did you mean --head?"),
    (["ray", "start", "--head", "--port=x"], 2, "'x' is not a valid integer"),
    (["ray", "start", "--head", "--node-ip-address=192.0.2.1"], 1, "which no interface of this machine has"),
    (["ray", "frob"], 2, "No such command 'frob'"),
    (["ray", "status"], 1, "ConnectionError: Could not find any running Ray instance."),
    (["ray", "list", "nodes"], 1, "ConnectionError: Could not find any running Ray instance."),
    (["ray", "list", "cats"], 2, "lists nodes, actors and placement-groups"),
    (["mobula", "frob"], 2, "unknown command 'frob'"),
])
def test_bad_arguments(machine, args, code, text):
    done = machine.run("leader", *args)
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout + done.stderr


def test_unreachable_head(machine):
    begin = time.monotonic()
    for command in ("status", "health-check"):
        done = machine.run("leader", "ray", command, f"--address=127.0.0.1:{machine.port}")
        assert done.returncode == 1
        assert "Timed out while waiting for GCS to become available" in done.stderr
    assert time.monotonic() - begin < 14 * SLOW


@pytest.mark.parametrize("name", ["ray_init.sh", "multi-node-serving.sh"])
def test_scripts_run_under_bash(machine, name):
    done = subprocess.run(["bash", os.path.join(BIN, name), "leader"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "Error: Missing argument --ray_cluster_size\n")
    # A copy elsewhere finds the program on PATH.
    copy = shutil.copy(os.path.join(BIN, name), machine.root)
    env = dict(os.environ, PATH=os.path.abspath(BIN) + ":" + os.environ["PATH"])
    done = subprocess.run(["bash", copy, "worker"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (1, "Error: Missing argument --ray_address\n")


def test_second_head_on_the_same_port(machine):
    start = ["ray", "start", "--head", f"--port={machine.port}", "--node-ip-address=127.0.0.1"]
    assert machine.run("leader", *start).returncode == 0
    second = machine.run("other", *start)
    assert second.returncode == 1
    assert f"ConnectionError: Ray is trying to start at 127.0.0.1:{machine.port}, but is already running" in second.stderr


def test_two_clusters_do_not_disturb_each_other(machine):
    for pod in ("one", "two"):
        done = machine.run(pod, "ray", "start", "--head", "--port=0", "--node-ip-address=127.0.0.1")
        assert done.returncode == 0, done.stderr
    one, two = (open(f"{machine.root}/{pod}/ray/ray_current_cluster").read() for pod in ("one", "two"))
    assert one != two
    assert machine.run("one", "ray", "stop", "--force").returncode == 0
    assert machine.run("two", "ray", "health-check").returncode == 0
    assert machine.run("one", "ray", "health-check", f"--address={one}").returncode == 1
    machine.run("two", "ray", "stop")


def test_block_stays_until_the_signal(machine):
    head = machine.start("leader", "ray", "start", "--head", "--block", f"--port={machine.port}",
                         "--node-ip-address=127.0.0.1", "--dashboard-host=0.0.0.0")
    until(lambda: "This command will now block forever until terminated by a signal." in head.text())
    assert "Accepted without effect, since nothing here has what they set: --dashboard-host" in head.text()
    assert machine.run("leader", "ray", "health-check").returncode == 0
    head.send_signal(signal.SIGINT)
    assert head.wait(5 * SLOW) == 0


def test_listings(machine):
    assert machine.leader(1, "--labels=zone=a", '--resources={"disk": 3}').returncode == 0
    table = machine.run("leader", "ray", "list", "nodes").stdout
    assert re.match(r"\n======== List: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} ========\nStats:\n-{30}\nTotal: 1\n\n"
                    r"Table:\n-{30}\n    NODE_ID {51}NODE_IP    IS_HEAD_NODE    STATE    STATE_MESSAGE    NODE_NAME    "
                    r"RESOURCES_TOTAL +LABELS\n 0  [0-9a-f]{56}  127\.0\.0\.1  True            ALIVE +127\.0\.0\.1    "
                    r"CPU: 4\.0 +ray\.io/node-id: [0-9a-f]{56}\n", table), table
    yaml = machine.run("leader", "ray", "list", "nodes", "--format", "yaml").stdout
    assert yaml.startswith("---\n-   node_id: ") and yaml.endswith("...\n\n")
    assert "    resources_total:\n        CPU: 4.0\n        GPU: 8.0\n        disk: 3.0\n" in yaml
    (node,) = nodes(machine, "--filter", "state=ALIVE", "--filter", "node_ip!=10.0.0.1")
    assert node["labels"]["zone"] == "a" and node["resources_total"]["node:127.0.0.1"] == 1.0
    assert nodes(machine, "--filter=state=DEAD") == []
    assert machine.run("leader", "ray", "list", "actors").stdout == "No resource in the cluster\n"
    assert machine.run("leader", "ray", "list", "placement-groups").stdout == "No resource in the cluster\n"
    assert machine.run("leader", "ray", "list", "nodes", "--filter=colour=red").returncode == 1


def test_status_layout(machine):
    assert machine.leader(1).returncode == 0
    text = machine.run("leader", "ray", "status").stdout
    assert re.fullmatch(
        r"======== Autoscaler status: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} ========\nNode status\n-{63}\nActive:\n"
        r" 1 node_[0-9a-f]{56}\nPending:\n \(no pending nodes\)\nRecent failures:\n \(no failures\)\n\nResources\n-{63}\n"
        r"Total Usage:\n 0\.0/4\.0 CPU\n 0\.0/8\.0 GPU\n 0B/[0-9.]+[GTM]iB memory\n 0B/[0-9.]+[GTM]iB object_store_memory\n"
        r"\nFrom request_resources:\n \(none\)\nPending Demands:\n \(no resource demands\)\n", text), text
    verbose = machine.run("leader", "ray", "status", "-v").stdout
    assert re.search(r"\n\nNode: [0-9a-f]{56} \(node_[0-9a-f]{56}\)\n Usage:\n  0\.0/4\.0 CPU\n", verbose), verbose


@pytest.fixture
def busy(machine):
    """Two nodes, a placement group with an actor in each bundle, and a group that does not fit."""
    tests = os.path.join(os.path.dirname(os.path.abspath(BIN)), "tests")
    if not os.path.exists(f"{tests}/actor_driver"):
        pytest.skip("the tests' own programs are not built")
    machine.worker(1)
    assert machine.leader(2).returncode == 0
    log = os.path.join(machine.root, "driver.log")
    with open(log, "w") as o:
        driver = subprocess.Popen([f"{tests}/actor_driver", f"127.0.0.1:{machine.port}", f"{tests}/actor_echo.so"],
                                  stdin=subprocess.PIPE, stdout=o, stderr=subprocess.STDOUT)
    driver.text = lambda: open(log).read()
    machine.started.append(driver)
    until(lambda: "READY" in driver.text(), what="actors")
    return driver


def test_listings_of_a_busy_cluster(machine, busy):
    hex_ = "[0-9a-f]"
    table = machine.run("leader", "ray", "list", "actors").stdout
    assert re.search(r"Total: 2\n\nTable:\n-{30}\n    ACTOR_ID {26}CLASS_NAME    STATE      JOB_ID  NAME    NODE_ID {47} +PID  "
                     r"RAY_NAMESPACE\n 0  " + hex_ + r"{24}01000000  Echo          ALIVE    01000000  stage\d  " + hex_ +
                     r"{56} +\d+  demo\n", table), table
    table = machine.run("leader", "ray", "list", "placement-groups").stdout
    assert re.search(r"    PLACEMENT_GROUP_ID {20}NAME        CREATOR_JOB_ID  STATE\n", table), table
    assert re.search(hex_ + r"{28}01000000  too_much          01000000  PENDING\n", table), table
    assert re.search(hex_ + r"{28}01000000  stages            01000000  CREATED\n", table), table
    limited = machine.run("leader", "ray", "list", "actors", "--detail", "--limit", "1")
    assert limited.stdout.startswith("---\n-   actor_id: ")
    assert "    job_id: '01000000'\n" in limited.stdout and "    is_detached: true\n" in limited.stdout
    assert re.search(r"        GPU_group_\d_" + hex_ + r"{28}01000000: 8\.0\n", limited.stdout), limited.stdout
    assert "Limit last 1 entries (Total 2)" in limited.stderr


def test_status_of_a_busy_cluster(machine, busy):
    def text():
        out = machine.run("leader", "ray", "status").stdout
        return out if "pending placement groups" in out else None

    out = until(text)
    assert (" 2.0/8.0 CPU (2.0 used of 2.0 reserved in placement groups)\n"
            " 16.0/16.0 GPU (16.0 used of 16.0 reserved in placement groups)\n") in out, out
    assert out.endswith("Pending Demands:\n {'GPU': 4.0} * 1 (PACK): 1+ pending placement groups\n"), out


def test_actors_die_with_their_node(machine, busy):
    rows = json.loads(machine.run("leader", "ray", "list", "actors", "--format=json").stdout)
    pids = [row["pid"] for row in rows]
    assert all(alive(pid) for pid in pids)
    assert "Stopped all 2 Ray processes." in machine.run("leader", "ray", "stop").stdout  # the daemon and its actor
    for pid in pids:
        until(lambda: not alive(pid), 2, "end of an actor")


def test_actor_output_reaches_the_pod(machine, busy):
    worker = machine.started[0]
    until(lambda: re.search(r"^\(Echo pid=\d+\) hello from stage\d$", worker.text(), re.M), what="the actor's line")


def test_leader_tells_that_its_head_ended(machine):
    process = machine.start("leader", "ray_init.sh", "leader", "--ray_cluster_size=2", f"--ray_port={machine.port}",
                            "--node-ip-address=127.0.0.1")
    until(lambda: "1/2 is active" in process.text())
    (head,) = machine.head_pids()
    os.kill(head, signal.SIGKILL)
    assert process.wait(5 * SLOW) == 1
    assert "The head ended while its workers were awaited" in process.text()


def test_folder_that_cannot_be_written(machine):
    done = machine.run("leader", "ray", "start", "--head", "--port=0", "--temp-dir=/proc/none")
    assert done.returncode == 1 and "/proc/none" in done.stderr, done.stderr


def test_env_chooses_the_address(machine):
    done = machine.run("leader", "ray", "start", "--head", f"--port={machine.port}", VLLM_HOST_IP="127.0.0.7")
    assert done.returncode == 0 and "Local node IP: 127.0.0.7" in done.stdout, done.stderr
    machine.run("leader", "ray", "stop")
    done = machine.run("leader", "ray", "start", "--head", f"--port={machine.port}", NCCL_SOCKET_IFNAME="=lo")
    assert done.returncode == 0 and "Local node IP: 127.0.0.1" in done.stdout, done.stderr


def test_simulated_gpus(machine):
    done = machine.run("leader", "ray", "start", "--head", f"--port={machine.port}", "--node-ip-address=127.0.0.1",
                       MOBULA_SIMULATED_GPUS="5")
    assert done.returncode == 0
    assert nodes(machine)[0]["resources_total"]["GPU"] == 5.0


def test_worker_as_pid_1(machine):
    prefix = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("no user and PID namespaces here")
    script = ("(sleep 0.3 &); exec {b}/ray_init.sh worker --ray_address=127.0.0.1 --ray_port={p} "
              "--node-ip-address=127.0.0.2").format(b=os.path.abspath(BIN), p=machine.port)
    log = os.path.join(machine.root, "pid1.log")
    with open(log, "w") as o:
        outer = subprocess.Popen([*prefix, "bash", "-c", script], stdin=subprocess.DEVNULL, stdout=o,
                                 stderr=subprocess.STDOUT, env=machine.env("worker1"))
    outer.text = lambda: open(log).read()
    machine.started.append(outer)
    assert machine.leader(2).returncode == 0
    children = lambda parent: [int(p) for p in os.listdir("/proc")
                               if p.isdigit() and (stat_fields(p) or ["", ""])[1] == str(parent)]
    (daemon,) = children(outer.pid)
    until(lambda: not children(daemon), what="the orphan is reaped")
    os.kill(daemon, signal.SIGTERM)
    assert outer.wait(5 * SLOW) == 0
    assert [n["state"] for n in nodes(machine, "--filter=node_ip=127.0.0.2")] == ["DEAD"]


def test_daemon_logs_reach_the_pod(machine):
    leader = machine.leader(1)
    assert leader.returncode == 0
    assert re.search(r"INFO  node: node [0-9a-f]{56} is up at 127\.0\.0\.1:\d+", leader.stderr)
    (log,) = glob.glob(f"{machine.root}/leader/ray/session_latest/logs/node-*.log")
    assert "is up at 127.0.0.1" in open(log).read()
