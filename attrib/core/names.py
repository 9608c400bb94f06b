"""Whether two names are one model's. Libraries spell them in their own ways: owners, folders, case, sizes that were once others."""

import re
from collections.abc import Callable

_OLD_PYTHIA = {"19m": "70m", "125m": "160m", "350m": "410m", "800m": "1b", "1p3b": "1p4b", "2p7b": "2p8b", "6p7b": "6p9b", "13b": "12b"}
_OPT = {"small": "125m", "medium": "1p3b", "large": "2p7b", "xl": "6p7b", "xxl": "13b", "xxxl": "30b", "xxxxl": "66b"}

_STANFORD_SEEDS = {"21": "a", "49": "b", "81": "c", "343": "d", "777": "e"}

_ALIASES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^meta(?=llama)", ""),
    (r"^gemmav(?=\d)", "gemma"),
    (r"^(gpt2)small$|^(smollm2135m)instruct$", r"\1\2"),  # attrib's own SmolLM2 is the instructed one
    (r"^gptj$", "gptj6b"),
    (r"^(gpt)?neox$", "gptneox20b"),
    (r"^(gpt)?neo(small)?$", "gptneo125m"),
    (r"^(gpt)?neomedium$", "gptneo1p3b"),
    (r"^(gpt)?neolarge$", "gptneo2p7b"),
    (r"^opt(small|medium|large|x+l)?$", lambda found: f"opt{_OPT.get(found[1] or 'small', found[1])}"),
    (r"^pythia(?=v0|$)", "pythia70m"),
    (r"^pythia(\d+p?\d*[mb])", lambda found: f"pythia{_OLD_PYTHIA.get(found[1], found[1])}"),
    (r"^(gelu|solu|attnonly)(\d+)l(\d+w)?(new|c4code)?$", r"\1\2l"),
    (r"(\d)layers?", r"\1l"),
    (r"^distill(?=gpt2$)|^gpt2xs$", "distil"),
    (r"^distil$", "distilgpt2"),
    (r"^((?:mistral7b|mixtral8x7b)(?:instruct)?)v0p1$", r"\1"),
    (r"^mixtral(instruct)?$", r"mixtral8x7b\1"),
    (r"^(solu\d+l)(v\d+old|pile)$", r"\1old"),
    (r"^(solu\d+l)(512w)?(wiki)?finetune$", r"\1wiki"),
    (r"^attnonly(2l)?(512w)?(shortformer6bbiglr|inductiondemo|demo)$", "attnonly2ldemo"),
    (r"^gpt2(stanford|mistral)?(small|medium)([a-e])$", r"stanfordgpt2\2\3"),
    (r"^gpt2mediumsmall([a-e])$", r"stanfordgpt2medium\1"),
    (r"^[a-z]+gpt2(small|medium)x(21|49|81|343|777)$", lambda found: f"stanfordgpt2{found[1]}{_STANFORD_SEEDS[found[2]]}"),
    (r"^olmo2(0325|0425|1124)(?=\d)", "olmo2"),
    (r"^olmoe1b7b0924$", "olmoe"),
    (r"^(othellogpt)transformerlens$", r"\1"),
    (r"^codellamallama2", "codellama"),
    (r"^w2v2", "wav2vec2"),
    (r"^phi3$", "phi3mini4kinstruct"),
    (r"^gptoss$", "gptoss20b"),
    (r"^qwen32bpreview$", "qwq32bpreview"),
    (r"instuct", "instruct"),  # as TinyStories' author has it
    (r"^(stablelm(?:base|tuned))alpha(?=\d)", r"\1"),
    (r"^(apertus8b(?:instruct)?)2509$", r"\1"),
    (r"^apertus(instruct)?$", r"apertus8b\1"),
)
"""Names that TransformerLens, Hugging Face and the authors of dictionaries have for one model, in small letters and digits."""


def plain(name: str) -> str:
    """A name without its owner or folder, in small letters and digits, as the model's own authors would have it."""
    cached = re.search(r"models--(?:[^/\\]+?--)?([^/\\]+)", name)  # a folder of a hub's cache has the name above it
    last = cached[1] if cached else re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1]
    last = re.sub(r"[-_](hf|pt)$", "", last.lower())  # as Llama's and Gemma's plain weights are called
    found = re.sub(r"[^a-z0-9]+", "", re.sub(r"(?<=\d)(\.|_(?=\db))(?=\d)", "p", last))
    for pattern, by in _ALIASES:
        found = re.sub(pattern, by, found)
    return found


_NO_NAME = re.compile(r"(model|models|weights|output|final|best|last|local|checkpoint|ckpt|step|epoch)*\d*|[0-9a-f]{40}")
"""What folders are called that hold any model at all."""


def are_other_models(one: str, other: str) -> bool:
    """Whether two names are those of different models. A folder's name that is no model's says nothing."""
    one, other = plain(one), plain(other)
    return one != other and not _NO_NAME.fullmatch(one) and not _NO_NAME.fullmatch(other)
