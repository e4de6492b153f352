"""`vllm serve DIR` and `ray_init.sh` on one machine without a group: layouts, refusals of bad input, signals, what is left."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api_server import BIN, MODEL, clean_env, eventually, free_port
from support import checkpoint, sandbox
from support.group import Ask, metric

QUESTION = [{"role": "system", "content": "你是个友善的AI助手。"}, {"role": "user", "content": "介绍一下深度学习。"}]


@pytest.fixture(scope="module", autouse=True)
def place():
    sandbox.enter()


@pytest.fixture(autouse=True)
def nothing_left(place):
    before = sandbox.Traces()
    yield
    before.assert_none_new()


class Serve:
    """A `vllm serve` of a user: in a shell of its own, with the default folders."""

    def __init__(self, log, *arguments, model=MODEL, command=("vllm", "serve"), **env):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.path = Path(log) / f"{self.port}.log"
        with open(self.path, "w") as out:
            self.process = subprocess.Popen([str(BIN / command[0]), *command[1:], str(model), "--port", str(self.port),
                                             "--served-model-name", "ds", *arguments], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=subprocess.STDOUT, env=clean_env(**env))

    def log(self):
        return self.path.read_text()

    def wait_ready(self):
        def answers():
            assert self.process.poll() is None, self.log()
            try:
                return httpx.get(self.url + "/health", timeout=5).status_code == 200
            except httpx.ConnectError:
                return False
        eventually(answers, 30)
        return self

    def ends(self, sig=None, seconds=15):
        if sig:
            self.process.send_signal(sig)
        return self.process.wait(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def answer(url):
    body = {"model": "ds", "messages": QUESTION, "temperature": 0, "max_tokens": 60}
    reply = httpx.post(url + "/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


answers = {}


# The demo model has 8 heads and 4 layers.
@pytest.mark.parametrize("tp,pp", [(1, 1), (2, 2), (8, 1), (4, 4), (1, 4)])
def test_layouts(tmp_path, tp, pp):
    with Serve(tmp_path, "-tp", str(tp), "-pp", str(pp), "--dtype", "float32") as s:
        s.wait_ready()
        answers[tp, pp] = answer(s.url)
        assert len(answers[tp, pp]) > 20
        assert s.ends(signal.SIGTERM) == 0, s.log()
    assert len(set(answers.values())) == 1  # no layout answers differently


def test_default_layout_and_plain_command(tmp_path):
    """No option but the port; a name with a slash at its end; the other name of the program."""
    with Serve(tmp_path, model=f"{MODEL}/", command=("mobula", "vllm", "serve")) as s:
        s.wait_ready()
        assert "</think>" in httpx.post(s.url + "/v1/chat/completions", timeout=60, json={
            "model": "ds", "messages": QUESTION, "max_tokens": 1024, "temperature": 0.7, "top_p": 0.9, "seed": 10}
        ).json()["choices"][0]["message"]["content"]
        assert s.ends(signal.SIGINT) == 0


def run(*arguments, program="vllm", timeout=30, **env):
    return subprocess.run([str(BIN / program), *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, env=clean_env(**env))


def refused(*arguments, **env):
    """The one line that says why."""
    done = run("serve", *arguments, "--port", free_port(), **env)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1 and lines[0].startswith("vllm serve: error: "), done.stderr
    return lines[0].removeprefix("vllm serve: error: ")


def header_of(model):
    data = (model / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


def put(model, header, data):
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def cut_off(model):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-100])


def too_short(model):
    (model / "model.safetensors").write_bytes(b"abc")


def lying_header_size(model):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + data[8:])


def lying_offsets(model):
    header, data = header_of(model)
    header["model.norm.weight"]["data_offsets"] = [0, header["model.norm.weight"]["data_offsets"][1]]
    put(model, header, data)


def header_of_no_json(model):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 16) + b"{\"a\": [1, 2, 3, " + bytes(100))


def missing_tensor(model):
    entries = list(checkpoint.tensors(CASE))
    checkpoint.write_safetensors(model / "model.safetensors", [e for e in entries if e[0] != "model.layers.1.self_attn.o_proj.weight"])


def wrong_shape(model):
    header, data = header_of(model)
    header["model.layers.1.self_attn.kv_b_proj.weight"]["shape"].reverse()
    put(model, header, data)


def pointer_of_git_lfs(model):
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n")


def index_of_nothing(model):
    header, _ = header_of(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: "part-1.safetensors" for n in header}}))


def no_weights(model):
    (model / "model.safetensors").unlink()


def no_config(model):
    (model / "config.json").unlink()


def config(**changes):
    def change(model):
        values = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**values, **changes}))
    return change


def text_of_config(text):
    return lambda model: (model / "config.json").write_text(text)


def file(name, text):
    return lambda model: (model / name).write_text(text)


CASE = checkpoint.cases()["plain_f32"]
BROKEN = [
    (cut_off, "model.safetensors", "it is truncated"),
    (too_short, "model.safetensors", "3 bytes are too few"),
    (lying_header_size, "model.safetensors", "the header says it has 1152921504606846976 bytes"),
    (lying_offsets, "model.safetensors", "model.norm.weight"),
    (header_of_no_json, "model.safetensors", "header"),
    (missing_tensor, "model.layers.1.self_attn.o_proj.weight", "missing"),
    (wrong_shape, "model.layers.1.self_attn.kv_b_proj.weight", "config.json makes it"),
    (pointer_of_git_lfs, "model.safetensors", "git lfs pull"),
    (index_of_nothing, "part-1.safetensors", "No such file"),
    (no_weights, "no *.safetensors file", ""),
    (no_config, "no config.json", ""),
    (text_of_config('{"architectures": ['), "config.json: line 1", ""),
    (text_of_config("[]"), "config.json", ""),
    (text_of_config("{}"), "architectures", ""),
    (config(architectures=["MambaForCausalLM"]), "MambaForCausalLM", "supported: DeepseekV3ForCausalLM"),
    (config(hidden_size="wide"), "hidden_size is not an integer", ""),
    (config(num_hidden_layers=-1), "num_hidden_layers is -1", ""),
    (config(num_hidden_layers=4096), "model.layers.3.", "missing"),
    (config(scoring_func="softmax"), "scoring_func", "sigmoid"),
    (config(rope_scaling={"type": "spiral"}), "spiral", "supported"),
    (config(quantization_config={"quant_method": "awq"}), "awq", ""),
    (file("generation_config.json", "{"), "generation_config.json", ""),
    (file("tokenizer.json", "{}"), "tokenizer.json", ""),
    (file("tokenizer.json", b"\xff\xfe".decode("latin-1")), "tokenizer.json", ""),
]


@pytest.mark.parametrize("spoil,parts", [(b[0], b[1:]) for b in BROKEN], ids=lambda v: getattr(v, "__name__", ""))
def test_broken_model(tmp_path, spoil, parts):
    model = checkpoint.write(CASE, tmp_path / "model")
    spoil(model)
    line = refused(model)
    assert all(part in line for part in parts), line


def test_refusals(tmp_path):
    assert "is not a directory" in refused(tmp_path / "nothing")
    line = refused(MODEL, "-tp", "3")
    assert "attention heads (8)" in line and "tensor parallel size (3)" in line
    assert "only 4 layers" in refused(MODEL, "-pp", "5")
    line = refused(MODEL, "--max-model-len", "1000000")
    assert "1000000" in line and "4096" in line
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        done = run("serve", MODEL, "--port", taken.getsockname()[1])
        assert done.returncode == 1 and "Address already in use" in done.stderr and str(taken.getsockname()[1]) in done.stderr
    for words, hint in ((["--tensor-parallel-sise", "2"], "did you mean --tensor-parallel-size?"),
                        (["-tp", "two"], "two"), (["--port", "http"], "http"), (["--max-model-len"], "--max-model-len")):
        done = run("serve", MODEL, *words)
        assert done.returncode == 2 and hint in done.stderr and done.stderr.startswith("usage: vllm serve"), done.stderr


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_signal_drains(tmp_path, sig):
    with Serve(tmp_path, "-tp", "2", "-pp", "2") as s:
        s.wait_ready()
        asks = [Ask(i % 2 == 0, {"model": "ds", "prompt": "你好", "max_tokens": 400, "ignore_eos": True}, url=s.url) for i in range(4)]
        eventually(lambda: metric("vllm:num_requests_running", s.url) == 4)
        begin = time.monotonic()
        code = s.ends(sig, 30)
        assert code == 0 and time.monotonic() - begin < 25, s.log()
        for a in asks:
            a.join(5)
        assert [a.outcome() for a in asks] == ["answered"] * 4


def test_killed_server_leaves_nothing(tmp_path):
    with Serve(tmp_path, "-tp", "2", "-pp", "2") as s:
        s.wait_ready()
        assert s.ends(signal.SIGKILL) == -9


@pytest.mark.parametrize("script", ["ray_init.sh", "multi-node-serving.sh"])
@pytest.mark.parametrize("words,code,line", [
    (["leader"], 1, "Error: Missing argument --ray_cluster_size"),
    (["worker"], 1, "Error: Missing argument --ray_address"),
    (["follower"], 1, "unknown subcommand: follower"),
])
def test_pod_script_through_bash(script, words, code, line):
    """LWS's own examples call it as `bash NAME …`."""
    for command in (["bash", str(BIN / script)], [str(BIN / script)]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=20, env=clean_env())
        assert done.returncode == code and line in (done.stdout + done.stderr).splitlines()


@pytest.fixture
def own_tmp(tmp_path):
    env = clean_env(RAY_TMPDIR=str(tmp_path / "ray"))
    yield env
    subprocess.run([str(BIN / "ray"), "stop"], env=env, check=True, capture_output=True, timeout=30)


def test_timeouts_of_the_pod_script(own_tmp):
    begin = time.monotonic()
    done = subprocess.run(["bash", str(BIN / "ray_init.sh"), "worker", "--ray_address=127.0.0.1", f"--ray_port={free_port()}",
                           "--ray_init_timeout=1"], capture_output=True, text=True, timeout=20, env=own_tmp)
    assert done.returncode == 1 and "Ray worker starts timeout, head address: 127.0.0.1:" in done.stdout + done.stderr
    assert "Waiting until the ray worker is active..." in done.stdout
    port = free_port()
    done = subprocess.run([str(BIN / "ray_init.sh"), "leader", "--ray_cluster_size=2", f"--ray_port={port}", "--ray_init_timeout=1"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=20, env=own_tmp)
    assert done.returncode == 1 and time.monotonic() - begin < 10
    assert "Wait for all ray workers to be active. 1/2 is active" in done.stdout
    assert "Waiting for all ray workers to be active timed out." in done.stdout


def test_pod_command_of_one_pod(tmp_path, own_tmp):
    """The leader's whole command line, group of one: `;` joins script and server, and the server finds the cluster."""
    port, gcs = free_port(), free_port()
    log = tmp_path / "log"
    command = (f"{BIN}/ray_init.sh leader --ray_cluster_size=1 --ray_port={gcs} --num-gpus=4;"
               f"{BIN}/vllm serve {MODEL} --port {port} --served-model-name ds -tp 2 -pp 2")
    with open(log, "w") as out:
        shell = subprocess.Popen(["bash", "-c", command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                 env={**own_tmp, "LWS_GROUP_SIZE": "1"})
    try:
        def up():
            assert shell.poll() is None, log.read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
            except httpx.ConnectError:
                return False
        eventually(up, 30)
        assert answer(f"http://127.0.0.1:{port}")
        stages = [c for c in sandbox.descendants(os.getpid()).values() if "actor-worker" in c]
        assert len(stages) == 2
        # The daemon dies: the server says so and ends with a status that is not 0.
        daemon = next(p for p, c in sandbox.descendants(os.getpid()).items() if "mobula node --head" in c)
        os.kill(daemon, signal.SIGKILL)
        assert shell.wait(10) == 70, log.read_text()
        assert "group lost, cause" in log.read_text()
    finally:
        shell.kill()
        shell.wait()


def test_server_of_an_incomplete_group(own_tmp, tmp_path):
    """`;` starts the server although the script gave up."""
    # No cluster at all: refused at once.
    begin = time.monotonic()
    line = refused(MODEL, LWS_GROUP_SIZE="2", RAY_TMPDIR=own_tmp["RAY_TMPDIR"])
    assert "group of 2" in line and "ray_init.sh" in line and time.monotonic() - begin < 5
    # One node of two: it waits for the other one, then says what is missing.
    done = subprocess.run([str(BIN / "ray_init.sh"), "leader", "--ray_cluster_size=2", f"--ray_port={free_port()}", "--ray_init_timeout=1",
                           "--num-gpus=8"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20, env=own_tmp)
    assert done.returncode == 1
    with Serve(tmp_path, "-tp", "8", "-pp", "2", "--ready-timeout", "1", LWS_GROUP_SIZE="2", RAY_TMPDIR=own_tmp["RAY_TMPDIR"]) as s:
        assert s.ends() == 75
        assert "the group is incomplete: 1 of 2 nodes and 8 GPUs are there" in s.log()


@pytest.mark.parametrize("tp,pp,parts", [
    (16, 1, ["does not fit a pod of 8 GPUs", "-tp 8 -pp 2"]),  # what the documents' comment suggests
    (8, 4, ["32 GPUs", "the group has 16"]),
    (3, 1, ["attention heads"]),
])
def test_sizes_that_do_not_fit_the_group(own_tmp, tmp_path, tp, pp, parts):
    gcs = free_port()
    worker = subprocess.Popen([str(BIN / "ray_init.sh"), "worker", "--ray_address=127.0.0.1", f"--ray_port={gcs}", "--num-gpus=8",
                               "--node-ip-address=127.0.0.2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env={**own_tmp, "RAY_TMPDIR": str(tmp_path / "worker")})
    try:
        subprocess.run([str(BIN / "ray_init.sh"), "leader", "--ray_cluster_size=2", f"--ray_port={gcs}", "--num-gpus=8",
                        "--node-ip-address=127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20, env=own_tmp,
                       check=True)
        model = wide_model(tmp_path) if tp == 16 else MODEL
        with Serve(tmp_path, "-tp", str(tp), "-pp", str(pp), model=model, LWS_GROUP_SIZE="2", RAY_TMPDIR=own_tmp["RAY_TMPDIR"]) as s:
            assert s.ends() == 1, s.log()
            errors = [line for line in s.log().splitlines() if "ERROR" in line or "error: " in line]
            assert len(errors) == 1 and all(p in errors[0] for p in parts), s.log()
    finally:
        worker.terminate()
        worker.wait(10)


def wide_model(tmp_path):
    """16 heads, so that 16 ranks could share them."""
    case = json.loads(json.dumps(checkpoint.cases()["dense_bf16"]))
    case["config"].update(num_attention_heads=16, num_key_value_heads=16)
    return checkpoint.write(case, tmp_path / "wide")


def test_many_at_once(tmp_path):
    """Two servers beside each other share nothing."""
    with Serve(tmp_path) as a, Serve(tmp_path) as b:
        a.wait_ready(), b.wait_ready()
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(answer, (a.url, b.url))
        assert first == second
        assert a.ends(signal.SIGTERM) == 0
        assert answer(b.url) == second
        assert b.ends(signal.SIGTERM) == 0
