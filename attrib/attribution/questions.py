"""The four attributions: token → latent, latent → latent, latent → logit, latent → metric.

Each is a loop over prompts (loop.py): the path at its primal point, its Jacobian in tiles, what is kept of each tile (rows.py), and all
prompts joined. Attribution is gradient × source activation. A list of dictionaries has an attribution each (each.py).
"""

from collections.abc import Callable, Sequence
from typing import Unpack, overload

from jaxtyping import Float
from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_dictionary, as_model, as_one_or_several, takes
from attrib.attribution.each import run_each
from attrib.attribution.loop import run
from attrib.attribution.options import CallOptions, ErrorAs, MetricOptions, Options, with_options
from attrib.core.edges import Edges
from attrib.core.types import TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.tokens import TokensLike
from attrib.models.transformer import Model
from attrib.paths.targets import LogitsLike, as_logits


@overload
def token_to_latent(model: Model, target: Dictionary, tokens: TokensLike, **options: Unpack[CallOptions]) -> Edges: ...
@overload
def token_to_latent(model: Model, target: Sequence[Dictionary], tokens: TokensLike, **options: Unpack[CallOptions]) -> list[Edges]: ...
@takes(model=as_model, target=as_one_or_several, cuts=as_dictionaries, budget=as_bytes)
@with_options
def token_to_latent(
    model: Model,
    target: Dictionary | Sequence[Dictionary],
    tokens: TokensLike,
    **options: Unpack[CallOptions],
) -> Edges | list[Edges]:
    """How the active latents of `target` move with the scale of each token's embedding sum (1 as it is).

    Args:
        target: a dictionary; or several, which share the sweep, and of which each has a result of its own.

    See `latent_to_latent` for the options.
    """
    if not isinstance(target, Dictionary):
        return run_each("token_to_latent", model, [None], target, tokens, Options(**options))
    return run("token_to_latent", model, None, target, tokens, Options(**options), error=True)


@overload
def latent_to_latent(
    model: Model,
    source: Dictionary,
    target: Dictionary,
    tokens: TokensLike,
    *,
    error: ErrorAs = True,
    bias: bool = False,
    **options: Unpack[CallOptions],
) -> Edges: ...
@overload
def latent_to_latent(
    model: Model,
    source: Sequence[Dictionary],
    target: Dictionary,
    tokens: TokensLike,
    *,
    error: ErrorAs = True,
    bias: bool = False,
    **options: Unpack[CallOptions],
) -> list[Edges]: ...
@takes(model=as_model, source=as_one_or_several, target=as_dictionary, cuts=as_dictionaries, budget=as_bytes)
@with_options
def latent_to_latent(
    model: Model,
    source: Dictionary | Sequence[Dictionary],
    target: Dictionary,
    tokens: TokensLike,
    *,
    error: ErrorAs = True,
    bias: bool = False,
    **options: Unpack[CallOptions],
) -> Edges | list[Edges]:
    """How the active latents of `target` move with the active latents of `source`.

    Args:
        source: a dictionary; or several, of which each has a result of its own, as its own call gives it. They share the sweep
            where the rule is GradientTimesActivation or Gradient and their errors are kept; docs/methods.md.
        tokens: the prompts: text, token ids, chats or a tokenizer's encodings, one or a list of them; docs/prompts.md.
        cuts: dictionaries that are put in on the way, each in place of what it writes, as `attrib.replace` means it;
            docs/cuts.md. A source that writes at several sites takes their place too.
        effect: "direct", derivatives stop at the cuts; or "total", they pass through the cuts' active latents.
        policy: which nonlinearities are differentiated; EXACT, LINEAR, RELP or any Policy.
        keep: which edges are kept; row totals are over all of them whatever is kept.
        positions: of the targets: a number, or several, negative ones from the end; "last" or "all"; a slice; or a mask of
            booleans. None is all.
        error: whether the source's error is added to its reconstruction: True, as a constant; False, not at all; "source", as a source
            of each position, in the table of sources as latent -1, whose activation is 1.
        bias: whether all that neither latents nor errors bring is a source too, latent -2 at position 0: biases, and what is frozen. Every
            row then adds up to its target. It takes error="source", and a policy under which the path is linear.
        rule: what of a target is put down to each source: attrib.GradientTimesActivation(), Gradient(), IntegratedGradients(steps,
            baseline), Patching(corrupt) or Ablation(); docs/methods.md.
        dtype: to compute in: "float32" or "float64"; or float32 with the sweep's products in "tf32" (CUDA) or
            "bfloat16". None is the model's own.
        budget: bytes of working memory, beside the parameters and the result; by default 1 GiB on a CPU, and half of the memory that is
            free on a GPU, or on the fullest of several.
        method: "adjoint", the written sweeps; "adjoint-triton", the same with Triton kernels; or "torch.func", plain
            transforms over the segment: the slow reference.
        precision_rows: how many rows of the first prompt, chosen at random, are computed again in float64; how far they
            are off is `call["precision_error"]`. None is 16 where the products have fewer digits than the result, else 0. That takes
            up to 1 GiB where `budget` is less.
        progress: True for a bar, or a function called with (prompts done, prompts in all).
        device: where it is computed: a name or torch.device, to which the model and the dictionaries are brought; or several that share the
            rows of each sweep, as a list, "cuda:0,cuda:1" or "all". Each of them has a copy of the model and `budget` bytes; docs/gpu.md.
            None is where the model is.
        replay: whether a GPU captures sweeps, and replays them for prompts of the same shape in place of being asked for each operation:
            for many prompts of a small model, whose sweeps take less than asking for them. Positions are filled up with zeros where
            prompts have other numbers of active latents, so last digits may differ; docs/gpu.md.

    Raises:
        InputError: for a bad argument, before anything is computed.
        BudgetError: where the budget is too small for one row of some prompt.
        NotFiniteError: for a prompt at which a value is NaN or infinite.
    """
    if not isinstance(source, Dictionary):
        return run_each("latent_to_latent", model, source, [target], tokens, Options(**options), error, bias)
    return run("latent_to_latent", model, source, target, tokens, Options(**options), error, bias)


@overload
def latent_to_logit(
    model: Model,
    source: Dictionary,
    tokens: TokensLike,
    *,
    logits: LogitsLike = TopLogits(),  # noqa: B008
    error: ErrorAs = True,
    bias: bool = False,
    **options: Unpack[CallOptions],
) -> Edges: ...
@overload
def latent_to_logit(
    model: Model,
    source: Sequence[Dictionary],
    tokens: TokensLike,
    *,
    logits: LogitsLike = TopLogits(),  # noqa: B008
    error: ErrorAs = True,
    bias: bool = False,
    **options: Unpack[CallOptions],
) -> list[Edges]: ...
@takes(model=as_model, source=as_one_or_several, cuts=as_dictionaries, budget=as_bytes)
@with_options
def latent_to_logit(
    model: Model,
    source: Dictionary | Sequence[Dictionary],
    tokens: TokensLike,
    *,
    logits: LogitsLike = TopLogits(),  # noqa: B008
    error: ErrorAs = True,
    bias: bool = False,
    **options: Unpack[CallOptions],
) -> Edges | list[Edges]:
    """How chosen logits move with the active latents of `source`.

    Args:
        source: a dictionary, or several, as of `latent_to_latent`.
        logits: TopLogits(k, mass), TokenLogits([...]), Difference(a, b) or Direction(vector). A string, or a list of strings and
            token ids, is these tokens; a whole number alone is the k of the k largest, and no id.
        positions: where the logits are read; None is the last position.

    The other options and errors are those of `latent_to_latent`.
    """
    if not isinstance(source, Dictionary):
        return run_each("latent_to_logit", model, source, [as_logits(logits)], tokens, Options(**options), error, bias)
    return run("latent_to_logit", model, source, as_logits(logits), tokens, Options(**options), error, bias)


@takes(model=as_model, source=as_dictionary, cuts=as_dictionaries, budget=as_bytes)
@with_options
def latent_to_metric(
    model: Model,
    source: Dictionary,
    tokens: TokensLike,
    metric: Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]],
    *,
    error: ErrorAs = True,
    **options: Unpack[MetricOptions],
) -> Edges:
    """How a scalar of the logits moves with the active latents of `source`: one target row per prompt.

    Args:
        metric: from the logits of a prompt [positions, d_vocab] to a scalar tensor.

    The other options and errors are those of `latent_to_latent`.
    """
    return run("latent_to_metric", model, source, metric, tokens, Options(**options), error)
