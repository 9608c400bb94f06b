"""How fast the explorer's page opens and answers in headless Chromium: `python -m bench.view.explorer [NODES] [EDGES] [--serve]`.

The page is a file, or with `--serve` comes from `attrib serve`. Measured are the time to the first painted graph, and for each thing a
reader does the time until the next frame has been painted after it. Beside the clock stands the CPU time of the page's main thread, which
says the same on a machine that is busy with other things, and that of all the browser's processes, of which one paints what a page draws.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

import attrib
from attrib.graph.graph import Graph
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
    nodes: Annotated[int | None, typer.Argument(help="5,000, and 50,000 of a server")] = None,
    edges: Annotated[int | None, typer.Argument(help="100,000, and 500,000 of a server")] = None,
    serve: Annotated[bool, typer.Option(help="Ask `attrib serve` for the page, and tell its CPU time too")] = False,
) -> None:
    """Print the size of the page and the times in milliseconds: median and worst by the clock, and by CPU."""
    from playwright.sync_api import sync_playwright

    most = Most(nodes or (50_000 if serve else 5_000), edges or (500_000 if serve else 100_000))
    graph = large_graph(*most)
    with (
        tempfile.TemporaryDirectory() as folder,
        (served if serve else written)(graph, most, Path(folder)) as (address, made_for),
        sync_playwright() as tool,
    ):
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened, spent, made, complaints = [], [], [], list[str]()
        for _ in range(5):
            shown = browser.new_page(viewport={"width": 1400, "height": 860})
            shown.set_default_timeout(120_000)
            shown.on("console", lambda said: complaints.append(said.text))
            shown.on("pageerror", lambda error: complaints.append(str(error)))
            cpu, before = MainThread(shown), made_for()
            size = len(shown.goto(address).body())
            shown.wait_for_selector("#graph")
            opened.append(shown.evaluate("() => new Promise((done) => requestAnimationFrame(() => done(performance.now())))"))
            spent.append(cpu.spent())
            made.append(1e3 * (made_for() - before))
        counts = shown.text_content("#counts")
        print(f"{len(graph.nodes):,} nodes, {len(graph):,} edges: {size / 1e6:.2f} MB; {counts} are drawn")
        print(f"{'':<30}{'clock':>8}{'worst':>8}{'CPU':>8}{'worst':>8}{'all CPU':>9}   ms")
        print(f"{'the page is made':<46}{told(made if serve else [1e3 * made_for()])}")
        print(f"{'until the graph is painted':<30}{told(opened)}{told([sum(each.values()) for each in spent])}")
        for part in spent[0]:
            print(f"{'  of it ' + part:<46}{told([each[part] for each in spent])}")
        for name, script in ACTIONS.items():
            main, everything = sum(cpu.spent().values()), of_browser()
            times = shown.evaluate(TIMED % script)
            main, everything = sum(cpu.spent().values()) - main, of_browser() - everything
            print(f"{name:<30}{told(times)}{main / len(times):8.0f}{everything / len(times):17.0f}")
        browser.close()
        print(*complaints or ["the console says nothing"], sep="\n")


Page = Iterator[tuple[str, Callable[[], float]]]
"""The address of a page, and how many seconds of CPU were spent up to now on making it."""


@contextmanager
def written(graph: Graph, most: Most, folder: Path) -> Page:
    """The page in a file."""
    begun = time.process_time()
    made = page("a graph drawn at random", packed(graph, most))
    spent = time.process_time() - begun
    file = folder / "page.html"
    file.write_text(made, encoding="utf-8")
    yield file.as_uri(), lambda: spent


@contextmanager
def served(graph: Graph, most: Most, folder: Path) -> Page:
    """The page from a server of the graph's file, in a process of its own."""
    file = folder / "graph.h5"
    attrib.save(file, graph)
    limits = ["--max-nodes", str(most.nodes), "--max-edges", str(most.edges)]
    with subprocess.Popen(
        [sys.executable, "-m", "attrib.cli.main", "serve", str(file), *limits], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[-1]
            yield f"{address}prompt/0", lambda: sum(psutil.Process(server.pid).cpu_times()[:2])
        finally:
            server.terminate()


class MainThread:
    """The CPU time of a page's main thread, in milliseconds from when it was opened, by what it did."""

    def __init__(self, page: Any) -> None:
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})  # and not the clock's

    def spent(self) -> dict[str, float]:
        """Script, layout with styles, and the rest: reading the HTML, what a script does after a promise, handing pictures over."""
        found = {each["name"]: 1e3 * each["value"] for each in self._session.send("Performance.getMetrics")["metrics"]}
        parts = {"script": found["ScriptDuration"] + found["V8CompileDuration"]}
        parts["layout"] = found["LayoutDuration"] + found["RecalcStyleDuration"]
        return parts | {"the rest": found["TaskDuration"] - sum(parts.values())}


def of_browser() -> float:
    """The CPU time of all processes that this one began, in milliseconds: the browser's, and little of what drives it."""
    return 1e3 * sum(sum(each.cpu_times()[:2]) for each in psutil.Process().children(recursive=True))


def told(times: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(times):8.0f}{max(times):8.0f}"


if __name__ == "__main__":
    typer.run(main)
