"""The local LeaderWorkerSet runner with programs that exist only here, as the image's."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from lws_runner import MOBULA, SEED, Runner, eventually

NAME = "deepseek-r1-671b-fp8-distrubution"
LEADER_ADDRESS = f"{NAME}-0.{NAME}.default"

DIGESTS = {
    "lws-standard.yaml": "d4d8dbbbfdc072c5",
    "lws-rdma.yaml": "cf912ff6532c1bfb",
    "service.yaml": "34ae2a0c866aa858",
    "chat-request.sh": "4bd2fb534db1401d",
}

RAY_INIT = r"""#!/bin/bash
printf 'argv:'; printf ' <%s>' "$0" "$@"; echo
env | sort | sed 's/^/env: /'
echo "host: $(hostname)"
if [ "$1" = worker ]; then
  trap 'echo terminated; exit 0' TERM
  while :; do sleep 1000 & wait $!; done
fi
"""

VLLM = r"""#!/usr/bin/python3
import http.server, os, signal, sys
print("argv:", *(f"<{a}>" for a in sys.argv), flush=True)
print("pid:", os.getpid(), flush=True)
def end(*_):
    print("terminated", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = os.uname().nodename.encode()
        ok = not (self.path == "/health" and os.path.exists("/tmp/sick"))
        self.send_response(200 if ok else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.mkdir()
    for name, text in (("ray_init.sh", RAY_INIT), ("vllm", VLLM)):
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}\n")
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def seed(image, model):
    """Starts the deployment document unchanged, its Service on a free port."""
    def start(*args, files=(SEED / "lws-standard.yaml", SEED / "service.yaml")):
        port = free_port()
        if "--grace" not in args:
            args = (*args, "--grace", "5")  # a program that was too slow to take its SIGTERM costs no 30 s
        runner = Runner(*files, image=image,
                        args=["--pvc", f"llm-model={model}", "--forward", f"ds-leader:8000={port}", *args])
        runner.port = port
        return runner
    return start


def ask(port, path="/", timeout=5):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as reply:
        return reply.read().decode()


def answers(port, path="/"):
    try:
        return ask(port, path)
    except OSError:
        return None


def refuses(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 111


def children(pid):
    """Ids of all processes below pid that still run."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
    found, todo = [], [pid]
    while todo:
        here = todo.pop()
        below = [p for p, parent in parents.items() if parent == here]
        found += below
        todo += below
    return found


def alive(pids):
    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"
    return [p for p in pids if state(p) not in ("Z", "gone")]


def test_deployment_documents_are_unchanged():
    digests = {name: hashlib.sha256((SEED / name).read_bytes()).hexdigest()[:16] for name in DIGESTS}
    assert digests == DIGESTS


def test_commands_and_environment(seed):
    with seed() as r:
        r.wait()
        leader = eventually(lambda: "pid:" in r.logs("0") and r.logs("0"))
        assert "argv: </vllm-workspace/ray_init.sh> <leader> <--ray_cluster_size=2>" in leader
        words = ("serve /models/DeepSeek-R1/ --port 8000 --trust-remote-code --served-model-name ds --max-model-len 2048 "
                 "--gpu-memory-utilization 0.95 --tensor-parallel-size 8 --pipeline-parallel-size 2 --enforce-eager")
        assert "argv: </usr/local/bin/vllm> " + " ".join(f"<{w}>" for w in words.split()) in leader
        assert "pid: 1" in leader  # bash as /bin/sh replaced itself by the last command
        worker = eventually(lambda: "host:" in r.logs("0-1") and r.logs("0-1"))
        assert f"argv: </vllm-workspace/ray_init.sh> <worker> <--ray_address={LEADER_ADDRESS}>" in worker
        for text, host, index in ((leader, f"{NAME}-0", 0), (worker, f"{NAME}-0-1", 1)):
            env = dict(line[5:].split("=", 1) for line in text.splitlines() if line.startswith("env: "))
            assert env["LWS_LEADER_ADDRESS"] == LEADER_ADDRESS
            assert env["LWS_GROUP_SIZE"] == "2"
            assert env["LWS_WORKER_INDEX"] == str(index)
            assert env["NCCL_SOCKET_IFNAME"] == "eth0"
            assert env["MOBULA_SIMULATED_GPUS"] == "8"
            assert "CUDA_VISIBLE_DEVICES" not in env
            assert env["PATH"].startswith("/usr/local/sbin:/usr/local/bin:")
            assert env["HOSTNAME"] == host and f"host: {host}" in text
        labels = r.pods()[f"{NAME}-0-1"]["labels"]
        prefix = "leaderworkerset.sigs.k8s.io/"
        assert labels[prefix + "name"] == NAME
        assert labels[prefix + "group-index"] == "0" and labels[prefix + "worker-index"] == "1"
        assert re.fullmatch("[0-9a-f]{40}", labels[prefix + "group-key"])
        assert labels[prefix + "group-key"] == r.pods()[f"{NAME}-0"]["labels"][prefix + "group-key"]
        assert r.pods()[f"{NAME}-0-1"]["annotations"][prefix + "leader-name"] == f"{NAME}-0"


def test_pod_isolation(seed, model):
    marker = f"/etc/mobula-lws-test-{os.getpid()}"
    with seed() as r:
        r.wait()

        def sh(pod, command):
            return r.run("exec", pod, "--", "sh", "-c", command).stdout.strip()
        ips = {name: pod["ip"] for name, pod in r.pods().items()}
        for suffix in ("", f".{NAME}", f".{NAME}.default", f".{NAME}.default.svc.cluster.local"):
            for name, ip in ips.items():
                assert sh("0-1", f"getent hosts {name}{suffix}").split()[0] == ip
        assert ips[f"{NAME}-0"] in sh("0", "ip -4 -br addr show eth0")
        assert sh("0", "ls -l /proc/1/exe >/dev/null && ps ax -o pid= | wc -l").isdigit()
        # Files: the host's are there, the pod's own writes are not on the host.
        sh("0", f"echo x >{marker} && rm /etc/passwd && echo t >/tmp/mine && echo s >/dev/shm/mine")
        assert not os.path.exists(marker) and os.path.exists("/etc/passwd") and not os.path.exists("/tmp/mine")
        assert sh("0-1", f"ls {marker} /tmp/mine /dev/shm/mine 2>/dev/null; true") == ""
        assert sh("0", "df --output=size -B1 /dev/shm | tail -1") == str(32 << 30)
        assert sh("0", "cat /models/DeepSeek-R1/config.json") == "{}"
        assert sh("0", "readlink /bin/sh") == "bash"
        (model / "later").write_text("shared")
        assert sh("0-1", "cat /models/DeepSeek-R1/later") == "shared"


def test_worker_death_recreates_the_group(seed):
    with seed() as r:
        r.wait()
        eventually(lambda: answers(r.port))
        before = r.pods()
        names = {n: p["ip"] for n, p in before.items()}
        start = time.monotonic()
        r.run("fault", "0-1", "kill")
        r.recreated(before)
        assert time.monotonic() - start < 2
        reasons = r.reasons()
        assert reasons.count("RecreateGroup") == 1
        messages = [e["message"] for e in r.status()["events"] if e["reason"] == "RecreateGroup"]
        assert messages == [f"Worker pod {NAME}-0-1 failed, deleted leader pod {NAME}-0 to recreate group 0"]
        after = r.pods()
        assert after.keys() == before.keys()
        assert all(after[n]["ip"] != ip for n, ip in names.items())  # same names, new addresses
        hosts = r.run("exec", "0-1", "--", "cat", "/etc/hosts").stdout
        assert all(p["ip"] in hosts for p in after.values()) and not any(ip + "\t" in hosts for ip in names.values())
        eventually(lambda: answers(r.port))
        assert "terminated" in r.logs("0", "--previous")  # the leader got its SIGTERM


def test_process_faults(seed):
    with seed() as r:
        r.wait()
        eventually(lambda: answers(r.port))
        before = r.pods()
        r.run("fault", "0", "kill", "--process", "vllm")
        r.recreated(before)
        eventually(lambda: answers(r.port))
        # Frozen: connections are taken by the kernel, nobody answers.
        r.run("fault", "0", "freeze")
        with pytest.raises(OSError):
            ask(r.port, timeout=0.3)
        assert r.pods()[f"{NAME}-0"]["status"] == "Frozen"
        r.run("fault", "0", "thaw")
        eventually(lambda: answers(r.port))
        done = r.run("fault", "0", "kill", "--process", "no such process", check=False)
        assert done.returncode == 1 and "no process of the pod" in done.stderr
        done = r.run("fault", "7", "kill", check=False)
        assert done.returncode == 1 and "there is no pod" in done.stderr
        done = r.run("fault", "0", "netem", "delay", "20ms", check=False)  # not every kernel has it
        assert done.returncode == 0 or "sch_netem" in done.stderr
        assert done.returncode == 1 or r.run("fault", "0", "netem", "off").returncode == 0
        done = r.run("fault", "0", "explode", check=False)
        assert done.returncode == 1 and "known are kill" in done.stderr


def test_sandbox_death(seed):
    """Everything of a pod dies at once, as when its node's runtime loses it."""
    with seed() as r:
        r.wait()
        eventually(lambda: answers(r.port))
        before = r.pods()
        os.kill(before[f"{NAME}-0-1"]["sandbox_pid"], signal.SIGKILL)
        r.recreated(before)
        assert "SandboxChanged" in r.reasons() and "RecreateGroup" in r.reasons()


def test_link_down(seed):
    connect = ("import socket,sys\ns=socket.socket()\ns.settimeout(0.3)\n"
               "try: s.connect((sys.argv[1],8000)); print('reached')\nexcept OSError as e: print(type(e).__name__)")
    with seed() as r:
        r.wait()
        eventually(lambda: answers(r.port))

        def reach():
            return r.run("exec", "0-1", "--", "/usr/bin/python3", "-c", connect, LEADER_ADDRESS).stdout.strip()
        assert reach() == "reached"
        r.run("fault", "0", "link-down")
        assert r.pods()[f"{NAME}-0"]["link_down"]
        assert reach() in ("TimeoutError", "timeout", "OSError")  # silence, not a refusal
        r.run("fault", "0", "link-up")
        eventually(lambda: reach() == "reached")


def test_deleted_pods(seed):
    with seed() as r:
        r.wait()
        for pod in ("0-1", "0"):
            eventually(lambda: answers(r.port))
            before = r.pods()
            r.run("fault", pod, "delete")
            r.recreated(before)
        assert r.reasons().count("RecreateGroup") == 1  # only a worker's deletion is LWS's matter


READINESS = """            readinessProbe:
              httpGet: {path: /health, port: 8000}
              periodSeconds: 1
              failureThreshold: 1
            ports:
"""


def test_service_and_readiness(seed, tmp_path):
    text = (SEED / "lws-standard.yaml").read_text()
    manifest = tmp_path / "lws.yaml"
    manifest.write_text(text.replace("            ports:\n", READINESS, 1))  # the leader's
    with seed("--replicas", "2", files=(manifest, SEED / "service.yaml")) as r:
        assert refuses(r.port)  # nobody is ready yet
        r.wait()
        counts = {}
        for _ in range(10):
            name = ask(r.port)
            counts[name] = counts.get(name, 0) + 1
        assert counts == {f"{NAME}-0": 5, f"{NAME}-1": 5}
        # A sick leader gets no new connections, and no restart either.
        r.run("exec", "0", "--", "touch", "/tmp/sick")
        eventually(lambda: not r.pods()[f"{NAME}-0"]["ready"])
        assert {ask(r.port) for _ in range(4)} == {f"{NAME}-1"}
        r.run("exec", "1", "--", "touch", "/tmp/sick")
        eventually(lambda: refuses(r.port))
        r.run("exec", "0", "--", "rm", "/tmp/sick")
        eventually(lambda: answers(r.port) == f"{NAME}-0")
        assert "Unhealthy" in r.reasons() and "RecreateGroup" not in r.reasons()


def test_service_inside_pods(seed):
    """Pods reach a Service under its name and address, with a local port or without."""
    fetch = "import urllib.request,sys;print(urllib.request.urlopen(f'http://{sys.argv[1]}:8000/',timeout=3).read().decode())"
    with seed("--replicas", "2") as r:
        r.wait()
        eventually(lambda: {answers(r.port) for _ in range(2)} == {f"{NAME}-0", f"{NAME}-1"})
        ip = r.status()["services"][0]["cluster_ip"]
        for host in ("ds-leader", "ds-leader.default.svc.cluster.local", ip):
            seen = {r.run("exec", "0-1", "--", "/usr/bin/python3", "-c", fetch, host).stdout.strip() for _ in range(2)}
            assert seen == {f"{NAME}-0", f"{NAME}-1"}


def test_large_answers_and_resets(seed, image):
    """The proxy passes everything on, and a pod's sudden end reaches its clients."""
    big = VLLM.replace("body = os.uname().nodename.encode()", "body = bytes(range(256)) * 65536 if self.path == '/big' else b'x'")
    big = big.replace("self.wfile.write(body)", "self.wfile.write(body if self.path != '/half' else b'')")
    (image / "vllm").write_text(big.replace("str(len(body))", "str(len(body) if self.path != '/half' else 1000)"))
    with seed() as r:
        r.wait()
        eventually(lambda: answers(r.port))
        with urllib.request.urlopen(f"http://127.0.0.1:{r.port}/big", timeout=20) as reply:
            assert reply.read() == bytes(range(256)) * 65536
        with socket.create_connection(("127.0.0.1", r.port), 5) as s:
            s.sendall(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in s.recv(4096)
            r.run("fault", "0", "kill")
            start = time.monotonic()
            try:
                while s.recv(4096):
                    pass
            except ConnectionResetError:
                pass
            assert time.monotonic() - start < 2


def test_logs(seed):
    with seed() as r:
        r.wait()
        eventually(lambda: "host:" in r.logs("0-1"))
        follower = subprocess.Popen([str(MOBULA), "lws", "logs", "0-1", "-f", "--state-dir", str(r.state)],
                                    stdout=subprocess.PIPE, text=True)
        before = r.pods()
        r.run("fault", "0-1", "kill")
        r.recreated(before)
        assert r.down() == 0
        text = follower.communicate(timeout=5)[0]
        assert text.count("argv:") >= 2 and "terminated" in text
        everything = r.logs("0-1", "--all")  # after the runner's end, too
        assert everything.count("--- mobula lws: container") == 3  # with the one that was only created
        done = r.run("logs", "9", check=False)
        assert done.returncode == 1 and "no log of a pod" in done.stderr


def test_scale(seed):
    with seed() as r:
        r.wait()
        before = r.pods()
        r.run("scale", "--replicas", 2)
        r.wait()
        assert set(r.pods()) == {f"{NAME}-{g}{w}" for g in (0, 1) for w in ("", "-1")}
        eventually(lambda: {answers(r.port) for _ in range(2)} == {f"{NAME}-0", f"{NAME}-1"})
        r.run("scale", NAME, "--replicas", 1)
        eventually(lambda: set(r.pods()) == set(before))
        assert {n: p["uid"] for n, p in r.pods().items()} == {n: p["uid"] for n, p in before.items()}
        assert answers(r.port) == f"{NAME}-0"
        done = r.run("scale", "other", "--replicas", 1, check=False)
        assert done.returncode == 1 and "there is no LeaderWorkerSet" in done.stderr


def leftovers():
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    return [line for line in links.splitlines() if "mob" in line] + \
           [line for line in Path("/proc/self/mounts").read_text().splitlines() if "lws-" in line]


@pytest.mark.parametrize("how", ["down", "SIGTERM", "SIGINT", "SIGKILL"])
def test_nothing_is_left(seed, how):
    with seed() as r:
        r.wait()
        eventually(lambda: answers(r.port))
        below = children(r.process.pid)
        assert len(below) >= 4
        if how == "down":
            assert r.down() == 0
        else:
            r.process.send_signal(getattr(signal, how))
            code = r.process.wait(10)
            assert code == (-9 if how == "SIGKILL" else 0)
        eventually(lambda: not alive(below), 5, "the end of all processes")
        assert leftovers() == []
        assert refuses(r.port)
        if how != "SIGKILL":
            assert sorted(p.name for p in r.state.iterdir()) == ["logs"]
            assert "terminated" in (r.state / "logs" / f"{NAME}-0-1.log").read_text()
        status = r.run("status", check=False)
        assert status.returncode == 1 and "no runner answers" in status.stderr


def test_second_signal_does_not_wait(seed):
    with seed("--sh", "dash", "--grace", "60") as r:  # SIGTERM reaches nobody: only the grace period or a second signal ends it
        r.wait()
        r.process.send_signal(signal.SIGINT)
        eventually(lambda: "Terminating" in {p["status"] for p in r.pods().values()})
        r.process.send_signal(signal.SIGINT)
        assert r.process.wait(5) == 0


def test_dash_costs_the_grace_period(seed):
    with seed("--sh", "dash", "--grace", "1") as r:
        r.wait()
        assert "pid: 1" not in eventually(lambda: "pid:" in r.logs("0") and r.logs("0"))
        start = time.monotonic()
        assert r.down() == 0
        assert 0.9 < time.monotonic() - start < 5
    with seed("--grace", "20") as r:  # bash replaced itself: the programs get the signal
        r.wait()
        eventually(lambda: answers(r.port))
        start = time.monotonic()
        assert r.down() == 0
        assert time.monotonic() - start < 5


def test_ghost_restart(seed):
    """With a cluster's delay the restarted container runs before its group is recreated."""
    with seed("--lws-delay", "0.5", "--grace", "2") as r:
        r.wait()
        before = r.pods()
        r.run("fault", "0-1", "kill")
        eventually(lambda: r.pods()[f"{NAME}-0-1"]["restarts"] == 1)
        assert r.pods()[f"{NAME}-0-1"]["uid"] == before[f"{NAME}-0-1"]["uid"]
        r.recreated(before)
        log = r.logs("0-1", "--all")
        assert log.count("argv: </vllm-workspace/ray_init.sh> <worker>") == 3
        assert log.count("pod uid " + before[f"{NAME}-0-1"]["uid"]) == 2  # two starts of the first pod


SMALL = """apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: small}
spec:
  startupPolicy: LeaderReady
  leaderWorkerTemplate:
    size: 2
    restartPolicy: None
    workerTemplate:
      spec:
        initContainers:
          - {name: before, image: x, command: [sh, -c, "echo first >/work/order"],
             volumeMounts: [{name: work, mountPath: /work}]}
        containers:
          - name: main
            image: x
            command: [sh, -c, "cat /work/order /etc/conf/key; echo $(MY_NAME) $(MY_IP) $(SECRET) '$$(LITERAL)'; $(RUN)"]
            env:
              - {name: MY_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
              - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
              - {name: SECRET, valueFrom: {secretKeyRef: {name: sec, key: word}}}
              - {name: LWS_GROUP_SIZE, value: "99"}
              - {name: RUN, value: "echo size $(LWS_GROUP_SIZE); exec sleep 1000"}
            readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
            livenessProbe: {exec: {command: [test, "!", -e, /tmp/dead]}, periodSeconds: 1, failureThreshold: 1}
            lifecycle: {preStop: {exec: {command: [sh, -c, "echo stopped >/work/stopped"]}}}
            volumeMounts:
              - {name: work, mountPath: /work}
              - {name: conf, mountPath: /etc/conf}
        volumes:
          - {name: work, emptyDir: {}}
          - {name: conf, configMap: {name: conf}}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {word: hush}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: "configured\\n"}
"""


def test_pod_features(image, tmp_path):
    """Init containers, exec probes, a preStop hook, Secrets, ConfigMaps, fields, LeaderReady, restartPolicy None."""
    manifest = tmp_path / "small.yaml"
    manifest.write_text(SMALL)
    with Runner(manifest, image=image, args=["--grace", "1"]) as r:
        eventually(lambda: "size" in r.logs("small-0") if "small-0" in r.pods() else False)
        ip = r.pods()["small-0"]["ip"]
        assert r.logs("small-0").splitlines() == ["first", "configured", f"small-0 {ip} hush $(LITERAL)", "size 2"]
        assert "small-0-1" not in r.pods()  # the leader is not ready
        r.run("exec", "small-0", "--", "touch", "/tmp/ready")
        eventually(lambda: "small-0-1" in r.pods())
        eventually(lambda: r.pods()["small-0-1"]["status"] == "Running")
        # The liveness probe: hook, SIGTERM (which sleep as PID 1 does not get), grace, SIGKILL, restart in place.
        uid = r.pods()["small-0"]["uid"]
        r.run("exec", "small-0", "--", "touch", "/tmp/dead")
        eventually(lambda: r.pods()["small-0"]["restarts"] == 1, 15)
        assert r.pods()["small-0"]["uid"] == uid
        eventually(lambda: r.pods()["small-0"]["status"] == "Running")
        work = r.run("exec", "small-0", "--", "sh", "-c", "cat /work/stopped; ls /tmp").stdout
        assert work == "stopped\n"  # volumes outlive a container, its own files do not
        # The next end comes too soon for another start at once.
        r.run("fault", "small-0", "kill")
        eventually(lambda: r.pods()["small-0"]["status"] == "CrashLoopBackOff")
        assert "RecreateGroup" not in r.reasons()


def test_failing_command_does_not_spin(image, tmp_path):
    manifest = tmp_path / "bad.yaml"
    manifest.write_text("""apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: bad}
spec:
  leaderWorkerTemplate:
    workerTemplate:
      spec:
        containers: [{name: c, image: x, command: [no-such-program]}]
""")
    with Runner(manifest, image=image) as r:
        eventually(lambda: r.reasons().count("RecreateGroup") >= 2)
        assert 'cannot run "no-such-program": No such file or directory' in r.logs("bad-0", "--all")
        first = [e["time_ms"] for e in r.status()["events"] if e["reason"] == "RecreateGroup"]
        eventually(lambda: r.reasons().count("RecreateGroup") >= 3)
        times = [e["time_ms"] for e in r.status()["events"] if e["reason"] == "RecreateGroup"]
        assert times[2] - times[1] >= 900 and first


def test_user_namespace(image, model, tmp_path):
    """The same pods without root."""
    if os.geteuid() == 0:
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run([*prefix, "unshare", "-Urn", "true"], capture_output=True).returncode != 0:
            pytest.skip("no user namespaces for others than root here")
        for path in (tmp_path, *tmp_path.parents):
            if not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
    else:
        prefix = []
    port = free_port()
    state = Path(f"/tmp/lws-user-{os.getpid()}")
    common = [str(MOBULA), "lws"]
    if subprocess.run([*prefix, *common, "--help"], capture_output=True).returncode != 0:
        pytest.skip("the build folder is not readable to others")
    up = [*prefix, *common, "up", SEED / "lws-standard.yaml", SEED / "service.yaml", "--image-dir", image, "--pvc",
          f"llm-model={model}", "--forward", f"ds-leader:8000={port}", "--state-dir", state, "--network", "userns", "--detach"]
    try:
        done = subprocess.run([str(w) for w in up], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stdout + done.stderr
        wait = subprocess.run([*common, "status", "--wait=10", "--state-dir", state], capture_output=True, text=True)
        assert wait.returncode == 0 and "userns mode" in wait.stdout, wait.stdout + wait.stderr
        assert eventually(lambda: answers(port)) == f"{NAME}-0"
    finally:
        subprocess.run([*common, "down", "--now", "--state-dir", state], capture_output=True)
        subprocess.run(["rm", "-rf", state])


def cgroup_dirs():
    return [p for p in Path("/sys/fs/cgroup").glob("*/mobula-lws-*")] + list(Path("/sys/fs/cgroup").glob("mobula-lws-*"))


def test_cpu_share(seed):
    try:
        runner = seed("--cpu-per-pod", "0.5")
    except AssertionError as error:
        assert "--cpu-per-pod" in str(error)  # the cause is named
        pytest.skip("this machine cannot limit CPU")
    with runner as r:
        r.wait()
        quotas = [f.read_text().split()[0] for d in cgroup_dirs() for f in
                  (*d.glob("*/cpu.cfs_quota_us"), *d.glob("*/cpu.max"))]
        assert quotas == ["50000", "50000"]
        r.down()
    assert cgroup_dirs() == []


@pytest.mark.parametrize("args, code, message", [
    (["up"], 2, "needs a manifest"),
    (["up", "--replica", "2", "x.yaml"], 2, "did you mean --replicas?"),
    (["up", "no-such.yaml"], 1, "no-such.yaml: No such file"),
    (["up", SEED / "lws-standard.yaml"], 1, "add --pvc llm-model=DIR"),
    (["up", SEED / "service.yaml"], 1, "no LeaderWorkerSet"),
    (["up", SEED / "chat-request.sh"], 1, "error"),
    (["nonsense"], 2, 'unknown command "nonsense"'),
    (["scale"], 2, "needs --replicas N"),
    (["status", "--state-dir", "/nowhere"], 1, "no runner answers"),
])
def test_wrong_usage(args, code, message):
    done = subprocess.run([str(MOBULA), "lws", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == code
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["", "up", "status", "logs", "scale", "fault", "exec", "down"])
def test_help(command):
    done = subprocess.run([str(MOBULA), "lws", *filter(None, [command]), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: mobula lws")


def test_two_runners_do_not_share_a_state(seed, image, model):
    with seed() as r:
        done = subprocess.run([str(MOBULA), "lws", "up", str(SEED / "lws-standard.yaml"), "--image-dir", str(image), "--pvc",
                               f"llm-model={model}", "--state-dir", str(r.state)], capture_output=True, text=True)
        assert done.returncode == 1 and "uses" in done.stderr and str(r.process.pid) in done.stderr
        r.wait()


def test_ports_belong_to_one_runner(seed, image, model, tmp_path):
    """Also while the first one's port refuses."""
    text = (SEED / "lws-standard.yaml").read_text()
    manifest = tmp_path / "lws.yaml"
    manifest.write_text(text.replace("            ports:\n", READINESS.replace("/health", "/never").replace("8000", "9"), 1))
    with seed(files=(manifest, SEED / "service.yaml")) as r:
        assert refuses(r.port)
        command = [MOBULA, "lws", "up", SEED / "lws-standard.yaml", SEED / "service.yaml", "--image-dir", image, "--pvc",
                   f"llm-model={model}", "--forward", f"ds-leader:8000={r.port}", "--state-dir", tmp_path / "second"]
        done = subprocess.run([str(w) for w in command], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and f"port {r.port} of localhost" in done.stderr and "--forward" in done.stderr
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        command[command.index(f"ds-leader:8000={r.port}")] = f"ds-leader:8000={s.getsockname()[1]}"
        done = subprocess.run([str(w) for w in command], capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and "Address already in use" in done.stderr


LOOPBACK = """apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: lo}
spec:
  leaderWorkerTemplate:
    size: 2
    workerTemplate:
      spec:
        containers:
          - name: main
            image: x
            command: [sh, -c, "echo $(LWS_LEADER_ADDRESS) $MOBULA_BIND_ADDRESS; sleep 1000 & sleep 1000"]
"""


def test_loopback(image, tmp_path):
    """Without any namespace: an address of 127/8 for each pod, and still no process outlives its pod."""
    if os.geteuid() != 0 or Path("/vllm-workspace").exists():
        pytest.skip("may not make links in /vllm-workspace")
    manifest = tmp_path / "lo.yaml"
    manifest.write_text(LOOPBACK)
    with Runner(manifest, image=image, args=["--network", "loopback", "--grace", "1"]) as r:
        r.wait()
        pods = r.pods()
        assert all(p["ip"].startswith("127.83.") for p in pods.values())
        for name in ("lo-0", "lo-0-1"):
            line = eventually(lambda: r.logs(name))
            assert line == f"{pods['lo-0']['ip']} {pods[name]['ip']}\n"

        def processes():
            sandboxes = [p["sandbox_pid"] for p in r.pods().values()]
            return sandboxes + [c for s in sandboxes for c in children(s)]
        below = eventually(lambda: (p := processes()) and len(p) >= 6 and p)
        done = r.run("fault", "0", "link-down", check=False)
        assert done.returncode == 1 and "loopback mode" in done.stderr
        r.run("fault", "0-1", "kill")
        r.recreated(pods)
        eventually(lambda: not alive(below))
        below = children(r.process.pid)
        assert Path("/vllm-workspace/ray_init.sh").exists()
        r.process.send_signal(signal.SIGKILL)
        r.process.wait()
        eventually(lambda: not alive(below), 5, "the end of all processes")
        assert leftovers() == [] and not Path("/vllm-workspace/ray_init.sh").exists()
