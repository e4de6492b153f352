"""Drives `mobula lws` from tests: starts a runner, waits on conditions with deadlines, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

SOURCE = Path(os.environ.get("MOB_SOURCE_DIR", Path(__file__).resolve().parents[2]))
MOBULA = Path(os.environ["MOB_BIN_DIR"]) / "mobula"
SEED = SOURCE / "deploy" / "seed"


def eventually(condition, seconds=10, what="the condition"):
    """Returns the first true value of condition(); fails after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)


class Runner:
    """One `mobula lws up` in the foreground; a context manager that ends it."""

    def __init__(self, *files, image, args=(), prefix=()):
        self.dir = tempfile.TemporaryDirectory(prefix="lws-")
        self.state = Path(self.dir.name) / "s"
        self.out = open(Path(self.dir.name) / "out", "w+")
        command = [*prefix, MOBULA, "lws", "up", *files, "--image-dir", image, "--state-dir", self.state, *args]
        self.process = subprocess.Popen([str(c) for c in command], stdout=self.out, stderr=subprocess.STDOUT,
                                        stdin=subprocess.DEVNULL)
        eventually(lambda: (self.state / "control.sock").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output()

    def output(self):
        return Path(self.out.name).read_text()

    def run(self, command, *args, check=True, timeout=60):
        done = subprocess.run([str(MOBULA), "lws", command, "--state-dir", str(self.state), *map(str, args)],
                              capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, f"{command} {args}: {done.stdout}{done.stderr}\n{self.output()}"
        return done

    def wait(self, seconds=10):
        done = self.run("status", f"--wait={seconds}", check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.output()}"

    def status(self):
        return json.loads(self.run("status", "--json", "--events", 200, check=False).stdout)

    def pods(self):
        return {pod["name"]: pod for group_set in self.status()["sets"] for group in group_set["groups"]
                for pod in group["pods"]}

    def reasons(self):
        return [event["reason"] for event in self.status()["events"]]

    def logs(self, pod, *args):
        return self.run("logs", pod, *args, check=False).stdout  # of a pod that has not started: nothing

    def recreated(self, before, seconds=10):
        """Waits until every pod of `before` has a successor with another uid, and all groups are ready."""
        def done():
            status = self.status()
            now = self.pods()
            return status["ready"] and all(now.get(n, p)["uid"] != p["uid"] for n, p in before.items())
        eventually(done, seconds, "the group's recreation")

    def down(self, *args):
        self.run("down", *args)
        return self.process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGTERM)  # the second does not wait for grace periods
                self.process.wait(10)
        self.out.close()
        self.dir.cleanup()
