"""The vocabulary: sites, policies, sparse latents, what is kept, which logits, and the error classes.

Every other module speaks in these words; docs/format.md says how they lie on disk.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from jaxtyping import Float, Int

from attrib.core.shown import in_one_line
from attrib.core.warned import renamed, warn_at_caller

if TYPE_CHECKING:  # the command line speaks these words too, and would wait for torch
    from torch import Tensor

# --------------------------------------------------------------------------------------- errors


class AttribError(Exception):
    """Base of every error that attrib raises on purpose. The CLI prints these without a traceback."""


class InputError(AttribError, ValueError):
    """An argument that cannot be used: names it, what came, what was expected, what to do."""


class BudgetError(InputError):
    """The memory budget is too small for even one row; names the smallest that would do."""

    @classmethod
    def of(cls, budget: int, prompt: int, least: int) -> "BudgetError":
        """The error for a prompt that needs `least` bytes."""
        return cls(
            f"budget: {budget:,} bytes are too few for prompt {prompt}, which needs at least {least:,}. "
            "Raise the budget or shorten the prompt."
        )


class NotFiniteError(InputError):
    """A prompt at which a value is NaN or infinite; names what it is of, the first position, and the prompt where that is known."""

    def __init__(self, what: str, position: int, value: float, prompt: int | None = None) -> None:
        self.what, self.position, self.value, self.prompt = what, position, value, prompt
        whose = "the prompt" if prompt is None else f"prompt {prompt}"
        super().__init__(
            f"tokens: {whose} gives {value} at {what}, first at position {position}; expected finite numbers. Leave the prompt out, "
            "or compute in another dtype, unless a weight of the model or the dictionary is no number itself."
        )

    def __reduce__(self) -> tuple[type["NotFiniteError"], tuple[str, int, float, int | None]]:
        return type(self), (self.what, self.position, self.value, self.prompt)


class OutOfMemoryError(AttribError, MemoryError):
    """The machine or the device had no memory left; says what was being done, and what takes less."""


class UnsupportedError(AttribError, NotImplementedError):
    """A model or dictionary with a feature that attrib does not compute; names the feature."""


class FormatError(AttribError):
    """A file that is not what it claims to be: foreign, truncated, or of another version."""


class FetchError(AttribError):
    """A download that failed or did not match its pinned hash."""


class AttribWarning(UserWarning):
    """Something that is computed as asked, and is probably not what was meant; says what to do about it."""


def warn(message: str) -> None:
    """Warn with AttribWarning at the line of the user's program that called attrib, however deep inside this is."""
    warn_at_caller(message, AttribWarning)


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def natural(name: object) -> list[tuple[int, str]]:
    """A sort key by which numbers within a name count as numbers: blocks.6 stands before blocks.18."""
    parts = enumerate(re.split(r"([0-9]+)", str(name)))  # text and digits in turn; of two numbers the longer is the larger
    return [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (-1, part) for place, part in parts]


# ---------------------------------------------------------------------------------------- sites

SiteKind = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"]

SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
"""The kinds in the order in which a block computes them."""

# What stands after "blocks.{layer}." in TransformerLens; the first name of each kind is the one written. The second of z is
# short for the first; `mlp.in.hook_in` is a bridge's name for the input of the first matrix, and the only one that OPT's has.
_HOOKS: dict[SiteKind, tuple[str, ...]] = {
    "resid_pre": ("hook_resid_pre",),
    "z": ("attn.hook_z", "hook_z"),
    "attn_out": ("hook_attn_out",),
    "resid_mid": ("hook_resid_mid",),
    "mlp_in": ("mlp.hook_in", "mlp.in.hook_in", "ln2.hook_normalized"),
    "mlp_out": ("hook_mlp_out",),
    "resid_post": ("hook_resid_post",),
}
_KIND_OF_HOOK = {hook: kind for kind, hooks in _HOOKS.items() for hook in hooks}

BEFORE_NORM = "hook_mlp_in"
"""TransformerLens' optional hook on the copy of the stream that the norm before the MLP reads. In attrib that place is `resid_mid`,
and `resid_pre` in parallel blocks. attrib itself once wrote `mlp_in` so: a name that meant two places is not taken for either."""


def as_now(stored: str) -> str:
    """The name that a place has today, of one that attrib wrote into a file: what it once called `hook_mlp_in` was always `mlp_in`."""
    return re.sub(rf"^(blocks\.\d+)\.{BEFORE_NORM}$", rf"\1.{_HOOKS['mlp_in'][0]}", stored)


def logits_as_now(stored: str) -> str:
    """A choice of logits in the words of today, of one that attrib wrote into a file: `TokenLogits` was once called `Tokens`."""
    return re.sub(r"^Tokens\(tokens=", "TokenLogits(tokens=", stored)


@dataclass(frozen=True)
class Site:
    """A place in the transformer: a layer and a kind.

    `z` is the heads' output before `W_O`, flat: [positions, heads · d_head]. `mlp_in` is what enters
    the MLP's matrices, after the norm and its weight: `mlp.hook_in` of TransformerLens' bridges.

    >>> str(Site(7, "resid_pre"))
    'blocks.7.hook_resid_pre'
    >>> str(Site(7, "mlp_in"))
    'blocks.7.mlp.hook_in'
    >>> Site.parse("blocks.2.attn.hook_z")
    Site(layer=2, kind='z')
    """

    layer: int
    kind: SiteKind

    def __post_init__(self) -> None:
        is_whole = isinstance(self.layer, Integral) and not isinstance(self.layer, bool)
        if not is_whole or self.layer < 0 or self.kind not in SITE_KINDS:
            raise InputError(f"Site({self.layer!r}, {self.kind!r}): expected layer >= 0 and a kind among {', '.join(SITE_KINDS)}.")
        object.__setattr__(self, "layer", int(self.layer))  # numpy's numbers write themselves in another way

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{_HOOKS[self.kind][0]}"

    @classmethod
    def parse(cls, name: "str | Site") -> "Site":
        """Read a TransformerLens hook name. Raises InputError for anything else, and for `hook_mlp_in`, which is no one place."""
        if isinstance(name, Site):
            return name
        if isinstance(name, str) and (before := re.fullmatch(rf"(blocks\.\d{{1,9}})\.{BEFORE_NORM}", name)):
            raise InputError(
                f"Site.parse({name!r}): TransformerLens fires this hook before the norm. Take '{before[1]}.hook_resid_mid' for that place "
                f"('{before[1]}.hook_resid_pre' in a model with parallel blocks), or '{before[1]}.mlp.hook_in' for what enters the MLP's "
                "matrices, behind the norm and its weight."
            )
        match = re.fullmatch(r"blocks\.(\d{1,9})\.(.+)", name) if isinstance(name, str) else None
        if match is None or match[2] not in _KIND_OF_HOOK:
            raise InputError(
                f"Site.parse({name!r}): expected a TransformerLens hook name such as 'blocks.7.hook_resid_pre', "
                f"ending in one of: {', '.join(_KIND_OF_HOOK)}."
            )
        return cls(int(match[1]), _KIND_OF_HOOK[match[2]])

    @property
    def is_residual(self) -> bool:
        """Whether the site is the residual stream itself, and not what a component adds to it."""
        return self.kind.startswith("resid")

    @property
    def depth(self) -> tuple[int, int]:
        """Sort key in order of computation. `resid_post` of a layer is `resid_pre` of the next."""
        if self.kind == "resid_post":
            return self.layer + 1, 0
        return self.layer, SITE_KINDS.index(self.kind)


# --------------------------------------------------------------------------------------- policy

Treatment = Literal["exact", "frozen"]
MLPTreatment = Literal[Treatment, "relp"]


class Policy(NamedTuple):
    """Which nonlinearities are differentiated ("exact") and which are held at their primal value ("frozen").

    Frozen attention holds the pattern; a frozen norm holds its denominator; a frozen MLP holds its output. An MLP under "relp" is
    the linear map of layer-wise relevance propagation: of an activation the ratio act(u) / u is held, and of a gate and what it
    multiplies each has half.
    """

    attention: Treatment = "exact"
    norm: Treatment = "exact"
    mlp: MLPTreatment = "exact"


EXACT = Policy()
LINEAR = Policy(attention="frozen", norm="frozen")
RELP = Policy(attention="frozen", norm="frozen", mlp="relp")
POLICIES: dict[str, Policy] = {"exact": EXACT, "linear": LINEAR, "relp": RELP}

# ---------------------------------------------------------------------------------------- edges

NodeKind = Literal["token", "latent", "error", "logit", "metric"]
Effect = Literal["direct", "total"]
"""Whether derivatives stop at intermediate dictionaries or pass through their active latents."""

Question = Literal["token_to_latent", "latent_to_latent", "latent_to_logit", "latent_to_metric"]
"""The attributions of one source and one target, each a function of its own."""

EdgeKind = Literal[Question, "token_to_logit", "error_to_latent", "error_to_logit"]
"""What edges go from and to; those that are no question of their own come from `attrib.jacobian`."""

ERROR, BIAS = -1, -2
"""In place of a latent's number among the sources of a dictionary: what it leaves out at a position, and all that no source brings."""

# -------------------------------------------------------------------------------------- latents


@in_one_line
class SparseLatents(NamedTuple):
    """The active latents of one prompt, sorted by (position, latent)."""

    position: "Int[Tensor, ' active']"
    latent: "Int[Tensor, ' active']"
    value: "Float[Tensor, ' active']"


# ----------------------------------------------------------------------------------------- keep


class Dense(NamedTuple):
    """Keep every edge whose gradient is not exactly zero."""


class TopK(NamedTuple):
    """Keep the k edges of largest |attribution| of each target."""

    k: int


class Threshold(NamedTuple):
    """Keep edges with |attribution| >= t."""

    t: float


class Mass(NamedTuple):
    """Keep, per target, the fewest edges whose |attribution| sums to at least this fraction of all."""

    fraction: float


Keep = Dense | TopK | Threshold | Mass

# ------------------------------------------------------------------------------- logit selections


class TopLogits(NamedTuple):
    """The k largest logits; with `mass`, the fewest of them that reach this probability (top-p)."""

    k: int = 10
    mass: float | None = None


class TokenLogits(NamedTuple):
    """The logits of these tokens, given as ids or as strings that are one token each."""

    tokens: Sequence[int | str]


class Difference(NamedTuple):
    """One row: logit of `a` minus logit of `b`; a sequence of tokens stands for their mean."""

    a: int | str | Sequence[int | str]
    b: int | str | Sequence[int | str]


class Direction(NamedTuple):
    """One row: the residual stream at `site` (default: the last resid_post) dotted with `vector` [d_model]."""

    vector: "Float[Tensor, ' d_model']"
    site: Site | None = None


Logits = TopLogits | TokenLogits | Difference | Direction


class ErrorAt(NamedTuple):
    """What stands at a place beyond what the cuts there decode: one source for each position, whose scale is 1 as it is."""

    site: Site | str


Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""

if not TYPE_CHECKING:  # a type checker shall go on to know which names are not there
    __getattr__ = renamed(__name__, Tokens="TokenLogits")
