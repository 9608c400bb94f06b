"""Several dictionaries in one call: the attribution of each, as its own call gives it, and computed once for all where that can be.

What the sources are is no part of the pass that they are taken from: each one's error is kept, so that the model's own pass is the primal
of all, and no source stands in another's way. Cotangents of the targets then go down once, and are read out at every source
(jacobian.py). Where each has a pass of its own (without its error, on the way from a baseline, one ablation after another),
or the budget is too small for all of them together, one goes after another.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attrib.attribution.jacobian import swept
from attrib.attribution.loop import run, shifted
from attrib.attribution.options import ErrorAs, Options, check_call, check_error, check_replay
from attrib.core.edges import Edges
from attrib.core.rules import Gradient, GradientTimesActivation
from attrib.core.types import BudgetError, EdgeKind
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import check_fit, known_to
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.paths.cuts import apart_from
from attrib.paths.ends import stop_site
from attrib.paths.path import check_source


def run_each(
    kind: EdgeKind,
    model: Model,
    sources: Sequence[Dictionary | None],
    targets: Sequence[Any],
    tokens: TokensLike,
    options: Options,
    error: ErrorAs = True,
    bias: bool = False,
) -> list[Edges]:
    """The edges of each source to each target, in the order of the sources. Raises what the calls of one and one raise.

    Args:
        sources: dictionaries, or None for the tokens.
    """
    check_error(error, bias)
    model = options.there(model)
    check_replay(options, model, is_joint=True)
    prompts = to_prompts(model, tokens)
    sources, targets = known_ends(model, sources, targets, options)
    pairs = [(source, target) for source in sources for target in targets]
    for source, target in pairs:
        cuts = apart_from(options.cuts, source, target)
        check_call(kind, model, source, target, prompts, replace(options, cuts=cuts), error, bias)
    if is_shared(sources, options, error):
        try:
            found = swept(model, [source or "tokens" for source in sources], targets, prompts, options, error, bias)
            return [found[i, j] for i in range(len(sources)) for j in range(len(targets))]
        except BudgetError:
            pass  # it is too small for all together, and may be enough for each
    results = []
    for number, (source, target) in enumerate(pairs):
        report = shifted(options.progress, number * len(prompts), len(pairs) * len(prompts))
        results.append(run(kind, model, source, target, prompts, replace(options, progress=report), error, bias))
    return results


def is_shared(sources: Sequence[Dictionary | None], options: Options, error: ErrorAs) -> bool:
    """Whether one sweep has the derivatives of all: those at the model's own pass, times what is known of the sources there."""
    if options.method == "torch.func" or not isinstance(options.rule, GradientTimesActivation | Gradient):
        return False
    # the error of a source that shares its places with cuts, or has several, is what they leave together
    is_alone = not options.cuts and all(source is None or len(source.writes) == 1 for source in sources)
    return error is True or (error == "source" and is_alone)


def known_ends(
    model: Model, sources: Sequence[Dictionary | None], targets: Sequence[Any], options: Options
) -> tuple[list[Dictionary | None], list[Any]]:
    """The sources and targets, each found to fit; what is wrong with one is said of it by its number. Raises InputError."""
    known = [None if one is None else known_to(model, one, f"source[{number}]") for number, one in enumerate(sources)]
    for number, source in enumerate(known):
        if source is not None:
            check_source(model, source, stop_site(model, targets[0], (source, *options.cuts)), targets[0], f"source[{number}]")
    if len(targets) == 1:
        return known, [known_to(model, one, "target") if isinstance(one, Dictionary) else one for one in targets]
    for number, target in enumerate(targets):
        check_fit(model, target, f"target[{number}]")
    return known, [known_to(model, one, f"target[{number}]") for number, one in enumerate(targets)]
