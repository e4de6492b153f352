"""A GCS that keeps its state in a file or in Redis is killed and started again: what it had acknowledged is there, and the
daemons, actors and placement groups of its cluster live on."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time

import grpc
import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated import common_pb2, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from api_server import BIN, clean_env, port_to_keep

ECHO = BIN.parent / "tests" / "actor_echo.so"


def wait_for(condition, *processes, timeout=30):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        for process in processes:
            assert process.process.poll() is None, process.log()
        time.sleep(0.01)
    raise AssertionError("waited in vain: " + "\n".join(p.log() for p in processes))


class Program:
    def __init__(self, folder, name, command, env):
        self.log_path = folder / f"{name}.log"
        self.start_at = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, env=env)

    def log(self):
        return self.log_path.read_text()[self.start_at:]

    def stop(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)


class Cluster:
    """Starts daemons on loopback addresses of their own, with the store that `env` names."""

    def __init__(self, folder, env):
        self.folder, self.env, self.programs = folder, env, []

    def run(self, name, *command, **env):
        program = Program(self.folder, name, command, clean_env(**{**self.env, **env}))
        self.programs.append(program)
        return program

    def node(self, ip, *options, **env):
        node = self.run(ip, BIN / "mobula", "node", f"--node-ip-address={ip}", f"--temp-dir={self.folder / ip}",
                        "--num-cpus=4", "--num-gpus=8", *options, **env)
        if not ("--head" in options or env.get("RAY_gcs_storage") == "memory"):
            wait_for(lambda: "the head keeps its state" in node.log(), node)
        node.id, node.address = wait_for(
            lambda: re.search(r"node ([0-9a-f]{56}) is up at \S+ head at (\S+)", node.log()), node).groups()
        return node

    def gcs(self, port, **env):
        gcs = self.run("gcs", BIN / "mobula", "gcs-server", f"--gcs_server_port={port}", "--node_ip_address=127.0.0.2",
                       "--session_name=session_test", "--head", f"--session_dir={self.folder}", **env)
        wait_for(lambda: "listening on port" in gcs.log(), gcs)
        return gcs

    def stop(self):
        for program in reversed(self.programs):
            program.stop(signal.SIGKILL)


@pytest.fixture(params=["file", "redis"])
def store(request, tmp_path):
    if request.param == "file":
        yield {"RAY_gcs_storage": "file", "RAY_gcs_storage_path": str(tmp_path / "state")}
        return
    # Debian's redis-tools hold the server too, which goes by its first argument.
    path = tmp_path / "redis"
    path.mkdir()
    port = port_to_keep()
    server = subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(path), "--save", "",
                               "--requirepass", "s3cret"], executable=shutil.which("redis-check-rdb"),
                              stdout=subprocess.DEVNULL)
    try:
        yield {"RAY_REDIS_ADDRESS": f"redis://:s3cret@127.0.0.1:{port}", "RAY_external_storage_namespace": "test"}
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def cluster(store, tmp_path):
    c = Cluster(tmp_path, store)
    try:
        yield c
    finally:
        c.stop()


def add_job(channel, entrypoint, driver=None):
    jobs = gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel)
    number = jobs.GetNextJobID(gcs_service_pb2.GetNextJobIDRequest()).job_id
    data = gcs_pb2.JobTableData(job_id=number.to_bytes(4, "little"), entrypoint=entrypoint,
                                config=common_pb2.JobConfig(ray_namespace="space"))
    if driver:
        data.driver_address.node_id = bytes.fromhex(driver.id)
    jobs.AddJob(gcs_service_pb2.AddJobRequest(data=data))
    return number


def all_jobs(channel):
    jobs = gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel)
    return {int.from_bytes(j.job_id, "little"): j
            for j in jobs.GetAllJobInfo(gcs_service_pb2.GetAllJobInfoRequest()).job_info_list}


class Writer(threading.Thread):
    """Puts keys one after the other until the GCS is gone; `acknowledged` is what it was told of."""

    def __init__(self, address):
        super().__init__()
        self.channel = grpc.insecure_channel(address)
        self.stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(self.channel)
        self.acknowledged = []
        self.start()

    def run(self):
        try:
            while True:
                key = str(len(self.acknowledged)).encode()
                self.stub.InternalKVPut(gcs_service_pb2.InternalKVPutRequest(key=key, value=key * 100, namespace=b"w"))
                self.acknowledged.append(key)
        except grpc.RpcError:
            self.channel.close()


def test_a_head_that_is_killed(cluster):
    head = cluster.node("127.0.0.2", "--head", "--port=0")
    gcs = GcsClient(address=head.address)
    cluster_id = gcs.cluster_id.hex()
    gcs.internal_kv_put(b"k", b"\x00 binary", True, b"ns")
    gcs.internal_kv_put(b"no namespace", b"1", True, None)
    gcs.internal_kv_put(b"gone", b"1", True, b"ns")
    gcs.internal_kv_del(b"gone", False, b"ns")
    with grpc.insecure_channel(head.address) as channel:
        first, second = add_job(channel, "one"), add_job(channel, "two")
        gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel).MarkJobFinished(
            gcs_service_pb2.MarkJobFinishedRequest(job_id=first.to_bytes(4, "little")))
    writer = Writer(head.address)
    wait_for(lambda: len(writer.acknowledged) > 200, head)
    head.stop(signal.SIGKILL)
    writer.join(30)

    again = cluster.node("127.0.0.2", "--head", "--port=0")
    gcs = GcsClient(address=again.address)
    assert gcs.cluster_id.hex() == cluster_id
    assert gcs.internal_kv_get(b"k", b"ns") == b"\x00 binary"
    assert gcs.internal_kv_get(b"no namespace", None) == b"1"
    assert gcs.internal_kv_get(b"gone", b"ns") is None
    assert gcs.internal_kv_multi_get(writer.acknowledged, b"w") == {k: k * 100 for k in writer.acknowledged}
    with grpc.insecure_channel(again.address) as channel:
        jobs = all_jobs(channel)
        assert (jobs[first].is_dead, jobs[second].is_dead) == (True, False)
        assert jobs[second].entrypoint == "two" and jobs[second].config.ray_namespace == "space"
        assert add_job(channel, "three") == second + 1
    # The former head is dead, and the new one alive, at once.
    nodes = {n.hex(): i.state for n, i in gcs.get_all_node_info().items()}
    assert nodes == {head.id: gcs_pb2.GcsNodeInfo.DEAD, again.id: gcs_pb2.GcsNodeInfo.ALIVE}
    again.stop(signal.SIGTERM)
    assert again.process.returncode == 0


def test_a_worker_lives_through_the_death_of_its_head(cluster):
    """The daemon of another pod stays; what the dead head's driver had there does not."""
    port = port_to_keep()
    head = cluster.node("127.0.0.2", "--head", f"--port={port}", "--num-gpus=0")
    worker = cluster.node("127.0.0.3", f"--address={head.address}")
    with grpc.insecure_channel(head.address) as channel:
        lost = create_actor(channel, add_job(channel, "on the head", driver=head), "lost", detached=False)
        kept = create_actor(channel, add_job(channel, "elsewhere"), "kept", detached=False)
    head.stop(signal.SIGKILL)
    again = cluster.node("127.0.0.2", "--head", f"--port={port}", "--num-gpus=0")
    gcs = GcsClient(address=again.address)
    wait_for(lambda: gcs.check_alive([ray.NodeID.from_hex(n.id) for n in (head, worker, again)]) == [False, True, True],
             again, worker)
    wait_for(lambda: not running(lost.pid), again, worker)
    with grpc.insecure_channel(again.address) as channel:
        assert named(channel, "kept").pid == kept.pid and running(kept.pid)
    assert "is back after" in worker.log()


def create_actor(channel, job, name, group=None, max_restarts=0, detached=True):
    actor_id = os.urandom(12) + job.to_bytes(4, "little")
    strategy = common_pb2.SchedulingStrategy(default_scheduling_strategy=common_pb2.DefaultSchedulingStrategy())
    if group:
        strategy = common_pb2.SchedulingStrategy(
            placement_group_scheduling_strategy=common_pb2.PlacementGroupSchedulingStrategy(
                placement_group_id=group, placement_group_bundle_index=0))
    spec = common_pb2.TaskSpec(
        type=common_pb2.ACTOR_CREATION_TASK, language=common_pb2.CPP, task_id=os.urandom(24),
        job_id=job.to_bytes(4, "little"), scheduling_strategy=strategy, required_resources={"GPU": 1.0},
        caller_address=common_pb2.Address(node_id=os.urandom(28), worker_id=job.to_bytes(4, "little") + b"\xff" * 24),
        job_config=common_pb2.JobConfig(code_search_path=[str(ECHO)]),
        function_descriptor=common_pb2.FunctionDescriptor(
            cpp_function_descriptor=common_pb2.CppFunctionDescriptor(class_name="Echo", function_name="Echo")),
        actor_creation_task_spec=common_pb2.ActorCreationTaskSpec(
            actor_id=actor_id, name=name, ray_namespace="space", is_detached=detached, max_actor_restarts=max_restarts))
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
    stub.RegisterActor(gcs_service_pb2.RegisterActorRequest(task_spec=spec))
    reply = stub.CreateActor(gcs_service_pb2.CreateActorRequest(task_spec=spec), timeout=60)
    assert reply.status.code == 0, reply
    return named(channel, name)


def named(channel, name):
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
    return stub.GetNamedActorInfo(gcs_service_pb2.GetNamedActorInfoRequest(name=name, ray_namespace="space")).actor_table_data


def running(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def test_daemons_and_actors_live_on(cluster):
    port = port_to_keep()
    server = cluster.gcs(port)
    address = f"127.0.0.2:{port}"
    nodes = [cluster.node(ip, f"--address={address}") for ip in ("127.0.0.3", "127.0.0.4")]
    gcs = GcsClient(address=address)
    with grpc.insecure_channel(address) as channel:
        job = add_job(channel, "serve")
        spec = common_pb2.PlacementGroupSpec(
            placement_group_id=os.urandom(14) + job.to_bytes(4, "little"), name="stages", is_detached=True,
            strategy=common_pb2.STRICT_SPREAD, creator_job_id=job.to_bytes(4, "little"),
            bundles=[common_pb2.Bundle(unit_resources={"GPU": 4}), common_pb2.Bundle(unit_resources={"GPU": 4})])
        groups = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
        groups.CreatePlacementGroup(gcs_service_pb2.CreatePlacementGroupRequest(placement_group_spec=spec))
        groups.WaitPlacementGroupUntilReady(gcs_service_pb2.WaitPlacementGroupUntilReadyRequest(
            placement_group_id=spec.placement_group_id), timeout=30)
        ask = gcs_service_pb2.GetPlacementGroupRequest(placement_group_id=spec.placement_group_id)
        before = groups.GetPlacementGroup(ask).placement_group_table_data
        assert before.state == gcs_pb2.PlacementGroupTableData.CREATED
        lives = create_actor(channel, job, "lives", spec.placement_group_id)
        dies = create_actor(channel, job, "dies")
        restarts = create_actor(channel, job, "restarts", max_restarts=1)

    server.stop(signal.SIGKILL)
    wait_for(lambda: all("waits up to 60 s for it to come back" in n.log() for n in nodes), *nodes)
    for actor in (dies, restarts):  # nobody is there to be told
        os.kill(actor.pid, signal.SIGKILL)
    wait_for(lambda: not running(dies.pid) and not running(restarts.pid), *nodes)
    server = cluster.gcs(port)
    wait_for(lambda: all("is back after" in n.log() for n in nodes), *nodes)
    with grpc.insecure_channel(address) as channel:
        assert {n.hex() for n, i in gcs.get_all_node_info().items() if i.state == gcs_pb2.GcsNodeInfo.ALIVE} == \
            {n.id for n in nodes}
        groups = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
        after = groups.GetPlacementGroup(ask).placement_group_table_data
        assert after.state == gcs_pb2.PlacementGroupTableData.CREATED
        assert [b.node_id for b in after.bundles] == [b.node_id for b in before.bundles]
        assert running(lives.pid)
        found = named(channel, "lives")
        assert (found.state, found.pid) == (gcs_pb2.ActorTableData.ALIVE, lives.pid)
        stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        ask_dead = gcs_service_pb2.GetActorInfoRequest(actor_id=dies.actor_id)
        wait_for(lambda: stub.GetActorInfo(ask_dead).actor_table_data.state == gcs_pb2.ActorTableData.DEAD, *nodes)
        assert "SIGKILL" in str(stub.GetActorInfo(ask_dead).actor_table_data.death_cause)

        def started_again():
            row = named(channel, "restarts")
            return row.state == gcs_pb2.ActorTableData.ALIVE and row.pid != restarts.pid and row
        assert running(wait_for(started_again, *nodes).pid)
        # The group's bundles are still held: 5 of 8 + 8 GPUs are free for another, less the actors' one.
        gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel).RemovePlacementGroup(
            gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=spec.placement_group_id))
        wait_for(lambda: not running(lives.pid), *nodes)  # the restored group's end ends its actor
    # A daemon that dies while no GCS is there is found dead.
    server.stop(signal.SIGKILL)
    nodes[1].stop(signal.SIGKILL)
    cluster.gcs(port)
    assert gcs.check_alive([ray.NodeID.from_hex(nodes[1].id)]) == [False]  # at no time does it count as alive
    wait_for(lambda: [i.state for n, i in gcs.get_all_node_info().items() if n.hex() == nodes[1].id] ==
             [gcs_pb2.GcsNodeInfo.DEAD], nodes[0])
    assert gcs.check_alive([ray.NodeID.from_hex(n.id) for n in nodes]) == [True, False]


def test_a_head_that_stays_away(tmp_path):
    cluster = Cluster(tmp_path, {"RAY_gcs_storage": "file", "RAY_gcs_storage_path": str(tmp_path / "state")})
    try:
        port = port_to_keep()
        server = cluster.gcs(port)
        node = cluster.node("127.0.0.3", f"--address=127.0.0.2:{port}", RAY_gcs_rpc_server_reconnect_timeout_s="2")
        server.stop()
        assert node.process.wait(20) == 1
        assert "waits up to 2 s for it to come back" in node.log()
        # Without a store to come back with, it is lost at once.
        server = cluster.gcs(port, RAY_gcs_storage="memory", RAY_gcs_storage_path="")
        node = cluster.node("127.0.0.4", f"--address=127.0.0.2:{port}", RAY_gcs_storage="memory")
        server.stop()
        assert node.process.wait(20) == 1
        assert "waits up to" not in node.log()
    finally:
        cluster.stop()


def test_a_store_that_cannot_be_used(tmp_path):
    def start(**env):
        done = subprocess.run([str(BIN / "mobula"), "node", "--head", "--port=0", "--node-ip-address=127.0.0.2",
                               f"--temp-dir={tmp_path}"], capture_output=True, text=True, timeout=60, env=clean_env(**env))
        assert done.returncode == 1
        return done.stderr
    port = port_to_keep()
    quick = {"RAY_redis_db_connect_retries": "2", "RAY_redis_db_connect_wait_milliseconds": "10"}
    assert f"Redis at 127.0.0.1:{port}, which is to hold the GCS's state, cannot be used: Connection refused" in \
        start(RAY_REDIS_ADDRESS=f"127.0.0.1:{port}", **quick)
    waits = subprocess.Popen([str(BIN / "mobula"), "node", "--head", "--port=0", "--node-ip-address=127.0.0.2",
                              f"--temp-dir={tmp_path}"], stderr=subprocess.PIPE, text=True,
                             env=clean_env(RAY_REDIS_ADDRESS=f"127.0.0.1:{port}"))
    assert "trying again" in waits.stderr.readline()
    waits.send_signal(signal.SIGTERM)
    assert "stopped by signal 15 while Redis" in waits.communicate(timeout=20)[1]
    assert "RAY_gcs_storage=disk is no store: it is memory, file or redis" in start(RAY_gcs_storage="disk")
    (tmp_path / "gcs").mkdir()
    (tmp_path / "gcs" / "gcs.log").write_bytes(b"something else entirely")
    assert f"{tmp_path}/gcs/gcs.log is damaged at offset 0" in start(RAY_gcs_storage="file")
