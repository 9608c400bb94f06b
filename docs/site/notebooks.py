"""The examples that compute what notebooks compute, run, and their tables and pictures as pages."""

import hashlib
import html
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from attrib import view

TITLES = {
    "latent_attribution": "Latent attributions",
    "interpretune_task": "Interpretune's tutorial",
    "workshop": "The SAELens workshop",
    "transcoder_circuits": "transcoder_circuits",
}
FROM = {name: "from-transcoder-circuits" if name == "transcoder_circuits" else "from-the-notebooks" for name in TITLES}


def _heat(table: pd.DataFrame) -> Any:
    import plotly.graph_objects as go

    numbers = table.drop(columns="from")
    return go.Figure(go.Heatmap(
        z=numbers.to_numpy(), colorscale=[[0, "#c74e00"], [0.5, "#f7f7f7"], [1, "#0072b2"]], zmid=0,
        x=list(map(str, numbers.columns)), y=table["from"].tolist(),
    )).update_yaxes(autorange="reversed")  # fmt: skip


def _bars(label: str, value: str) -> Callable[[pd.DataFrame], Any]:
    return lambda table: view.bars(table[value].tolist(), table[label].map(str).tolist(), unit=value)


PICTURES: dict[tuple[str, str], Callable[[pd.DataFrame], Any]] = {
    ("latent_attribution", "A7"): _heat,
    ("latent_attribution", "A12"): _heat,
    ("latent_attribution", "A15"): _heat,
    ("latent_attribution", "A18"): _bars("source", "attribution"),
    ("workshop", "C6"): _bars("latent", "activation"),
    ("workshop", "C27"): _bars("source_token", "attribution"),
    ("workshop", "C29"): _bars("source_latent", "attribution"),
}
"""Rows that are pictures in a notebook. What lacks the columns of the picture, such as a share beside a heat map, is a table."""


def write(root: Path, folder: Path, kept: Path, *, is_tiny: bool) -> list[str]:
    """Run each example and write its page; the names of the pages. What was run before, of the same sources, is not run again."""
    folder.mkdir(parents=True)
    kept.mkdir(parents=True, exist_ok=True)
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted([*root.glob("attrib/**/*.py"), *root.glob("examples/*.py")])))
    sources.update(Path(__file__).read_bytes())
    for name in TITLES:
        made = kept / f"{name}-{'tiny' if is_tiny else 'smollm2'}-{sources.hexdigest()[:16]}.md"
        if not made.exists():
            print(f"running examples/{name}.py", flush=True)
            page = _page(root, name, is_tiny=is_tiny)
            made.write_text(page)
        (folder / f"{name}.md").write_text(made.read_text())
    return list(TITLES)


def _page(root: Path, name: str, *, is_tiny: bool) -> str:
    sys.path.insert(0, str(root / "examples"))
    try:
        example = importlib.import_module(name)
        steps = _steps(example, name, is_tiny)
    finally:
        sys.path.pop(0)
    whose = "a random model of a few thousand parameters, whose numbers mean nothing" if is_tiny else "SmolLM2-135M"
    said = (example.__doc__ or "").split("\n\n    python")[0].strip()
    parts = [
        f"# {TITLES[name]}\n",
        f"{said}\n\nThis page is what the script printed when the site was built, of {whose}. "
        f"[The script](../examples/{name}.py) has the calls, and [this page](../docs/{FROM[name]}.md) has a line for each heading.\n",
    ]
    last = ""
    for row, title, shown in steps:
        parts.append(f"## {row}: {_inert(title)}\n" if row != last else f"{_inert(title)}\n")
        parts.append(_shown(name, row, shown))
        last = row
    return "\n".join(parts)


def _steps(example: Any, name: str, is_tiny: bool) -> Iterable[tuple[str, str, Any]]:
    if name == "transcoder_circuits":
        of = example.tiny() if is_tiny else example.smollm2()
        return [(row, title, table) for row, (title, table) in example.report(of).items()]
    arguments = (8,) if name == "interpretune_task" else ()
    return list(example.steps((example.tiny if is_tiny else example.smollm2)(*arguments)))


def _inert(text: str) -> str:
    """Text of a model as Markdown that means nothing but itself."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>#|~&" else sign for sign in text)


def _shown(name: str, row: str, shown: Any) -> str:
    if isinstance(shown, str):
        return f"<pre>{html.escape(shown)}</pre>\n"
    with pd.option_context("display.max_colwidth", 200):
        table = shown.to_html(index=False, border=0, escape=True, float_format=lambda value: f"{value:.4g}")
    lines = [f'<div class="table-wrapper">{table}</div>\n'.replace("\n\n", "\n")]
    draw = PICTURES.get((name, row))
    if draw is not None and (draw is not _heat or "from" in shown):
        figure = draw(shown).update_layout(height=420, margin={"t": 24}, paper_bgcolor="white")
        lines.append(figure.to_html(full_html=False, include_plotlyjs="../_static/plotly.min.js", config={"displaylogo": False}) + "\n")
    return "\n".join(lines)
