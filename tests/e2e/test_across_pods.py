"""A stage whose tensor-parallel ranks are in several pods: emulated GPUs (tests/emu/README.md), and a double of NCCL between the pods."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from api_server import BIN, Server, clean_env, eventually, free_port
from support import checkpoint, sandbox
from support.group import Ask
from test_goldens_http import complete, log_softmax, number, of_choice

CASES = checkpoint.cases()
PLUGIN = BIN / "libmobula_cuda_emu.so"
NCCL = (BIN / ".." / "tests" / "nccl_double.so").resolve()
NEAR = 0.1  # bf16 activations against fp32 ones, in a log-probability
OPTIONS = ["--device", "cuda", "--max-num-batched-tokens", "256", "--max-num-seqs", "8"]


@pytest.fixture(scope="module", autouse=True)
def place():
    if not PLUGIN.exists():
        pytest.skip("built without the emulated GPU")
    sandbox.enter()
    before = sandbox.Traces()
    yield
    before.assert_none_new()


class Pods:
    """Nodes of one emulated GPU each, on addresses of their own."""

    def __init__(self, tmp_path, count, nccl=NCCL):
        self.tmp, self.count, gcs = tmp_path, count, free_port()
        self.env = {"MOBULA_CUDA_PLUGIN": str(PLUGIN), "VLLM_NCCL_SO_PATH": str(nccl), "MOB_CUDA_WAIT_MS": "60000", "LWS_GROUP_SIZE": str(count)}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.workers = [subprocess.Popen([str(BIN / "ray_init.sh"), "worker", "--ray_address=127.0.0.1", f"--ray_port={gcs}", "--num-gpus=1",
                                          f"--node-ip-address=127.0.0.{i + 1}"], env=clean_env(RAY_TMPDIR=str(tmp_path / f"pod{i}"), **self.env),
                                         **quiet) for i in range(1, count)]
        subprocess.run([str(BIN / "ray_init.sh"), "leader", f"--ray_cluster_size={count}", f"--ray_port={gcs}", "--num-gpus=1",
                        "--node-ip-address=127.0.0.1"], env=clean_env(RAY_TMPDIR=str(tmp_path), **self.env), timeout=60, check=True, **quiet)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for w in self.workers:
            w.terminate()
        subprocess.run([str(BIN / "ray"), "stop"], env=clean_env(RAY_TMPDIR=str(self.tmp)), timeout=30, capture_output=True)
        for w in self.workers:
            w.wait(20)

    def serve(self, *options, model, wait=True):
        server = Server(self.tmp, *OPTIONS, *options, model=model, env=self.env, wait=False)
        if wait:
            server.wait_ready(180)
        return server


def stage_processes():
    return [pid for pid, command in sandbox.descendants(os.getpid()).items() if "actor-worker" in command]


@pytest.mark.parametrize("name,pods,options", [
    ("llama3_bf16", 2, ["-tp", "2"]),
    ("qwen3_moe_bf16", 4, ["-tp", "2", "-pp", "2", "--enable-expert-parallel"]),
], ids=["tp2", "tp2-pp2-ep"])
def test_serves(tmp_path, name, pods, options):
    case = CASES[name]
    model = checkpoint.write(case, tmp_path / name)
    with Pods(tmp_path, pods) as p:
        server = p.serve(*options, model=model)
        try:
            assert "spans 2 pods of 1 ranks" in server.log()
            assert server.metric("mobula_stage_up") == pods == len(stage_processes())
            choice = complete(server, case["prompt"], max_tokens=12, logprobs=5)
            tokens = [number(t) for t in choice["logprobs"]["tokens"]]
            logits = {step: log_softmax(x) for step, x in checkpoint.logits(case).items()}
            found = of_choice(choice, 0)
            assert max(abs(value - logits[0][t]) for t, value in found.items()) < NEAR
            assert logits[0][tokens[0]] > np.max(logits[0]) - NEAR
            # Several at once, greedy ones without log probabilities among them, and a seed that draws the same again.
            ask = {"prompt": case["prompt"], "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 7, "logprobs": 1}
            with ThreadPoolExecutor(4) as pool:
                plain = pool.submit(lambda: complete(server, case["prompt"], max_tokens=12))
                drawn = list(pool.map(lambda _: complete(server, **ask)["logprobs"]["tokens"], range(3)))
            assert all(len(one) == 12 for one in drawn) and plain.result()["finish_reason"] == "length"
            alone = [complete(server, **ask)["logprobs"]["tokens"] for _ in range(2)]
            assert alone[0] == alone[1]
        finally:
            assert server.stop() == 0
        eventually(lambda: not stage_processes())


@pytest.mark.parametrize("sig,seconds", [(signal.SIGKILL, 2), (signal.SIGSTOP, 8)], ids=["killed", "frozen"])
def test_loss_of_a_pods_ranks(tmp_path, sig, seconds):
    model = checkpoint.write(CASES["llama3_bf16"], tmp_path / "model")
    with Pods(tmp_path, 2) as p:
        server = p.serve("-tp", "2", model=model)
        asks = [Ask(True, {"model": "ds", "prompt": CASES["llama3_bf16"]["prompt"], "max_tokens": 400, "ignore_eos": True}, url=server.url)
                for _ in range(3)]
        eventually(lambda: all(a.text.count("data:") > 2 for a in asks), 60)
        victim = next(pid for pid in stage_processes() if f'pid="{pid}"' in server_metrics(server) and is_on(server, pid, "127.0.0.2"))
        begin = time.time()
        os.kill(victim, sig)
        assert server.process.wait(30) == 70
        assert time.time() - begin < seconds, server.log()
        for a in asks:
            a.join(5)
            assert a.outcome() != "answered"
        assert "group lost, cause " + ("actor_died" if sig == signal.SIGKILL else "silent") in server.log()
        assert "ranks 1-1 of 2" in server.log()
        others = [pid for pid in stage_processes() if pid != victim]
        eventually(lambda: not any(sandbox.alive(pid) for pid in others), 5)
        if sig == signal.SIGSTOP and sandbox.alive(victim):
            os.kill(victim, signal.SIGCONT)
        server.stop()
        eventually(lambda: not stage_processes())


def server_metrics(server):
    import urllib.request
    return urllib.request.urlopen(server.url + "/metrics").read().decode()


def is_on(server, pid, address):
    return any(f'node="{address}"' in line and f'pid="{pid}"' in line for line in server_metrics(server).splitlines())


def test_without_nccl(tmp_path):
    model = checkpoint.write(CASES["llama3_bf16"], tmp_path / "model")
    with Pods(tmp_path, 2, nccl=tmp_path / "nowhere.so") as p:
        server = p.serve("-tp", "2", model=model, wait=False)
        assert server.process.wait(60) not in (0, None)
        lines = [line for line in server.log().splitlines() if "NCCL, as VLLM_NCCL_SO_PATH names it, cannot be used" in line]
        assert lines and "nowhere.so" in lines[0], server.log()
        server.stop()
