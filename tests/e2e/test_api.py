"""The OpenAI API of `vllm serve` with the demo model, through the openai client and over raw HTTP."""

import json
import re
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from api_server import SOURCE, Server, eventually

QUESTION = [{"role": "system", "content": "你是个友善的AI助手。"}, {"role": "user", "content": "介绍一下深度学习。"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("api"), "--max-model-len", "2048", "-tp", "2", "-pp", "2")
    yield s
    assert s.stop() == 0


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as c:
        yield c


def keys(pairs):
    return [k for k, _ in pairs]


def test_the_seed_request(server):
    """The request and the reply's keys, in order, of the document that this project was made from."""
    script = SOURCE / "deploy" / "seed" / "chat-request.sh"
    if not script.exists():
        pytest.skip("no copy of the request")
    text = script.read_text().replace("localhost:8000", f"127.0.0.1:{server.port}")
    out = subprocess.run(["bash", "-c", text], capture_output=True, check=True).stdout.decode()
    pairs = json.loads(out, object_pairs_hook=list)
    assert keys(pairs) == ["id", "object", "created", "model", "choices", "usage", "prompt_logprobs"]
    choice = dict(pairs)["choices"][0]
    assert keys(choice) == ["index", "message", "logprobs", "finish_reason", "stop_reason"]
    assert keys(dict(choice)["message"]) == ["role", "reasoning_content", "content", "tool_calls"]
    assert keys(dict(pairs)["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"]
    body = json.loads(out)
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body["id"])
    assert body["object"] == "chat.completion" and body["model"] == "ds"
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant" and message["tool_calls"] == [] and message["reasoning_content"] is None
    assert "深度学习" in message["content"] and "</think>" in message["content"]
    assert "<think>" not in message["content"]
    assert body["choices"][0]["finish_reason"] == "stop" and body["choices"][0]["stop_reason"] is None
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["completion_tokens"] <= 1024
    assert "\\u" not in out and '": ' not in out.split('"content":')[0]  # compact, not escaped


def test_seed_makes_answers_repeat(client):
    def ask(**extra):
        return client.chat.completions.create(model="ds", messages=QUESTION, max_tokens=60, temperature=0.7, top_p=0.9,
                                              **extra).choices[0].message.content
    assert ask(seed=10) == ask(seed=10)
    assert len({ask(seed=s) for s in range(4)}) > 1
    assert len({ask() for _ in range(4)}) > 1


def test_stream_equals_whole(client):
    arguments = dict(model="ds", messages=QUESTION, max_tokens=80, temperature=0.7, seed=3)
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 80
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({c.id for c in chunks}) == 1


def test_stream_bytes(http):
    """The order of events and of their keys."""
    body = {"model": "ds", "messages": QUESTION, "max_tokens": 3, "temperature": 0, "stream": True,
            "stream_options": {"continuous_usage_stats": True}}
    with http.stream("POST", "/v1/chat/completions", json=body, headers={"X-Request-Id": "abc"}) as r:
        assert r.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = r.read().decode()
    events = text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]" and all(e.startswith("data: ") for e in events[:-1])
    parsed = [json.loads(e[6:], object_pairs_hook=list) for e in events[:-2]]
    assert len(parsed) == 5  # role, three tokens, usage
    for i, pairs in enumerate(parsed):
        assert keys(pairs) == ["id", "object", "created", "model", "choices", "usage"]
        assert dict(pairs)["id"] == "chatcmpl-abc" and dict(pairs)["object"] == "chat.completion.chunk"
        assert keys(dict(pairs)["usage"]) == ["prompt_tokens", "total_tokens", "completion_tokens"]
        if i < 4:
            choice = dict(pairs)["choices"][0]
            last = ["stop_reason"] if i == 3 else []
            assert keys(choice) == ["index", "delta", "logprobs", "finish_reason"] + last
            assert keys(dict(choice)["delta"]) == (["role", "content"] if i == 0 else ["content"])
    assert [dict(dict(p)["usage"])["completion_tokens"] for p in parsed] == [0, 1, 2, 3, 3]
    assert dict(parsed[4])["choices"] == []
    del body["stream_options"]
    with http.stream("POST", "/v1/chat/completions", json=body) as r:
        events = r.read().decode().split("\n\n")
    assert len(events) == 6 and '"usage"' not in events[0]


def test_completion_of_text_and_of_ids(client, http):
    ids = http.post("/tokenize", json={"model": "ds", "prompt": "深度学习是"}).json()
    assert list(ids) == ["count", "max_model_len", "tokens"] and ids["count"] == len(ids["tokens"])
    assert ids["max_model_len"] == 2048
    arguments = dict(model="ds", temperature=0, max_tokens=20)
    text = client.completions.create(prompt="深度学习是", **arguments)
    same = client.completions.create(prompt=ids["tokens"], **arguments)
    assert text.choices[0].text == same.choices[0].text != ""
    assert text.usage.prompt_tokens == ids["count"] and text.object == "text_completion"
    both = client.completions.create(prompt=["深度学习是", "你好"], **arguments)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text == text.choices[0].text
    lists = client.completions.create(prompt=[ids["tokens"], ids["tokens"]], **arguments)
    assert [c.text for c in lists.choices] == [text.choices[0].text] * 2
    streamed = list(client.completions.create(prompt=["深度学习是", "你好"], stream=True, **arguments))
    for i in range(2):
        assert "".join(c.choices[0].text for c in streamed if c.choices[0].index == i) == both.choices[i].text
    assert client.completions.create(model="ds", prompt="x", seed=1).usage.completion_tokens <= 16  # the default
    raw = json.loads(http.post("/v1/completions", json={"model": "ds", "prompt": "x", "max_tokens": 1}).text,
                     object_pairs_hook=list)
    assert keys(raw) == ["id", "object", "created", "model", "choices", "usage"]
    assert keys(dict(raw)["choices"][0]) == ["index", "text", "logprobs", "finish_reason", "stop_reason", "prompt_logprobs"]


def test_tokenize_chat_and_detokenize(http):
    chat = http.post("/tokenize", json={"model": "ds", "messages": QUESTION}).json()
    back = http.post("/detokenize", json={"model": "ds", "tokens": chat["tokens"]}).json()
    assert list(back) == ["prompt"]
    assert back["prompt"].endswith("<｜Assistant｜><think>\n") and "介绍一下深度学习。" in back["prompt"]
    usage = http.post("/v1/chat/completions", json={"model": "ds", "messages": QUESTION, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == chat["count"]
    plain = http.post("/tokenize", json={"model": "ds", "messages": QUESTION, "add_generation_prompt": False}).json()
    assert plain["count"] < chat["count"]
    final = [*QUESTION, {"role": "assistant", "content": "深度"}]
    more = http.post("/tokenize", json={"model": "ds", "messages": final, "add_generation_prompt": False,
                                        "continue_final_message": True}).json()
    assert http.post("/detokenize", json={"model": "ds", "tokens": more["tokens"]}).json()["prompt"].endswith("深度")
    own = http.post("/tokenize", json={"model": "ds", "messages": QUESTION, "chat_template": "{{ messages[1].content }}!"})
    assert http.post("/detokenize", json={"model": "ds", "tokens": own.json()["tokens"]}).json()["prompt"] == "介绍一下深度学习。!"
    parts = [{"role": "user", "content": [{"type": "text", "text": "甲"}, {"type": "text", "text": "乙"}]}]
    joined = [{"role": "user", "content": "甲\n乙"}]
    assert (http.post("/tokenize", json={"model": "ds", "messages": parts}).json()
            == http.post("/tokenize", json={"model": "ds", "messages": joined}).json())


def test_logprobs(client, http):
    r = client.chat.completions.create(model="ds", messages=QUESTION, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
    content = r.choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token  # greedy: the best
        values = [t.logprob for t in token.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] == token.logprob <= 0
    assert bytes(sum((t.bytes for t in content), [])).decode("utf-8", "ignore").startswith(r.choices[0].message.content[:2])
    r = http.post("/v1/completions", json={"model": "ds", "prompt": "深度学习", "max_tokens": 4, "temperature": 0, "logprobs": 2,
                                           "echo": True, "prompt_logprobs": 1, "return_tokens_as_token_ids": True}).json()
    choice = r["choices"][0]
    lp = choice["logprobs"]
    assert list(lp) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
    prompt, total = r["usage"]["prompt_tokens"], r["usage"]["total_tokens"]
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == total
    assert lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None
    assert all(re.fullmatch(r"token_id:\d+", t) for t in lp["tokens"])
    assert all(2 <= len(t) <= 3 for t in lp["top_logprobs"][1:])
    assert choice["text"].startswith("深度学习")
    plp = choice["prompt_logprobs"]
    assert len(plp) == prompt and plp[0] is None
    for i, entry in enumerate(plp[1:], 1):
        token = lp["tokens"][i].removeprefix("token_id:")
        assert list(entry[token]) == ["logprob", "rank", "decoded_token"]
        assert abs(entry[token]["logprob"] - lp["token_logprobs"][i]) < 1e-6
    # what was generated has the same probability when it is given as a prompt
    ids = [int(t.removeprefix("token_id:")) for t in lp["tokens"]]
    again = http.post("/v1/completions", json={"model": "ds", "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0,
                                               "temperature": 0}).json()["choices"][0]["logprobs"]
    assert len(again["token_logprobs"]) == total
    for a, b in zip(again["token_logprobs"][1:], lp["token_logprobs"][1:]):
        assert abs(a - b) < 2e-2


def test_echo_only(http):
    r = http.post("/v1/completions", json={"model": "ds", "prompt": "你好", "max_tokens": 0, "echo": True}).json()
    assert r["choices"][0]["text"] == "你好" and r["choices"][0]["finish_reason"] == "length"


def test_stop(client):
    arguments = dict(model="ds", messages=QUESTION, temperature=0, max_tokens=400)
    whole = client.chat.completions.create(**arguments).choices[0]
    text = whole.message.content
    stop = text[20:23]
    cut = client.chat.completions.create(stop=["不会出现的话", stop], **arguments).choices[0]
    assert cut.message.content == text[:text.index(stop)] and cut.finish_reason == "stop" and cut.stop_reason == stop
    kept = client.chat.completions.create(stop=stop, extra_body={"include_stop_str_in_output": True}, **arguments).choices[0]
    assert kept.message.content == text[:text.index(stop) + 3]
    chunks = list(client.chat.completions.create(stop=[stop], stream=True, **arguments))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == cut.message.content
    assert chunks[-1].choices[0].finish_reason == "stop" and chunks[-1].choices[0].stop_reason == stop


def test_stop_token_ids_and_ignore_eos(http):
    ask = {"model": "ds", "messages": QUESTION, "temperature": 0, "max_tokens": 1500, "return_token_ids": True}
    whole = http.post("/v1/chat/completions", json=ask).json()["choices"][0]
    assert whole["finish_reason"] == "stop" and whole["stop_reason"] is None
    token = whole["token_ids"][30]
    cut = http.post("/v1/chat/completions", json={**ask, "stop_token_ids": [token]}).json()["choices"][0]
    assert cut["finish_reason"] == "stop" and cut["stop_reason"] == token
    assert cut["token_ids"] == whole["token_ids"][:whole["token_ids"].index(token) + 1]
    count = len(whole["token_ids"]) + 20
    on = http.post("/v1/chat/completions", json={**ask, "ignore_eos": True, "max_tokens": count}).json()
    assert on["usage"]["completion_tokens"] == count and on["choices"][0]["finish_reason"] == "length"
    least = len(whole["token_ids"]) + 5
    longer = http.post("/v1/chat/completions", json={**ask, "min_tokens": least}).json()
    assert longer["usage"]["completion_tokens"] >= least


def test_n_and_best_of(client):
    r = client.chat.completions.create(model="ds", messages=QUESTION, n=3, seed=5, temperature=1, max_tokens=30)
    assert [c.index for c in r.choices] == [0, 1, 2]
    assert len({c.message.content for c in r.choices}) == 3 and r.usage.completion_tokens <= 90
    one = client.chat.completions.create(model="ds", messages=QUESTION, seed=5, temperature=1, max_tokens=30)
    assert one.choices[0].message.content == r.choices[0].message.content
    chunks = list(client.chat.completions.create(model="ds", messages=QUESTION, n=3, seed=5, temperature=1, max_tokens=30, stream=True))
    for i in range(3):
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i)
        assert text == r.choices[i].message.content
    best = client.completions.create(model="ds", prompt="你好", n=1, best_of=3, seed=5, max_tokens=10, logprobs=0)
    every = client.completions.create(model="ds", prompt="你好", n=3, seed=5, max_tokens=10, logprobs=0)
    sums = [sum(c.logprobs.token_logprobs) for c in every.choices]
    assert best.choices[0].text == every.choices[sums.index(max(sums))].text


def test_biases(http):
    ask = {"model": "ds", "prompt": "你好", "max_tokens": 6, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    def ids(**extra):
        return http.post("/v1/completions", json={**ask, **extra}).json()["choices"][0]["token_ids"]
    assert ids(logit_bias={"300": 100}) == [300] * 6
    assert set(ids(allowed_token_ids=[300, 301])) <= {300, 301}
    ask["max_tokens"] = 100
    plain, varied = ids(), ids(repetition_penalty=1.5, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(varied)) > len(set(plain))  # fewer repetitions


def test_truncate_prompt(http):
    r = http.post("/v1/completions", json={"model": "ds", "prompt": [5, 6, 7, 8, 9], "max_tokens": 1, "truncate_prompt_tokens": 2,
                                           "return_token_ids": True}).json()
    assert r["choices"][0]["prompt_token_ids"] == [8, 9]


BAD = [
    ({"messages": QUESTION}, "'loc': ('body', 'model'), 'msg': 'Field required'"),
    ({"model": "ds"}, "'loc': ('body', 'messages')"),
    ({"model": "ds", "messages": "x"}, "Input should be a valid list"),
    ({"model": "ds", "messages": [1]}, "Input should be a valid dictionary"),
    ({"model": "ds", "messages": [{"content": "x"}]}, "'role'"),
    ({"model": "ds", "messages": []}, "messages must not be empty"),
    ({"model": "ds", "messages": QUESTION, "max_tokens": "many"}, "unable to parse string as an integer"),
    ({"model": "ds", "messages": QUESTION, "max_tokens": 1.5}, "fractional part"),
    ({"model": "ds", "messages": QUESTION, "temperature": {}}, "Input should be a valid number"),
    ({"model": "ds", "messages": QUESTION, "stream": "perhaps"}, "valid boolean"),
    ({"model": "ds", "messages": QUESTION, "stream_options": {"include_usage": True}}, "Stream options can only be defined when `stream=True`."),
    ({"model": "ds", "messages": QUESTION, "top_logprobs": 2}, "`logprobs` must be set to true"),
    ({"model": "ds", "messages": QUESTION, "logprobs": True, "top_logprobs": -1}, "`top_logprobs` must be a positive value."),
    ({"model": "ds", "messages": QUESTION, "logprobs": True, "top_logprobs": 21}, "greater than max allowed: 20"),
    ({"model": "ds", "messages": QUESTION, "prompt_logprobs": 1, "stream": True}, "not available when `stream=True`"),
    ({"model": "ds", "messages": QUESTION, "n": 0}, "n must be at least 1, got 0."),
    ({"model": "ds", "messages": QUESTION, "n": 2, "temperature": 0}, "n must be 1 when using greedy sampling"),
    ({"model": "ds", "messages": QUESTION, "temperature": -1}, "temperature must be non-negative, got -1.0."),
    ({"model": "ds", "messages": QUESTION, "top_p": 0}, "top_p must be in (0, 1], got 0.0."),
    ({"model": "ds", "messages": QUESTION, "top_k": 0}, "top_k must be -1 (disable), or at least 1"),
    ({"model": "ds", "messages": QUESTION, "min_p": 2}, "min_p must be in [0, 1]"),
    ({"model": "ds", "messages": QUESTION, "presence_penalty": 3}, "presence_penalty must be in [-2, 2]"),
    ({"model": "ds", "messages": QUESTION, "repetition_penalty": 0}, "repetition_penalty must be in (0, 2]"),
    ({"model": "ds", "messages": QUESTION, "max_tokens": 0}, "max_tokens must be at least 1"),
    ({"model": "ds", "messages": QUESTION, "max_tokens": 2048}, "This model's maximum context length is 2048 tokens. However, you requested"),
    ({"model": "ds", "messages": QUESTION, "max_tokens": 9223372036854775807}, "maximum context length"),
    ({"model": "ds", "messages": QUESTION, "min_tokens": 5, "max_tokens": 2}, "min_tokens must be less than or equal to max_tokens=2"),
    ({"model": "ds", "messages": QUESTION, "stop": [""]}, "stop cannot contain an empty string."),
    ({"model": "ds", "messages": QUESTION, "best_of": 1, "n": 2}, "best_of must be greater than or equal to n"),
    ({"model": "ds", "messages": QUESTION, "priority": 1}, "Priority scheduling is not enabled"),
    ({"model": "ds", "messages": QUESTION, "logit_bias": {"x": 1}}, "logit_bias"),
    ({"model": "ds", "messages": QUESTION, "logit_bias": {"99999999": 1}}, "out-of-vocab"),
    ({"model": "ds", "messages": QUESTION, "response_format": {"type": "json_object"}}, "guided decoding"),
    ({"model": "ds", "messages": QUESTION, "guided_choice": ["a"]}, "guided decoding"),
    ({"model": "ds", "messages": QUESTION, "guided_choice": ["a"], "guided_regex": "a"}, "only use one kind of guided decoding"),
    ({"model": "ds", "messages": QUESTION, "tools": [{"type": "function", "function": {"name": "f"}}]}, '"auto" tool choice requires'),
    ({"model": "ds", "messages": QUESTION, "tool_choice": "auto"}, "When using `tool_choice`, `tools` must be set."),
    ({"model": "ds", "messages": QUESTION, "continue_final_message": True, "add_generation_prompt": True}, "Cannot set both"),
    ({"model": "ds", "messages": QUESTION, "chat_template": "{{"}, "chat_template"),
    ({"model": "ds", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image"),
]


@pytest.mark.parametrize("body,part", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_chat(http, body, part):
    r = http.post("/v1/chat/completions", json=body)
    assert r.status_code == 400, r.text
    error = r.json()
    assert list(error) == ["object", "message", "type", "param", "code"]
    assert error["object"] == "error" and error["type"] == "BadRequestError" and error["code"] == 400 and error["param"] is None
    assert part in error["message"]


@pytest.mark.parametrize("body,part", [
    ({"model": "ds", "prompt": 5}, "prompt"), ({"model": "ds", "prompt": []}, "at least one prompt"),
    ({"model": "ds", "prompt": [[]]}, "cannot be empty"), ({"model": "ds", "prompt": [999999]}, "out of vocabulary"),
    ({"model": "ds", "prompt": [-5]}, "out of vocabulary"), ({"model": "ds", "prompt": ["a", 1]}, "prompt"),
    ({"model": "ds", "prompt": "x", "suffix": "y"}, "suffix is not currently supported"),
    ({"model": "ds", "prompt": "x", "logprobs": -1}, "`logprobs` must be a positive value."),
    ({"model": "ds", "prompt": "x", "allowed_token_ids": []}, "Empty allowed_token_ids"),
    ({"model": "ds", "prompt": [5] * 2048}, "maximum context length"),
    ({"model": "ds", "prompt": [5] * 2033}, "(2033 in the messages, 16 in the completion)"),
])
def test_bad_completion(http, body, part):
    r = http.post("/v1/completions", json=body)
    assert r.status_code == 400 and part in r.json()["message"], r.text


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"x"', b'{"model": "ds", "messages": NaN}', b"\xff\xfe", b'{"model": "\xff"}', b'{"a":"\\ud800"}',
    b"[" * 100000, b'{"a":' * 50000, b'{"model":"ds","prompt":"x","max_tokens":1e999}', b'{"model":"ds","seed":99999999999999999999999,"prompt":"x"}',
])
def test_bodies_that_are_no_request(http, body):
    r = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert r.status_code == 400 and r.json()["type"] == "BadRequestError"
    assert http.get("/health").status_code == 200


def test_content_type(http):
    body = b'{"model":"ds","prompt":"x","max_tokens":1}'
    assert http.post("/v1/completions", content=body).status_code == 200
    assert http.post("/v1/completions", content=body, headers={"content-type": "application/json; charset=utf-8"}).status_code == 200
    r = http.post("/v1/completions", content=body, headers={"content-type": "text/plain"})
    assert r.status_code == 400 and "application/json" in r.json()["message"]


def test_unknown_things(client, http):
    with pytest.raises(openai.NotFoundError) as e:
        client.chat.completions.create(model="gpt", messages=QUESTION)
    assert "The model `gpt` does not exist." in str(e.value)
    r = http.get("/nowhere")
    assert r.status_code == 404 and r.json() == {"detail": "Not Found"}
    r = http.get("/v1/models/")
    assert r.status_code == 307 and r.headers["location"] == "/v1/models"
    r = http.get("/v1/chat/completions")
    assert r.status_code == 405 and r.json() == {"detail": "Method Not Allowed"} and r.headers["allow"] == "POST"
    r = http.post("/v1/embeddings", json={"model": "ds", "input": "x"})
    assert r.status_code == 400 and r.json()["message"] == "The model does not support Embeddings API"
    assert http.post("/v1/chat/completions", json={"model": "ds", "messages": QUESTION, "max_tokens": 1, "bogus": 1}).status_code == 200


def test_small_endpoints(client, http):
    r = http.get("/health")
    assert r.status_code == 200 and r.content == b""
    assert http.post("/ping").status_code == 200
    assert http.get("/version").json() == {"version": "0.7.2"}
    models = client.models.list().data
    assert [m.id for m in models] == ["ds"] and models[0].owned_by == "vllm" and models[0].max_model_len == 2048
    schema = http.get("/openapi.json").json()
    assert set(schema["paths"]) >= {"/v1/chat/completions", "/v1/completions", "/tokenize"}
    assert "messages" in schema["components"]["schemas"]["ChatCompletionRequest"]["required"]
    assert "openapi.json" in http.get("/docs").text


def test_cors(http):
    r = http.options("/v1/chat/completions", headers={"Origin": "http://a", "Access-Control-Request-Method": "POST",
                                                      "Access-Control-Request-Headers": "x-a"})
    assert r.status_code == 200 and r.headers["access-control-allow-origin"] == "*"
    assert r.headers["access-control-allow-headers"] == "x-a" and "POST" in r.headers["access-control-allow-methods"]
    assert http.get("/health", headers={"Origin": "http://a"}).headers["access-control-allow-origin"] == "*"


def test_a_client_that_leaves_frees_its_request(server, http):
    body = {"model": "ds", "messages": QUESTION, "ignore_eos": True, "max_tokens": 2000, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as r:
        assert r.status_code == 200, r.read()
        lines = r.iter_lines()
        next(lines)
        eventually(lambda: server.metric("vllm:num_requests_running") >= 1)
    eventually(lambda: server.metric("vllm:num_requests_running") == 0)
    quiet = {**body, "stream": False}  # and one that waits for the whole
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        payload = json.dumps(quiet).encode()
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload)
        eventually(lambda: server.metric("vllm:num_requests_running") >= 1)
    eventually(lambda: server.metric("vllm:num_requests_running") == 0)
    assert "Aborted request chatcmpl-" in server.log()


def test_many_at_once(server):
    sync = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    def ask(i):
        return sync.chat.completions.create(model="ds", messages=QUESTION, seed=i % 4, max_tokens=20, temperature=0.8).choices[0].message.content
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    for i in range(48):
        assert answers[i] == answers[i % 4]  # the batch does not matter


def test_oversized_and_garbage_http(server):
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"\x16\x03\x01garbage\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100000 + b"\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 431 ")


def test_metrics(server, http):
    from prometheus_client.parser import text_string_to_metric_families
    before = server.metric("vllm:generation_tokens_total"), server.metric("vllm:request_success_total")
    r = http.post("/v1/completions", json={"model": "ds", "prompt": "你好", "max_tokens": 7, "ignore_eos": True}).json()
    assert r["usage"]["completion_tokens"] == 7
    # the engine may have computed a token ahead
    assert server.metric("vllm:generation_tokens_total") - before[0] >= 7
    assert server.metric("vllm:request_success_total") - before[1] == 1
    text = http.get("/metrics").text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc",
                 "vllm:time_to_first_token_seconds", "vllm:time_per_output_token_seconds", "vllm:inter_token_latency_seconds",
                 "vllm:e2e_request_latency_seconds", "vllm:request_prompt_tokens", "vllm:cache_config_info", "vllm:lora_requests_info",
                 "mobula_group_lost", "mobula_stage_up"):
        assert name in families, name
    assert {s.labels["model_name"] for s in families["vllm:num_requests_running"].samples} == {"ds"}
    buckets = [s.value for s in families["vllm:time_to_first_token_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] >= 1


def test_logs(server):
    log = server.log()
    for line in ("Application startup complete.", f"Uvicorn running on http://0.0.0.0:{server.port}", "Started server process",
                 "Route: /v1/chat/completions, Methods: POST", "# CUDA blocks: ", "Maximum concurrency for 2048 tokens per request: ",
                 "Received request chatcmpl-", '"POST /v1/chat/completions HTTP/1.1" 200 OK'):
        assert line in log, line
