"""The load generator and the server that it is meant for: every request is answered, and a failed one counts as failed."""

import re
import subprocess

import pytest

from api_server import BIN, SOURCE, clean_env, free_port
from support import sandbox

TOOLS = SOURCE / "tools/bench"
SMALL = ["--layers", "2", "--hidden", "512", "--vocabulary", "8192", "--input", "32", "--output", "8", "--requests", "6"]


@pytest.fixture(scope="module", autouse=True)
def place():
    sandbox.enter()


def test_clients_and_rates_are_answered():
    run = subprocess.run([str(TOOLS / "serve-model"), "--bin", str(BIN), *SMALL, "--clients", "1,3", "--rate", "20", "--",
                          "--device", "cpu", "--max-model-len", "256"], capture_output=True, text=True, timeout=120, env=clean_env())
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"to the first token \d+\.\d\d s", run.stdout)
    rows = re.findall(r"^ +(1 clients|3 clients|20 req/s) +(\d+) +(\d+) ", run.stdout, re.M)
    assert rows == [("1 clients", "6", "0"), ("3 clients", "6", "0"), ("20 req/s", "6", "0")], run.stdout


def test_a_group_of_pods_serves():
    run = subprocess.run([str(TOOLS / "serve-model"), "--bin", str(BIN), *SMALL, "--pods", "2", "--clients", "2", "--",
                          "--device", "cpu", "--max-model-len", "256", "-pp", "2"], capture_output=True, text=True, timeout=120, env=clean_env())
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^ +2 clients +6 +0 ", run.stdout, re.M), run.stdout


def test_a_server_that_is_not_there_is_a_failure():
    run = subprocess.run([str(TOOLS / "serve"), f"http://127.0.0.1:{free_port()}", "--clients", "1"], capture_output=True, text=True,
                         timeout=60, env=clean_env())
    assert run.returncode != 0 and "Traceback" not in run.stderr and "serve: http://" in run.stderr, run.stderr
