"""Losses beyond one group under load: beside another group, while starting, while idle, and where LWS hears of it late."""

import os
import signal
import time

import httpx
import pytest

from lws_runner import eventually
from support import sandbox
from support.group import NAME, URL, Ask, Group


@pytest.fixture(scope="module", autouse=True)
def place():
    sandbox.enter()


@pytest.fixture(autouse=True)
def nothing_left(place):
    before = sandbox.Traces()
    yield
    before.assert_none_new()


def stages(group, pod):
    """The stage processes of a pod that is there; none before they are started."""
    entry = group.pods().get(pod)
    below = sandbox.descendants(entry["sandbox_pid"]) if entry else {}
    return [pid for pid, command in below.items() if "actor-worker" in command]


def exits(group, pod):
    return [int(e["message"].rpartition("exit code ")[2].split()[0]) for e in group.status()["events"]
            if e["reason"] == "Exited" and e["object"] == f"pod/{pod}"]


def answered():
    reply = httpx.post(URL + "/v1/completions", json={"model": "ds", "prompt": "你好", "max_tokens": 4}, timeout=20)
    return reply.status_code == 200 and len(reply.json()["choices"][0]["text"]) > 0


def test_other_group_goes_on():
    """Two groups behind the Service: one is lost, the other one answers everything it has and takes what is new."""
    with Group(args=["--replicas", "2"]) as g:
        g.wait_serving()

        def served():
            logs = [g.logs(str(i)) for i in (0, 1)]
            return all("Application startup complete" in log for log in logs)
        eventually(served, 30, "both groups")
        before = g.pods()
        body = {"model": "ds", "prompt": "你好", "max_tokens": 600, "ignore_eos": True}
        asks = [Ask(i % 2 == 0, {**body, "seed": i}) for i in range(8)]  # in turn to both groups
        eventually(lambda: all("data: " in a.text for a in asks if a.stream), 20)
        os.kill(stages(g, f"{NAME}-0-1")[0], signal.SIGKILL)
        for a in asks:
            a.join(60)
        outcomes = [a.outcome() for a in asks]
        lost = [o for o in outcomes if o != "answered"]
        assert len(lost) == 4 and {o["type"] for o in lost} == {"group_lost"}
        assert answered() and answered()
        now = g.pods()
        assert all(now[n]["uid"] == before[n]["uid"] for n in (f"{NAME}-1", f"{NAME}-1-1"))
        g.recreated({n: p for n, p in before.items() if n in (f"{NAME}-0", f"{NAME}-0-1")}, 20)
        assert exits(g, f"{NAME}-0")[:1] == [70] and exits(g, f"{NAME}-1") == []
        eventually(lambda: "Application startup complete" in g.logs("0"), 30, "the first group's return")
        assert [answered() for _ in range(4)] == [True] * 4


def test_lost_while_idle_and_while_starting():
    with Group() as g:
        # A stage that dies as soon as it is there: the server ends with its own code for that, the group comes again.
        first = eventually(lambda: stages(g, f"{NAME}-0-1"), 30, "the worker's stage")
        os.kill(first[0], signal.SIGKILL)
        eventually(lambda: exits(g, f"{NAME}-0"), 20, "the server's end")  # it may have answered once before it knew
        g.wait_serving()
        begun = exits(g, f"{NAME}-0")  # the container that LWS's deletion hits while it starts again may follow
        assert begun[0] in (69, 70), g.everything()  # 70 when it was ready already
        # Nobody asks anything.
        before = g.pods()
        os.kill(stages(g, f"{NAME}-0")[0], signal.SIGKILL)
        g.recreated(before, 20)
        assert exits(g, f"{NAME}-0")[len(begun)] == 70
        g.wait_serving()
        assert answered()
        assert not g.processes_outside_pods()


@pytest.mark.parametrize("pod", [f"{NAME}-0", f"{NAME}-0-1"])
def test_late_recreation(pod):
    """LWS hears of a restart after a second, in which the restarted containers of the old group run."""
    with Group(args=["--lws-delay", "1"]) as g:
        g.wait_serving()
        before = g.pods()
        ask = Ask(True, {"model": "ds", "prompt": "你好", "max_tokens": 1500, "ignore_eos": True})
        eventually(lambda: "data: " in ask.text)
        begin = time.monotonic()
        os.kill(stages(g, pod)[0], signal.SIGKILL)
        ask.join(20)
        assert ask.outcome()["type"] == "group_lost"
        g.recreated(before, 20)
        g.wait_serving()
        assert answered() and time.monotonic() - begin < 15
        assert g.reasons().count("RecreateGroup") == 1
