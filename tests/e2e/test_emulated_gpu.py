"""`vllm serve` on emulated GPUs: the CUDA backend's own sources behind the whole server (tests/emu/README.md)."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from api_server import BIN, Server
from support import checkpoint, sandbox
from test_goldens_http import complete, log_softmax, number, of_choice

CASES = checkpoint.cases()
PLUGIN = BIN / "libmobula_cuda_emu.so"
NEAR = 0.1  # bf16 activations against fp32 ones, in a log-probability


@pytest.fixture(scope="module", autouse=True)
def place():
    if not PLUGIN.exists():
        pytest.skip("built without the emulated GPU")
    sandbox.enter()
    before = sandbox.Traces()
    yield
    before.assert_none_new()


@pytest.mark.parametrize("name,stages,options", [
    ("llama3_bf16", 1, ["-tp", "2"]),
    ("qwen3_moe_bf16", 2, ["-tp", "2", "-pp", "2", "--enable-expert-parallel"]),
], ids=["tp2", "tp2-pp2-ep"])
def test_serves(tmp_path, name, stages, options):
    case = CASES[name]
    model = checkpoint.write(case, tmp_path / name)
    server = Server(tmp_path, "--device", "cuda", "--max-num-batched-tokens", "256", "--max-num-seqs", "8", *options, model=model,
                    env={"MOBULA_CUDA_PLUGIN": str(PLUGIN), "MOB_EMU_DEVICES": "4", "MOB_CUDA_WAIT_MS": "60000"})
    try:
        assert server.log().count("memory of GPU") == stages  # a line of every stage, from the CUDA backend
        # Decoding step by step follows the golden until its two best tokens are nearly as good.
        choice = complete(server, case["prompt"], max_tokens=12, logprobs=5)
        tokens = [number(t) for t in choice["logprobs"]["tokens"]]
        logits = {step: log_softmax(x) for step, x in checkpoint.logits(case).items()}
        assert 0 in logits
        found = of_choice(choice, 0)
        assert max(abs(value - logits[0][t]) for t, value in found.items()) < NEAR
        assert logits[0][tokens[0]] > np.max(logits[0]) - NEAR
        # Several at once, and a seed that draws the same again.
        ask = {"prompt": case["prompt"], "max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 7}
        with ThreadPoolExecutor(4) as pool:
            drawn = list(pool.map(lambda _: complete(server, **{**ask, "logprobs": 1})["logprobs"]["tokens"], range(4)))
        assert all(len(one) == 12 for one in drawn)
        alone = [complete(server, **{**ask, "logprobs": 1})["logprobs"]["tokens"] for _ in range(2)]
        assert alone[0] == alone[1]
        assert httpx.get(server.url + "/health", timeout=5).status_code == 200
    finally:
        assert server.stop() == 0
