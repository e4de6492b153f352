"""Pods without namespaces of their own: two groups of the unchanged document share one network, each pod on its own address."""

import httpx
import pytest

from lws_runner import eventually
from support import sandbox
from support.group import URL, Group


@pytest.fixture(autouse=True)
def nothing_left():
    sandbox.enter()
    before = sandbox.Traces()
    yield
    before.assert_none_new()


def listeners(port):
    """IPv4 addresses on which somebody listens at `port`."""
    found = set()
    with open("/proc/self/net/tcp") as lines:
        for line in list(lines)[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(".".join(str(byte) for byte in reversed(bytes.fromhex(address))))
    return found


def test_two_groups_on_one_network():
    with Group(args=["--network", "loopback", "--replicas", "2"]) as g:
        leaders = {pod["ip"] for pod in g.pods().values() if pod["worker"] == 0}
        assert len(leaders) == 2 and all(ip.startswith("127.83.") for ip in leaders)
        eventually(lambda: listeners(8000) == leaders | {"127.0.0.1"}, 60, "both gateways and the Service")
        for address in leaders | {"localhost"}:
            reply = httpx.post(f"http://{address}:8000/v1/completions", json={"model": "ds", "prompt": "你好", "max_tokens": 4}, timeout=20)
            assert reply.status_code == 200 and reply.json()["choices"][0]["text"]
        assert httpx.get(URL + "/health", timeout=5).status_code == 200
