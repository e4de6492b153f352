"""The released wheel of Ray as a client of our head: its command line, its GcsClient, its global state, its subscribers,
and its own generated gRPC stubs."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import grpc
import pytest
import ray
from ray._private.state import GlobalState
from ray._raylet import GcsClient, GcsClientOptions, GcsErrorSubscriber
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from api_server import BIN, clean_env

VENV = Path(os.environ["MOB_TEST_VENV"])


class Node:
    """A node daemon in the foreground, on a loopback address of its own: `ray` takes 127.0.0.1 for "this host's address"
    and replaces it."""

    def __init__(self, folder, ip, *options):
        self.ip = ip
        self.folder = folder / ip
        self.log_path = folder / f"{ip}.log"
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [str(BIN / "mobula"), "node", f"--node-ip-address={ip}", f"--temp-dir={self.folder}", "--num-cpus=4",
                 "--num-gpus=8", *options], stdout=log, stderr=subprocess.STDOUT, env=clean_env())
        found = wait_for(lambda: re.search(r"node ([0-9a-f]{56}) is up at \S+ head at (\S+)", self.log()), self.process)
        self.id, self.address = found.groups()

    def log(self):
        return self.log_path.read_text()

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)


def wait_for(condition, process=None, timeout=15):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def run_ray(*arguments, timeout=120):
    return subprocess.run([str(VENV / "bin" / "ray"), *arguments], capture_output=True, text=True, timeout=timeout,
                          env=clean_env(RAY_USAGE_STATS_ENABLED="0"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    nodes = []
    try:
        nodes.append(Node(folder, "127.0.0.2", "--head", "--port=0"))
        nodes.append(Node(folder, "127.0.0.3", f"--address={nodes[0].address}"))
        yield nodes
    finally:
        for node in reversed(nodes):
            node.stop()


@pytest.fixture(scope="module")
def gcs(cluster):
    return GcsClient(address=cluster[0].address)


@pytest.fixture(scope="module")
def channel(cluster):
    with grpc.insecure_channel(cluster[0].address) as c:
        yield c


def test_health_check(cluster):
    done = run_ray("health-check", "--address", cluster[0].address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def without_ids(text, cluster):
    for name, node in zip(("HEAD", "WORKER"), cluster):
        text = text.replace(node.id, name)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", "TIME", text)
    text = re.sub(r"0B/[0-9.]+GiB", "0B/N GiB", text)
    return re.sub(r"time: [0-9.]+s", "time: N", text)


RULE = "-" * 63
STATUS = f"""======== Autoscaler status: TIME ========
Node status
{RULE}
Active:
 1 node_HEAD
 1 node_WORKER
Pending:
 (no pending nodes)
Recent failures:
 (no failures)

Resources
{RULE}
Total Usage:
 0.0/8.0 CPU
 0.0/16.0 GPU
 0B/N GiB memory
 0B/N GiB object_store_memory

From request_resources:
 (none)
Pending Demands:
 (no resource demands)
"""


def test_status(cluster):
    done = run_ray("status", "--address", cluster[0].address)
    assert done.returncode == 0, done.stderr
    assert without_ids(done.stdout, cluster) == STATUS


def test_status_verbose(cluster):
    done = run_ray("status", "--verbose", "--address", cluster[0].address)
    assert done.returncode == 0, done.stderr
    text = without_ids(done.stdout, cluster)
    assert "GCS request time: N\nNode Provider non_terminated_nodes time: N\n" in text
    for name in ("HEAD", "WORKER"):
        assert f"""
Node: {name} (node_{name})
 Usage:
  0.0/4.0 CPU
  0.0/8.0 GPU
  0B/N GiB memory
  0B/N GiB object_store_memory
""" in text


def test_our_status_is_theirs(cluster):
    """Our own `ray status` prints the same text."""
    ours = subprocess.run([str(BIN / "ray"), "status", "--address", cluster[0].address], capture_output=True, text=True,
                          env=clean_env())
    assert ours.returncode == 0, ours.stderr
    assert without_ids(ours.stdout, cluster) == STATUS


def test_key_value(gcs):
    assert gcs.internal_kv_get(b"k", b"t") is None
    assert gcs.internal_kv_put(b"k", b"\x00\xff binary", False, b"t") == 1
    assert gcs.internal_kv_put(b"k", b"other", False, b"t") == 0
    assert gcs.internal_kv_get(b"k", b"t") == b"\x00\xff binary"
    assert gcs.internal_kv_put(b"k", b"new", True, b"t") == 0
    assert gcs.internal_kv_get(b"k", b"t") == b"new"
    assert gcs.internal_kv_get(b"k", None) is None
    gcs.internal_kv_put(b"kk", b"2", True, b"t")
    gcs.internal_kv_put(b"x", b"3", True, b"t")
    assert sorted(gcs.internal_kv_keys(b"k", b"t")) == [b"k", b"kk"]
    assert gcs.internal_kv_multi_get([b"k", b"none", b"x"], b"t") == {b"k": b"new", b"x": b"3"}
    assert gcs.internal_kv_exists(b"x", b"t") and not gcs.internal_kv_exists(b"y", b"t")
    assert gcs.internal_kv_del(b"k", True, b"t") == 2
    assert gcs.internal_kv_keys(b"", b"t") == [b"x"]
    big = os.urandom(8 << 20)
    gcs.internal_kv_put(b"big", big, True, b"t")
    assert gcs.internal_kv_get(b"big", b"t") == big
    with pytest.raises(Exception, match="@namespace_"):
        gcs.internal_kv_put(b"@namespace_x", b"1", True, None)


def test_nodes(gcs, cluster):
    nodes = gcs.get_all_node_info()
    assert {n.hex(): i.node_manager_address for n, i in nodes.items()} == {n.id: n.ip for n in cluster}
    head = nodes[ray.NodeID.from_hex(cluster[0].id)]
    assert head.is_head_node and dict(head.resources_total)["GPU"] == 8.0
    assert head.labels["ray.io/node-id"] == cluster[0].id
    ids = [ray.NodeID.from_hex(n.id) for n in cluster] + [ray.NodeID.from_random()]
    assert gcs.check_alive(ids) == [True, True, False]
    assert len(gcs.cluster_id.hex()) == 56


def test_global_state(cluster):
    """What `ray.nodes()`, `ray.cluster_resources()` and their like read."""
    state = GlobalState()
    state._initialize_global_state(GcsClientOptions.create(cluster[0].address, None, allow_cluster_id_nil=True,
                                                           fetch_cluster_id_if_nil=False))
    table = state.node_table()
    assert sorted(n["NodeManagerAddress"] for n in table) == ["127.0.0.2", "127.0.0.3"]
    assert all(n["Alive"] for n in table)
    assert state.cluster_resources()["GPU"] == 16.0
    assert state.available_resources()["CPU"] == 8.0
    assert state.placement_group_table() == {}
    state.disconnect()


def test_autoscaler_state(cluster):
    status = get_cluster_status(cluster[0].address)
    assert {n.node_id for n in status.active_nodes + status.idle_nodes} == {n.id for n in cluster}
    assert {u.resource_name: u.total for u in status.cluster_resource_usage}["GPU"] == 16.0


def group_spec(name, strategy, bundles):
    group = os.urandom(14) + bytes([1, 0, 0, 0])
    return common_pb2.PlacementGroupSpec(
        placement_group_id=group, name=name, strategy=strategy, is_detached=True, creator_job_id=bytes([1, 0, 0, 0]),
        bundles=[common_pb2.Bundle(unit_resources=b) for b in bundles])


def test_placement_groups(cluster, channel):
    """Reserved in two phases on two node agents, and what `ray status` says then."""
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
    spec = group_spec("stages", common_pb2.STRICT_SPREAD, [{"GPU": 8, "CPU": 1}, {"GPU": 8, "CPU": 1}])
    reply = stub.CreatePlacementGroup(gcs_service_pb2.CreatePlacementGroupRequest(placement_group_spec=spec))
    assert reply.status.code == 0
    wait = gcs_service_pb2.WaitPlacementGroupUntilReadyRequest(placement_group_id=spec.placement_group_id)
    assert stub.WaitPlacementGroupUntilReady(wait, timeout=5).status.code == 0
    table = stub.GetPlacementGroup(gcs_service_pb2.GetPlacementGroupRequest(placement_group_id=spec.placement_group_id))
    data = table.placement_group_table_data
    assert data.state == gcs_pb2.PlacementGroupTableData.CREATED
    assert {b.node_id.hex() for b in data.bundles} == {n.id for n in cluster}
    too_much = group_spec("too_much", common_pb2.PACK, [{"GPU": 4}])
    stub.CreatePlacementGroup(gcs_service_pb2.CreatePlacementGroupRequest(placement_group_spec=too_much))
    with pytest.raises(grpc.RpcError) as error:
        stub.WaitPlacementGroupUntilReady(gcs_service_pb2.WaitPlacementGroupUntilReadyRequest(
            placement_group_id=too_much.placement_group_id), timeout=0.3)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_for(lambda: " 0.0/16.0 GPU (0.0 used of 16.0 reserved in placement groups)\n" in
             run_ray("status", "--address", cluster[0].address).stdout)
    done = run_ray("status", "--address", cluster[0].address)
    assert " {'GPU': 4.0} * 1 (PACK): 1+ pending placement groups\n" in done.stdout
    for group in (spec, too_much):
        stub.RemovePlacementGroup(gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=group.placement_group_id))
    wait_for(lambda: "reserved" not in run_ray("status", "--address", cluster[0].address).stdout)


def test_errors_are_published(cluster, channel):
    subscriber = GcsErrorSubscriber(address=cluster[0].address)
    subscriber.subscribe()
    jobs = gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel)
    for text in ("first", "second"):
        jobs.ReportJobError(gcs_service_pb2.ReportJobErrorRequest(job_error=gcs_pb2.ErrorTableData(
            job_id=bytes([1, 0, 0, 0]), type="test", error_message=text)))
    assert [subscriber.poll(timeout=5)[1]["error_message"] for _ in range(2)] == ["first", "second"]
    subscriber.close()


def test_wrong_cluster_is_refused(cluster, channel):
    stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    with pytest.raises(grpc.RpcError) as error:
        stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), metadata=[("ray_cluster_id", "ab" * 28)])
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_malformed_requests(channel, gcs):
    """Bytes that are no message, and text that is no UTF-8: refused, and the head lives on."""
    def call(body):
        method = channel.unary_unary("/ray.rpc.ActorInfoGcsService/GetNamedActorInfo")
        with pytest.raises(grpc.RpcError) as error:
            method(body)
        return error.value.code(), error.value.details()
    assert call(b"\xff\xff\xff")[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert call(b"\x0a\x02\xff\xfe") == (grpc.StatusCode.INVALID_ARGUMENT,
                                         "ray.rpc.GetNamedActorInfoRequest.name is not UTF-8 text without NUL")
    assert call(b"\x0a\x7fshort")[0] == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/ray.rpc.ActorInfoGcsService/NoSuchMethod")(b"")
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert gcs.internal_kv_get(b"session_name", b"session").startswith(b"session_")


@pytest.mark.parametrize("number, limit", [(signal.SIGKILL, 0.5), (signal.SIGSTOP, 5.5)])
def test_node_death(cluster, gcs, tmp_path, number, limit):
    """A killed node is dead for the real client at once, a frozen one within 5 s (plus the asking)."""
    node = Node(tmp_path, "127.0.0.4", f"--address={cluster[0].address}")
    try:
        ids = [ray.NodeID.from_hex(node.id)]
        assert gcs.check_alive(ids) == [True]
        start = time.monotonic()
        node.process.send_signal(number)
        wait_for(lambda: gcs.check_alive(ids) == [False])
        assert time.monotonic() - start < limit
        info = gcs.get_all_node_info()[ids[0]]
        assert info.state == gcs_pb2.GcsNodeInfo.DEAD
        assert info.death_info.reason == common_pb2.NodeDeathInfo.UNEXPECTED_TERMINATION
    finally:
        node.process.kill()
        node.process.wait(20)


def test_drain_and_leave(cluster, gcs, tmp_path):
    node = Node(tmp_path, "127.0.0.5", f"--address={cluster[0].address}")
    try:
        done = run_ray("drain-node", "--address", cluster[0].address, "--node-id", node.id, "--reason",
                       "DRAIN_NODE_REASON_IDLE_TERMINATION", "--reason-message", "no more work")
        assert done.returncode == 0, done.stderr
        node.stop()
        ids = [ray.NodeID.from_hex(node.id)]
        wait_for(lambda: gcs.check_alive(ids) == [False])
        assert gcs.get_all_node_info()[ids[0]].death_info.reason == common_pb2.NodeDeathInfo.EXPECTED_TERMINATION
    finally:
        node.stop(signal.SIGKILL)


def test_health_check_of_a_dead_head(tmp_path):
    head = Node(tmp_path, "127.0.0.6", "--head", "--port=0")
    head.stop(signal.SIGKILL)
    done = run_ray("health-check", "--address", head.address)
    assert done.returncode == 1
