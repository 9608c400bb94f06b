"""What a job is told: the work, the prompts, how they are cut into shards. Paths in it stay beneath its own folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from attrib.core.rules import rule_text, takes_other
from attrib.core.types import InputError
from attrib.runs.prompts import Form
from attrib.runs.spec import Work, checked

Count = Annotated[int, Field(ge=1, lt=1 << 63, strict=True)]


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
    corrupt: Annotated[str, Field(min_length=1)] | None = None
    """Of rules that compare with other prompts, the key or column that holds the other prompt of each, of as many tokens."""
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

    @model_validator(mode="after")
    def _pairs_stay_whole(self) -> "PromptsOf":
        if self.corrupt is not None and self.long != "refuse":
            raise ValueError(f"long is {self.long!r} beside corrupt, and a pair of prompts is compared as a whole; expected 'refuse'")
        if self.corrupt is not None and self.corrupt == self.field:
            raise ValueError(f"corrupt and field are both {self.field!r}; expected two keys")
        return self


class ShardsOf(BaseModel, extra="forbid"):
    """How large a shard may become. One shard is in memory at a time, and another while it is written."""

    prompts: Count = 64
    tokens: Count = 2048


class JobFile(Work):
    """Everything that a job's numbers and files follow from; its TOML file has these keys."""

    prompts: Annotated[PromptsOf, BeforeValidator(lambda value: {"source": value} if isinstance(value, str | list) else value)]
    shards: ShardsOf = ShardsOf()
    threads: Annotated[int, Field(ge=1, lt=1 << 31, strict=True)] = 1
    """Threads of one process on a CPU. Sums in products are split among them, so that the last digits follow from it."""

    @model_validator(mode="after")
    def _names_no_code(self) -> "JobFile":
        if any(one.kind == "latent_to_metric" for one in self.attribution):
            raise ValueError(
                "attribution: latent_to_metric runs the code that its metric names, and a job's config may come from elsewhere. "
                "Use `attrib run`, or attrib.latent_to_metric in Python."
            )
        return self

    @model_validator(mode="after")
    def _has_the_pairs_that_its_rule_takes(self) -> "JobFile":
        rule, corrupt = rule_text(self.rule), self.prompts.corrupt
        if takes_other(self.rule) and corrupt is None:
            raise ValueError(
                f"prompts.corrupt: missing, and the rule {rule} compares each prompt with another; name the key or column that holds it."
            )
        if corrupt is not None and not takes_other(self.rule):
            raise ValueError(
                f"prompts.corrupt: no effect on the rule {rule}; leave it out, or choose rule = 'patching' or 'ig:16:corrupt'."
            )
        return self


def job_file(table: dict[str, Any]) -> JobFile:
    """A checked job from its keys. Raises InputError naming every key that is wrong."""
    return checked(JobFile, table, "job")


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
