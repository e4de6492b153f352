"""The whole of the released Ray, unmodified - raylet, workers, Python driver - on our GCS in place of its own: `ray start` is
told another path of its gcs_server, which is all that changes."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from api_server import BIN, clean_env

START = """
import sys
import ray._private.services as services
services.GCS_SERVER_EXECUTABLE = sys.argv.pop(1)
from ray.scripts.scripts import main
main()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    # Short: a raylet's Unix sockets lie below it.
    folder = tmp_path_factory.mktemp("r")
    gcs = folder / "gcs_server"
    gcs.symlink_to(BIN / "mobula")
    log = open(folder / "start.log", "w")
    head = subprocess.Popen(
        [sys.executable, "-c", START, str(gcs), "start", "--head", "--block", "--port=0", "--node-ip-address=127.0.0.8",
         "--num-cpus=2", f"--temp-dir={folder}/t", "--include-dashboard=false", "--disable-usage-stats",
         "--object-store-memory=80000000"], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        env=clean_env(RAY_USAGE_STATS_ENABLED="0", TERM="dumb"))
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"--address='(127.0.0.8:\d+)'", (folder / "start.log").read_text())):
            assert head.poll() is None and time.monotonic() < end, (folder / "start.log").read_text()
            time.sleep(0.1)
        yield found.group(1)
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        finally:
            try:
                os.killpg(head.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            log.close()


DRIVER = """
import os, sys, time
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(address=sys.argv[1], _node_ip_address="127.0.0.8", namespace="test", log_to_driver=False)
assert ray.cluster_resources()["CPU"] == 2.0

@ray.remote
def task(x):
    return x + 1
assert ray.get(task.remote(1), timeout=60) == 2

@ray.remote(num_cpus=1)
class Counter:
    def __init__(self, fail=False):
        if fail:
            raise ValueError("no such model")
        self.n = 0
    def count(self):
        self.n += 1
        return self.n
    def die(self):
        os._exit(1)

# A named actor, found by its name, starts again once, then is dead.
a = Counter.options(name="alpha", max_restarts=1).remote()
assert ray.get([a.count.remote(), a.count.remote()], timeout=60) == [1, 2]
assert ray.get(ray.get_actor("alpha").count.remote()) == 3
try:
    Counter.options(name="alpha").remote()
    raise SystemExit("two actors of one name")
except ValueError as e:
    assert "already" in str(e), e
a.die.remote()
end = time.time() + 60
while True:
    try:
        assert ray.get(a.count.remote(), timeout=60) == 1
        break
    except ray.exceptions.ActorUnavailableError:
        assert time.time() < end
        time.sleep(0.1)
a.die.remote()
try:
    while True:
        ray.get(a.count.remote(), timeout=60)
        time.sleep(0.1)
except ray.exceptions.ActorDiedError as e:
    pass
except ray.exceptions.ActorUnavailableError:
    pass

# A constructor that fails: the exception itself arrives.
try:
    ray.get(Counter.remote(fail=True).count.remote(), timeout=60)
    raise SystemExit("it should have failed")
except ray.exceptions.ActorDiedError as e:
    assert "no such model" in str(e), e

# A placement group, an actor in it, and its removal.
group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
assert group.wait(60)
assert placement_group_table(group)["state"] == "CREATED"
b = Counter.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1)).remote()
assert ray.get(b.count.remote(), timeout=60) == 1
too_much = placement_group([{"CPU": 100}])
assert not too_much.wait(1)
remove_placement_group(group)
try:
    end = time.time() + 60
    while time.time() < end:
        ray.get(b.count.remote(), timeout=60)
        time.sleep(0.1)
    raise SystemExit("it outlived its placement group")
except ray.exceptions.RayActorError:
    pass

# A handle that goes out of scope ends its actor, which frees its CPU.
for _ in range(3):
    c = [Counter.remote(), Counter.remote()]
    assert ray.get([x.count.remote() for x in c], timeout=60) == [1, 1]
    del c

# A detached actor outlives this driver.
if len(sys.argv) > 2:
    d = Counter.options(name="detached", lifetime="detached", num_cpus=0).remote()
    ray.get(d.count.remote(), timeout=60)
print("all is well")
"""

SECOND = """
import sys, ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.8", namespace="test", log_to_driver=False)
d = ray.get_actor("detached")
assert ray.get(d.count.remote(), timeout=60) == 2
ray.kill(d)
try:
    ray.get_actor("alpha")
    raise SystemExit("the first driver's actor is still there")
except ValueError:
    pass
print("all is well")
"""


def drive(source, *arguments):
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, timeout=300,
                          env=clean_env(RAY_USAGE_STATS_ENABLED="0"))
    assert done.returncode == 0 and "all is well" in done.stdout.splitlines(), done.stdout + done.stderr


def test_a_driver(address):
    drive(DRIVER, address, "detached")
    drive(SECOND, address)
