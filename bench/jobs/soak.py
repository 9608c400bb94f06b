"""A job that is disturbed at random for as long as you like, against one that nothing disturbs: the bytes must be the same.

    python -m bench.jobs.soak --minutes 60 --prompts 2000 --out bench/results/2-core-cpu-soak.json
    make soak        # a short form

Each round starts `attrib job run` on the same folder and does something to it: see FAULTS. When all shards are
there, a part of them is taken away and the rounds go on. At the end the job is run once in peace, and every
shard is compared, byte by byte, with that of a job that ran in peace all along.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from attrib.adapters import load_model
from attrib.core.lock import holder
from attrib.jobs.folder import LOCK, RECORDS, SHARDS, open_job
from attrib.jobs.records import records, refused
from attrib.jobs.status import status
from attrib.jobs.verify import verify

ROOT = Path(__file__).parent.parent.parent
SITES = ("smollm2-135m/blocks.6.hook_resid_pre", "smollm2-135m/blocks.9.hook_resid_pre")
POISON = ("", "{not json", '{"tokens": []}', '{"tokens": [1, 99999999]}', json.dumps({"tokens": [1] * 9000}), '"\\ud800"', "\udcff")
"""Lines that are no prompt; the last is not UTF-8."""


class Round(NamedTuple):
    """What the faults act on."""

    folder: Path
    process: subprocess.Popen[str]
    draw: random.Random


# ------------------------------------------------------------------------------------------------ faults


def kill_parent(at: Round) -> None:
    at.process.kill()


def kill_worker(at: Round) -> None:
    if workers := psutil.Process(at.process.pid).children():
        at.draw.choice(workers).kill()


def kill_all(at: Round) -> None:
    for process in [psutil.Process(at.process.pid), *psutil.Process(at.process.pid).children(recursive=True)]:
        process.kill()


def terminate(at: Round) -> None:
    at.process.terminate()


@contextmanager
def suspended(at: Round) -> Iterator[None]:
    """The run and its workers stop for a while."""
    every = [psutil.Process(at.process.pid), *psutil.Process(at.process.pid).children(recursive=True)]
    for process in every:
        process.suspend()
    try:
        yield
    finally:
        for process in every:
            process.resume()


def freeze(at: Round) -> None:
    """A machine that sleeps."""
    with suspended(at):
        time.sleep(3)


def run_twice(at: Round) -> None:
    """A second run on the same folder: it is refused, and the first goes on."""
    while holder(at.folder / LOCK) is None and at.process.poll() is None:
        time.sleep(0.1)  # it has not come to its lock yet
    with suspended(at):  # so that it does not end before the second asks for the lock
        if holder(at.folder / LOCK) is not None:
            second = start(at.folder, 1)
            _, err = second.communicate()
            assert second.returncode == 1, "a second run was let in"
            assert "is being run by" in err, err


def flip_bits(at: Round) -> None:
    """While it runs: the next run finds it."""
    for path in some(at, SHARDS, 2):
        content = bytearray(path.read_bytes())
        for _ in range(8):
            content[at.draw.randrange(len(content))] ^= 1 << at.draw.randrange(8)
        path.write_bytes(content)


def cut_short(at: Round) -> None:
    for path in some(at, SHARDS, 2):
        os.truncate(path, at.draw.randrange(path.stat().st_size))


def spoil_records(at: Round) -> None:
    for path in some(at, RECORDS, 2):
        path.write_text(path.read_text()[: at.draw.randrange(200)])


def lose_files(at: Round) -> None:
    for path in (*some(at, SHARDS, 2), *some(at, RECORDS, 2)):
        path.unlink()


def nothing(_: Round) -> None:
    """Faults of the whole round, such as a disk that is full from the beginning, act by themselves."""


def some(at: Round, inner: str, count: int) -> list[Path]:
    found = sorted(path for path in (at.folder / inner).iterdir() if not path.name.startswith("."))
    return at.draw.sample(found, min(count, len(found)))


class Fault(NamedTuple):
    act: Callable[[Round], None]
    how: str
    limits: Callable[[random.Random], tuple[int, int]] | None = None
    """A resource of the round's processes, and how much of it they may use."""
    fills: bool = False
    """Whether the disk is full during the round."""
    ends: bool = True
    """Whether the run is over soon after."""


FAULTS = {
    "kill -9 of the run": Fault(kill_parent, "SIGKILL at a random moment"),
    "kill -9 of a worker": Fault(kill_worker, "SIGKILL at a random moment", ends=False),
    "kill -9 of everything": Fault(kill_all, "SIGKILL of the run and its workers, as when a machine loses power"),
    "preemption": Fault(terminate, "SIGTERM at a random moment"),
    "a machine that sleeps": Fault(freeze, "SIGSTOP of all processes, SIGCONT after 3 s", ends=False),
    "two runs at once": Fault(run_twice, "a second `attrib job run` on the folder, while the first is suspended", ends=False),
    "full disk": Fault(nothing, "the folder's file system, a tmpfs, is filled up before the run", fills=True),
    "file size limit": Fault(nothing, "RLIMIT_FSIZE below a shard's size", lambda _: (resource.RLIMIT_FSIZE, 40_000)),
    "out of memory": Fault(
        nothing, "RLIMIT_DATA of 1.0 to 1.6 GB", lambda draw: (resource.RLIMIT_DATA, draw.randrange(10, 17) * 100_000_000)
    ),
    "flipped bits in shards": Fault(flip_bits, "8 random bits in each of 2 shards, while a run goes on", ends=False),
    "shards cut short": Fault(cut_short, "2 shards truncated at random, while a run goes on", ends=False),
    "spoiled records": Fault(spoil_records, "2 records truncated at random, while a run goes on", ends=False),
    "lost files": Fault(lose_files, "2 shards and 2 records deleted, while a run goes on", ends=False),
}


# ------------------------------------------------------------------------------------------------ rounds


def start(folder: Path, workers: int, limit: tuple[int, int] | None = None) -> subprocess.Popen[str]:
    """`attrib job run`, in a process of its own, under a limit that its workers inherit."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "attrib.cli.main", "job", "run", str(folder), "--workers", str(workers)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if limit is not None:
        psutil.Process(process.pid).rlimit(limit[0], (limit[1], limit[1]))
    return process


def disturb(folder: Path, name: str, draw: random.Random) -> str:
    """One round. Returns how the run ended, in a word."""
    fault = FAULTS[name]
    with filled(folder) if fault.fills else unlimited():
        process = start(folder, draw.choice([1, 2]), fault.limits(draw) if fault.limits else None)
        before, shards = len(list((folder / RECORDS).iterdir())), len(open_job(folder).shards)
        until, wanted = time.monotonic() + draw.uniform(0, 90), before + draw.randrange(max(1, min(20, shards - before)))
        while process.poll() is None and time.monotonic() < until and len(list((folder / RECORDS).iterdir())) < wanted:
            time.sleep(draw.random() / 5)
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess, FileNotFoundError):  # it ended in this very moment
                fault.act(Round(folder, process, draw))
        if not fault.ends and process.poll() is None:
            try:
                process.wait(draw.uniform(1, 8))
            except subprocess.TimeoutExpired:
                process.terminate()
        _, err = process.communicate()
    assert "Traceback" not in err, err
    how = {0: "finished", 1: "one line", -signal.SIGKILL: "killed", 128 + signal.SIGTERM: "stopped", -signal.SIGTERM: "stopped"}
    ended = how.get(process.returncode)  # by the signal itself where it came before Python could take it
    assert ended is not None, (process.returncode, err)
    if ended == "one line":
        assert err.splitlines()[-1].startswith("error: "), err
    return ended


@contextmanager
def unlimited() -> Iterator[None]:
    yield


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The folder's file system without a byte left."""
    ballast = folder.parent / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def small_disk(size: str) -> Iterator[Path | None]:
    """A file system of its own, where this process may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


# ------------------------------------------------------------------------------------------------ corpus


def write_corpus(folder: Path, count: int, draw: random.Random) -> None:
    """Prompts cut at random from this repository's own texts, and a few that are none."""
    tokenizer = load_model("smollm2-135m").tokenizer
    assert tokenizer is not None
    text = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    ids = tokenizer.encode(text)
    lines = []
    for _ in range(count):
        length, at = draw.randint(3, 14), draw.randrange(len(ids) - 20)
        lines.append(json.dumps({"tokens": ids[at : at + length]}))
    for line in POISON:
        lines.insert(draw.randrange(len(lines)), line)
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", errors="surrogateescape")
    (folder / "job.toml").write_text(
        f"""
model = "smollm2-135m"
prompts = "prompts.jsonl"
keep = "topk:16"
[shards]
prompts = 16
[[attribution]]
kind = "latent_to_latent"
source = "{SITES[0]}"
target = "{SITES[1]}"
[[attribution]]
kind = "token_to_latent"
target = "{SITES[0]}"
"""
    )


def make(folder: Path, beside: Path) -> None:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    command = [sys.executable, "-m", "attrib.cli.main", "job", "init", str(folder), "--config", str(beside / "job.toml")]
    subprocess.run(command, env=env, check=True)


def in_peace(folder: Path) -> float:
    begun = time.monotonic()
    process = start(folder, 2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    print(out, end="")
    return time.monotonic() - begun


def compare(disturbed: Path, undisturbed: Path) -> int:
    """How many shards are byte for byte the same. Raises where one is not, or there is one too many."""
    ours, theirs = ({path.name: path for path in (folder / SHARDS).iterdir()} for folder in (disturbed, undisturbed))
    assert ours.keys() == theirs.keys(), f"other files: {sorted(ours.keys() ^ theirs.keys())}"
    for name, path in ours.items():
        assert path.read_bytes() == theirs[name].read_bytes(), f"{name} differs"
    assert [one for one, _ in refused(open_job(disturbed))] == [one for one, _ in refused(open_job(undisturbed))]
    return len(ours)


def soak(minutes: float, prompts: int, seed: int, console: Console) -> dict[str, Any]:
    draw, counts, ended = random.Random(seed), Counter[str](), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as scratch, small_disk("6g") as disk:
        beside, place = Path(scratch), disk or Path(scratch)
        write_corpus(beside, prompts, draw)
        peaceful, disturbed = beside / "peaceful", place / "disturbed"
        make(peaceful, beside)
        make(disturbed, beside)
        undisturbed_seconds = in_peace(peaceful)
        names = [name for name, fault in FAULTS.items() if disk or not fault.fills]
        begun, again = time.monotonic(), 0
        while time.monotonic() - begun < 60 * minutes:
            if status(disturbed).is_done:  # a part is taken away, so that there is something to disturb
                again += 1
                for path in draw.sample(sorted((disturbed / RECORDS).iterdir()), max(1, len(open_job(disturbed).shards) // 3)):
                    path.unlink()
            name = min(names, key=lambda name: (counts[name], draw.random()))
            how = disturb(disturbed, name, draw)
            counts[name] += 1
            ended[name, how] += 1
            console.print(
                f"{(time.monotonic() - begun) / 60:6.1f} min  {name}: {how}; {len(records(open_job(disturbed)))} shards done",
                highlight=False,
            )
        disturbed_seconds = time.monotonic() - begun
        in_peace(disturbed)
        same = compare(disturbed, peaceful)
        faults = verify(disturbed, recompute=2)
        assert not faults, faults
        now = status(disturbed)
    table = {
        name: {
            "how": FAULTS[name].how,
            "rounds": counts[name],
            "ended": {how: ended[name, how] for _, how in sorted(ended) if ended[name, how]},
        }
        for name in FAULTS
    }
    return {
        "prompts": now.prompts, "refused": now.refused, "shards": now.shards, "edges": now.edges, "bytes": now.bytes,
        "minutes_disturbed": round(disturbed_seconds / 60, 1), "seconds_in_peace": round(undisturbed_seconds), "seed": seed,
        "times_all_was_done": again, "shards_compared": same, "shards_that_differ": 0, "faults": table,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was mounted is unmounted
    console = Console()
    found = soak(options.minutes, options.prompts, options.seed, console)
    table = Table("fault", "how", "rounds", "runs ended")
    for name, row in found["faults"].items():
        table.add_row(name, row["how"], str(row["rounds"]), ", ".join(f"{how} {count}" for how, count in row["ended"].items()))
    console.print(table)
    console.print(f"{found['shards_compared']} shards compared byte for byte with an undisturbed run: all the same")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
