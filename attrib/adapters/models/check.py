"""Does attrib compute what the original computes? Both run on a few tokens, and every site and the logits are compared.

The error of a site is the largest difference of any element, relative to the largest element of the original there
(in half precision the sizes of both, layer by layer: see TOLERANCE).
Originals are watched by forward hooks on their own modules (transformers) or by `run_with_cache` (TransformerLens), and
are left as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.adapters.models.observe import Values, Where, transformer_lens_values, transformers_values
from attrib.core.types import InputError, Site
from attrib.models.transformer import Model, unembed, walk
from attrib.models.transformer import embed as embed_tokens

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""The largest relative error that is rounding, by the coarser dtype of the two models.

Float64 has float32's bound, for many originals compute norms and softmaxes in float32 whatever they are given. In half
precision attrib rounds at other places than the original, and over the layers that adds up to anything. So there each
layer starts from the original's own stream, and a site's error is the size (2-norm) of the whole difference relative to
the size of the whole value: rounding of one layer, where a mistake is of the size of the values themselves.
"""
HALF = (torch.float16, torch.bfloat16)

PROMPT = 64
"""Tokens that are compared by default: cheap beside loading a model, and longer than short windows. A window of more
positions is not reached; the original's mask, and not attrib's config, would tell that it is there."""


@dataclass(frozen=True)
class Check:
    """How far a model lies from its original, site by site."""

    name: str
    original: str
    dtype: torch.dtype
    tolerance: float
    positions: int
    errors: dict[Where, float]
    """The largest relative error of each site that was compared, in order of computation, and of the logits."""
    unseen: tuple[Site, ...]
    """Sites that the original does not show; they were not compared."""

    @property
    def ok(self) -> bool:
        """Whether every site that was compared is within the tolerance, and the logits are among them."""
        return "logits" in self.errors and all(error <= self.tolerance for error in self.errors.values())

    @property
    def worst(self) -> float:
        """The largest error of all; infinite where a value is not a number, or nothing was compared."""
        return max(self.errors.values(), default=float("inf"))

    @property
    def first_difference(self) -> Where | None:
        """The first site, in order of computation, beyond the tolerance."""
        return next((where for where, error in self.errors.items() if not error <= self.tolerance), None)

    def require(self) -> "Check":
        """Itself where all is well.

        Raises:
            InputError: naming the first site that differs and by how much.
        """
        if self.ok:
            return self
        if (where := self.first_difference) is None:
            raise InputError(f"model: nothing of {self.original} could be compared with {self.name}; its logits were not seen.")
        raise InputError(
            f"model: {self.name} differs from {self.original}, first at {where}: {self.errors[where]:.1e} relative to the largest value "
            f"there, where {self.tolerance:.0e} is rounding in {self.dtype}. Attributions would be of another model. Look for what was "
            "changed in the original (adapters, hooks, replaced modules, another attention implementation) and remove it; else attrib "
            "computes this architecture wrongly: report its config."
        )

    def __str__(self) -> str:
        at = max(self.errors, key=lambda where: self.errors[where], default=None)
        verdict = "computes the same as" if self.ok else "DIFFERS from"
        lines = [
            f"{self.name} {verdict} {self.original}: {len(self.errors)} places compared on {self.positions} tokens, largest relative "
            f"error {self.worst:.1e} ({at}), tolerance {self.tolerance:.0e} ({self.dtype})"
        ]
        if not self.ok and (where := self.first_difference) is not None:
            lines.append(f"first difference: {where}, {self.errors[where]:.1e}")
        if self.unseen:
            shown = ", ".join(str(site) for site in self.unseen[:3])
            lines.append(
                f"not shown by the original, so not compared: {shown}{', ...' if len(self.unseen) > 3 else ''} ({len(self.unseen)})"
            )
        return "\n".join(lines)


def check_model(model: Model, original: Any, tokens: Int[Tensor, " positions"] | None = None, *, tolerance: float | None = None) -> Check:
    """Compare attrib's values at every site, and the logits, with the original's own.

    Args:
        model: attrib's model.
        original: the transformers model, HookedTransformer or TransformerBridge that it came from. It is run as in
            evaluation (no dropout) and left as it was.
        tokens: a prompt, by default 64 fixed token ids. For a model with longer windows give a prompt beyond them.
        tolerance: the largest relative error that counts as rounding; by default what TOLERANCE says of the dtype.

    Raises:
        InputError: for an original of neither kind, or tokens that the model has not. A difference is no error
            here: see `Check.ok` and `Check.require`.
    """
    if hasattr(original, "run_with_cache"):
        observe, what = transformer_lens_values, type(original).__name__
    elif hasattr(original, "config") and hasattr(original, "get_input_embeddings"):
        observe, what = transformers_values, type(original).__name__
    else:
        raise InputError(
            f"original: expected a transformers causal language model, a HookedTransformer or a TransformerBridge, "
            f"got {type(original).__name__}."
        )
    tokens = default_tokens(model) if tokens is None else _checked(model, tokens)
    with torch.no_grad(), _evaluating(original):
        theirs = observe(original, model, tokens)
        dtype = max((model.dtype, theirs["logits"].dtype), key=lambda dtype: torch.finfo(dtype).eps)
        ours = _values(model, tokens.to(model.device), theirs if dtype in HALF else {})
    errors = {where: _error(value, theirs[where], dtype) for where, value in ours.items() if where in theirs}
    unseen = tuple(where for where in ours if where not in theirs and isinstance(where, Site))
    return Check(model.name, what, dtype, TOLERANCE[dtype] if tolerance is None else tolerance, len(tokens), errors, unseen)


def default_tokens(model: Model) -> Int[Tensor, " positions"]:
    """Fixed token ids spread over the vocabulary, as many as PROMPT or the context has."""
    length = min(PROMPT, model.config.n_ctx)
    return torch.randint(0, model.params.W_E.shape[0], (length,), generator=torch.Generator().manual_seed(0))


def _checked(model: Model, tokens: Int[Tensor, " positions"]) -> Int[Tensor, " positions"]:
    if tokens.numel() == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= model.params.W_E.shape[0]:
        raise InputError(f"tokens: expected at least one id, each from 0 to {model.params.W_E.shape[0] - 1}; got {tokens.tolist()}.")
    return tokens


def _values(model: Model, tokens: Int[Tensor, " positions"], given: Values) -> Values:
    """attrib's own values, in order of computation; each layer goes on from the stream in `given`, where that is there."""
    found: dict[Where, Tensor] = {}
    stream, is_sum = embed_tokens(model, tokens), model.config.parallel or not model.config.has_mlps  # no other library names it
    for layer in range(model.config.n_layers):
        start = Site(layer, "resid_pre")
        found[start] = stream
        stream = given.get(start, stream).to(stream)
        for site, value in walk(model, start, stream):
            if site != start and not (is_sum and site.kind == "resid_mid"):
                found[site] = value
            if site.kind == "resid_post":
                stream = value
                break
    last = given.get(model.config.last, stream).to(stream)
    return found | {"logits": unembed(model, last)}


def _error(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> float:
    """How far apart, relative to the size of `theirs`; infinite for another shape or what is not a number."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    order = 2 if dtype in HALF else float("inf")
    difference, size = ((ours - theirs).flatten().norm(order).item(), theirs.flatten().norm(order).item())
    if difference == 0:
        return 0.0
    return difference / size if difference == difference and size > 0 else float("inf")


@contextmanager
def _evaluating(original: Any) -> Iterator[None]:
    """Every module in evaluation, and afterwards each as it was."""
    training = [(module, module.training) for module in original.modules()]
    try:
        original.eval()
        yield
    finally:
        for module, was in training:
            module.training = was
