"""`vllm serve` as a process: start, refusals, options of the server, signals, exit codes."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import httpx
import openai
import pytest

from api_server import BIN, MODEL, Server, clean_env, eventually, free_port

QUESTION = [{"role": "user", "content": "介绍一下深度学习。"}]


def run(*arguments, timeout=30, **env):
    return subprocess.run([str(BIN / "vllm"), *arguments], capture_output=True, text=True, timeout=timeout, env=clean_env(**env))


def test_usage():
    assert run("--version").stdout == "0.7.2\n"
    r = run("serve", "m", "--tensor-paralel-size", "2")
    assert r.returncode == 2 and "did you mean --tensor-parallel-size?" in r.stderr and r.stderr.startswith("usage: vllm serve")
    assert run("serve").returncode == 2 and run().returncode == 2 and run("bogus").returncode == 2
    r = run("serve", "--help")
    assert r.returncode == 0 and "--pipeline-parallel-size" in r.stdout and "--served-model-name" in r.stdout


@pytest.mark.parametrize("arguments,part", [
    (["-tp", "3"], "Total number of attention heads"), (["-pp", "99"], "only 4 layers"),
    (["--max-model-len", "1000000"], "greater than the derived max_model_len"),
    (["--quantization", "awq"], "does not match"), (["--hf-overrides", "[]"], "JSON object"),
    (["--enable-chunked-prefill=false", "--max-num-batched-tokens", "300"], "smaller than max_model_len"),
    (["--generation-config", "/nonexistent"], "generation_config.json"), (["--ssl-certfile", "/nonexistent"], "TLS certificate"),
])
def test_refusals(tmp_path, arguments, part):
    r = run("serve", str(MODEL), "--port", str(free_port()), *arguments, RAY_TMPDIR=str(tmp_path))
    assert r.returncode == 1 and part in r.stderr, r.stderr
    assert "Traceback" not in r.stderr
    errors = [line for line in r.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and errors[0].startswith("vllm serve: error: ")


def test_no_model(tmp_path):
    r = run("serve", str(tmp_path / "nothing"))
    assert r.returncode == 1 and "is not a directory" in r.stderr
    (tmp_path / "config.json").write_text("{")
    assert run("serve", str(tmp_path), RAY_TMPDIR=str(tmp_path)).returncode == 1


def test_port_clash_fails_at_once(tmp_path):
    with socket.socket() as s:
        s.bind(("0.0.0.0", 0))
        s.listen()
        r = run("serve", str(MODEL), "--port", str(s.getsockname()[1]), timeout=10, RAY_TMPDIR=str(tmp_path))
    assert r.returncode == 1 and "Address already in use" in r.stderr


def test_warnings_and_environment(tmp_path):
    s = Server(tmp_path, "--swap-space", "4", "--enable_lora", "--max_model_len=2K", "--no-enable-prefix-caching",
               env={"NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "INFO", "VLLM_USE_V1": "0"}, name=None)
    log = s.log()
    assert log.count("--swap-space has no effect here: ") == 1 and log.count("--enable-lora has no effect here: ") == 1
    assert log.count("without effect: NCCL_IB_HCA, NCCL_DEBUG") + log.count("without effect: NCCL_DEBUG, NCCL_IB_HCA") == 1
    models = httpx.get(s.url + "/v1/models").json()["data"]
    assert models[0]["id"] == models[0]["root"] == str(MODEL) and models[0]["max_model_len"] == 2048
    assert s.metric("vllm:gpu_prefix_cache_hit_rate") == -1
    assert s.stop() == 0


def test_names_key_root_path_and_request_id(tmp_path):
    s = Server(tmp_path, "--served-model-name", "a", "b", "--api-key", "secret", "--root-path", "/x", "--enable-request-id-headers",
               "--disable-fastapi-docs", "--disable-uvicorn-access-log", "--allowed-origins", '["http://good"]', name=None)
    ask = {"model": "b", "prompt": "x", "max_tokens": 1}
    assert httpx.post(s.url + "/v1/completions", json=ask).status_code == 401
    assert httpx.post(s.url + "/x/v1/completions", json=ask).json() == {"error": "Unauthorized"}
    assert httpx.get(s.url + "/health").status_code == httpx.get(s.url + "/metrics").status_code == 200
    for prefix in ("", "/x"):
        r = httpx.post(s.url + prefix + "/v1/completions", json=ask,
                       headers={"Authorization": "Bearer secret", "X-Request-Id": "r1", "Origin": "http://good"})
        assert r.status_code == 200 and r.json()["model"] == "a" and r.json()["id"] == "cmpl-r1"
        assert r.headers["x-request-id"] == "r1" and r.headers["access-control-allow-origin"] == "http://good"
    assert len(httpx.get(s.url + "/health").headers["x-request-id"]) == 32
    assert "access-control-allow-origin" not in httpx.get(s.url + "/health", headers={"Origin": "http://bad"}).headers
    assert httpx.get(s.url + "/openapi.json").status_code == 404
    assert "HTTP/1.1\" 200" not in s.log()
    assert s.stop() == 0
    s = Server(tmp_path, "--api-key", "one", env={"VLLM_API_KEY": "two"})
    good = openai.OpenAI(base_url=s.url + "/v1", api_key="two", max_retries=0)
    assert good.models.list().data[0].id == "ds"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=s.url + "/v1", api_key="one", max_retries=0).models.list()
    s.stop()


def test_reasoning(tmp_path):
    s = Server(tmp_path, "--enable-reasoning", "--reasoning-parser", "deepseek_r1")
    ask = {"model": "ds", "messages": QUESTION, "temperature": 0, "max_tokens": 1500}
    message = httpx.post(s.url + "/v1/chat/completions", json=ask, timeout=60).json()["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"] and "think>" not in message["reasoning_content"] + message["content"]
    client = openai.OpenAI(base_url=s.url + "/v1", api_key="none")
    reasoning = content = ""
    for chunk in client.chat.completions.create(stream=True, **ask):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
    assert (reasoning, content) == (message["reasoning_content"], message["content"])
    short = httpx.post(s.url + "/v1/chat/completions", json={**ask, "max_tokens": 5}).json()["choices"][0]["message"]
    assert short["reasoning_content"] and short["content"] is None  # cut inside the reasoning
    s.stop()


def test_model_without_tokenizer(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(MODEL / name, model / name)
    s = Server(tmp_path, model=model)
    r = httpx.post(s.url + "/v1/completions", json={"model": "ds", "prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0, "logprobs": 1,
                                                    "return_token_ids": True, "ignore_eos": True})
    choice = r.json()["choices"][0]
    assert r.status_code == 200 and len(choice["token_ids"]) == 3
    assert choice["logprobs"]["tokens"] == [f"token_id:{t}" for t in choice["token_ids"]]
    r = httpx.post(s.url + "/v1/completions", json={"model": "ds", "prompt": "x"})
    assert r.status_code == 400 and "no tokenizer" in r.json()["message"]
    r = httpx.post(s.url + "/v1/chat/completions", json={"model": "ds", "messages": QUESTION})
    assert r.status_code == 400 and "no tokenizer" in r.json()["message"]
    s.stop()


def test_model_below_the_given_directory(tmp_path):
    deep = tmp_path / "bucket" / "models" / "demo"
    deep.mkdir(parents=True)
    for path in MODEL.iterdir():
        if path.is_file():
            os.symlink(path, deep / path.name)
    s = Server(tmp_path, model=f"{tmp_path}/bucket/")
    assert "the one model below it is" in s.log()
    s.stop()


def test_generation_config_and_flags(tmp_path):
    s = Server(tmp_path, "--override-generation-config", '{"temperature": 0, "max_new_tokens": 7}', "--return-tokens-as-token-ids")
    ask = {"model": "ds", "prompt": "你好", "max_tokens": 50, "ignore_eos": True, "logprobs": 0}
    a, b = (httpx.post(s.url + "/v1/completions", json=ask).json() for _ in range(2))
    assert a["usage"]["completion_tokens"] == 7 and a["choices"][0]["text"] == b["choices"][0]["text"]
    assert all(t.startswith("token_id:") for t in a["choices"][0]["logprobs"]["tokens"])
    s.stop()


def test_float32(tmp_path):
    s = Server(tmp_path, "--dtype", "float32", "-tp", "4", "-pp", "1")
    assert httpx.post(s.url + "/v1/completions", json={"model": "ds", "prompt": "你好", "max_tokens": 4}).status_code == 200
    s.stop()


def test_tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    s = Server(tmp_path, "--ssl-certfile", str(cert), "--ssl-keyfile", str(key), wait=False)
    url = f"https://localhost:{s.port}"
    context = ssl.create_default_context(cafile=str(cert))
    def up():
        try:
            return httpx.get(url + "/health", verify=context).status_code == 200
        except httpx.HTTPError:
            return False
    eventually(up)
    body = {"model": "ds", "prompt": "你好", "max_tokens": 20, "ignore_eos": True, "stream": True}
    text = httpx.post(url + "/v1/completions", json=body, verify=context).text
    assert text.endswith("data: [DONE]\n\n") and text.count("data: ") == 21
    assert s.stop() == 0


def start_long_stream(s, results, **extra):
    def go():
        try:
            with httpx.stream("POST", s.url + "/v1/completions", timeout=60,
                              json={"model": "ds", "prompt": "你好", "max_tokens": 1500, "ignore_eos": True, "stream": True, **extra}) as r:
                results.append((r.status_code, r.read().decode()))
        except httpx.HTTPError as e:
            results.append((0, repr(e)))
    thread = threading.Thread(target=go)
    thread.start()
    eventually(lambda: s.metric("vllm:num_requests_running") >= 1)
    return thread


def test_sigterm_drains(tmp_path):
    s = Server(tmp_path)
    results = []
    thread = start_long_stream(s, results)
    s.process.send_signal(signal.SIGTERM)
    eventually(lambda: refused(s))
    thread.join(60)
    assert results[0][0] == 200 and results[0][1].endswith('data: [DONE]\n\n') and results[0][1].count("data: ") == 1501
    assert s.process.wait(10) == 0


def refused(s):
    try:
        socket.create_connection(("127.0.0.1", s.port), timeout=5).close()
        return False
    except ConnectionRefusedError:
        return True


def test_shutdown_timeout_and_second_signal(tmp_path):
    s = Server(tmp_path, "--shutdown-timeout", "0.2")
    results = []
    thread = start_long_stream(s, results)
    s.process.send_signal(signal.SIGINT)
    thread.join(60)
    assert results[0][0] == 200  # told, not cut off
    error = results[0][1].split("\n\n")[-3:]
    assert json.loads(error[0].removeprefix("data: "))["error"]["code"] == 503 and error[1:] == ["data: [DONE]", ""]
    assert s.process.wait(10) == 0
    s = Server(tmp_path)
    thread = start_long_stream(s, results)
    s.process.send_signal(signal.SIGTERM)
    eventually(lambda: refused(s))
    s.process.send_signal(signal.SIGTERM)
    assert s.process.wait(5) == 128 + signal.SIGTERM
    thread.join(60)


def test_signal_while_pid_1(tmp_path):
    """In a PID namespace of its own, where the kernel drops signals that have no handler."""
    port = free_port()
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", str(BIN / "vllm"), "serve", str(MODEL), "--port", str(port)]
    if os.getuid() != 0:
        command.insert(1, "--map-root-user")
    probe = subprocess.run([*command[:command.index(str(BIN / "vllm"))], "true"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("no PID namespaces here")
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_env(RAY_TMPDIR=str(tmp_path)))
    def up():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx.HTTPError:
            return False
    eventually(up)
    child = int(subprocess.run(["pgrep", "-P", str(p.pid)], capture_output=True, text=True).stdout)
    begin = time.monotonic()
    os.kill(child, signal.SIGTERM)
    assert p.wait(10) == 0 and time.monotonic() - begin < 5


def test_chat_and_complete_commands(tmp_path):
    s = Server(tmp_path)
    out = subprocess.run([str(BIN / "vllm"), "chat", "--url", s.url + "/v1"], input="介绍一下深度学习。\n", capture_output=True, text=True,
                         timeout=60, env=clean_env())
    assert out.returncode == 0 and "Using model: ds" in out.stdout and "深度学习" in out.stdout
    out = subprocess.run([str(BIN / "vllm"), "complete", "--url", s.url + "/v1"], input="你好\n", capture_output=True, text=True, timeout=60,
                         env=clean_env())
    assert out.returncode == 0 and "Please enter prompt to complete:" in out.stdout
    s.stop()
