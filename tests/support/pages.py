"""Explorer pages in a real browser: headless Chromium, driven by Playwright. Tests that need it are skipped where there is none."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from attrib.graph.graph import Graph
from attrib.graph.nodes import Nodes, NodeSet
from attrib.view.explorer.page import page

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
CANNOT = "" if CHROMIUM and find_spec("playwright") else "no Chromium (`make browser` installs it from Debian), or no playwright"


def browser() -> Iterator[Any]:
    """A browser, closed at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


class Opened:
    """A page that was opened, and what its browser complained about."""

    def __init__(
        self, browser: Any, folder: Path, data: bytes | str, title: str = "a test", hash: str = "", *, wait_for: str = "canvas"
    ) -> None:
        """Open the explorer of some data, or a page as it is."""
        file = folder / "page.html"
        file.write_text(data if isinstance(data, str) else page(title, data), encoding="utf-8", errors="replace")
        self.bytes = file.stat().st_size
        self.context = browser.new_context(viewport={"width": 1400, "height": 860}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # a page with plotly.js in it is 5 MB, and a machine may be busy
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request", lambda asked: self.complaints.append(asked.url) if not asked.url.startswith(("file:", "blob:", "data:")) else None
        )
        self.page.goto(file.as_uri() + hash)
        self.page.wait_for_selector(wait_for)

    def state(self, name: str) -> Any:
        """A field of what the reader has chosen."""
        return self.page.evaluate("name => explorer.state.value[name]", name)

    def ask(self, script: str, *given: Any) -> Any:
        """What a script returns, in which `explorer` is the page's own."""
        return self.page.evaluate(script, *given)

    def until(self, script: str, *given: Any) -> None:
        """Wait until a script returns what is true. Playwright's own waiting evaluates text, which the page's policy forbids."""
        end = time.monotonic() + 20
        while not self.ask(script, *given):
            assert time.monotonic() < end, f"it never came true: {script}"
            time.sleep(0.02)

    def counts(self) -> tuple[int, int]:
        """Nodes and edges that the page says are shown."""
        words = self.page.text_content("#counts").replace(",", "").split()
        return int(words[0]), int(words[4])

    def downloaded(self, click: Callable[[], Any]) -> str:
        """The text of what a click brings."""
        with self.page.expect_download() as waiting:
            click()
        return Path(waiting.value.path()).read_text(encoding="utf-8")

    def place_of(self, node: int) -> tuple[float, float]:
        """Where a node is drawn, in the window."""
        found = self.ask(
            """node => {
                const canvas = document.getElementById("graph"), box = canvas.getBoundingClientRect();
                const item = explorer.scene.shown(explorer.state.value).byNode.get(node), t = canvas.__zoom;
                return [box.left + t.applyX(item.x), box.top + t.applyY(item.y)];
            }""",
            node,
        )
        return found[0], found[1]

    def close(self) -> None:
        """Close it, and raise AssertionError where the browser complained."""
        self.context.close()
        assert not self.complaints, json.dumps(self.complaints[:5])


AXE = Path(__file__).parents[2] / "attrib/view/explorer/web/node_modules/axe-core/axe.min.js"
"""Which `make explorer` installs."""


def axe_finds(opened: Opened) -> Any:
    """The faults that axe finds, each with where it is; the test is skipped where axe is not there."""
    if not AXE.exists():
        pytest.skip("axe-core is not there: `make explorer` installs it")
    return opened.ask(
        f"async () => {{ {AXE.read_text()}; return (await axe.run()).violations.map((v) => [v.id, v.nodes.map((n) => n.html)]); }}"
    )


def large_graph(nodes: int, edges: int, positions: int = 60, layers: int = 12, seed: int = 0) -> Graph:
    """A graph of about so many nodes and edges: latents of some layers, with edges from a random few of those below and before."""
    rng = torch.Generator().manual_seed(seed)
    each = (nodes - 2 * positions) // layers
    sets, position, latent = [NodeSet("token", "embed", "", positions)], [torch.arange(positions)], [torch.arange(positions)]
    for layer in range(layers):
        at = torch.randint(positions, (each,), generator=rng).sort().values
        sets.append(NodeSet("latent", f"blocks.{layer}.mlp.hook_in", f"transcoder {layer}", each))
        position.append(at)
        latent.append(torch.arange(each))
    sets.append(NodeSet("logit", f"blocks.{layers - 1}.hook_resid_post", "", 5))
    position.append(torch.full((5,), positions - 1))
    latent.append(torch.arange(5))
    at = torch.cat(position)
    labels = (*(f" word{n}" for n in range(positions)), *(f" next{n}" for n in range(5)))
    table = Nodes(tuple(sets), at, torch.cat(latent), torch.rand(len(at), generator=rng) + 0.1, labels)
    targets = table.of_kind("latent", "logit")
    degree = edges // len(targets)
    indptr, indices = [0], []
    for node in targets.tolist():
        below = (at[: table.first[int(table.set_of[node])]] <= at[node]).nonzero()[:, 0]
        seen = below[torch.randperm(len(below), generator=rng)[: degree if node < positions + layers * each else 500]].sort().values
        indices.append(seen)
        indptr.append(indptr[-1] + len(seen))
    ptr = torch.tensor(indptr)
    weight = torch.randn(int(ptr[-1]), generator=rng) ** 3
    row = torch.arange(len(targets)).repeat_interleave(ptr.diff())
    total = torch.zeros(len(targets)).index_add(0, row, weight)
    l1 = torch.zeros(len(targets)).index_add(0, row, weight.abs()) * 1.02
    importance = torch.zeros(len(targets))
    importance[-5:] = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.05])
    own = torch.zeros(len(targets))
    graph = Graph(
        table, targets, ptr, torch.cat(indices), weight, total, own, total, l1, importance, torch.arange(positions), labels[:positions]
    )
    return replace(graph, call={"model": "drawn at random"})
