"""Gather the text that the shipped dictionaries were trained on, as plain .txt files.

Two sources that need no model hub: English prose from Debian packages (`debian`), and text that the
model writes itself from short prompts (`generate`), which is what the model finds likely and so
covers facts and stories that the packages lack.

    python examples/training_text.py debian  --out text/          # needs apt-get and dpkg
    python examples/training_text.py generate --out text/ --root text/debian --tokens 200000
"""

import gzip
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from attrib.training import visible_text

PACKAGES = ("anarchism", "fortunes", "fortunes-min", "debian-reference-en", "wordnet-base", "dict-jargon")

# Each template takes nouns of WordNet, so that the generated text names many people, places and things.
TEMPLATES = (
    "{0} is",
    "The history of {0}",
    "Question: What is {0}?\nAnswer:",
    "Fact: {0}",
    "In {0}, people",
    "The difference between {0} and {1} is",
    "When {0} and {1} went to the store,",
    "Once upon a time, {0}",
    "Dear {0},\n",
    "The capital of {0} is",
    "How to make {0}:\n1.",
    "She looked at the {0} and said,",
)

ROUNDS_A_FILE = 9  # about 100 000 tokens with the usual batch and length: training shares evenly among files

app = typer.Typer(add_completion=False, no_args_is_help=True)


def glosses(data: str) -> Iterator[tuple[str, str]]:
    """(word, definition) for each synset of a WordNet data file."""
    for line in data.splitlines():
        if line[:1].isdigit() and " | " in line:
            fields, gloss = line.split(" | ", 1)
            yield fields.split()[4].replace("_", " "), gloss.strip()


def english(root: Path) -> dict[str, str]:
    """Text by source, from packages unpacked under `root`."""
    share = root / "usr/share"
    fortunes = [f for f in sorted((share / "games/fortunes").iterdir()) if f.is_file() and not f.suffix and "art" not in f.name]
    words = [pair for part in ("noun", "verb", "adj", "adv") for pair in glosses((share / f"wordnet/data.{part}").read_text())]
    random.Random(0).shuffle(words)
    return {
        "anarchism": "\n\n".join(visible_text(p.read_text(errors="ignore")) for p in sorted((share / "doc/anarchism/html").glob("*.html"))),
        "fortunes": "\n\n".join(f.read_text(errors="ignore").replace("\n%\n", "\n\n") for f in fortunes),
        "debian-reference": gzip.decompress((share / "debian-reference/debian-reference.en.txt.gz").read_bytes()).decode(),
        "wordnet": "\n".join(f"{word}: {gloss}" for word, gloss in words),
        "jargon": gzip.decompress((share / "dictd/jargon.dict.dz").read_bytes()).decode(errors="ignore"),
    }


@app.command()
def debian(out: Annotated[Path, typer.Option(help="Folder for the text files")]) -> None:
    """Download the Debian packages (nothing is installed) and write their English text."""
    root = out / "debian"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=folder, check=True)
        for package in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, root], check=True)
    for name, text in english(root).items():
        (out / f"{name}.txt").write_text(text)
        print(f"{name}: {len(text) / 1e6:.1f} M characters")


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Folder for generated-*.txt")],
    root: Annotated[Path, typer.Option(help="Folder with the unpacked Debian packages, for the nouns")],
    tokens: Annotated[int, typer.Option(help="How many tokens to sample")] = 200_000,
    batch: int = 64,
    length: int = 192,
    seed: int = 0,
) -> None:
    """Sample text from SmolLM2 itself, at temperature 0.9, in bfloat16."""
    import torch
    from rich.progress import track
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from attrib.adapters.models.smollm2 import model_folder

    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), padding_side="left")
    nouns = [word for word, _ in glosses((root / "usr/share/wordnet/data.noun").read_text())]
    out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for round_ in track(range(-(-tokens // (batch * length))), description="generating"):
            prompts = [rng.choice(TEMPLATES).format(*rng.sample(nouns, 2)) for _ in range(batch)]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True)
            ids = model.generate(**inputs, max_new_tokens=length, do_sample=True, temperature=0.9, top_k=0)
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            with (out / f"generated-{round_ // ROUNDS_A_FILE}.txt").open("a") as file:
                file.writelines(text.strip() + "\n\n" for text in texts)


if __name__ == "__main__":
    app()
