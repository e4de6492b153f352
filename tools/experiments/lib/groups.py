"""Groups of pods for an experiment: the local LWS runner as a context manager."""
import json
import os
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

# Needs no HTTP client inside the pod.
METRICS = r"exec 3<>/dev/tcp/127.0.0.1/8000; printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; cat <&3"


class Groups:
    """`with Groups(manifest, replicas) as groups:` — all of them ready, their Service on `groups.port`; gone afterwards."""

    def __init__(self, manifest, replicas, mobula, model, cpu_per_pod=None, port=8000, ready_timeout=120):
        self.manifest, self.replicas, self.mobula, self.port = manifest, replicas, mobula, port
        self.ready_timeout = ready_timeout
        self.directory = tempfile.TemporaryDirectory(prefix="mobula-experiment.")
        self.state = os.path.join(self.directory.name, "lws")
        self.command = [mobula, "lws", "up", manifest, "--replicas", str(replicas), "--pvc", f"llm-model={model}",
                        "--state-dir", self.state, "--forward", f"ds-leader:8000={port}"]
        if cpu_per_pod:
            self.command += ["--cpu-per-pod", str(cpu_per_pod)]

    def __enter__(self):
        self.log = open(os.path.join(self.directory.name, "runner.log"), "wb")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self._lws("status", f"--wait={self.ready_timeout}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.directory.cleanup()

    def _lws(self, *arguments):
        # The control socket appears a moment after the process.
        deadline = time.monotonic() + self.ready_timeout
        while True:
            done = subprocess.run([self.mobula, "lws", arguments[0], "--state-dir", self.state, *arguments[1:]],
                                  capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout
            if self.process.poll() is not None or time.monotonic() > deadline:
                with open(self.log.name, errors="replace") as log:
                    tail = log.read()[-3000:]
                raise RuntimeError(f"mobula lws {' '.join(arguments)}: {done.stderr.strip()}\n{tail}")
            time.sleep(0.05)

    def status(self):
        return json.loads(self._lws_once("status", "--json"))

    def _lws_once(self, *arguments):
        done = subprocess.run([self.mobula, "lws", arguments[0], "--state-dir", self.state, *arguments[1:]],
                              capture_output=True, text=True)
        return done.stdout

    def fault(self, pod, *what):
        self._lws_once("fault", pod, *what)

    def pods(self):
        """Every pod, as `mobula lws status --json` describes it."""
        return [pod for lws in self.status()["sets"] for group in lws["groups"] for pod in group["pods"]]

    def served(self):
        """Requests that each leader has finished, by pod, from its own metrics; asked from inside the pod."""
        counts = {}
        for pod in self.pods():
            if pod["worker"] == 0:
                text = self._lws_once("exec", pod["name"], "--", "bash", "-c", METRICS)
                counts[pod["name"]] = sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                                          if line.startswith("vllm:request_success_total{"))
        return counts
