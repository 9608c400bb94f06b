"""How fast the explorer's page opens and answers in headless Chromium: `python -m bench.view.explorer [NODES] [EDGES]`.

The time to the first painted graph, and for each thing a reader does the time until the next frame has been painted after it. Beside the
clock stands the CPU time of the page's main thread, which says the same on a machine that is busy with other things.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

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
    """Print the size of the page and the times in milliseconds: median and worst by the clock, and by the main thread's CPU."""
    from playwright.sync_api import sync_playwright

    graph = large_graph(nodes, edges)
    begun = time.process_time()
    made = page("a graph drawn at random", packed(graph, Most(nodes, edges)))
    print(f"{len(graph.nodes):,} nodes, {len(graph):,} edges: {len(made) / 1e6:.2f} MB in {time.process_time() - begun:.2f} s CPU")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tool:
        file = Path(folder) / "page.html"
        file.write_text(made, encoding="utf-8")
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened, spent = [], []
        for _ in range(5):
            shown = browser.new_page(viewport={"width": 1400, "height": 860})
            cpu = MainThread(shown)
            shown.goto(file.as_uri())
            shown.wait_for_selector("#graph")
            opened.append(shown.evaluate("() => new Promise((done) => requestAnimationFrame(() => done(performance.now())))"))
            spent.append(cpu.spent())
        print(f"{'':<30}{'clock':>8}{'worst':>8}{'CPU':>8}{'worst':>8}   ms")
        print(f"{'until the graph is painted':<30}{told(opened)}{told([sum(each.values()) for each in spent])}")
        for part in spent[0]:
            print(f"{'  of it ' + part:<46}{told([each[part] for each in spent])}")
        for name, script in ACTIONS.items():
            before = sum(cpu.spent().values())
            times = shown.evaluate(TIMED % script)
            print(f"{name:<30}{told(times)}{(sum(cpu.spent().values()) - before) / len(times):8.0f}")
        browser.close()


class MainThread:
    """The CPU time of a page's main thread, in milliseconds from when it was opened, by what it did."""

    def __init__(self, page: Any) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})  # and not the clock's

    def spent(self) -> dict[str, float]:
        """Script, layout with styles, and the rest: reading the HTML, collecting garbage, handing pictures over."""
        found = {each["name"]: 1e3 * each["value"] for each in self._session.send("Performance.getMetrics")["metrics"]}
        parts = {"script": found["ScriptDuration"] + found["V8CompileDuration"]}
        parts["layout"] = found["LayoutDuration"] + found["RecalcStyleDuration"]
        return parts | {"the rest": found["TaskDuration"] - sum(parts.values())}


def told(times: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(times):8.0f}{max(times):8.0f}"


if __name__ == "__main__":
    typer.run(main)
