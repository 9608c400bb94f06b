"""Jobs of attributions: the edges between two places, of every prompt."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from pydantic import BaseModel, model_validator
from torch import Tensor

from attrib.core.edges import Edges
from attrib.core.keep import least_share
from attrib.core.positions import least_length
from attrib.core.rules import rule_text, takes_other
from attrib.core.types import InputError
from attrib.jobs.kind import Of, Portion, Source
from attrib.jobs.source import prompts_of
from attrib.jobs.told import Paired, Products, Reach, ShardsOf, Threads
from attrib.runs import spec
from attrib.runs.results import Counts, counts, edges_of, not_finite, write
from attrib.runs.spec import Loaded, Results, Work
from attrib.store import Store, merge
from attrib.store.contradictions import faults_of
from attrib.store.shard import open_shard


class JobFile(Work):
    """Everything that a job's numbers and files follow from; its TOML file has these keys."""

    prompts: Paired
    shards: ShardsOf = ShardsOf()
    threads: Threads = 1
    products: Products = None

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


class Attributions:
    """What edges and graphs have in common: one description of work, and results that `attrib.runs` writes."""

    makes = "edges"
    by_length = True
    file: type[BaseModel] = JobFile

    def has_beside(self, config: JobFile) -> bool:
        """The prompts that a rule compares with."""
        return config.prompts.corrupt is not None

    def load(self, config: JobFile, device: torch.device, places: Mapping[str, str | Path]) -> Loaded:
        """The work in memory."""
        return spec.load(config, device, places)

    def check(self, parts: Loaded) -> None:
        """Raise what attributing a prompt that has all the positions asked for would raise."""
        example = [torch.zeros(least_length(parts.work.positions, parts.model.config.n_ctx), dtype=torch.int64)]
        parts.check(example, example if takes_other(parts.work.rule) else None)

    def open(self, config: JobFile, reach: Reach) -> Source:
        """The prompts of the config's sources."""
        return prompts_of(config.prompts, reach, config.prompts.corrupt)

    def compute(self, parts: Loaded, portion: Portion) -> Results:
        """The edges of each attribution, or the graph of each prompt."""
        return parts.attribute(portion.ids, None, _corrupt_of(portion))

    def faulty(self, results: Results) -> dict[int, str]:
        """The prompts with a number that is none."""
        return dict.fromkeys(not_finite(results), "its edges are not finite numbers")

    def counts(self, results: Results) -> Counts:
        """Prompts, tokens and edges."""
        return counts(results)

    def write(self, path: Path, results: Results, numbers: Int[Tensor, " prompts"], compression: str | None) -> Path:
        """As `attrib.save`."""
        return write(path, results, numbers, compression=compression, overwrite=True)

    def merge(self, out: Path, shards: Sequence[Path], compression: str | None, overwrite: bool) -> Path:
        """A file of links to the shards, which stay where they are."""
        if compression is not None:
            raise InputError(f"compression: {compression!r} has no effect on a file of links; leave it out.")
        return merge(out, shards, overwrite=overwrite)


class EdgesKind(Attributions):
    """Edges; a shard is what `attrib.save` writes of some prompts."""

    name = "edges"

    def faults(self, path: Path, of: Of, kept: Portion) -> tuple[list[str], Counts]:
        """Rows that contradict themselves, other prompts or blocks than the job's, and those of another model or dictionary."""
        with open_shard(path) as store:
            if at_fault := list(faults_of(store, least_share(of.config.keep))):
                return [str(fault).removeprefix(f"{path}: ") for fault in at_fault], Counts(0, 0, 0)
            edges = sum(int(store.sizes(block, range(len(store))).sum()) for block in store.blocks)
            found = [*_faults_of_blocks(store, of)]
            prompts = store.prompts
            if prompts.numbers.tolist() != kept.numbers.tolist():
                found.append("its prompts have other numbers than the job's")
            elif not torch.equal(prompts.ids, torch.cat(kept.ids)):
                found.append("its prompts have other tokens than the job's")
            elif (others := _corrupt_of(kept)) and (prompts.corrupt is None or not torch.equal(prompts.corrupt, torch.cat(others))):
                found.append("its corrupt prompts have other tokens than the job's")
            return found, Counts(len(prompts), len(prompts.ids), edges)

    def difference(self, path: Path, again: Results) -> str:
        """The first block that keeps other edges, or other values."""
        with open_shard(path) as store:
            for was, now in zip(store.values(), edges_of(again), strict=True):
                if not torch.equal(was.indptr, now.indptr) or not torch.equal(was.indices, now.indices):
                    return f"computed again, its {was.kind} keeps other edges"
                if apart := _apart(was, now):
                    return f"computed again, its {was.kind} differs by {apart:.1e} of the largest attribution"
        return "computed again, its values are the same, but not its bytes"


def _corrupt_of(portion: Portion) -> list[Tensor] | None:
    """The prompts that those of a shard are compared with; None where the rule does without."""
    return [torch.tensor(ids, dtype=torch.int64) for ids in portion.beside] or None


def _faults_of_blocks(store: Store, of: Of) -> Iterator[str]:
    kinds, wanted = [block.kind for block in store.blocks], [item.kind for item in of.config.attribution]
    if kinds != wanted:
        yield f"it has the blocks {', '.join(kinds)}, and not {', '.join(wanted)}"
    for block in store.blocks:
        try:
            hashes = _hashes(store.edges(*block, prompts=[]).call)
        except (KeyError, TypeError):
            yield f"the call of its {block.kind} does not say of what model and dictionaries it is"
            continue
        if not hashes <= of.hashes:
            yield f"its {block.kind} is of another model or dictionary than the job's"


def _hashes(call: dict[str, Any]) -> set[str]:
    """The checksums of the model and the dictionaries that a block names."""
    ends = (call["source"], call["target"], *call["cuts"])
    return {call["model"]["sha256"], *(end["sha256"] for end in ends if isinstance(end, dict))}


def _apart(was: Edges, now: Edges) -> float:
    """The largest difference of an attribution, as a share of the largest."""
    largest = was.attribution.abs().max().clamp(min=1e-30) if len(was) else torch.ones(())
    return float((was.attribution - now.attribution).abs().max() / largest) if len(was) else 0.0
