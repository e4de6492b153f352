"""What clients see when the group is lost: a head daemon of this machine, two stages as actors, one of them killed."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

import httpx
import pytest

from api_server import BIN, Server, clean_env, eventually, free_port


@pytest.fixture
def cluster(tmp_path):
    env = clean_env(RAY_TMPDIR=str(tmp_path))
    subprocess.run([str(BIN / "ray"), "start", "--head", f"--port={free_port()}", "--num-gpus=4"], check=True, env=env, capture_output=True)
    yield tmp_path
    subprocess.run([str(BIN / "ray"), "stop"], env=env, capture_output=True, check=True)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"


def stage_pids(s):
    text = urllib.request.urlopen(s.url + "/metrics").read().decode()
    return [int(p) for p in re.findall(r'mobula_stage_up\{[^}]*pid="(\d+)"', text)]


def expect_lost(s, how, detect, exit_code=70):
    """Eight requests under way, `how` breaks the group: everybody is told, /health says so, the process ends."""
    answers, health = [], []
    body = {"model": "ds", "prompt": "你好", "max_tokens": 3800, "ignore_eos": True}
    def ask(stream):
        try:
            r = httpx.post(s.url + "/v1/completions", json={**body, "stream": stream}, timeout=60)
            answers.append((stream, r.status_code, dict(r.headers), r.text, time.monotonic()))
        except httpx.HTTPError as e:
            answers.append((stream, 0, {}, repr(e), time.monotonic()))
    threads = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(8)]
    for t in threads:
        t.start()
    eventually(lambda: s.metric("vllm:num_requests_running") == 8)
    broken = time.monotonic()
    how()
    with httpx.Client(base_url=s.url, timeout=5) as c:
        while s.process.poll() is None and time.monotonic() < broken + 20:
            try:
                health.append((time.monotonic(), c.get("/health").status_code))
            except httpx.HTTPError:
                pass
            time.sleep(0.005)
    ended = time.monotonic()
    for t in threads:
        t.join(20)
    assert s.process.wait(10) == exit_code, s.log()
    lost = [t for t, status in health if status == 503]
    assert lost, "nobody saw /health answer 503"
    assert all(status == 503 for t, status in health if t >= lost[0])
    assert lost[0] - broken < detect and ended - lost[0] < 5  # a second; more where other processes want the CPUs
    for stream, status, headers, text, at in answers:
        assert at - broken < detect + 1
        if stream and status == 200:
            events = text.split("\n\n")
            assert events[-1] == "" and events[-2] == "data: [DONE]"
            error = json.loads(events[-3].removeprefix("data: "))["error"]
        else:
            assert status == 503 and int(headers["retry-after"]) > 0, text
            error = json.loads(text)
        assert list(error) == ["object", "message", "type", "param", "code"]
        assert error["object"] == "error" and error["type"] == "group_lost" and error["code"] == 503 and error["param"] is None
        assert "stage" in error["message"] or "node" in error["message"] or "group" in error["message"]
    assert len(answers) == 8


def test_killed_stage(cluster):
    s = Server(cluster, "-tp", "2", "-pp", "2")
    pids = stage_pids(s)
    assert len(pids) == 2
    expect_lost(s, lambda: os.kill(pids[1], signal.SIGKILL), detect=0.5)
    assert "group lost, cause actor_died" in s.log()
    eventually(lambda: not any(alive(p) for p in pids))


def test_frozen_stage(cluster):
    s = Server(cluster, "-tp", "2", "-pp", "2")
    pids = stage_pids(s)
    try:
        expect_lost(s, lambda: os.kill(pids[0], signal.SIGSTOP), detect=5.5)
    finally:
        os.kill(pids[0], signal.SIGCONT) if alive(pids[0]) else None
    eventually(lambda: not any(alive(p) for p in pids))


def test_sigterm_removes_the_actors(cluster):
    s = Server(cluster, "-tp", "2", "-pp", "2")
    pids = stage_pids(s)
    assert s.stop() == 0
    eventually(lambda: not any(alive(p) for p in pids))
    again = Server(cluster, "-tp", "2", "-pp", "2")  # its resources are free again
    assert again.stop() == 0


@pytest.mark.parametrize("arguments,part", [
    (["-tp", "8"], "does not fit a pod of 4 GPUs"), (["-tp", "1", "-pp", "3"], "no divisor of the group's 4"),
])
def test_sizes_that_do_not_fit(cluster, arguments, part):
    s = Server(cluster, *arguments, wait=False, env={"LWS_GROUP_SIZE": "1"})
    assert s.process.wait(20) == 1
    assert (part if arguments[1] != "8" else "8 x 1 = 8 GPUs, but the group has 4") in s.log()


def test_incomplete_group_is_refused(cluster):
    s = Server(cluster, "-tp", "4", "-pp", "2", "--ready-timeout", "1", wait=False, env={"LWS_GROUP_SIZE": "2"})
    assert s.process.wait(20) == 75
    assert "the group is incomplete: 1 of 2 nodes and 4 GPUs are there" in s.log()


def test_group_without_cluster(tmp_path):
    s = Server(tmp_path, wait=False, env={"LWS_GROUP_SIZE": "2"})
    assert s.process.wait(20) == 1 and "did ray_init.sh leader fail?" in s.log()


def test_cluster_that_is_not_there(tmp_path):
    s = Server(tmp_path, "--ready-timeout", "1", wait=False, env={"RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert s.process.wait(20) == 75 and "the group is incomplete" in s.log()
