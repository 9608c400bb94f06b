"""`attrib train`: from text to dictionaries, their card, their curves; and what it refuses."""

import gzip
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.adapters import from_tensors
from attrib.models.tokenizer import Tokenizer
from attrib.training import contexts, curves_page, hold_out, pack, read_curves, several, sources_of, store_activations, visible_text
from attrib.training.card import read_card, with_run
from attrib.training.densities import density, density_report, sparkline
from tests.support.builders import build
from tests.support.typed import Command

sae_lens = pytest.importorskip("sae_lens")

RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
LETTERS = " \nabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def model() -> attrib.Model:
    """One that reads letters."""
    letters = Tokenizer(
        encode=lambda text: [LETTERS.find(char.lower()) % 30 for char in text],
        decode=lambda ids: "".join(LETTERS[number] if number < len(LETTERS) else "?" for number in ids),
        template=lambda text: [31, *(LETTERS.find(char.lower()) % 30 for char in text)],
    )
    return replace(build("llama"), tokenizer=letters)


@pytest.fixture
def by_name(model: attrib.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "load_model", lambda name, device: model)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two texts, one of them compressed, and two pages."""
    folder, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    words = ["the", "cat", "dog", "house", "river", "runs", "sleeps", "under", "with", "old", "new", "green", "and", "but", "in", "of"]
    (folder / "one.txt").write_text(" ".join(rng.choices(words, k=600)))
    with gzip.open(folder / "two.md.gz", "wt") as file:
        file.write(" ".join(rng.choices(words, k=600)))
    for page in ("a.html", "b.html"):
        (folder / page).write_text(f"<head><title>no</title></head><p>{' '.join(rng.choices(words, k=100))}</p><li>menu</li>")
    (folder / "image.png").write_bytes(b"\x89PNG")
    return folder


QUICK = ("--samples", 1280, "--batch", 64, "--context", 16, "--measured", 200, "--lr", "0.01", "--tokens", 4500)


@pytest.mark.usefixtures("by_name")
def test_dictionaries_from_text(command: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("train", text, "-m", "letters", "--architecture", "topk", "--site", RESID, "--site", MLP_OUT, "--width", 40, *QUICK)
    ran = command(*given, "--k", 4, "--k", 6, "--out", out)
    assert ran.status == 0, ran.err
    assert "explained variance" in ran.out
    assert ran.out.endswith(f"{out}: card in README.md, curves in curves.html\n")
    assert {path.name for path in out.iterdir()} == {RESID, MLP_OUT, "README.md", "card.json", "curves.html"}
    for name, k in ((RESID, 4), (MLP_OUT, 6)):
        assert {path.name for path in (out / name).iterdir()} == {"cfg.json", "sae_weights.safetensors", "curves.jsonl", "training.json"}
        dictionary = attrib.load_dictionary(out / name)
        assert (dictionary.config.k, dictionary.d_sae) == (k, 40)
        metadata = sae_lens.SAE.load_from_disk(out / name).cfg.metadata
        assert (metadata.hook_name, metadata.context_size, metadata.dataset_path) == (name, 16, "one, two, " + text.name)
        rows = read_curves(out / name / "curves.jsonl")
        assert [row["step"] for row in rows] == [*range(1, 21)]
        assert {"loss", "mse_loss", "l0", "explained_variance", "dead", "learning_rate", "resampled"} <= rows[0].keys()
    card = json.loads((out / "card.json").read_text())
    assert card["runs"][0]["tokens_by_source"] == {"one": 1488, "two": 1488, text.name: 912}
    found = card["results"][RESID]
    assert (found["d_sae"], found["l0"]) == (40, 4)
    assert found["cross_entropy_original"] != found["cross_entropy_spliced"] != found["cross_entropy_zero"]
    assert found["density"]["dead"] + sum(found["density"]["latents"]) == 40, "each latent is dead or in one bin"
    readme, page = (out / "README.md").read_text(), (out / "curves.html").read_text()
    assert f"| `{RESID}` | 40 | {found['explained_variance']:.3f} | 4.0 |" in readme
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=(?!\"data:)", page), "it opens without a network"
    assert all(word in page for word in ("explained variance", "dead latents", "learning rate", RESID, MLP_OUT))

    # once more: nothing is trained again, and the card's own file says the same
    weights = (out / RESID / "sae_weights.safetensors").stat()
    [toml] = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "again.toml").write_text(toml)
    ran = command("train", "--config", tmp_path / "again.toml", "--out", out)
    assert ran.status == 0, ran.err
    assert (out / RESID / "sae_weights.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert json.loads((out / "card.json").read_text())["results"] == card["results"]
    ran = command(*given, "--k", 4, "--k", 5, "--out", out)
    assert (ran.status, ran.out) == (1, "")
    assert f"{out / MLP_OUT} was trained with k 6, now 5. Delete it to train it again" in ran.err

    # another beside them leaves what the card says of them
    ran = command(
        "train", text / "one.txt", "-m", "letters", "--architecture", "standard", "--site", MLP_IN, "--writes", MLP_OUT, "--skip",
        "--width", 8, "--l1-coefficient", 0.1, "--resample-every", 5, "--dead-feature-window", 2, *QUICK, "--out", out,
        "--work", tmp_path / "work",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    after = json.loads((out / "card.json").read_text())
    assert after["results"][RESID] == found
    assert [run["sites"] for run in after["runs"]] == [[RESID, MLP_OUT], [MLP_IN]]
    dictionary = attrib.load_dictionary(out / MLP_IN)
    assert dictionary.has_skip
    assert str(dictionary.writes[0]) == MLP_OUT


@pytest.mark.usefixtures("by_name")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--site", RESID), "--architecture: missing. For example: attrib train text.txt"),
        (("--architecture", "topk", "--width", 8, "--k", 2), "--site: missing. For example"),
        (("--site", RESID, "--architecture", "topk", "--width", 8, "--width", 9, "--k", 2), "--width: 2 for 1 sites; expected one, or one"),
        (("--site", RESID, "--site", MLP_IN, "--writes", MLP_OUT, "--architecture", "standard", "--width", 8), "--writes: 1 for 2 sites"),
        (("--site", RESID, "--architecture", "topk", "--width", 8, "--k", 2, "--l1-coefficient", 1), "l1_coefficient: no effect on topk"),
        (("--site", "blocks.9.hook_resid_pre", "--architecture", "topk", "--width", 8, "--k", 2), r"dictionary\[0\].reads: .* is outside"),
        (("--site", RESID, "--architecture", "topk", "--width", 8, "--k", 2, "--context", 99), "context: 99; expected 2 to 64 tokens"),
        (("--site", RESID, "--architecture", "topk", "--width", 8, "--k", 2, "--tokens", 2), "tokens: 2, shared among 3 sources"),
        (("--site", RESID, "--architecture", "topk", "--width", 8, "--k", 2, "--tokens", 60, "--context", 64), "texts: 0 contexts, "),
        (("--config", "run.toml", "--lr", 0.1), "--lr: given beside --config|TEXT: given beside --config"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments: tuple[Any, ...], said: str, command: Command, text: Path, tmp_path: Path) -> None:
    ran = command("train", text, *(() if "--config" in arguments else ("-m", "letters")), "--out", tmp_path / "out", *arguments)
    assert (ran.status, ran.out) == (1, "")
    assert re.search(said, ran.err), ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_is_not_taken_for_ours(command: Command, text: Path, tmp_path: Path) -> None:
    given = ("train", text, "-m", "letters", "--site", RESID, "--architecture", "topk", "--width", 8, "--k", 2, "--out", tmp_path)
    (tmp_path / RESID).mkdir()
    assert f"{tmp_path / RESID} is there, and was not made by attrib train" in command(*given).err
    (tmp_path / "card.json").write_text('{"runs": [{"options": 1}], "results": {}}')
    assert "card.json was not written by attrib train" in command(*given).err
    assert "--out: missing" in command("train", text).err


def test_sources(text: Path, tmp_path: Path) -> None:
    names = [source.name for source in sources_of([text, text / "a.html"])]
    assert names == ["one", "two", text.name, "a"]
    assert [source.name for source in sources_of([text / "one.txt", text / "one.txt"])] == ["one-0", "one-1"]
    one, two, pages = (list(source.texts()) for source in sources_of([text]))
    assert "".join(one) == (text / "one.txt").read_text() + "\n"
    assert "".join(two) == gzip.decompress((text / "two.md.gz").read_bytes()).decode() + "\n"
    assert len(pages) == 2
    assert "menu" not in "".join(pages), "a short line is no text"
    long = tmp_path / "long.txt"
    long.write_text("some words and more\n" * 9000 + "x" * 70_000)
    [source] = sources_of([long])
    pieces = list(source.texts())
    assert "".join(pieces) == long.read_text() + "\n"
    assert max(map(len, pieces)) <= 1 << 17
    (tmp_path / "rows.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    assert list(sources_of([tmp_path / "rows.jsonl"])[0].texts()) == ["first\n", "second\n"]
    (tmp_path / "rows.jsonl").write_text('{"title": "first"}\n')
    with pytest.raises(attrib.InputError, match=r"TEXT: .*rows.jsonl"):
        list(sources_of([tmp_path / "rows.jsonl"])[0].texts())
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(attrib.InputError, match=r"TEXT: .*latin.txt is no text in UTF-8 \(.* at byte 2\)"):
        list(sources_of([tmp_path / "latin.txt"])[0].texts())
    (tmp_path / "empty").mkdir()
    with pytest.raises(attrib.InputError, match=r"TEXT: .*empty has no files of text; expected some that end in .txt"):
        sources_of([tmp_path / "empty"])
    with pytest.raises(attrib.InputError, match="TEXT: there is no file nowhere"):
        sources_of(["nowhere"])


def test_the_visible_text_of_a_page() -> None:
    page = "<HEAD><style>p {}</style></HEAD><header>x</header><p>One &amp; the same text,\n of more than forty characters.<br>Menu</p>"
    assert visible_text(page + "<script>var text_of_more_than_forty_characters = 1;</script>") == (
        "One & the same text, of more than forty characters."
    )


def test_contexts_of_texts(model: attrib.Model) -> None:
    rows = pack(model, ["abcdefg", "hij", "klmnop"], 4)
    assert [model.tokenizer.decode(row.tolist()) for row in rows] == ["abcd", "efgh", "ijkl", "mnop"]  # type: ignore[union-attr]
    assert torch.equal(pack(model, "abcdefghij", 4, limit=9), rows[:2])
    assert torch.equal(pack(model, (ids for ids in [[2, 3, 4], torch.tensor([5, 6, 7, 8, 9])]), 4), rows[:2])
    with_bos = pack(model, "abcdef", 4, prepend_bos=True)
    assert with_bos.tolist() == [[31, 2, 3, 4], [31, 5, 6, 7]]
    read: list[int] = []

    def texts() -> Any:
        for number in range(100):
            read.append(number)
            yield "abcdefgh"

    assert len(pack(model, texts(), 4, limit=20)) == 5
    assert len(read) == 3, "no further than it takes"
    with pytest.raises(attrib.InputError, match="texts: 3 tokens, fewer than one context of 4"):
        pack(model, "abc", 4)
    with pytest.raises(attrib.InputError, match="vocabulary"):
        pack(model, [[2, 3, 99, 4]], 4)
    with pytest.raises(attrib.InputError, match="texts: number 0 is text, and tiny-llama has no tokenizer"):
        pack(build("llama"), "abc", 2)
    with pytest.raises(attrib.InputError, match="prepend_bos: the tokenizer of tiny-llama puts 0 tokens before a text"):
        pack(build("llama"), [[1, 2]], 2, prepend_bos=True)


@pytest.mark.parametrize(("count", "runs"), [(24 * 16 * 3, [16] * 3), (100, [2, 2]), (5, [1]), (2, [1])])
def test_what_is_held_out(count: int, runs: list[int]) -> None:
    rows = torch.arange(count)[:, None].expand(count, 4)
    training, held_out = hold_out(rows)
    assert sorted([*training[:, 0].tolist(), *held_out[:, 0].tolist()]) == [*range(count)]
    numbers = held_out[:, 0]
    breaks = [0, *(numbers.diff() > 1).nonzero().flatten().add(1).tolist(), len(numbers)]
    assert np.diff(breaks).tolist() == runs, "together, so that it is not the next sentence of training text"
    assert contexts.RUN == 16
    with pytest.raises(attrib.InputError, match="texts: 1 contexts, of which none can be held out"):
        hold_out(rows[:1])


def test_a_card_after_one_more_run(tmp_path: Path) -> None:
    a, b, c = (f"blocks.{layer}.hook_resid_pre" for layer in (18, 6, 9))
    card = with_run(read_card(tmp_path), {"described": 1}, {a: 1, b: 1})
    assert card == {"runs": [{"sites": [a, b], "described": 1}], "results": {b: 1, a: 1}}
    assert list(card["results"]) == [b, a], "in the order of layers, by number"
    more = with_run(card, {"described": 2}, {c: 2, a: 2})
    assert more["runs"] == [{"sites": [b], "described": 1}, {"sites": [c, a], "described": 2}]
    assert more["results"] == {b: 1, c: 2, a: 2}
    last = with_run(more, {"described": 3}, {b: 3})
    assert [run["described"] for run in last["runs"]] == [2, 3], "a run of which nothing is left is not told"


def test_densities_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # latent i of four is active on every (10 ** i)-th of 10 000 tokens; the last one never
    tokens = torch.arange(10_000)
    x = torch.stack([(tokens % 10**i == 0).float() for i in range(4)] + [torch.zeros(10_000)], dim=1)
    site, model = attrib.Site(0, "resid_pre"), build("llama")
    store = store_activations(model, torch.zeros(1, 16, dtype=torch.int64), site, tmp_path)
    store = replace(store, arrays={site: x.numpy()})
    eye = torch.eye(5)
    dictionary = from_tensors(W_enc=eye, W_dec=eye, b_enc=torch.zeros(5), b_dec=torch.zeros(5), site=site, rule="relu")
    report = density(store, dictionary, np.arange(10_000))
    assert report == density_report(np.array([10_000, 1000, 100, 10, 0]), 10_000)
    assert (report["dead"], report["dead_fraction"], report["tokens"]) == (1, 0.2, 10_000)
    edges, latents = np.array(report["log10_edges"]), np.array(report["latents"])
    assert len(edges) == len(latents) + 1
    for power in (0, -1, -2, -3):
        (bin_,) = np.flatnonzero((edges[:-1] - 1e-9 <= power) & ((power < edges[1:] - 1e-9) | ((power == 0) & (edges[1:] == 0))))
        assert latents[bin_] == 1, f"one latent of density 1e{power}"
    assert report["log10_quantiles"]["50%"] == pytest.approx(-1.5)
    assert sparkline(report).count("█") == 4
    assert sparkline(report).count("·") == len(latents) - 4
    only_dead = density_report(np.zeros(3, dtype=np.int64), 10)
    assert (only_dead["dead"], only_dead["log10_quantiles"], sum(only_dead["latents"])) == (3, {}, 0)


def test_curves_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(attrib.InputError, match="curves: there is no file"):
        read_curves(tmp_path / "curves.jsonl")
    (tmp_path / "curves.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.raises(attrib.FormatError, match=r"curves: line 2 of .* is no row of a training"):
        read_curves(tmp_path / "curves.jsonl")
    with pytest.raises(attrib.InputError, match="curves: none; expected"):
        curves_page(tmp_path / "page.html", {})
