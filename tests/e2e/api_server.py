"""A `vllm serve` of the demo model for tests of the API."""

import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

SOURCE = Path(os.environ.get("MOB_SOURCE_DIR", Path(__file__).resolve().parents[2]))
BIN = Path(os.environ.get("MOB_BIN_DIR", SOURCE / "build" / "release" / "bin"))
MODEL = SOURCE / "deploy" / "demo-model"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def port_to_keep():
    """A free port that stays free while its server is away: outgoing connections, also those that try it meanwhile, are not given it, nor do Ray's
    workers (10002 to 19999) take it."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as s:
            try:
                s.bind(("", random.randrange(20000, low)))
                return s.getsockname()[1]
            except OSError:
                continue


def clean_env(**extra):
    """The environment without what a group or a user of this machine has set."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "RAY_", "LWS_", "NCCL_"))}
    env.update(extra)
    return env


class Server:
    def __init__(self, tmp_path, *options, model=MODEL, env=None, wait=True, name="ds"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = Path(tmp_path) / f"serve-{self.port}.log"
        self.log_file = open(self.log_path, "w")
        command = [str(BIN / "vllm"), "serve", str(model), "--port", str(self.port), *options]
        if name:
            command += ["--served-model-name", name]
        # No cluster of this machine is looked at: its temporary folder is one of our own.
        self.process = subprocess.Popen(command, stdout=self.log_file, stderr=subprocess.STDOUT,
                                        env=clean_env(RAY_TMPDIR=str(tmp_path), **(env or {})))
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout=60):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"vllm serve ended with {self.process.returncode}:\n{self.log()}")
            try:
                urllib.request.urlopen(self.url + "/health", timeout=5)
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.02)
        self.stop()
        raise AssertionError(f"not ready:\n{self.log()}")

    def log(self):
        return self.log_path.read_text()

    def metric(self, name):
        """The sum over all label values of one metric."""
        from prometheus_client.parser import text_string_to_metric_families
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        values = [s.value for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
        assert values, f"no metric {name}"
        return sum(values)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log_file.close()
        return self.process.returncode


def eventually(check, timeout=20):
    end = time.monotonic() + timeout
    while True:
        result = check()
        if result or time.monotonic() > end:
            assert result
            return result
        time.sleep(0.01)
