"""The deployment documents as they are: both pods, the request of the document, and clients that nobody here wrote."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import openai
import pytest

from lws_runner import SEED, eventually
from support import sandbox
from support.group import MODEL, NAME, READY, URL, Ask, Group, log_time, metric

VENV = Path(os.environ["MOB_TEST_VENV"])
QUESTION = [{"role": "system", "content": "你是个友善的AI助手。"}, {"role": "user", "content": "介绍一下深度学习。"}]

# The keys of the document's own reply, in its order.
REPLY = ["id", "object", "created", "model", "choices", "usage", "prompt_logprobs"]
CHOICE = ["index", "message", "logprobs", "finish_reason", "stop_reason"]
MESSAGE = ["role", "reasoning_content", "content", "tool_calls"]
USAGE = ["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"]

report = []


@pytest.fixture(scope="module")
def place(request):
    sandbox.enter()
    before = sandbox.Traces()
    yield
    before.assert_none_new()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(report))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(place, how):
    """The document with RDMA settings; and what its runner leaves behind."""
    before = sandbox.Traces()
    began = time.monotonic()
    with Group("lws-rdma.yaml") as g:
        g.wait_serving()
        report.append(f"lws-rdma.yaml: {time.monotonic() - began:.2f} s from the runner's start to an answer")
        log = g.logs("0")
        lines = [li for li in log.splitlines() if "NCCL_" in li]
        for name in ("NCCL_IB_TC", "NCCL_IB_SL", "NCCL_IB_GID_INDEX", "NCCL_DEBUG", "NCCL_IB_HCA", "NCCL_NET_PLUGIN"):
            assert len([li for li in lines if re.search(rf"\b{name}\b", li)]) == 1, (name, lines)
        names = lines[0].partition("without effect: ")[2].partition(" (")[0].split(", ")
        assert len(lines) == 1 and len(names) == 6 and "NCCL_SOCKET_IFNAME" not in names, lines  # that one acts
        done = subprocess.run(["bash", str(SEED / "chat-request.sh")], capture_output=True, timeout=60, check=True)
        assert "深度学习" in json.loads(done.stdout)["choices"][0]["message"]["content"]
        g.expect_down(how)
        eventually(lambda: not sandbox.descendants(g.process.pid), 3)
        exits = {pod: re.findall(rf"Exited +pod/{pod}: .*(exit code .*)", g.output()) for pod in (f"{NAME}-0", f"{NAME}-0-1")}
        assert exits[f"{NAME}-0"] == ["exit code 0"], g.everything()
        # The leader can be gone before the worker takes its own SIGTERM: then it says that the head is gone.
        assert exits[f"{NAME}-0-1"] in (["exit code 0"], ["exit code 1"]), g.everything()
        if exits[f"{NAME}-0-1"] == ["exit code 1"]:
            assert " is gone: " in g.everything()
    before.assert_none_new()


@pytest.fixture(scope="module")
def group(place):
    with Group() as g:
        g.wait_serving()
        yield g


def event_time(group, reason, pod):
    return next(e["time_ms"] / 1000 for e in group.status()["events"] if e["reason"] == reason and e["object"] == f"pod/{pod}")


def test_both_pods_come_up(group):
    leader, worker = group.logs("0"), group.logs("0-1")
    assert READY in leader.splitlines()
    assert f"Worker: Ray runtime started with head address {NAME}-0.{NAME}.default:6379" in worker.splitlines()
    # The line itself has no time; the gateway's first line follows in the same shell command.
    lines = leader.splitlines()
    after = log_time(next(li for li in lines[lines.index(READY):] if "vLLM API server version" in li))
    joined = log_time(next(li for li in lines if "2 alive" in li))
    started = max(event_time(group, "Started", pod) for pod in (f"{NAME}-0", f"{NAME}-0-1"))
    first = min(event_time(group, "Created", pod) for pod in (f"{NAME}-0", f"{NAME}-0-1"))
    assert joined < after < started + 10
    report.append(f"first container's start to `All ray workers are active`: {after - first:.3f} s or less "
                  f"(from the last one's start {max(after - started, 0):.3f} s, from the join {after - joined:.3f} s; the goal is 0.2 s)")
    served = re.search(r"tensor_parallel_size=(\d+), pipeline_parallel_size=(\d+)", leader)
    assert served.groups() == ("8", "2")
    assert re.search(r"stage 0: layers 0-1, .* of each of 8 ranks", leader) and re.search(r"stage 1: layers 2-3", leader)


def keys(pairs):
    return [k for k, _ in pairs]


def test_the_request_of_the_document(group):
    begin = time.monotonic()
    done = subprocess.run(["bash", str(SEED / "chat-request.sh")], capture_output=True, timeout=60, check=True)
    took = time.monotonic() - begin
    text = done.stdout.decode()
    pairs = json.loads(text, object_pairs_hook=list)
    assert keys(pairs) == REPLY
    assert keys(dict(pairs)["choices"][0]) == CHOICE
    assert keys(dict(dict(pairs)["choices"][0])["message"]) == MESSAGE
    assert keys(dict(pairs)["usage"]) == USAGE
    body = json.loads(text)
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body["id"]) and body["object"] == "chat.completion" and body["model"] == "ds"
    assert abs(body["created"] - time.time()) < 120
    choice = body["choices"][0]
    reasoning, mark, answer = choice["message"]["content"].partition("</think>")
    assert mark and "深度学习" in answer and len(reasoning) > 20 and len(answer) > 50
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] is None and choice["logprobs"] is None
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["completion_tokens"] <= 1024
    assert body["prompt_logprobs"] is None
    again = json.loads(subprocess.run(["bash", str(SEED / "chat-request.sh")], capture_output=True, timeout=60, check=True).stdout)
    assert again["choices"] == body["choices"] and again["id"] != body["id"]  # the request has a seed
    report.append(f"chat-request.sh: {usage['completion_tokens']} tokens in {took:.2f} s, {usage['completion_tokens'] / took:.0f} tokens/s")


def test_openai_client(group):
    client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0, timeout=60)
    assert [m.id for m in client.models.list()] == ["ds"]
    arguments = dict(model="ds", messages=QUESTION, max_tokens=1024, temperature=0.7, top_p=0.9, seed=10)
    whole = client.chat.completions.create(**arguments)
    begin = time.monotonic()
    parts, first, usage = [], None, None
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments):
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic()
            parts.append(chunk.choices[0].delta.content)
        usage = chunk.usage or usage
    took = time.monotonic() - first
    assert "".join(parts) == whole.choices[0].message.content
    assert usage == whole.usage
    assert len(parts) > 50  # it came bit by bit
    report.append(f"openai client, one stream: first token after {(first - begin) * 1000:.0f} ms, then "
                  f"{(usage.completion_tokens - 1) / took:.0f} tokens/s (the goal is 200 on two idle cores)")
    reply = client.completions.create(model="ds", prompt="你好", max_tokens=5, temperature=0)
    assert reply.choices[0].text and reply.usage.completion_tokens <= 5
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(**{**arguments, "model": "other"})


def test_requests_share_the_batch(group):
    begin = time.monotonic()
    asks = [Ask(i % 2 == 0, {"model": "ds", "prompt": "你好", "max_tokens": 200, "ignore_eos": True, "seed": i}) for i in range(8)]
    most = 0
    while any(a.is_alive() for a in asks):
        most = max(most, metric("vllm:num_requests_running"))
        time.sleep(0.01)
    took = time.monotonic() - begin
    assert [a.outcome() for a in asks] == ["answered"] * 8
    assert most > 1
    report.append(f"8 requests at once: {8 * 200 / took:.0f} tokens/s together, at most {most:.0f} of them in one step")
    assert metric("vllm:num_requests_running") == 0


def in_pods_network(group, *command, timeout=60):
    """Runs a command in the worker pod's network, with this machine's files: as another pod of the cluster would."""
    pid = group.pods()[f"{NAME}-0-1"]["sandbox_pid"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "LWS_"))}
    return subprocess.run(["nsenter", "-t", str(pid), "-n", *map(str, command)], capture_output=True, text=True, timeout=timeout,
                          env={**env, "RAY_USAGE_STATS_ENABLED": "0"})


GCS_CLIENT = r"""
import json, sys
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
nodes = [(n.node_manager_address, n.state, n.is_head_node, dict(n.resources_total)["GPU"])
         for n in gcs.get_all_node_info().values()]
gcs.internal_kv_put(b"key", b"one", True, b"test")
taken = gcs.internal_kv_put(b"key", b"two", False, b"test")
print(json.dumps({"nodes": sorted(nodes), "value": gcs.internal_kv_get(b"key", b"test").decode(), "added": taken,
                  "keys": [k.decode() for k in gcs.internal_kv_keys(b"", b"test")], "cluster": gcs.cluster_id.hex(),
                  "deleted": gcs.internal_kv_del(b"key", False, b"test")}))
"""


def test_real_ray_clients(group):
    """The released wheel of Ray against the leader pod's address, from another pod."""
    head = f"{group.ip(0)}:6379"
    done = in_pods_network(group, VENV / "bin" / "ray", "health-check", "--address", head)
    assert done.returncode == 0, done.stdout + done.stderr
    done = in_pods_network(group, VENV / "bin" / "ray", "status", "--address", head)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ 1 node_[0-9a-f]{56}$", done.stdout, re.M)) == 2
    assert "16.0/16.0 GPU (16.0 used of 16.0 reserved in placement groups)" in done.stdout
    done = in_pods_network(group, VENV / "bin" / "python", "-c", GCS_CLIENT, head)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["nodes"] == sorted([[group.ip(0), 0, True, 8.0], [group.ip(1), 0, False, 8.0]])
    assert (found["value"], found["added"], found["keys"], found["deleted"]) == ("one", 0, ["key"], 1)
    assert len(found["cluster"]) == 56


def test_commands_inside_the_pods(group):
    for pod in ("0", "0-1"):
        status = group.sh(pod, "ray status")
        assert len(re.findall(r"^ 1 node_[0-9a-f]{56}$", status, re.M)) == 2 and "16.0/16.0 GPU" in status
    assert group.sh("0", "ray health-check; echo $?").splitlines()[-1] == "0"
    nodes = json.loads(group.sh("0-1", "ray list nodes --format=json"))
    assert sorted((n["node_ip"], n["state"], n["is_head_node"]) for n in nodes) == \
        sorted([(group.ip(0), "ALIVE", True), (group.ip(1), "ALIVE", False)])
    actors = json.loads(group.sh("0", "ray list actors --format=json"))
    assert [a["state"] for a in actors] == ["ALIVE", "ALIVE"]
    groups = json.loads(group.sh("0", "ray list placement-groups --format=json"))
    assert [g["state"] for g in groups] == ["CREATED"]
    # The script's other way of being called.
    done = group.run("exec", "0", "--", "bash", "/vllm-workspace/ray_init.sh", "leader", check=False)
    assert done.returncode == 1 and "Error: Missing argument --ray_cluster_size" in done.stdout + done.stderr
    assert {"vllm", "mobula-node", "mobula-actor"} <= set(group.sh("0", "ps ax -o comm=").split())
    assert group.sh("0", "cat /proc/1/comm") == "vllm" and "ray_init.sh worker" in group.sh("0-1", "tr '\\0' ' ' </proc/1/cmdline")


def test_nobody_spins(group):
    """16 ranks on perhaps two cores: without work they cost nothing."""
    def ticks():
        total = 0
        for pod in group.pods().values():
            for pid in sandbox.descendants(pod["sandbox_pid"]):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total
    eventually(lambda: metric("vllm:num_requests_running") == 0)
    before = ticks()
    time.sleep(1)  # the measured time itself
    used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
    report.append(f"CPU of all processes of the idle group: {used * 100:.0f} % of a core")
    assert used < 0.2


def test_pods_drain_on_sigterm(group):
    """A deleted leader pod gets SIGTERM as PID 1: what is under way is answered, then it ends, long before the grace period."""
    before = group.pods()
    ask = Ask(True, {"model": "ds", "prompt": "你好", "max_tokens": 300, "ignore_eos": True})
    eventually(lambda: "data: " in ask.text)
    begin = time.time()
    group.run("fault", "0", "delete")
    ask.join(30)
    assert ask.outcome() == "answered" and ask.text.count("data: ") == 301
    group.recreated(before, 20)
    ends = [e for e in group.status()["events"] if e["reason"] == "Exited" and e["object"] == f"pod/{NAME}-0"]
    assert [e["message"].rpartition(": ")[2] for e in ends] == ["exit code 0"]
    report.append(f"SIGTERM to the leader pod with a stream under way: answered, ended after {ends[0]['time_ms'] / 1000 - begin:.2f} s")
    group.wait_serving(20)
    eventually(lambda: not group.processes_outside_pods(), 5, "the end of the old pods' processes")
