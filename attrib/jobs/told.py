"""What jobs of every kind are told: where their prompts come from, and how these are cut into shards.

Paths stay beneath the config's folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from attrib.core.types import InputError
from attrib.engine.blocks.multiplier import Multiplier, is_there, multiplier
from attrib.models.tokenizer import SpecialTokens
from attrib.runs.prompts import Form

Count = Annotated[int, Field(ge=1, lt=1 << 63, strict=True)]
Number = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]
Compression = Literal["gzip", "lzf", "blosc-lz4", "zstd"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _once(sources: list[str]) -> list[str]:
    if sources.count("-") > 1:
        raise ValueError("'-' is there more than once; standard input can be read once")
    return sources


class PromptsOf(BaseModel, extra="forbid"):
    """Where a job's prompts come from, and which of them it takes."""

    source: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), AfterValidator(_once), Field(min_length=1)]
    """Files, folders, "hf:NAME" or "-", one after another, as `attrib.runs.prompts.read` takes them."""
    form: Form | None = None
    field: str | None = None
    split: str | None = None
    """The split that is read of paths that are data sets; None is "train"."""
    limit: Count | None = None
    """Prompts to read, at most."""
    max_tokens: Count | None = None
    """Tokens of a prompt, at most. None is the model's context."""
    long: Literal["refuse", "truncate", "split"] = "refuse"
    """What becomes of a prompt of more tokens: it is recorded and left out, its first tokens are taken, or it becomes several."""

    @model_validator(mode="after")
    def _split_moves_on(self) -> "PromptsOf":
        if self.long == "split" and self.max_tokens == 1:
            raise ValueError("max_tokens must be 2 or more where long is 'split': the first may be the tokenizer's own")
        return self


class PairsOf(PromptsOf):
    """The same, of attributions, whose rule may compare each prompt with another."""

    corrupt: Annotated[str, Field(min_length=1)] | None = None
    """Of rules that compare with other prompts, the key or column that holds the other prompt of each, of as many tokens."""

    @model_validator(mode="after")
    def _pairs_stay_whole(self) -> "PairsOf":
        if self.corrupt is not None and self.long != "refuse":
            raise ValueError(f"long is {self.long!r} beside corrupt, and a pair of prompts is compared as a whole; expected 'refuse'")
        if self.corrupt is not None and self.corrupt == self.field:
            raise ValueError(f"corrupt and field are both {self.field!r}; expected two keys")
        return self


_TABLE = BeforeValidator(lambda value: {"source": value} if isinstance(value, str | list) else value)
Prompted = Annotated[PromptsOf, _TABLE]
"""Prompts as a config has them: a source, a list of sources, or a table."""
Paired = Annotated[PairsOf, _TABLE]
"""The same, of attributions."""


class ShardsOf(BaseModel, extra="forbid"):
    """How large a shard may become. One shard is in memory at a time, and another while it is written."""

    prompts: Count = 64
    tokens: Count = 2048


Threads = Annotated[int, Field(ge=1, lt=1 << 31, strict=True)]
"""Threads of one process on a CPU. Sums in products are split among them, so that the last digits follow from it."""
Products = Multiplier | None
"""Who multiplies matrices of float32 on a CPU, from which the last digits follow too. None is who would where the job is made, and in
a job that was made before this was written down who would where it is run."""
ConfigT = TypeVar("ConfigT")


def with_multiplier(config: ConfigT) -> ConfigT:
    """A job's config that says who multiplies, from now on. Raises as `check_multiplier`."""
    said: Any = config
    check_multiplier(said.products)
    pinned: ConfigT = said.model_copy(update={"products": said.products or multiplier()})
    return pinned


def check_multiplier(products: Products) -> None:
    """Raises InputError where this torch cannot give products to whom the job says."""
    if products is not None and not is_there(products):
        raise InputError(
            f"products: {products!r}, by which the job's products are multiplied, and this build of torch is without it. "
            "Use one that has it, or make a new job with products = 'torch'; its last digits are others."
        )


def _each_once(names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is there twice; expected each once, under a name of its own")
    return names


Names = Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_each_once)]


class Told(BaseModel, extra="forbid"):
    """The keys of a job that is no attribution: a model, dictionaries, and how its prompts are cut up."""

    model: str
    dictionaries: Names = Field(default_factory=list)
    """Names or folders."""
    shards: ShardsOf = ShardsOf()
    threads: Threads = 1
    products: Products = None
    special_tokens: SpecialTokens = "allow"
    compression: Compression | None = None


class Reach(NamedTuple):
    """What a config may read: what lies in its own folder, and what the user opened to it."""

    folder: Path
    allowed: tuple[Path, ...] = ()

    def confined(self, argument: str, name: str) -> Path | None:
        """As `confined`, of this reach."""
        return confined(argument, name, self.folder, self.allowed)

    def source(self, argument: str, name: str, option: str) -> str | Path:
        """What is to be read under a name: standard input and data sets of the hub by their names, all else by its path.

        Args:
            option: of the command line, by which a user names what may lie anywhere.

        Raises:
            InputError: where there is none, it lies outside, or is a pipe or a device.
        """
        if name == "-" or name.startswith("hf:"):
            return name
        found = self.confined(argument, name)
        if found is None:
            raise InputError(f"{argument}: {self.folder / name} does not exist.")
        if found.exists() and not (found.is_file() or found.is_dir() or found in self.allowed):  # a pipe would be waited for
            raise InputError(f"{argument}: {name} is a pipe or a device; expected a file or a folder. Give it as {option} {found}.")
        return found


def confined(argument: str, name: str, folder: Path, allowed: Sequence[Path]) -> Path | None:
    """Where a name in a config points, if it is a path: beneath the config's folder, or one that the user allowed.

    A config may come from elsewhere, and what it names is read: it must not reach the user's other files. A name that is
    no path there may still be one from the folder that the user is in, where whoever loads it would find it.

    Returns:
        The path, or None for a name that is none.

    Raises:
        InputError: where the path, links followed, lies outside, or is none that a file could have.
    """
    try:
        path = folder / Path(name).expanduser()
        if not path.exists() and Path(name).exists():
            path = Path(name)
        if not (path.exists() or name.startswith((".", "/", "~")) or ".." in Path(name).parts):
            return None
        if path in allowed:
            return path  # as it is: a pipe that the user names has no path behind its links
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a user that is not there, a NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{argument}: {name[:80]!r} is no path: {why}.") from None
    if not any(resolved.is_relative_to(root.resolve()) for root in (folder, *allowed)):
        raise InputError(
            f"{argument}: {name} lies outside {folder}, the folder of the config, which reads nothing else unless you say so. "
            f"Move it there, or give --allow {resolved.parent if resolved.suffix else resolved}."
        )
    return resolved
