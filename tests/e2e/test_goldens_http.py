"""Numerics as a stranger can check them: checkpoints served over HTTP against the logits of Hugging Face transformers.

Prompts are token ids; the continuation's ids and the 20 best log-probabilities of each step come back through the API. The
goldens hold the greedy continuation of 64 tokens and the logits of four of its steps, in fp32 on the dequantised weights.
"""

import numpy as np
import httpx
import pytest

from api_server import Server
from support import checkpoint, sandbox

CASES = checkpoint.cases()
STEPS, TOP = 64, 20

# (tensor parallel, pipeline parallel) for each checkpoint; every one of them is also served by a single rank.
LAYOUTS = {
    "base_fp8": [(8, 1), (4, 2), (2, 4)],
    "plain_f32": [(4, 1), (2, 3)],
    "wide_bf16": [(8, 1), (2, 2)],
    "odd_fp8": [(8, 1), (4, 3)],
    "mscale_f16": [(8, 1)],
    "dense_bf16": [(4, 2)],
    "qwen2_bf16": [(4, 2)],
    "qwen2_tied_yarn_f32": [(2, 2)],
    "qwen3_fp8": [(8, 1)],
    "qwen3_moe_bf16": [(2, 2)],
    "llama3_bf16": [(2, 4)],
    "llama_f32": [(8, 1)],
}
PLANS = [(name, tp, pp) for name in CASES for tp, pp in [(1, 1), *LAYOUTS.get(name, [])]]
AUTO = ["base_fp8", "odd_fp8", "wide_bf16", "mscale_f16"]

rows = []


@pytest.fixture(scope="module", autouse=True)
def place(request):
    sandbox.enter()
    before = sandbox.Traces()
    yield
    before.assert_none_new()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{'checkpoint':22}{'dtype':>8} tp pp  largest error of a log-probability, or cosine, KL, top-1")
        print("\n".join(rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories, each written when it is first asked for."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in made:
            made[name] = checkpoint.write(CASES[name], root / name, files=3 if name == "odd_fp8" else 1)
        return made[name]
    return get


def complete(server, prompt, **more):
    body = {"model": "ds", "prompt": prompt, "temperature": 0, "ignore_eos": True, "return_tokens_as_token_ids": True, **more}
    reply = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def number(token):
    assert token.startswith("token_id:")
    return int(token[9:])


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def of_prompt_entry(entry):
    return {int(token): e["logprob"] for token, e in entry.items()}


def of_choice(choice, step):
    return {number(token): value for token, value in choice["logprobs"]["top_logprobs"][step].items()}


def error(found, expected):
    """The largest difference of a log-probability, after a look at whether the best ones are among them."""
    assert len(found) == TOP
    assert min(expected[t] for t in found) > np.sort(expected)[-TOP] - 2e-4
    return max(abs(value - expected[t]) for t, value in found.items())


@pytest.mark.parametrize("name,tp,pp", PLANS, ids=lambda v: str(v))
def test_float32(models, tmp_path, name, tp, pp):
    case = CASES[name]
    expected = {step: log_softmax(x) for step, x in checkpoint.logits(case).items()}
    server = Server(tmp_path, "--dtype", "float32", "-tp", str(tp), "-pp", str(pp), model=models(name))
    try:
        # Step by step: every token, and the best log-probabilities of the steps whose logits are known.
        choice = complete(server, case["prompt"], max_tokens=STEPS, logprobs=TOP)
        tokens = [number(t) for t in choice["logprobs"]["tokens"]]
        assert tokens == case["tokens"] and choice["finish_reason"] == "length"
        worst = 0.0
        for step, values in expected.items():
            found = of_choice(choice, step)
            worst = max(worst, error(found, values))
            assert choice["logprobs"]["token_logprobs"][step] == found[tokens[step]]
        # The same positions as part of a prompt.
        length = len(case["prompt"])
        choice = complete(server, case["prompt"] + tokens[:-1], max_tokens=1, logprobs=TOP, prompt_logprobs=TOP)
        assert choice["prompt_logprobs"][0] is None and len(choice["prompt_logprobs"]) == length + STEPS - 1
        for step, values in expected.items():
            found = of_prompt_entry(choice["prompt_logprobs"][length + step]) if step < STEPS - 1 else of_choice(choice, 0)
            worst = max(worst, error(found, values))
        assert [number(t) for t in choice["logprobs"]["tokens"]] == tokens[-1:]
        assert worst < 1e-4
    finally:
        code = server.stop()
    assert code == 0
    rows.append(f"{name:22}{'float32':>8}{tp:3}{pp:3}  {worst:.1e}")


@pytest.mark.parametrize("name", AUTO)
def test_auto(models, tmp_path, name):
    """The default precision, against the fp32 logits: cosine > 0.999, KL < 0.01, the same best token except in near-ties."""
    case = CASES[name]
    golden = checkpoint.logits(case)
    server = Server(tmp_path, "-tp", "2", "-pp", "2" if name == "base_fp8" else "1", model=models(name))
    try:
        length, tokens = len(case["prompt"]), case["tokens"]
        choice = complete(server, case["prompt"] + tokens[:-1], max_tokens=1, logprobs=TOP, prompt_logprobs=TOP)
        found = [of_prompt_entry(e) for e in choice["prompt_logprobs"][length:]] + [of_choice(choice, 0)]
    finally:
        assert server.stop() == 0
    assert len(found) == STEPS
    cosines, divergences = [], []
    for step, x in golden.items():
        ids = list(found[step])
        a, b, p = x[ids], np.array(list(found[step].values())), log_softmax(x)[ids]
        shift = x.mean() + b.mean() - a.mean()  # a softmax leaves open where the logits' zero is
        a, b = a - x.mean(), b - shift
        cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        q = b + shift
        rest = [max(1 - np.exp(v).sum(), 1e-9) for v in (p, q)]  # all other tokens as one
        divergences.append((np.exp(p) * (p - q)).sum() + rest[0] * np.log(rest[0] / rest[1]))
    assert min(cosines) > 0.999 and max(divergences) < 1e-2, (cosines, divergences)
    gaps = np.array([max(f.values()) - f.get(t, -np.inf) for f, t in zip(found, tokens)])  # 0: the best token is the same
    near_tie = 0.1
    assert (gaps < near_tie).all(), gaps
    rows.append(f"{name:22}{'auto':>8}      {min(cosines):.6f} {max(divergences):.1e} {(gaps == 0).mean() * 100:.0f}% of {STEPS}")
