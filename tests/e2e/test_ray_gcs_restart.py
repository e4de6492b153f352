"""The released Ray, unmodified, on our GCS with its state in Redis: the GCS is killed and started again under a running
driver, as Ray's own GCS fault tolerance has it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api_server import BIN, clean_env, port_to_keep
from test_ray_on_gcs import START

DRIVER = """
import sys, time
import ray
from ray.util.placement_group import placement_group

ray.init(address=sys.argv[1], _node_ip_address="127.0.0.9", namespace="test", log_to_driver=False)

@ray.remote
def task(x):
    return x + 1

@ray.remote(num_cpus=0)
class Counter:
    n = 0
    def count(self):
        self.n += 1
        return self.n

own = Counter.options(name="own").remote()
detached = Counter.options(name="detached", lifetime="detached").remote()
group = placement_group([{"CPU": 1}], name="group", lifetime="detached")
assert group.wait(60)
assert ray.get([own.count.remote(), detached.count.remote(), task.remote(1)], timeout=60) == [1, 1, 2]
print("ready", flush=True)
sys.stdin.readline()  # the GCS is another process now
assert ray.get([own.count.remote(), detached.count.remote()], timeout=60) == [2, 2]
assert ray.get(ray.get_actor("detached").count.remote(), timeout=60) == 3
assert ray.get(task.remote(2), timeout=60) == 3
late = Counter.options(name="late").remote()
assert ray.get(late.count.remote(), timeout=60) == 1
assert ray.util.get_placement_group("group").wait(60)
assert len([n for n in ray.nodes() if n["Alive"]]) == 1
print("all is well", flush=True)
"""

SECOND = """
import sys, time
import ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.9", namespace="test", log_to_driver=False)
assert ray.get(ray.get_actor("detached").count.remote(), timeout=60) == 4
end = time.time() + 60
while True:  # what the first driver owned ended with it, the restart notwithstanding
    try:
        ray.get_actor("own")
        assert time.time() < end
        time.sleep(0.1)
    except ValueError:
        break
print("all is well", flush=True)
"""


def processes(text):
    """The processes whose command line holds the text."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if text.encode() in line and int(path.parent.name) != os.getpid():
            found[int(path.parent.name)] = line.split(b"\0")[:-1]
    return found


@pytest.fixture
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("q")  # short: a raylet's Unix sockets lie below it
    gcs = folder / "gcs_server"
    gcs.symlink_to(BIN / "mobula")
    redis_port, port = port_to_keep(), port_to_keep()
    redis = subprocess.Popen(["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
                              "--requirepass", "s3cret"], executable=shutil.which("redis-check-rdb"), stdout=subprocess.DEVNULL)
    env = clean_env(RAY_USAGE_STATS_ENABLED="0", TERM="dumb", RAY_REDIS_ADDRESS=f"127.0.0.1:{redis_port}",
                    RAY_external_storage_namespace="test")
    try:
        done = subprocess.run(
            [sys.executable, "-c", START, str(gcs), "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.9",
             "--num-cpus=2", f"--temp-dir={folder}/t", "--include-dashboard=false", "--disable-usage-stats",
             "--object-store-memory=80000000", "--redis-password=s3cret"], capture_output=True, text=True, timeout=180, env=env)
        assert done.returncode == 0 and f"127.0.0.9:{port}" in done.stdout, done.stdout + done.stderr
        yield f"127.0.0.9:{port}", gcs, env
    finally:
        end = time.monotonic() + 30
        while (left := processes(str(folder))) and time.monotonic() < end:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)
        redis.kill()
        redis.wait()


def test_gcs_restart(cluster):
    address, gcs, env = cluster
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=clean_env(RAY_USAGE_STATS_ENABLED="0"))
    try:
        ready = driver.stdout.readline()
        assert ready == "ready\n", ready + driver.communicate()[1]
        [(pid, command)] = processes(str(gcs)).items()
        os.kill(pid, signal.SIGKILL)
        again = subprocess.Popen([c.decode() for c in command], env=env)
        out, err = driver.communicate("\n", timeout=240)
        log = "".join(p.read_text()[-6000:] for p in gcs.parent.glob("t/session_*/logs/gcs_server.*"))
        assert driver.returncode == 0 and "all is well" in out, err + log
        assert re.search(r"\d+ rows of a former GCS are read back", log)
        second = subprocess.run([sys.executable, "-c", SECOND, address], capture_output=True, text=True, timeout=180,
                                env=clean_env(RAY_USAGE_STATS_ENABLED="0"))
        assert second.returncode == 0, second.stdout + second.stderr
        again.send_signal(signal.SIGTERM)
        assert again.wait(20) == 0
    finally:
        driver.kill()
        driver.wait()
