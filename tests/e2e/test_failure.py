"""Every way to lose a part of the group while 8 requests are under way: who is told what, when, and what comes after."""

import os
import signal
import time

import httpx
import pytest

from lws_runner import eventually
from support import sandbox
from support.group import NAME, URL, Ask, Group, Prober, log_time, metric

# Goals: a death is known within 0.1 s, silence within 5 s, clients are told within 1 s of that, service is back within 10 s.
# What is asserted leaves room for a machine whose two cores others use as well.
DEATH, SILENCE, TOLD, BACK = 0.5, 5.5, 1.0, 20.0
LENGTH = 1900  # tokens; a request is under way for seconds

rows = []


@pytest.fixture(scope="module")
def group(request):
    sandbox.enter()
    before = sandbox.Traces()
    with Group() as g:
        g.wait_serving()
        yield g
    before.assert_none_new()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{'seconds after the fault':36}{'detected':>10}{'all told':>10}{'exit':>8}{'ready':>8}{'answer':>8}  exit code, cause")
        for name, times, note in rows:
            print(f"{name:36}" + "".join(f"{t:>{w}.3f}" for t, w in zip(times, (10, 10, 8, 8, 8))) + f"  {note}")


def find(group, pod, part):
    """The process of a pod whose command line holds `part`."""
    below = sandbox.descendants(group.pods()[pod]["sandbox_pid"])
    found = [pid for pid, command in below.items() if part in command]
    assert len(found) == 1, below
    return found[0]


LEADER, WORKER = f"{NAME}-0", f"{NAME}-0-1"


def kill_process(pod, part):
    def aim(group):
        pid = find(group, pod, part)
        return lambda: os.kill(pid, signal.SIGKILL)
    return aim


def freeze(pod, part):
    def aim(group):
        pid = find(group, pod, part)
        return lambda: os.kill(pid, signal.SIGSTOP)
    return aim


def thaw(group):
    """A frozen PID 1 takes no SIGTERM, so that only the end of the pod's grace period, 30 s, would end it."""
    if WORKER in group.pods():
        group.run("fault", "0-1", "thaw", check=False)


def kill_pod(pod):
    def aim(group):
        pid = group.pods()[pod]["sandbox_pid"]
        return lambda: os.kill(pid, signal.SIGKILL)
    return aim


def cut_link(group):
    return lambda: group.run("fault", "0-1", "link-down")


FAULTS = {  # name: what to do, within how many seconds it must be known, what to undo once the leader has ended
    "kill -9 of stage 0": (kill_process(LEADER, "actor-worker"), DEATH, None),
    "kill -9 of stage 1": (kill_process(WORKER, "actor-worker"), DEATH, None),
    "kill -9 of the worker's node daemon": (kill_process(WORKER, "ray_init.sh worker"), DEATH, None),
    "kill -9 of the head's node daemon": (kill_process(LEADER, "mobula node --head"), DEATH, None),
    "kill -9 of the whole worker pod": (kill_pod(WORKER), DEATH, None),
    "SIGSTOP of stage 0": (freeze(LEADER, "actor-worker"), SILENCE, None),
    "SIGSTOP of stage 1": (freeze(WORKER, "actor-worker"), SILENCE, None),
    "SIGSTOP of the worker's node daemon": (freeze(WORKER, "ray_init.sh worker"), SILENCE, thaw),
    "SIGSTOP of the head's node daemon": (freeze(LEADER, "mobula node --head"), SILENCE, None),
    "the whole worker pod frozen": (lambda group: lambda: group.run("fault", "0-1", "freeze"), SILENCE, thaw),
    "the worker's link down": (cut_link, SILENCE, None),
}


def lost_line(group, since):
    """The leader's line that names the loss."""
    def look():
        lines = [li for li in group.logs("0", "--all").splitlines() if "group lost, cause" in li and log_time(li) >= since - 0.001]
        return lines and lines[0]
    return eventually(look, 5, "the leader's line about the lost group")


def exit_of_leader(group, since):
    """When the leader's container ended, and its exit status as the runner saw it."""
    def look():
        for event in group.status()["events"]:
            if event["reason"] == "Exited" and event["object"] == f"pod/{LEADER}" and event["time_ms"] / 1000 >= since - 0.001:
                return event
    event = eventually(look, 10, "the end of the leader's container")
    return event["time_ms"] / 1000, int(event["message"].rpartition("exit code ")[2])


@pytest.mark.parametrize("name", FAULTS)
def test_lost_part(group, name):
    aim, limit, undo = FAULTS[name]
    before = group.pods()
    prober = Prober(group)
    asks = [Ask(i % 2 == 0, {"model": "ds", "prompt": f"第{i}个问题：什么是深度学习？", "max_tokens": LENGTH, "ignore_eos": True,
                             "temperature": 0.8, "seed": i}) for i in range(8)]
    try:
        eventually(lambda: metric("vllm:num_requests_running") == 8, 20, "8 running requests")
        eventually(lambda: all("data: " in a.text for a in asks if a.stream), 20, "the first tokens")
        hit = aim(group)
        begin = time.time()
        hit()

        for a in asks:
            a.join(limit + 10)
        outcomes = [a.outcome() for a in asks]
        detected = log_time(lost_line(group, begin))
        told = max(a.ended for a in asks)
        assert [o["type"] for o in outcomes if o != "answered"] == ["group_lost"] * 8, outcomes  # too long to end before
        assert len({o["message"] for o in outcomes}) == 1
        assert detected - begin < limit
        assert told - detected < TOLD

        ended, code = exit_of_leader(group, begin)
        assert code == 70, group.everything()
        if undo:
            undo(group)
        group.recreated(before, BACK)
        group.wait_serving(BACK)
        back = time.time()
        reply = httpx.post(URL + "/v1/completions", json={"model": "ds", "prompt": "你好", "max_tokens": 8}, timeout=20)
        assert reply.status_code == 200 and reply.json()["choices"][0]["text"]
        answered = time.time()
    finally:
        prober.stop()
    assert back - begin < BACK

    # What the old leader's own port said, in this order: 200, from detection on 503, then nothing but refusals.
    said = [(round(at - begin, 3), what) for at, what in prober.seen if what != "none"]
    order = [{200: 0, 503: 1, "refused": 2}[what] for _, what in said]
    assert order == sorted(order) and order[0] == 0, said
    assert not [at for at, what in said if what == 200 and at > detected - begin + 0.1], said
    # Where a pod died LWS itself ends the leader at once, which leaves hardly a moment in which to ask.
    gone = min(ended, prober.first("refused", detected) or ended)
    assert 1 in order or gone - detected < 0.5, (detected - begin, ended - begin, said[-20:])

    eventually(lambda: not group.processes_outside_pods(), 5, f"the end of the old pods' processes {group.processes_outside_pods()}")
    sandboxes = {p["sandbox_pid"] for p in before.values()}
    assert not any(sandbox.alive(pid) for pid in sandboxes)
    message = next(o["message"] for o in outcomes)
    rows.append((name, [t - begin for t in (detected, told, ended, back, answered)], f"{code}, {message}"))


def test_frozen_gateway_is_seen_by_its_stages(group):
    """The other direction: stages whose gateway is silent end by themselves, so no GPU stays taken."""
    before = group.pods()
    gateway = find(group, LEADER, "vllm serve")
    stages = [find(group, pod, "actor-worker") for pod in (LEADER, WORKER)]
    os.kill(gateway, signal.SIGSTOP)
    try:
        eventually(lambda: not any(sandbox.alive(pid) for pid in stages), 15, "the end of both stages")
    finally:
        os.kill(gateway, signal.SIGCONT)
    group.recreated(before, BACK)
    group.wait_serving(BACK)
