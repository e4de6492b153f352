"""GPUs through NVML (a double of its library), in the cluster, in /metrics and in `mobula status`."""

import json
import os
import re
import signal
import subprocess
import threading
import time

import httpx
import pytest

from api_server import BIN, MODEL, Server, clean_env, eventually, free_port

DOUBLE = (BIN / ".." / "tests" / "nvml_double.so").resolve()
CARD = "name=NVIDIA_H200 memory=150754820096 used=40000000000 busy=73 membusy=40 sm=1980 memclock=2619 power=612000 limit=700000 temp=61"


def cards(count, traffic=0, more=""):
    return "".join(f"gpu uuid=GPU-{i}{i} {CARD} nvtx={traffic} nvrx={2 * traffic} pcietx=1 pcierx=2 {more}\n" for i in range(count))


class Group:
    """One pod with GPUs: a head daemon and, on demand, the server."""

    def __init__(self, folder, gpus, *options, **env):
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.file = folder / "gpus"
        self.file.write_text(gpus)
        env = {"MOB_NVML_LIB": str(DOUBLE), "MOB_NVML_DOUBLE": str(self.file), **env}
        self.env = clean_env(RAY_TMPDIR=str(folder), **env)
        self.started = self.run("ray", "start", "--head", f"--port={self.port}", "--node-ip-address=127.0.0.1", *options)

    def run(self, program, *arguments, timeout=30):
        out, err = self.folder / "out", self.folder / "err" # a daemon left behind holds them
        with open(out, "w") as o, open(err, "w") as e:
            done = subprocess.run([str(BIN / program), *arguments], stdin=subprocess.DEVNULL, stdout=o, stderr=e, env=self.env,
                                  timeout=timeout)
        done.stdout, done.stderr = out.read_text(), err.read_text()
        return done

    def status(self, *arguments):
        done = self.run("mobula", "status", "--json", f"--address={self.address}", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def nodes(self):
        return json.loads(self.run("ray", "list", "nodes", f"--address={self.address}", "--format=json", "--detail").stdout)

    def serve(self, *options):
        return Server(self.folder, *options, env={k: self.env[k] for k in ("MOB_NVML_LIB", "MOB_NVML_DOUBLE")})

    def end(self):
        self.run("ray", "stop")


@pytest.fixture
def group(tmp_path):
    groups = []

    def make(gpus, *options, **env):
        groups.append(Group(tmp_path, gpus, *options, **env))
        return groups[-1]
    yield make
    for g in groups:
        g.end()


def samples(server, name):
    from prometheus_client.parser import text_string_to_metric_families
    text = httpx.get(server.url + "/metrics").text
    return [(s.labels, s.value) for f in text_string_to_metric_families(text) for s in f.samples if s.name == name]


def test_gpus_are_found(group):
    g = group(cards(4))
    assert g.started.returncode == 0, g.started.stderr
    node, = g.nodes()
    assert node["resources_total"]["GPU"] == 4.0 and node["resources_total"]["accelerator_type:H200"] == 1.0
    assert node["labels"]["ray.io/accelerator-type"] == "H200"
    shown = g.run("ray", "status", f"--address={g.address}").stdout
    assert "0.0/4.0 GPU" in shown and "accelerator_type" not in shown


def test_visible_devices(group):
    g = group(cards(4), CUDA_VISIBLE_DEVICES="GPU-33,1,7")
    assert g.nodes()[0]["resources_total"]["GPU"] == 2.0
    assert [gpu["index"] for gpu in g.status()["nodes"][0]["gpus"]] == [3, 1]


def test_more_wanted_than_visible(group):
    g = group(cards(4), "--num-gpus=3", CUDA_VISIBLE_DEVICES="0,1")
    assert g.started.returncode != 0
    assert ("Attempting to start raylet with 3 GPU, but CUDA_VISIBLE_DEVICES contains ['0', '1']."
            in g.started.stderr + g.started.stdout)


def test_without_a_driver(group):
    """The library is there, a GPU is not: nothing changes."""
    g = group(cards(1), MOB_NVML_DOUBLE="/nowhere")
    assert g.started.returncode == 0
    node, = g.nodes()
    assert "GPU" not in node["resources_total"] and not any("accelerator" in k for k in node["resources_total"])
    seen, = g.status()["nodes"]
    assert seen["gpus"] == [] and seen["memory_bytes"] > seen["memory_free_bytes"] > 0
    assert g.status()["gateway"] is None
    text = g.run("mobula", "status", f"--address={g.address}").stdout
    assert "No GPUs: " in text and "Gateway  none" in text


def environment(pid):
    with open(f"/proc/{pid}/environ", "rb") as f:
        return dict(v.split("=", 1) for v in f.read().decode().split("\0") if "=" in v)


def test_serving(group):
    g = group(cards(4))
    server = g.serve("-tp", "2", "-pp", "2")
    try:
        # Each stage's process sees its own GPUs, by their places on the bus.
        pids = {int(l["stage"]): int(l["pid"]) for l, _ in samples(server, "mobula_stage_info")}
        seen = [environment(pids[stage]) for stage in (0, 1)]
        assert [e["CUDA_VISIBLE_DEVICES"] for e in seen] == ["0,1", "2,3"]
        assert {e["CUDA_DEVICE_ORDER"] for e in seen} == {"PCI_BUS_ID"}
        eventually(lambda: samples(server, "mobula_gpu_utilization"))
        utilization = samples(server, "mobula_gpu_utilization")
        assert [(l["node"], l["gpu"], l["uuid"]) for l, _ in utilization] == [("127.0.0.1", str(i), f"GPU-{i}{i}") for i in range(4)]
        assert {v for _, v in utilization} == {0.73}
        one = {name: samples(server, f"mobula_gpu_{name}")[0][1] for name in (
            "memory_used_bytes", "memory_total_bytes", "sm_clock_hertz", "memory_clock_hertz", "power_watts", "power_limit_watts",
            "temperature_celsius", "memory_utilization", "nvlink_transmit_bytes_total", "up")}
        assert one == {"memory_used_bytes": 4e10, "memory_total_bytes": 150754820096, "sm_clock_hertz": 1.98e9,
                       "memory_clock_hertz": 2.619e9, "power_watts": 612, "power_limit_watts": 700, "temperature_celsius": 61,
                       "memory_utilization": 0.4, "nvlink_transmit_bytes_total": 0, "up": 1}
        assert not samples(server, "mobula_gpu_ecc_errors_total")  # this GPU does not tell
        assert ("127.0.0.1", "lo") in [(l["node"], l["interface"]) for l, _ in samples(server, "mobula_network_receive_bytes_total")]
        assert samples(server, "mobula_node_up")[0][1] == 1
        # A card that is lost is told, and keeps no old values.
        g.file.write_text(cards(3) + "gpu uuid=GPU-33 name=NVIDIA_H200 memory=1 lost=1\n")
        eventually(lambda: [v for _, v in samples(server, "mobula_gpu_up")] == [1, 1, 1, 0])
        assert len(samples(server, "mobula_gpu_utilization")) == 3
        assert "LOST" in g.run("mobula", "status", f"--address={g.address}").stdout
        check_status(g, server)
    finally:
        server.stop()
    assert g.status()["gateway"]["up"] is False  # it has ended, and the cluster lives


def check_status(g, server):
    """What `mobula status` shows of a group that generates, with a link between its GPUs that is busy."""
    stop = threading.Event()

    def load():
        while not stop.is_set():
            httpx.post(server.url + "/v1/completions", timeout=60,
                       json={"model": "ds", "prompt": "hello", "max_tokens": 100, "ignore_eos": True})

    def traffic():
        total = 0
        while not stop.wait(0.05):
            total += 1 << 20  # KiB: a GiB each time
            (g.folder / "new").write_text(cards(4, total))
            os.rename(g.folder / "new", g.file)
    threads = [threading.Thread(target=f) for f in (load, traffic)]
    for t in threads:
        t.start()
    try:
        eventually(lambda: server.metric("vllm:num_requests_running") > 0)
        status = g.status()
    finally:
        stop.set()
        for t in threads:
            t.join()
    gateway = status["gateway"]
    assert gateway["up"] and gateway["model"] == "ds" and gateway["url"].endswith(f":{server.port}")
    assert gateway["generation_tokens_per_s"] > 0
    assert [(s["stage"], s["layers"], s["ranks"], s["up"]) for s in gateway["stages"]] == [(0, "0-1", 2, True), (1, "2-3", 2, True)]
    node, = status["nodes"]
    assert node["head"] and node["up"] and node["cpu_s_per_s"] >= 0
    gpu = node["gpus"][0]
    assert gpu["utilization"] == 0.73 and gpu["memory_used_bytes"] == 4e10
    assert gpu["nvlink_sent_bytes_per_s"] > 1e9
    assert 1.5 < gpu["nvlink_received_bytes_per_s"] / gpu["nvlink_sent_bytes_per_s"] < 2.5
    assert any(i["name"] == "lo" and i["received_bytes_per_s"] > 0 for i in node["interfaces"])


def test_watch(group):
    g = group(cards(2))
    process = subprocess.Popen([str(BIN / "mobula"), "status", "--watch", "0.5", "--json", f"--address={g.address}"],
                               stdout=subprocess.PIPE, text=True, env=g.env)
    try:
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert "cpu_s_per_s" not in looks[0]["nodes"][0] and "cpu_s_per_s" in looks[2]["nodes"][0]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_server_without_a_cluster(tmp_path):
    gpus = tmp_path / "gpus"
    gpus.write_text(cards(1))
    env = {"MOB_NVML_LIB": str(DOUBLE), "MOB_NVML_DOUBLE": str(gpus)}
    server = Server(tmp_path, env=env)
    try:
        eventually(lambda: samples(server, "mobula_gpu_up"))
        done = subprocess.run([str(BIN / "mobula"), "status", "--json", "--api", server.url], capture_output=True, text=True, timeout=30,
                              env=clean_env(RAY_TMPDIR=str(tmp_path)))
        status = json.loads(done.stdout)
        assert status["address"] is None and status["gateway"]["stages"][0]["layers"] == "0-3"
        gpu, = status["nodes"][0]["gpus"]
        assert gpu["uuid"] == "GPU-00" and gpu["name"] == "NVIDIA H200" and gpu["sm_clock_hertz"] == 1.98e9
    finally:
        server.stop()


def test_nothing_runs(tmp_path):
    def status(*arguments):
        begin = time.monotonic()
        done = subprocess.run([str(BIN / "mobula"), "status", *arguments], capture_output=True, text=True, timeout=30,
                              env=clean_env(RAY_TMPDIR=str(tmp_path)))
        assert done.returncode != 0 and not done.stdout and time.monotonic() - begin < 15
        return done.returncode, done.stderr
    port = free_port()
    code, text = status("--api", f"http://127.0.0.1:{port}")
    assert code == 1 and "nothing runs here" in text and f"127.0.0.1:{port}" in text and "--address" in text
    code, text = status("--address", f"127.0.0.1:{port}")
    assert code == 1 and f"the cluster at 127.0.0.1:{port} does not answer within" in text
    assert status("--watch", "0.01")[0] == 2
    assert status("--no-such")[0] == 2


def test_help():
    text = subprocess.run([str(BIN / "mobula"), "status", "--help"], capture_output=True, text=True, timeout=10).stdout
    assert all(re.search(rf"^  {flag}\b", text, re.M) for flag in ("--address", "--api", "--watch", "--json"))
