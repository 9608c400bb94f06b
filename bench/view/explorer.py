"""How fast the explorer's page opens and answers in headless Chromium: `python -m bench.view.explorer [NODES] [EDGES]`.

The time to the first painted graph, and for each thing a reader does the time until the next frame has been painted after it.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from attrib.view.explorer.fitting import Most
from attrib.view.explorer.graph_payload import packed
from attrib.view.explorer.page import page
from tests.support.pages import CHROMIUM, large_graph

ACTIONS = {
    "a node is chosen": "explorer.change({selected: 4000 + at})",
    "the node slider": "explorer.change({nodes: 0.5 + 0.02 * at})",
    "the edge slider": "explorer.change({edges: 0.5 + 0.02 * at})",
    "a kind is hidden": "explorer.change({hidden: at % 2 ? ['token'] : []})",
    "a search": "explorer.change({search: 'mlp' + at})",
    "everything is shown": "explorer.change({nodes: 1, edges: 1, least: 1e-6 * at})",
    "a wheel's turn": (
        "document.getElementById('graph').dispatchEvent(new WheelEvent('wheel',"
        " {deltaY: at % 2 ? 100 : -100, clientX: 600, clientY: 400, bubbles: true, cancelable: true}))"
    ),
}
TIMED = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const times = [];
    for (let at = 0; at < 9; at++) {
        await frame();
        const begun = performance.now();
        %s;
        await frame();
        times.push(performance.now() - begun);
    }
    return times;
}"""


def main(
    nodes: Annotated[int, typer.Argument()] = 5_000,
    edges: Annotated[int, typer.Argument()] = 100_000,
) -> None:
    """Print the size of the page and the times in milliseconds, median and worst of nine."""
    from playwright.sync_api import sync_playwright

    graph = large_graph(nodes, edges)
    begun = time.process_time()
    made = page("a graph drawn at random", packed(graph, Most(nodes, edges)))
    print(f"{len(graph.nodes):,} nodes, {len(graph):,} edges: {len(made) / 1e6:.2f} MB in {time.process_time() - begun:.2f} s CPU")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        file = Path(folder) / "page.html"
        file.write_text(made, encoding="utf-8")
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = []
        for _ in range(5):
            shown = browser.new_page(viewport={"width": 1400, "height": 860})
            shown.goto(file.as_uri())
            shown.wait_for_selector("#graph")
            opened.append(shown.evaluate("() => new Promise((done) => requestAnimationFrame(() => done(performance.now())))"))
        print(f"{'until the graph is painted':<30}{statistics.median(opened):8.0f}{max(opened):8.0f}")
        for name, script in ACTIONS.items():
            times = shown.evaluate(TIMED % script)
            print(f"{name:<30}{statistics.median(times):8.0f}{max(times):8.0f}")
        browser.close()


if __name__ == "__main__":
    typer.run(main)
