"""The pictures of pages in docs/pictures, taken in headless Chromium of what the demo's dictionaries make.

    python docs/site/pictures.py [NAME ...]

takes them anew, all or some of explorer, beside and matrix; `make docs` takes all for the site, and what is committed is for who
reads the Markdown. Prompts, what is chosen on a page and the size of its window are fixed, so that a picture changes where a page does.
"""

import io
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs" / "pictures"
MODEL = "smollm2-135m"
PROMPTS = ("The opposite of hot is", "The opposite of big is")
COLOURS = (64, 48, 32, 24, 16)
"""How many a picture has: the first number with which it is no larger than it may be."""


class Shown(NamedTuple):
    """A page, and what is chosen on it."""

    page: Any
    chosen: str = ""
    """As the part of its address behind "#"."""


class Picture(NamedTuple):
    """Of what, in a window of which size."""

    make: Callable[[], Shown]
    wide: int
    high: int
    bytes: int
    """At most: every version of it is kept."""
    ready: str = "canvas"
    """What is there when the page has been drawn."""


def _transcoders() -> list[Any]:
    import attrib

    return [attrib.load_dictionary(f"{MODEL}/blocks.{layer}.mlp.hook_in") for layer in (7, 8, 9)]


def _graphs(*prompts: str) -> list[Any]:
    import attrib

    return attrib.graph.build(attrib.load_model(MODEL), _transcoders(), list(prompts))


def _explorer() -> Shown:
    import attrib

    [graph] = _graphs(PROMPTS[0])
    [warm] = [node for node in graph.nodes.of_kind("logit").tolist() if graph.nodes.label(node) == "logit ' warm' @4"]
    return Shown(attrib.view.graph(graph), f"#n=0.9&e=0.98&d=20&hide=mlp&s={warm}")


def _beside() -> Shown:
    import attrib

    return Shown(attrib.view.beside(*_graphs(*PROMPTS)), "#n=0.6&e=0.8&d=60")


def _matrix() -> Shown:
    """The edges to logits of the first prompt of `make demo`, of the dictionary that its run file names."""
    import attrib

    demo = tomllib.loads((ROOT / "examples" / "demo.toml").read_text())
    text = (ROOT / "examples" / demo["prompts"]).read_text().splitlines()[0]
    [late] = [attrib.load_dictionary(each["source"]) for each in demo["attribution"] if each["kind"] == "latent_to_logit"]
    edges = attrib.latent_to_logit(attrib.load_model(MODEL), late, [text], logits=attrib.TopLogits(12), keep=attrib.TopK(12))
    return Shown(attrib.view.matrix(edges), "#m=0&o=strength")


PICTURES = {
    "explorer": Picture(_explorer, 1100, 660, 34_000),
    "beside": Picture(_beside, 1100, 540, 33_000),
    "matrix": Picture(_matrix, 1000, 480, 26_000),
}


def can_be_taken() -> str:
    """Why pictures cannot be taken here; nothing where they can."""
    from tests.support.pages import CANNOT

    return CANNOT


def take(folder: Path, names: Sequence[str] = tuple(PICTURES)) -> None:
    """Write pictures into a folder, as NAME.png. Raises as `in_few_colours`."""
    with _browser() as browser, tempfile.TemporaryDirectory() as work:
        for name in names:
            picture = PICTURES[name]
            shown = picture.make()
            file = shown.page.save(Path(work) / f"{name}.html")
            window = browser.new_context(viewport={"width": picture.wide, "height": picture.high}, color_scheme="light")
            page = window.new_page()
            page.set_default_timeout(120_000)
            page.goto(file.as_uri() + shown.chosen)
            page.wait_for_selector(picture.ready)
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            page.wait_for_timeout(1_000)  # what is moved into its place has come to rest
            small = in_few_colours(page.screenshot(), picture.bytes)
            window.close()
            (folder / f"{name}.png").write_bytes(small)
            print(f"{folder / name}.png: {len(small):,} bytes")


def in_few_colours(png: bytes, most: int) -> bytes:
    """A screenshot of at most so many bytes, with as many colours as that leaves. Raises ValueError where even few are too many."""
    from PIL import Image

    found = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in COLOURS:
        out = io.BytesIO()
        found.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if len(out.getvalue()) <= most:
            return out.getvalue()
    raise ValueError(f"{len(out.getvalue()):,} bytes, over {most:,}, with {colours} colours; make the window smaller.")


@contextmanager
def _browser() -> Iterator[Any]:
    from tests.support.pages import browser

    yield from browser()


def main(names: list[str]) -> None:
    """Take those that are named, or all, for the repository."""
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    if absent := set(names) - PICTURES.keys():
        raise SystemExit(f"{sorted(absent)[0]}: expected some of {', '.join(PICTURES)}, or none for all.")
    if cannot := can_be_taken():
        raise SystemExit(cannot)
    take(COMMITTED, names or tuple(PICTURES))


if __name__ == "__main__":
    main(sys.argv[1:])
