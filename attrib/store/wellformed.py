"""What makes a result well formed: one rule for the writer and the reader."""

import torch

from attrib.core.edges import Edges


def fault(edges: Edges) -> str | None:
    """What keeps a result from being well formed: one rule for the writer and the reader. A later check relies on the ones before it."""
    prompts, sources, targets = edges.prompts, edges.sources, edges.targets
    pointers = (
        ("prompts.ptr", prompts.ptr, len(prompts), len(prompts.ids)),
        ("sources.ptr", sources.ptr, len(prompts), len(sources)),
        ("targets.ptr", targets.ptr, len(prompts), len(targets)),
        ("indptr", edges.indptr, len(targets), len(edges)),
    )
    for name, ptr, rows, entries in pointers:
        if len(ptr) != rows + 1 or ptr[:1].tolist() != [0] or ptr[-1] != entries or (ptr.diff() < 0).any():
            return f"{name} does not rise from 0 to {entries} in {rows} steps"
    values = (edges.gradient, edges.attribution, edges.total, edges.l1, *([] if edges.gap is None else [edges.gap]))
    if [len(column) for column in values] != [len(edges)] * 2 + [len(targets)] * (len(values) - 2) or len(prompts.strings) != len(
        prompts.ids
    ):
        return "gradient and attribution, total, l1 and gap, or the prompts' ids and strings differ in length"
    if prompts.corrupt is not None and (len(prompts.corrupt) != len(prompts.ids) or (prompts.corrupt < 0).any()):
        return "the corrupt prompts are not one token for each of the prompts', or their ids fall below 0"
    if prompts.number is not None and (len(prompts.number) != len(prompts) or (prompts.number < 0).any()):
        return "the prompts' numbers are not one for each, or fall below 0"
    if (prompts.ids < 0).any():
        return f"prompts.ids has {int(prompts.ids.min())}, and token ids are numbers from 0"
    if {column.dtype for column in values} not in ({torch.float32}, {torch.float64}):
        return "gradient, attribution, total and l1 (and gap) are neither all float32 nor all float64"
    for nodes in (sources, targets):
        floats = [column for column in (nodes.activation, nodes.probability, nodes.change) if column is not None]
        if {len(column) for column in (nodes.latent, *floats)} != {len(nodes)} or len(nodes.labels) not in (0, len(nodes)):
            return f"the columns or labels of the {nodes.kind} nodes differ in length"
        if any(column.dtype not in (torch.float32, torch.float64) for column in floats):
            return f"activation or probability (or change) of the {nodes.kind} nodes is neither float32 nor float64"
        if ((nodes.position < 0) | (nodes.position >= prompts.ptr.diff()[nodes.prompt])).any():
            return f"a position of the {nodes.kind} nodes is outside its prompt"
    return None if _is_canonical(edges) else "indices do not ascend within each row, inside the columns of the row's prompt"


def _is_canonical(edges: Edges) -> bool:
    """Whether columns ascend within each row, inside the row's own prompt. Only a row's ends need be compared with the prompt."""
    starts, stops = edges.indptr[:-1], edges.indptr[1:]
    filled = stops > starts
    starts, stops, prompt = starts[filled], stops[filled], edges.targets.prompt[filled]
    rises = edges.indices[1:] > edges.indices[:-1]
    rises[starts[1:] - 1] = True  # from the last entry of a row to the first of the next
    first, last, ptr = edges.indices[starts], edges.indices[stops - 1], edges.sources.ptr
    return bool(rises.all() and (first >= ptr[prompt]).all() and (last < ptr[prompt + 1]).all())
