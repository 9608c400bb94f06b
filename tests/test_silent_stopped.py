"""A run that is stopped says one line, whatever its workers were doing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.job_cases import corpus, make_job
from tests.test_jobs_processes import finish, start, wait_for
from tests.test_layering import ROOT


def test_ctrl_c_while_workers_start_is_one_line(tmp_path: Path) -> None:
    """A terminal sends it to all of them, and they are still importing: it is the parent's alone."""
    folder = make_job(tmp_path / "job", corpus(tmp_path / "corpus", (3, 3, 3))).folder
    process = start("run", folder, "--workers", 2)
    parent = psutil.Process(process.pid)

    def workers() -> list[psutil.Process]:
        return [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]

    wait_for(lambda: len(workers()) == 2, process)
    told = workers()
    for one in (*told, parent):
        one.send_signal(signal.SIGINT)
    assert finish(process) == (128 + signal.SIGINT, "", f"{folder}: stopped; `attrib job run {folder}` goes on\n")
    _, alive = psutil.wait_procs(told, timeout=20)
    assert not alive


LOADS = """
import multiprocessing, sys
from multiprocessing import resource_tracker
from pathlib import Path
multiprocessing.set_start_method("spawn")  # as in a worker
from attrib.jobs.shard import compute, prepare
ready = prepare(Path(sys.argv[1]), "cpu")
compute(ready, ready.job.shards[0])
print(resource_tracker._resource_tracker._fd)
"""


def test_a_worker_makes_no_semaphore(tmp_path: Path) -> None:
    """One that is killed leaves it behind, and Python says so beside the one line. The bars of other libraries make them."""
    folder = make_job(tmp_path / "job", corpus(tmp_path / "corpus", (3,))).folder
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    told = subprocess.run([sys.executable, "-c", LOADS, folder], env=env, capture_output=True, text=True, check=True)
    assert told.stdout == "None\n"
