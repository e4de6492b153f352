"""A LeaderWorkerSet of the deployment documents on the local runner, and clients of its API."""

import json
import os
import re
import socket
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx

from lws_runner import SEED, SOURCE, Runner, eventually
from support import sandbox

BIN = Path(os.environ["MOB_BIN_DIR"]).resolve()
MODEL = SOURCE / "deploy" / "demo-model"
URL = "http://localhost:8000"
READY = "All ray workers are active and the ray cluster is initialized successfully."
NAME = "deepseek-r1-671b-fp8-distrubution"


class Group(Runner):
    """Both pods of a deployment document, unchanged, with the demo model where it mounts the model."""

    def __init__(self, document="lws-standard.yaml", args=()):
        super().__init__(SEED / document, SEED / "service.yaml", image=BIN, args=["--pvc", f"llm-model={MODEL}", *args])

    def wait_serving(self, seconds=60):
        """Waits until a client gets an answer on localhost:8000."""
        def answers():
            assert self.process.poll() is None, self.output()
            try:
                return httpx.get(URL + "/v1/models", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False
        try:
            eventually(answers, seconds, "an answer on localhost:8000")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.everything()}") from None

    def everything(self):
        logs = "".join(f"---- {p.name}\n{p.read_text()[-3000:]}" for p in sorted((self.state / "logs").glob("*.log")))
        return f"---- runner\n{self.output()[-3000:]}{logs}"

    def sh(self, pod, command, **kw):
        return self.run("exec", pod, "--", "sh", "-c", command, **kw).stdout.strip()

    def ip(self, index=0):
        return self.pods()[NAME + ("-0" if index == 0 else f"-0-{index}")]["ip"]

    def expect_down(self, sig):
        """Ends the runner with a signal; the exit status must say that nothing went wrong."""
        self.process.send_signal(sig)
        code = self.process.wait(40)
        assert code == 0, f"exit status {code}\n{self.output()}"

    def processes_outside_pods(self):
        """Processes below the runner that belong to no present pod."""
        def look():
            inside = set()
            for pod in self.pods().values():
                inside |= {pod["sandbox_pid"], *sandbox.descendants(pod["sandbox_pid"])}
            below = sandbox.descendants(self.process.pid)
            return {pid: command for pid, command in below.items() if pid not in inside and sandbox.alive(pid)}
        return look()


def metric(name, url=URL):
    text = httpx.get(url + "/metrics", timeout=10).text
    values = [float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(name + r"(\{|\s)", line)]
    assert values, f"no metric {name}"
    return sum(values)


def log_time(line):
    """The wall clock time, in seconds, at which a line of a pod's log was written."""
    stamp = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})", line)
    assert stamp, line
    return datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(stamp[2]) / 1000


class Ask(threading.Thread):
    """One request of the API in a thread: what came back, and when it ended."""

    def __init__(self, stream, body, path="/v1/completions", url=URL):
        super().__init__(daemon=True)
        self.stream, self.body, self.path, self.url = stream, {**body, "stream": stream}, path, url
        self.status = self.headers = self.failure = self.ended = None
        self.text = ""
        self.start()

    def run(self):
        try:
            with httpx.stream("POST", self.url + self.path, json=self.body, timeout=120) as reply:
                self.status, self.headers = reply.status_code, reply.headers
                for part in reply.iter_text():
                    self.text += part
        except httpx.HTTPError as error:
            self.failure = repr(error)
        self.ended = time.time()

    def outcome(self):
        """"answered", or the error object that the client was told. Anything else fails the test."""
        assert not self.is_alive(), "no end within the time"
        assert self.failure is None, f"cut off without a word: {self.failure}, after {self.text[-200:]!r}"
        if not self.stream:
            body = json.loads(self.text)
            if self.status == 200:
                assert body["choices"][0]["finish_reason"] in ("stop", "length"), body
                return "answered"
            assert self.status == 503, self.text
            return self._error(body)
        if self.status != 200:
            assert self.status == 503, self.text
            return self._error(json.loads(self.text))
        events = self.text.split("\n\n")
        assert events[-1] == "" and events[-2] == "data: [DONE]", self.text[-300:]
        last = json.loads(events[-3].removeprefix("data: "))
        if "error" not in last:
            return "answered"
        assert list(last) == ["error"]
        return self._error(last["error"], in_stream=True)

    def _error(self, error, in_stream=False):
        if not in_stream:
            assert int(self.headers["retry-after"]) > 0
        assert list(error) == ["object", "message", "type", "param", "code"], error
        assert error["object"] == "error" and error["param"] is None and error["code"] == 503 and error["message"]
        return error


class Prober(threading.Thread):
    """Asks the leader pod's own port for /health all the time, from the pods' network, a connection a time.

    `seen` holds (wall clock time, what came): a status, "refused", or "none" for anything else.
    """

    def __init__(self, group, interval=0.01):
        super().__init__(daemon=True)
        self.network = os.open(f"/proc/{group.process.pid}/ns/net", os.O_RDONLY)
        self.address, self.interval = group.ip(0), interval
        self.seen, self.stopping = [], threading.Event()
        self.start()

    def run(self):
        sandbox.network_of(self.network)
        while not self.stopping.wait(self.interval):
            came = self.ask()
            self.seen.append((time.time(), came))

    def ask(self):
        try:
            with socket.create_connection((self.address, 8000), timeout=1) as s:
                s.sendall(b"GET /health HTTP/1.1\r\nHost: leader\r\nConnection: close\r\n\r\n")
                line = s.recv(4096).split(b" ")
                return int(line[1]) if line[0] == b"HTTP/1.1" else "none"
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "none"

    def stop(self):
        self.stopping.set()
        self.join(5)
        os.close(self.network)

    def first(self, what, after=0.0):
        return next((at for at, came in self.seen if came == what and at >= after), None)
