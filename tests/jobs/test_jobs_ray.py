"""Jobs on ray's own cluster of several nodes on one machine, undisturbed and disturbed: the bytes are always the same."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import typer.testing

from attrib.cli import main as cli
from attrib.core.files import PARTIAL
from attrib.core.types import InputError
from attrib.jobs.config import job_file
from attrib.jobs.engines import Engine, JobError, actors
from attrib.jobs.engines.actors import LOSSES, STARTS, Actor, needs_of, place, room
from attrib.jobs.engines.cluster import cluster
from attrib.jobs.folder import LOCK, PROMPTS, SHARDS, Job, Shard, open_job
from attrib.jobs.make import make
from attrib.jobs.records import Failure, Record, failures, records
from attrib.jobs.run import Ran, Watch, run
from attrib.jobs.shard import prepare
from attrib.jobs.worker import Outcome, Stop, do
from attrib.store.columns import packages
from tests.support.builders import prompt, sae
from tests.support.job_cases import tiny_smollm2
from tests.support.root import ROOT

QUICK = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3,
}  # fmt: skip
"""ray's usual values let a lost node be found after half a minute."""


class Undisturbed(NamedTuple):
    """A job that nobody has run, and what its shards become."""

    folder: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: str) -> Undisturbed:
    files = tmp_path_factory.mktemp("files")
    sites = ("blocks.1.hook_resid_pre", "blocks.3.hook_resid_pre")
    for site in sites:
        sae("topk", site=site).save_model(files / site)
    lines = [f'{{"tokens": {prompt(8 + number % 3, seed=number).tolist()}}}\n' for number in range(64)]
    (files / "prompts.jsonl").write_text("".join(lines))
    table = {
        "model": model, "prompts": "prompts.jsonl", "shards": {"prompts": 4},
        "attribution": [{"kind": "latent_to_latent", "source": sites[0], "target": sites[1]}],
    }  # fmt: skip
    job = make(files / "job", job_file(table), files)
    assert len(job.shards) >= 16
    done = files / "done"
    shutil.copytree(job.folder, done)
    ready = prepare(done, "cpu")
    for shard in ready.job.shards:
        assert not isinstance(do(ready, shard), Stop)
    return Undisturbed(job.folder, {path.name: path.read_bytes() for path in (done / SHARDS).iterdir()})


@pytest.fixture
def folder(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A job that nobody has run."""
    return Path(shutil.copytree(undisturbed.folder, tmp_path / "job"))


@pytest.fixture
def here(folder: Path) -> Engine:
    """An engine in this process: what was left undone is soon done."""

    def engine(job: Job, shards: Sequence[Shard], attempts: int) -> Iterator[Outcome]:
        ready = prepare(job.folder, "cpu")
        for shard in shards:
            outcome = do(ready, shard)
            assert isinstance(outcome, Record), outcome
            yield outcome

    return engine


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What the jobs' processes load."""
    with tiny_smollm2(tmp_path_factory.mktemp("cache")) as name:
        yield name


@pytest.fixture(scope="module", autouse=True)
def environment(model: str) -> Iterator[None]:
    """What ray's processes find in theirs: attrib, and what stands in for a file of settings."""
    more = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "RAY_USAGE_STATS_ENABLED": "0"}
    more |= {"RAY_AUTH_MODE": "disabled"}  # else it leaves a token in the user's home
    more |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "8"}  # usually a minute: after it a driver without a head gives up
    more |= {"RAY_worker_niceness": "0"}  # usually 15: beside other tests its workers would hardly run
    with pytest.MonkeyPatch.context() as patch:
        for name, value in more.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


def start(**head: Any) -> Any:
    """A cluster with a head that does no shards."""
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK} | head)


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A cluster that tests add nodes to."""
    made = start()
    yield made
    made.shutdown()


@pytest.fixture
def node(head: Any) -> Any:
    """One core, which tests leave to each other: the node of an earlier test, or a new one where that is gone."""
    return next(iter(head.worker_nodes), None) or head.add_node(num_cpus=1)


@pytest.fixture
def add(head: Any) -> Iterator[Callable[..., Any]]:
    """Adds a node, which is gone after the test."""
    before = set(head.worker_nodes)
    yield partial(head.add_node, **{"num_cpus": 1})
    for one in head.worker_nodes - before:
        head.remove_node(one)


class After(Watch):
    """Does something once so many outcomes have come."""

    def __init__(self, **actions: Callable[[], Any]) -> None:
        self.actions = {int(name.removeprefix("_")): action for name, action in actions.items()}
        self.outcomes = list[Outcome]()

    def became(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if action := self.actions.get(len(self.outcomes)):
            action()


def run_there(folder: Path, made: Any, *, attempts: int = 1, watch: Watch | None = None, device: str | None = "cpu") -> Ran:
    return run(folder, partial(cluster, address=made and made.address, device=device), attempts=attempts, watch=watch)


def assert_done(folder: Path, undisturbed: Undisturbed) -> None:
    """Every shard is there, on record, and as if nothing had happened; and nothing else is."""
    job = open_job(folder)
    assert {path.name: path.read_bytes() for path in (folder / SHARDS).iterdir()} == undisturbed.files
    assert sorted(records(job)) == list(range(len(job.shards)))
    assert not list(failures(job))
    assert not list(folder.rglob(f".*{PARTIAL}"))
    assert (folder / LOCK).read_text() == "", "the run let go of its lock"


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """When each shard was written, as which file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / SHARDS).glob("*.h5")}


def assert_not_again(folder: Path, before: dict[str, tuple[int, int]]) -> None:
    now = written(folder)
    assert before
    assert {name: now[name] for name in before} == before, "what was done is not done again"


def computing(node: Any) -> list[int]:
    """The processes of a node that have a shard."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text()
            if int(status.rpartition(")")[2].split()[1]) == raylet and b"Actor.do" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def kill_one(node: Any) -> None:
    until = time.monotonic() + 60
    while not (found := computing(node)):
        assert time.monotonic() < until, "nothing is computed on this node"
        time.sleep(0.002)
    os.kill(found[0], signal.SIGKILL)


def wait_for(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def quiet(err: str) -> str:
    """What is on the terminal, but for transformers' progress when this process loads a model."""
    return "\n".join(line for line in err.split("\n") if "Loading weights" not in line)


def command(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "attrib.cli.main", "job", "run", str(folder), "--engine", "ray", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


@pytest.mark.long
def test_processes_are_killed_and_a_shard_always_fails(folder: Path, undisturbed: Undisturbed, head: Any, node: Any, here: Engine) -> None:
    """Both are the shard's fault: it is tried as often as was said, and no more."""
    (*_, bad) = open_job(folder).shards
    ids = folder / PROMPTS / "ids.npy"
    sound = ids.read_bytes()
    ids.write_bytes(sound[:-4] + bytes([sound[-4] ^ 1]) + sound[-3:])  # the last prompt's last token
    watch = After(_2=lambda: kill_one(node), _5=lambda: kill_one(node))
    ran = run_there(folder, head, attempts=1, watch=watch)
    of_data = [failure for failure in ran.failed if failure.kind == "error"]
    assert [(failure.shard, failure.attempts) for failure in of_data] == [(bad.number, 1)]
    assert "are not what they were" in of_data[0].reason
    assert "Traceback" in of_data[0].details
    of_processes = [failure for failure in ran.failed if failure.kind == "died"]
    assert len(of_processes) in (1, 2), "one that was killed after its record was written has not failed"
    assert {failure.attempts for failure in of_processes} == {1}
    assert "worker process has died" in of_processes[0].reason
    assert len(ran.failed) == len(of_data) + len(of_processes)
    before = written(folder)
    ids.write_bytes(sound)
    run(folder, here)
    assert_not_again(folder, before)
    assert_done(folder, undisturbed)


@pytest.mark.long
def test_the_driver_is_ended_by_a_signal(folder: Path, undisturbed: Undisturbed, head: Any, node: Any, here: Engine) -> None:
    with command(folder, "--address", head.address) as ended:
        wait_for(lambda: len(written(folder)) > 1)
        ended.send_signal(signal.SIGTERM)
        out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (128 + signal.SIGTERM, "")
    assert quiet(err).count("\n") <= 1, "nothing of ray's"
    assert "ray" not in quiet(err).replace(str(folder), "")
    wait_for(lambda: not computing(node))
    before = written(folder)
    assert len(before) < len(undisturbed.files), "it was ended too late to see anything"
    run(folder, here)
    assert_not_again(folder, before)
    assert_done(folder, undisturbed)


@pytest.mark.long
def test_gpus_are_asked_for(folder: Path, head: Any, add: Callable[..., Any]) -> None:
    """A node that has them in name only: that is where the actor goes, and what it says is the job's error."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so that nothing fails")
    add(num_gpus=2)
    with pytest.raises(JobError, match=rf"{socket.gethostname()}: device: 'cuda' is not on this machine"):
        run_there(folder, head, device=None)
    assert not written(folder)


@pytest.mark.long
def test_nodes_are_killed_and_one_joins(folder: Path, undisturbed: Undisturbed, head: Any, node: Any, add: Callable[..., Any]) -> None:
    """One of two: the other goes on, and each shard has one attempt, since it is not the shards' fault. Then the other, too: what is left
    is done on the new one."""
    first, second = node, add()
    kill = partial(head.remove_node, allow_graceful=False)
    watch = After(_2=lambda: kill(first), _4=add, _6=lambda: kill(second))
    assert run_there(folder, head, watch=watch).failed == []
    assert len(watch.outcomes) == len(undisturbed.files), "each shard is told of once"
    assert_done(folder, undisturbed)


@pytest.mark.long
def test_a_node_without_memory(folder: Path, head: Any, add: Callable[..., Any]) -> None:
    """Its actors are killed while they load the model, and no shard is blamed."""
    for other in tuple(head.worker_nodes):
        head.remove_node(other)
    add(env_vars={"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"})
    with pytest.raises(JobError, match=f"{STARTS} actors of ray ended before they could begin.*little memory"):
        run_there(folder, head)
    assert not list(failures(open_job(folder)))


@pytest.mark.long
def test_the_head_is_killed_and_the_job_goes_on_elsewhere(
    folder: Path, undisturbed: Undisturbed, capfd: pytest.CaptureFixture[str]
) -> None:
    made = start(num_cpus=1)
    address = made.address
    kill = partial(made.head_node.kill_all_processes, check_alive=False, allow_graceful=False, wait=True)
    capfd.readouterr()
    lost = f"{folder}: the ray cluster at {address} was lost. What is done stays; `attrib job run {folder}` goes on."
    try:
        with pytest.raises(JobError, match=f"^{re.escape(lost)}$"):
            run_there(folder, made, watch=After(_2=kill))
    finally:
        made.shutdown()
    assert capfd.readouterr() == ("", ""), "nothing of ray's"
    before = written(folder)
    assert len(before) < len(undisturbed.files), "it was killed too late to see anything"
    done = typer.testing.CliRunner().invoke(cli.app, ["job", "run", str(folder), "--engine", "ray"])
    assert (done.exit_code, done.stderr, capfd.readouterr()) == (0, "", ("", ""))
    assert done.stdout.startswith(f"{folder}: {len(undisturbed.files)} of {len(undisturbed.files)} shards, 64 of 64 prompts, ")
    assert done.stdout.count("\n") == 1
    assert_not_again(folder, before)
    assert_done(folder, undisturbed)


@pytest.mark.long
def test_the_head_is_restarted(folder: Path, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its memory is in Redis, it comes back, and the job goes on as if nothing had happened."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed; apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    redis = subprocess.Popen(
        [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: answers(port))
        monkeypatch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{port}")
        made = start()
        try:
            made.add_node(num_cpus=1)

            def restart() -> None:
                made.head_node.kill_gcs_server(check_alive=False)
                time.sleep(1)
                made.head_node.start_gcs_server()

            watch = After(_2=restart)
            assert run_there(folder, made, watch=watch).failed == []
            assert len(watch.outcomes) == len(undisturbed.files)
        finally:
            made.shutdown()
    finally:
        redis.terminate()
        redis.wait()
    assert_done(folder, undisturbed)


# --------------------------------------------------------------------- what a cluster seldom does


class ScriptedError(Exception):
    """ray's errors, as the placing sees them."""

    actor_init_failed = False


@dataclass(frozen=True, eq=False)
class Call:
    """A reference to what an actor will have said."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def remote(function: Callable[..., Any]) -> Any:
    return SimpleNamespace(remote=lambda *arguments: Call(function, arguments))


class ScriptedRay:
    """ray with one node after another, on which a script says what becomes of each call of `do`; all else goes well."""

    class exceptions:
        ActorUnavailableError = type("ActorUnavailableError", (ScriptedError,), {})
        OutOfMemoryError = type("OutOfMemoryError", (ScriptedError,), {})
        ActorDiedError = type("ActorDiedError", (ScriptedError,), {})
        RayTaskError = type("RayTaskError", (ScriptedError,), {})

    def __init__(self, folder: Path, *script: object) -> None:
        self.script, self.alive, self.shards = list(script), 0, list[int]()
        self.ready = prepare(folder, "cpu")

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": f"{self.alive}", "Alive": True, "Resources": {"CPU": 1.0}}, {"NodeID": "gone", "Alive": False, "Resources": {}}]

    def remote(self, **options: object) -> Callable[[type], Any]:
        assert options == {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 1, "num_gpus": 0}
        actor = SimpleNamespace(prepare=remote(self.node), node=remote(self.node), do=remote(self.do))
        return lambda _: SimpleNamespace(remote=lambda: actor)

    def node(self, *_: object) -> str:
        return f"{self.alive}"

    def do(self, shard: Shard) -> Outcome | Stop:
        self.shards.append(shard.number)
        said = self.script.pop(0) if self.script else None
        if said == "node lost":
            self.alive += 1
            raise self.exceptions.ActorDiedError("its node has died")
        if said == "answer lost":
            do(self.ready, shard)
        if isinstance(said, str):
            raise getattr(self.exceptions, "ActorUnavailableError" if said == "answer lost" else said)("first\n\ttab\nits own words")
        return do(self.ready, shard)

    def wait(self, calls: list[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        assert timeout
        return calls[:1], calls[1:]

    def get(self, call: Call) -> Any:
        return call.function(*call.arguments)


@pytest.mark.few
@pytest.mark.parametrize(
    ("script", "attempts", "tried", "failed"),
    [
        (["ActorDiedError"], 1, 1, ("died", 1, "its process ended: its own words")),
        (["ActorDiedError", "ActorDiedError"], 2, 2, ("died", 2, "its process ended: its own words")),
        (["OutOfMemoryError"] * 3, 3, 3, ("memory", 3, "its process ended: ray killed it, since its node had little memory left")),
        (["ActorDiedError", "OutOfMemoryError"], 3, 3, None),
        (["node lost"] * (LOSSES - 1), 1, LOSSES, None),
        (["node lost"] * LOSSES, 1, LOSSES, ("died", 1, "its process ended: its node has died")),
        (["ActorUnavailableError"], 1, 2, None),
        (["answer lost"], 1, 1, None),
    ],
    ids=["dies", "dies twice", "memory", "both", "nodes are lost", "nodes are always lost", "cannot be reached", "answer is lost"],
)
def test_what_is_the_fault_of_a_shard(
    script: list[str], attempts: int, tried: int, failed: tuple[str, int, str] | None, folder: Path
) -> None:
    job, ray = open_job(folder), ScriptedRay(folder, *script)
    (outcome,) = place(ray, job, job.shards[:1], attempts, device="cpu")
    assert ray.shards == [0] * tried
    if failed is None:
        assert isinstance(outcome, Record)
    else:
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.attempts, outcome.reason) == failed


def test_an_error_that_is_no_shards_is_the_jobs(folder: Path) -> None:
    job = open_job(folder)
    with pytest.raises(JobError, match="an actor of ray failed: its own words"):
        list(place(ScriptedRay(folder, "RayTaskError"), job, job.shards, 3, device="cpu"))


def test_no_node_has_such_a_device(folder: Path) -> None:
    job = open_job(folder)
    with pytest.raises(InputError, match="device: cuda takes a node with 1 CPU and 1 GPU, and the ray cluster has none"):
        next(place(ScriptedRay(folder), job, job.shards, 1, device="cuda"))


def test_no_node_has_room_any_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, ray = open_job(folder), ScriptedRay(folder)
    monkeypatch.setattr(actors, "STARVED", 0.0)
    outcomes = place(ray, job, job.shards, 1, device="cpu")
    next(outcomes)
    monkeypatch.setattr(ray, "nodes", list)
    with pytest.raises(JobError, match="had no node with 1 CPU"):
        list(outcomes)


# ------------------------------------------------------------------------------------- without a cluster


@pytest.mark.parametrize(
    ("node", "needs", "actors"),
    [
        ({"CPU": 8.0, "memory": 1e9}, needs_of("cpu", 3), 2),
        ({"CPU": 2.0}, needs_of("cpu", 3), 0),
        ({"CPU": 16.0, "GPU": 4.0}, needs_of("cuda", 3), 4),
        ({"CPU": 2.0, "GPU": 4.0}, needs_of("cuda", 3), 2),
        ({"CPU": 16.0}, needs_of("cuda", 3), 0),
        ({}, needs_of("cpu", 1), 0),
    ],
)
def test_room(node: dict[str, float], needs: dict[str, int], actors: int) -> None:
    assert room(node, needs) == actors


def test_a_node_with_other_packages(folder: Path) -> None:
    said = Actor().prepare(folder, "cpu", packages() | {"torch": "0.1"})
    assert isinstance(said, Stop)
    assert "'torch': '0.1'" in said.reason
    assert "the same on all nodes" in said.reason


@pytest.mark.long
def test_no_cluster_is_there(folder: Path) -> None:
    with socket.socket() as free:  # bound, and nobody listens
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"address: no ray cluster answers at {address}: .*refused"):
            next(cluster(open_job(folder), open_job(folder).shards, 1, address=address, device=None))


def test_a_device_that_ray_has_not(folder: Path) -> None:
    with pytest.raises(InputError, match="device: 'cuda:1'; ray chooses"):
        next(cluster(open_job(folder), open_job(folder).shards, 1, address=None, device="cuda:1"))


def test_ray_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs the package ray, which is not installed; pip install 'attrib\[ray\]'"):
        next(cluster(open_job(folder), open_job(folder).shards, 1, address=None, device=None))


@pytest.mark.long
def test_ray_is_imported_only_where_it_is_used() -> None:
    code = "import sys, attrib.cli.main, attrib.cli.job, attrib.jobs.engines.choose; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
