"""What a shard tells in two ways, or what no result can hold: found by reading all of it, in pieces.

What is looked at follows from how a row is made. With n sources of the row's prompt, u the rounding of the dtype, and
γ(n) = n u / (1 − n u), the bound on the error of a sum of n terms in any order (Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2):

    attribution = gradient · activation                                       rounded once
    l1 = Σ |attribution|,   total = Σ attribution                             over all n, stored or not: each within γ(n) · l1
    |total − Σ stored| ≤ l1 − Σ |stored|                                      what is not stored has a sum no larger than its mass
    remainder = total − Σ stored                                              of k stored: within γ(k + 1) · (|total| + Σ |stored|)

A result that was sliced by its latents has the sums of all sources still, and not their number: n is taken as `FEWEST` at least,
more than the longest way through the sums of torch and of the kernel, which add in blocks.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attrib.core.edges import Edges, Nodes
from attrib.core.types import BIAS, FormatError
from attrib.store.layout import Block
from attrib.store.reading import FLOAT, INTEGER, POINTER, Checked, Fault, attribute, child, dataset, read_json, read_text
from attrib.store.rows import read_column
from attrib.store.select import lengths
from attrib.store.shard import Store, open_shard

AT_ONCE = 1 << 20
"""Edges that are looked at together, or one prompt's."""
FEWEST = 512
"""Terms of a sum, at least, of which the rounding is bounded."""
_MOST_PROBABLE = 1 + 2**-7
"""A probability in bfloat16, which may be rounded up by a step of it."""
_ALIASES = {"data": "values", "indices": "indices_1", "indptr": "pointers_to_1"}
_COLUMNS = {"data": FLOAT, "indices": INTEGER, "indptr": POINTER}


def faults_of_file(path: Path) -> Iterator[Fault]:
    """What is wrong with a shard: see `faults_of`. Raises InputError where there is no file, or a package is missing to read it."""
    try:
        with open_shard(path) as store:
            yield from faults_of(store)
    except FormatError as error:
        yield Fault.of_error(path, error)


def faults_of(store: Store, least_kept: float = 0.0) -> Iterator[Fault]:
    """What is wrong with an open shard. Each kind of fault of a dataset is told once, of the first row that has it.

    `least_kept` is the fraction of each row's l1 that is stored at least, which its keep rule tells of a whole result. One that was
    sliced by latents may hold less under the same rule, so that only who knows where a shard is from can say.
    """
    if not store.blocks:
        yield Fault(store.path, "/blocks", "it is empty, and a shard has at least one block")
    for part in (_of_numbers(store), *(_of_block(store, block, least_kept) for block in store.blocks)):
        try:
            yield from part
        except FormatError as error:
            yield Fault.of_error(store.path, error)


def _of_numbers(store: Store) -> Iterator[Fault]:
    numbers = store.numbers.sort(stable=True)
    again = (numbers.values[1:] == numbers.values[:-1]).nonzero()[:, 0] + 1
    if len(again):
        first = int(again[0])
        number, row = int(numbers.values[first]), int(numbers.indices[first])
        yield Fault(store.path, "/prompts/number", "a prompt before it has this number too", number, row, len(again) - 1)


def _of_block(store: Store, block: Block, least_kept: float) -> Iterator[Fault]:
    store.check(block)
    with store.reading() as root:
        group = child(child(root, "blocks", h5py.Group), block.group, h5py.Group)
        yield from _of_names(store, block, group)
        found: dict[tuple[str, int], Fault] = {}
        start = 0
        for length in lengths(store.sizes(block, range(len(store))).tolist(), AT_ONCE):
            prompts = slice(start, start + length)
            start += length
            try:
                edges = store.edges(*block, prompts=prompts)
            except FormatError:
                prompt, error = _first_damaged(store, block, prompts)
                found.setdefault((str(error), 0), Fault.of_error(store.path, error, prompt=int(store.numbers[prompt])))
                continue
            first = _first_rows(group, prompts.start)
            rows = slice(first["targets"], first["targets"] + len(edges.targets))
            remainder = read_column(group, "remainder", FLOAT, len(dataset(group, "total", FLOAT)), rows)
            for number, wrong in enumerate(_of_piece(edges, remainder, least_kept)):
                _note(found, (f"{group.name}/{wrong.dataset}", number), store.path, wrong, edges, first)
        yield from found.values()


def _first_damaged(store: Store, block: Block, prompts: slice) -> tuple[int, FormatError]:
    """The first prompt that is at fault among those that cannot be read together, and the error."""
    start, stop = prompts.start, prompts.stop
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            store.edges(*block, prompts=slice(start, middle))
            start = middle
        except FormatError:
            stop = middle
    try:
        store.edges(*block, prompts=slice(start, stop))
    except FormatError as error:
        return start, error
    raise AssertionError("each of the prompts can be read alone, and all of them cannot")


def _first_rows(group: Checked, prompt: int) -> dict[str, int]:
    """The rows of the tables with which a prompt begins."""
    ends = {name: dataset(child(group, name, h5py.Group), "ptr", POINTER) for name in ("targets", "sources")}
    first = {name: int(ptr[prompt : prompt + 1][0]) for name, ptr in ends.items()}
    indptr = dataset(child(group, "gradient", h5py.Group), "indptr", POINTER)
    return first | {"entries": int(indptr[first["targets"] : first["targets"] + 1][0])}


class _Wrong(NamedTuple):
    """A check of some of a piece's rows."""

    dataset: str
    table: str
    """Whose rows they are: entries, targets or sources."""
    is_wrong: Bool[Tensor, " rows"]
    what: Callable[[int], str]
    """What is wrong with a row."""


def _note(
    found: dict[tuple[str, int], Fault], key: tuple[str, int], path: Path, wrong: _Wrong, edges: Edges, first: dict[str, int]
) -> None:
    """Add what is wrong with a piece to what was found in the pieces before."""
    rows = wrong.is_wrong.nonzero()[:, 0]
    if not len(rows):
        return
    if key in found:
        found[key] = found[key]._replace(more=found[key].more + len(rows))
        return
    row = int(rows[0])
    nodes, node = (
        (edges.sources, row) if wrong.table == "sources" else (edges.targets, int(edges.row[row]) if wrong.table == "entries" else row)
    )
    number = int(edges.prompts.numbers[nodes.prompt[node]])
    found[key] = Fault(path, key[0], wrong.what(row), number, first[wrong.table] + row, len(rows) - 1)


# ------------------------------------------------------------------------------------------------ names


def _of_names(store: Store, block: Block, group: Checked) -> Iterator[Fault]:
    """What a block is called, and its matrices' second names."""
    path = store.path
    call = read_json(group, "call")
    if wrong := [key for key, value in store.call.items() if key not in call or call[key] != value]:
        yield Fault(path, group.name, f"its call says something else of {', '.join(wrong)[:200]} than the call of all blocks")
    ends = {name: read_text(child(group, name, h5py.Group), "kind") for name in ("sources", "targets")}
    if "_to_".join(ends.values()) != block.kind:
        yield Fault(path, group.name, f"it is of {block.kind}, and its nodes are of {' and '.join(ends.values())}")
    gradient, attribution = child(group, "gradient", h5py.Group), child(group, "attribution", h5py.Group)
    shape = [len(dataset(child(group, name, h5py.Group), "position", INTEGER)) for name in ("targets", "sources")]
    for csr in (gradient, attribution):
        said = attribute(csr, "shape", "i")
        if said is None or said.tolist() != shape:
            yield Fault(path, csr.name, f"its attribute shape is {said}, and its block has {shape[0]} targets and {shape[1]} sources")
        for name, alias in _ALIASES.items():
            yield from _of_alias(path, csr, alias, csr if name == "data" else gradient, name)
    for name in ("indices", "indptr"):
        yield from _of_alias(path, attribution, name, gradient, name)


def _of_alias(path: Path, group: Checked, name: str, other: Checked, own: str) -> Iterator[Fault]:
    """That a dataset is another one, or a copy: programs that rewrite a file may make two of one."""
    alias, column = child(group, name, h5py.Dataset), dataset(other, own, _COLUMNS[own])
    if alias == column.data:
        return
    copy = dataset(group, name, _COLUMNS[own], len(column))
    for start in range(0, len(column), AT_ONCE):
        apart = np.flatnonzero(copy[start : start + AT_ONCE] != column[start : start + AT_ONCE])
        if len(apart):
            yield Fault(path, alias.name, f"it differs from {column.data.name}, which it is another name of", None, start + int(apart[0]))
            return


# ----------------------------------------------------------------------------------------------- values


def _of_piece(edges: Edges, remainder: Float[Tensor, " targets"], least_kept: float) -> Iterator[_Wrong]:
    """Checks of some prompts, always the same ones in the same order."""
    yield from _of_numbers_that_are_none(edges, remainder)
    yield from _of_nodes(edges, edges.sources, "sources", "source")
    yield from _of_nodes(edges, edges.targets, "targets", "target")
    yield from _of_sums(edges, remainder, least_kept)


def _of_numbers_that_are_none(edges: Edges, remainder: Float[Tensor, " targets"]) -> Iterator[_Wrong]:
    columns: tuple[tuple[str, str, Tensor], ...] = (
        ("gradient/data", "entries", edges.gradient), ("attribution/data", "entries", edges.attribution), ("total", "targets", edges.total),
        ("l1", "targets", edges.l1), ("remainder", "targets", remainder), ("sources/activation", "sources", edges.sources.activation),
        ("targets/activation", "targets", edges.targets.activation),
    )  # fmt: skip
    if edges.sources.change is not None:
        columns += (("sources/change", "sources", edges.sources.change),)
    if edges.gap is not None:
        columns += (("gap", "targets", edges.gap),)
    for name, table, values in columns:
        yield _not_finite(name, table, values)


def _not_finite(name: str, table: str, values: Float[Tensor, " rows"]) -> _Wrong:
    return _Wrong(name, table, ~values.isfinite(), lambda row: f"it is {values[row]}, and not a finite number")


def _of_nodes(edges: Edges, nodes: Nodes, table: str, end: str) -> Iterator[_Wrong]:
    position, latent, prompt = nodes.position, nodes.latent, nodes.prompt
    lowest = BIAS if nodes.kind == "latent" and end == "source" and edges.call.get("error") == "source" else 0
    least, most = (lowest if nodes.kind in ("latent", "token") else -1), _width(edges.call, end) if nodes.kind == "latent" else None
    outside = latent < least if most is None else (latent < least) | (latent >= most)
    bounds = f"from {least}" if most is None else f"from {least} to {most - 1}, as its block's call has it"
    yield _Wrong(f"{table}/latent", table, outside, lambda row: f"the {nodes.kind} is {latent[row]}, and expected {bounds}")
    falls = (prompt[1:] == prompt[:-1]) & (position[1:] <= position[:-1]) & ((position[1:] < position[:-1]) | (latent[1:] <= latent[:-1]))
    is_ordered = nodes.kind in ("latent", "token", "error")  # logits stand as they were asked for
    falls = torch.cat([falls.new_zeros(min(1, len(nodes))), falls & is_ordered])
    yield _Wrong(f"{table}/position", table, falls, lambda row: f"{nodes.kind} {latent[row]} at {position[row]} stands behind its place")
    token = edges.prompts.ids[edges.prompts.ptr[prompt] + position]
    other = (token != latent) if nodes.kind == "token" else torch.zeros_like(outside)
    yield _Wrong(
        f"{table}/latent", table, other, lambda row: f"the token is {latent[row]}, and the prompt's at {position[row]} is {token[row]}"
    )
    probability = torch.zeros(len(nodes)) if nodes.probability is None else nodes.probability
    wrong = (probability < 0) | (probability > _MOST_PROBABLE)  # of what has none, it is NaN
    yield _Wrong(f"{table}/probability", table, wrong, lambda row: f"{probability[row]} is no probability")


def _width(call: dict[str, Any], end: str) -> int | None:
    """How many latents the dictionary at an end has, where the call says so."""
    dictionary = call.get(end)
    width = dictionary.get("d_sae") if isinstance(dictionary, dict) else None
    return width if isinstance(width, int) and 0 < width < 1 << 63 else None


def _of_sums(edges: Edges, remainder: Float[Tensor, " targets"], least_kept: float) -> Iterator[_Wrong]:
    """Products and sums. Of a row at fault nothing is told that only follows from that."""
    dtype, row = torch.finfo(edges.attribution.dtype), edges.row
    attribution = edges.attribution.double()
    product = edges.gradient.double() * edges.sources.step[edges.indices].double()
    # a device may take what is below the smallest normal number as zero
    apart = (attribution - product).abs() > dtype.eps * product.abs() + dtype.tiny
    apart &= attribution.isfinite() & product.isfinite()
    yield _Wrong(
        "attribution/data", "entries", apart,
        lambda entry: f"it is {attribution[entry]:.9g}, and gradient times activation {product[entry]:.9g}",
    )  # fmt: skip
    nothing = torch.zeros(len(edges.targets), dtype=torch.float64)
    stored, mass = nothing.index_add(0, row, attribution), nothing.index_add(0, row, attribution.abs())
    total, l1, left = edges.total.double(), edges.l1.double(), remainder.double()
    is_sum = total.isfinite() & l1.isfinite() & stored.isfinite()
    is_sum[row[apart]] = False
    terms = edges.sources.ptr.diff()[edges.targets.prompt].clamp(min=FEWEST)
    rounding = _gamma(terms, dtype.eps) * torch.maximum(l1, mass) + terms * dtype.tiny
    is_small = (l1 < 0) | (mass > l1 + 2 * rounding)
    yield _Wrong(
        "l1", "targets", is_sum & is_small,
        lambda target: f"it is {l1[target]:.9g}, and the row's |attribution| that is stored sums to {mass[target]:.9g}",
    )  # fmt: skip
    is_large = mass < least_kept * l1 - 2 * rounding
    yield _Wrong(
        "l1", "targets", is_sum & is_large,
        lambda target: f"it is {l1[target]:.9g}, of which the keep rule stores {least_kept:.9g} at least, and {mass[target]:.9g} is stored",
    )  # fmt: skip
    is_sum = is_sum & ~is_small & ~is_large
    rest = (l1 - mass).clamp(min=0)
    is_far = (total - stored).abs() > rest + 3 * rounding
    yield _Wrong(
        "total", "targets", is_sum & is_far,
        lambda target: f"it is {total[target]:.9g}, and what is stored sums to {stored[target]:.9g}: more apart than the rest of l1, "
        f"{rest[target]:.9g}",
    )  # fmt: skip
    is_off = (left - (total - stored)).abs() > _gamma(edges.indptr.diff() + 1, dtype.eps) * (total.abs() + mass) + terms * dtype.tiny
    yield _Wrong(
        "remainder", "targets", is_sum & ~is_far & left.isfinite() & is_off,
        lambda target: f"it is {left[target]:.9g}, and total less what is stored {total[target] - stored[target]:.9g}",
    )  # fmt: skip


def _gamma(terms: Tensor, eps: float) -> Float[Tensor, " rows"]:
    """The bound on the relative error of a sum of so many terms; of none where there are too many to say."""
    product = terms.double() * eps / 2
    return torch.where(product < 1, product / (1 - product), torch.inf)
