"""circuit-tracer's `feature_intervention` and `attrib.causal.intervene`, value by value.

As bench/peers/circuit_tracer.py, whose random models and transcoders these are, in two environments that meet in a folder:

    ct/bin/python -m bench.peers.interventions intervene FOLDER     # with circuit-tracer
    python -m bench.peers.interventions compare FOLDER              # with attrib; exits 1 where any differ

Some latents of three layers are set, active and inactive ones, in each of circuit-tracer's ways: patterns frozen, which is usual; nothing
frozen; all layers constrained, its direct effects; and two of the four. Then what edits write outside of these two is not written, so
edits are those inside, and layers of a cross-layer transcoder write to these two alone (`attrib.writing_at`).
Compared are the logits and every latent's pre-activation, but at the first position, where circuit-tracer has none.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.peers.circuit_tracer import CASES, SHAPES, TOLERANCE, Case, Facts, read_model, replaced_model, this_peer

WAYS: dict[str, Facts] = {
    "usual": {},
    "free": {"freeze_attention": False},
    "constrained": {"constrained_layers": range(4)},
    "two constrained": {"constrained_layers": range(2)},
}
EDITS = [(1, 5, 3, 2.5), (1, 5, 17, 0.0), (1, 9, 30, -1.0), (2, 7, 8, 4.0), (0, 3, 2, 1.5)]
"""Layer, position, latent, value."""


def cases() -> list[Case]:
    """The small ones."""
    return [case for case in CASES if case.shape in ("gpt2", "llama")]


# ---------------------------------------------------------------------------------------- circuit-tracer's half


def write(folder: Path, case: Case) -> None:
    """Build a case, intervene in each way, and write what came."""
    model, parameters, tokens = replaced_model(folder, case)
    found: dict[str, Tensor] = {"tokens": tokens}
    edits = [(layer, position, latent, torch.tensor(value)) for layer, position, latent, value in EDITS]
    for way in WAYS:
        logits, latents = model.feature_intervention(tokens, edits, apply_activation_function=False, **WAYS[way])
        found |= {f"{way} logits": logits.reshape(len(tokens), -1), f"{way} latents": latents}
    tables = {"model": parameters, "interventions": found}
    for name, tensors in tables.items():
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "facts.json").write_text(json.dumps({"config": SHAPES[case.shape], "kind": case.kind, "peer": this_peer()}))


# ------------------------------------------------------------------------------------------------ attrib's half


def options_of(way: str, layers: int) -> Facts:
    """What attrib calls a way."""
    import attrib

    held = attrib.Policy(attention="frozen")
    behind = layers - 2
    ways: dict[str, Facts] = {
        "usual": {"errors": "live", "policy": held},
        "free": {"errors": "live"},
        "constrained": {"effect": "direct", "policy": attrib.LINEAR},
        "two constrained": {
            "effect": ["direct", "direct", *["total"] * behind], "errors": [True, True, *["live"] * behind], "policy": held,
        },
    }  # fmt: skip
    return ways[way]


def distances(folder: Path) -> tuple[dict[str, float], str]:
    """For each way, the largest difference of a value, relative to the largest of its kind; and which circuit-tracer it was."""
    import attrib
    from attrib.causal import Latents, PreActivations, Set, intervene

    facts, theirs = json.loads((folder / "facts.json").read_text()), load_file(folder / "interventions.safetensors")
    model, dictionaries = read_model(folder, facts["config"])
    plain, found = intervene(model, [], theirs["tokens"]), {}
    for way in WAYS:
        inside = WAYS[way].get("constrained_layers", range(4))
        edits = [Set(Latents(layer, latent), value, position) for layer, position, latent, value in EDITS if layer in inside]
        options: dict[str, Any] = options_of(way, len(dictionaries))
        put_in = [attrib.writing_at(one, inside) if one.site.layer in inside else one for one in dictionaries]
        logits = intervene(model, put_in, theirs["tokens"], edits, **options)
        asked = [PreActivations(number) for number in range(len(dictionaries))]
        values = intervene(model, put_in, theirs["tokens"], edits, values=asked, **options)
        latents = torch.stack([values[one] for one in asked])[:, 1:]
        pairs = [(logits, theirs[f"{way} logits"]), (latents, theirs[f"{way} latents"][:, 1:])]
        found[way] = max(float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs)
        if float((plain - logits).abs().max()) < 1e-2:
            found[way] = float("inf")  # nothing moved, so nothing was compared
    return found, facts["peer"]


def compare(folder: Path) -> bool:
    """Print a table of all cases of a folder, and say whether there are any and all agree."""
    from rich.table import Table

    from bench.output import wide_console

    table, largest, peers = Table("case", *WAYS), [], set()
    for path in sorted(path.parent for path in folder.glob("*/interventions.safetensors")):
        found, peer = distances(path)
        table.add_row(path.name, *(f"{found[way]:.1e}" for way in WAYS))
        largest += list(found.values())
        peers.add(peer)
    console = wide_console()
    console.print(table)
    console.print(f"{', '.join(sorted(peers)) or 'nothing'}: the largest relative difference is {max(largest, default=float('nan')):.1e}")
    return bool(largest) and max(largest) < TOLERANCE


def main() -> None:
    """One of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("half", choices=("intervene", "compare"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.half == "compare":
        raise SystemExit(0 if compare(given.folder) else 1)
    for case in cases():
        folder = given.folder / case.name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, case)
        print(case.name, flush=True)


if __name__ == "__main__":
    main()
