"""`jacobian`: many sources and many targets in one sweep, an `Edges` for each pair.

It computes what the attributions of one source and one target compute with the same cuts, and less often: a prompt is passed
once, each dictionary encodes once, and cotangents of all targets go down together, to tangents of low sources that have gone up
(engine/sweep/join.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Unpack

from torch import Tensor

from attrib.adapters.given import as_bytes, as_dictionaries, as_dictionary, as_model, as_target, takes
from attrib.attribution.loop import of_prompt_number, track
from attrib.attribution.needs import constant, put_into
from attrib.attribution.opening import ends_cost, ends_opened, positions_read
from attrib.attribution.options import CallOptions, ErrorAs, Options, PlanOptions, check_replay, sampled_rows, with_options
from attrib.attribution.planned import Plan, copied_bytes, plan_of
from attrib.attribution.record import call_record
from attrib.attribution.rows import EdgeRows, source_nodes, target_nodes
from attrib.attribution.ruled import change_by
from attrib.core.edges import Edges, join
from attrib.core.fingerprints import seal
from attrib.core.positions import Positions, plain_positions
from attrib.core.room import KEEP_LESS, free_memory, memory_named
from attrib.core.rules import Gradient, GradientTimesActivation, rule_text
from attrib.core.types import EdgeKind, ErrorAt, InputError, NodeKind
from attrib.dictionaries.dictionary import Dictionary
from attrib.engine.bundle import Bundle, Piece, chosen_rows, joint_of, sampled_rows_error
from attrib.engine.outgoing import Outgoing
from attrib.engine.plan.choose import packs, refusing
from attrib.engine.plan.choose_joint import JointPlan, plan_joint, refuse
from attrib.engine.plan.cost import Cost
from attrib.engine.plan.joint import Joint
from attrib.engine.plan.result import check_fits, result_bytes
from attrib.engine.precision import FLOAT64, Error, precision_of
from attrib.engine.tiles import LEAST_FOR_SAMPLES
from attrib.models.tokens import TokensLike, to_prompts
from attrib.models.transformer import Model
from attrib.paths.bundle import Ends, Source, Target
from attrib.paths.cuts import apart_from
from attrib.paths.targets import LogitsLike, as_logits, read_site


def as_sources(given: Any, argument: str) -> tuple[Source, ...]:
    """Sources from one or several: dictionaries as `as_dictionary` takes each, "tokens", or ErrorAt a place."""
    is_one = isinstance(given, Dictionary | ErrorAt | str) or not isinstance(given, Iterable)
    found: list[Source] = []
    for number, one in enumerate([given] if is_one else given):
        found.append(one if isinstance(one, ErrorAt) else "tokens" if one == "tokens" else as_dictionary(one, f"{argument}[{number}]"))
    if not found:
        raise InputError(f"{argument}: none; expected dictionaries, 'tokens', or attrib.ErrorAt(site).")
    return tuple(found)


def as_targets(given: Any, argument: str) -> tuple[Target, ...]:
    """Targets from one or a list of them: dictionaries as `as_dictionary` takes each, or choices of logits."""
    several = given if isinstance(given, list | tuple) and not hasattr(given, "_fields") else [given]
    if not several:
        raise InputError(f"{argument}: none; expected dictionaries, or choices of logits such as TopLogits(10).")
    found = (as_target(one, f"{argument}[{number}]") for number, one in enumerate(several))
    return tuple(one if isinstance(one, Dictionary) else as_logits(one) for one in found)


@takes(model=as_model, sources=as_sources, targets=as_targets, cuts=as_dictionaries, budget=as_bytes)
@with_options
def jacobian(
    model: Model,
    sources: Source | Sequence[Source],
    targets: Dictionary | LogitsLike | Sequence[Dictionary | LogitsLike],
    tokens: TokensLike,
    **options: Unpack[CallOptions],
) -> dict[tuple[int, int], Edges]:
    """How many targets move with many sources, in one sweep: an `Edges` for each pair (source, target), by their numbers.

    Each is what the attribution of this source and this target gives with the same cuts: `latent_to_latent`, `latent_to_logit` or
    `token_to_latent`. Pairs whose target is not behind the source are left out. Every derivative is taken at the model's
    own pass: the dictionaries' errors are there, as constants, or as sources.

    Args:
        sources: dictionaries, whose active latents are sources; "tokens", the scale of each token's embedding sum; or
            `ErrorAt(site)`, what stands at a place beyond what the cuts decode there, as one source for each position. One or several.
        targets: dictionaries, whose active latents are targets, or choices of logits as `latent_to_logit` takes them. One, or a
            list of them; a list of token strings is a target of its own only inside a list.
        cuts: dictionaries that are put in on all ways. A source or a target may be one of them: it is no cut on its own paths,
            and stands in the way of all others.
        positions: of all targets; None is all for latents and the last for logits.
        method: "adjoint" or "adjoint-triton".
        progress: True for a bar, or a function called with (prompts done, prompts in all); a source that writes at several places and
            is none of the cuts goes through all prompts by itself, which are then counted again.

    The other options and errors are those of `latent_to_latent`.
    """
    asked = Options(**options)
    _check_rule(asked)
    if asked.method == "torch.func":
        raise InputError("method: 'torch.func' takes one source and one target at a time; expected 'adjoint' or 'adjoint-triton' here.")
    return swept(model, sources, targets, tokens, asked)


@memory_named("planning")
@takes(model=as_model, sources=as_sources, targets=as_targets, cuts=as_dictionaries, budget=as_bytes)
@with_options
def plan_jacobian(
    model: Model,
    sources: Source | Sequence[Source],
    targets: Dictionary | LogitsLike | Sequence[Dictionary | LogitsLike],
    tokens: TokensLike,
    **options: Unpack[PlanOptions],
) -> Plan:
    """What `jacobian` will do and cost. Its ends are opened, prompt by prompt, and nothing is swept.

    No floor is known for sweeps that many targets join, so the plan has none. The arguments and errors are those of `jacobian`.
    """
    asked = Options(**options, result_fits=False)
    _check_rule(asked)
    return plan_swept(model, sources, targets, tokens, asked)


def _check_rule(asked: Options) -> None:
    """Raises InputError for a rule that many pairs do not share."""
    if not isinstance(asked.rule, GradientTimesActivation | Gradient):
        raise InputError(
            f"rule: {rule_text(asked.rule)}; sweeps that many pairs share give gradients at the model's own pass. Expected "
            "GradientTimesActivation() or Gradient() here, or attributions of one source and one target."
        )


def swept(
    model: Model, sources: Any, targets: Any, tokens: TokensLike, options: Options, error: ErrorAs = True, bias: bool = False
) -> dict[tuple[int, int], Edges]:
    """`jacobian` of what was found good, where errors may be sources too, and all that is constant."""
    model = options.there(model)
    check_replay(options, model, is_joint=True)
    return _Call(model, tuple(sources), tuple(targets), to_prompts(model, tokens), options, error, bias).run()


def plan_swept(
    model: Model, sources: Any, targets: Any, tokens: TokensLike, options: Options, error: ErrorAs = True, bias: bool = False
) -> Plan:
    """The plan of `swept`."""
    call = _Call(model, tuple(sources), tuple(targets), to_prompts(model, tokens), options, error, bias)
    return replace(call.plan(), rule=rule_text(options.rule))


Opened = tuple[Tensor, Bundle]
"""A prompt's tokens, and its ends."""


class _Call:
    """One call: its ends as they were given, and in the precision of their paths."""

    def __init__(
        self,
        model: Model,
        sources: tuple[Source, ...],
        targets: tuple[Target, ...],
        prompts: list[Tensor],
        options: Options,
        error: ErrorAs = True,
        bias: bool = False,
    ) -> None:
        self.team, self.prompts, self.error, self.bias = options.team(model), prompts, error, bias
        options = replace(options, positions=plain_positions(options.positions, [len(ids) for ids in prompts]))
        # every pair's record names them, so each is hashed once
        sealed = {id(one): seal(one) for one in (*sources, *targets, *options.cuts) if isinstance(one, Dictionary)}

        def as_sealed(given: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(sealed.get(id(one), one) for one in given)

        self.model, self.options = seal(model), replace(options, cuts=as_sealed(options.cuts))
        self.sources: tuple[Source, ...] = as_sealed(sources)
        self.targets: tuple[Target, ...] = as_sealed(targets)
        self.precision = precision_of(model, options.dtype)
        self.rows = sampled_rows(options.precision_rows, self.precision)
        self.ends = self._in_precision()
        self.groups = list(self.ends.groups())
        self.parts: dict[tuple[int, int], list[Edges]] = {pair: [] for pair in self.ends.pairs}
        self.free, self.needed = free_memory(), 0

    @property
    def positions(self) -> Positions:
        """Of all targets, as plain numbers."""
        found: Any = self.options.positions
        return found

    def _in_precision(self) -> Ends:
        """The ends in the precision of the paths, each dictionary once, on the model's device and without autograd."""
        model, made = constant(self.model.to(dtype=self.precision.path)), dict[int, Dictionary]()

        def there(one: Any, argument: str) -> Any:
            if not isinstance(one, Dictionary):
                return one
            if id(one) not in made:
                made[id(one)] = put_into(model, one, argument)
            return made[id(one)]

        several = zip(("sources", "targets", "cuts"), (self.sources, self.targets, self.options.cuts), strict=True)
        sources, targets, cuts = (tuple(there(one, f"{name}[{n}]") for n, one in enumerate(given)) for name, given in several)
        return Ends(model, sources, targets, cuts, self.options.effect, self.options.policy, self.error == "source")

    def run(self) -> dict[tuple[int, int], Edges]:
        """Sweep by sweep, pack by pack."""
        doing = f"attributing {len(self.prompts)} prompt(s) of up to {max(map(len, self.prompts))} tokens"
        sampled = None
        with memory_named(doing, KEEP_LESS), self.team:
            done = iter(track(self.prompts * len(self.groups), self.options.progress))
            for ends, sources, targets in self.groups:
                for first, pack, pieces, outgoing in self._swept(ends, done):
                    if self.rows and sampled is None:
                        sampled = sampled_rows_error(pack[0][1], self.rows, self.precision, self.options.impl, self.options.budget)
                    self._take(ends, sources, targets, first, pack, pieces, outgoing)
                    del pack, pieces
            next(done, None)  # which tells that the last is done
            return {pair: self._joined(pair, parts, sampled) for pair, parts in self.parts.items()}

    def _swept(self, ends: Ends, done: Iterator[Tensor]) -> Iterator[tuple[int, list[Opened], Iterator[tuple[int, Piece]], Outgoing]]:
        """Pack by pack the number of its first prompt, its tokens and bundles, the pieces of their Jacobians, and how edges come."""
        opened = (
            (ids, of_prompt_number(number, ends.open, ids, self.positions)) for number, ids in enumerate(islice(done, len(self.prompts)))
        )
        planned, first = packs(opened, partial(self._joint, ends), self.options.budget, plan_joint), 0
        for pack, plan in refusing(planned, lambda: self._refuse(ends)):
            self._grow(ends, plan.joint)
            pieces = self.team.jacobians([bundle for _, bundle in pack], plan, self.precision, self.options.impl)
            yield first, pack, pieces, Outgoing(self.team.left(len(pack), plan.peak))
            first += len(pack)
            del pack, plan, pieces

    def plan(self) -> Plan:
        """The same, counted; sampled rows of the first prompt are swept by themselves."""
        planned, sampled, cost, result = list[JointPlan](), list[JointPlan](), Cost(self.precision.path.itemsize), 0
        for ends, *_ in self.groups:
            joints = list[Joint]()
            for ids in self.prompts:
                bundle = ends.open(ids, self.positions)
                joints.append(self._joint(ends, (ids, bundle)))
                cost = cost + ends_cost(ends, bundle, self._read(ends, ids), cost.itemsize)
                if self.rows and not sampled:
                    few = [bundle.only(chosen_rows(bundle, self.rows))]
                    both = (replace(joint_of(few, each), itemsize=each.path.itemsize) for each in (self.precision, FLOAT64))
                    sampled = [plan_joint(each, max(self.options.budget, LEAST_FOR_SAMPLES)) for each in both]
                del bundle
            packed = packs(joints, lambda joint: joint, self.options.budget, plan_joint)
            planned += [plan for _, plan in refusing(packed, partial(self._refuse, ends))]
            result += sum(self._result(ends, joint) for joint in joints)
        given = (*self.sources, *self.targets, *self.options.cuts)
        copies = copied_bytes(self.model, given, self.precision, self.rows, self.ends.start, self.ends.stop)
        return plan_of(planned, sampled, cost, result, copies)

    def _read(self, ends: Ends, ids: Tensor) -> list[int]:
        """At how many positions each target is read."""
        return [positions_read(target, self.positions, len(ids)) for target in ends.targets]

    def _joint(self, ends: Ends, opened: Opened) -> Joint:
        """The work of a prompt whose bundle is open."""
        ids, bundle = opened
        joint = replace(joint_of([bundle], self.precision), itemsize=self.precision.path.itemsize)
        return replace(joint, opened=ends_opened(ends, bundle, self._read(ends, ids), joint.itemsize))

    def _refuse(self, ends: Ends) -> None:
        """Raises BudgetError with what is enough for all prompts."""
        refuse((self._joint(ends, (ids, ends.open(ids, self.positions))) for ids in self.prompts), self.options.budget)

    def _grow(self, ends: Ends, joint: Joint) -> None:
        """Raises BudgetError where the result so far would be too large for the memory that is free."""
        self.needed += self._result(ends, joint)
        check_fits(self.needed, self.options.keep, joint.n_targets * len(joint.sources), joint.itemsize, self.free)

    def _result(self, ends: Ends, joint: Joint) -> int:
        """Bytes of the edges of some prompts, of all pairs."""
        tasks = (replace(joint.whole, sources=joint.sources[i].counts, targets=joint.targets[j].counts) for i, j in ends.pairs)
        return sum(result_bytes(task, self.options.keep) for task in tasks)

    def _take(
        self, ends: Ends, sources: list[int], targets: list[int], first: int, pack: list[Opened], pieces: Iterator[tuple[int, Piece]],
        outgoing: Outgoing,
    ) -> None:  # fmt: skip
        """The edges of every pair of a pack's prompts."""
        growing = [{pair: _PairRows(self, ends, bundle, *pair, outgoing) for pair in ends.pairs} for _, bundle in pack]
        for number, piece in pieces:
            growing[number][piece.source, piece.target].add(piece)
            del piece  # before the next is computed
        for number, ((ids, _), pairs) in enumerate(zip(pack, growing, strict=True)):
            for (i, j), pair in pairs.items():
                self.parts[sources[i], targets[j]].append(of_prompt_number(first + number, pair.edges, ids))

    def _joined(self, pair: tuple[int, int], parts: list[Edges], sampled: Error | None) -> Edges:
        """All prompts' edges of a pair, with the record of the call."""
        source, target = self.sources[pair[0]], self.targets[pair[1]]
        found = join(parts, release=True)
        options = replace(self.options, cuts=apart_from(self.options.cuts, source, target))
        call = call_record(found.kind, self.model, source, target, self.prompts, options, self.precision, self.error, self.bias)
        if sampled is not None:
            call |= {"precision_error": sampled._asdict(), "seed": 0}
        return replace(found, call=call)


class _PairRows:
    """The rows of one pair, in the order of its targets, which is that of their positions but where positions were asked for in another."""

    def __init__(self, call: _Call, ends: Ends, bundle: Bundle, i: int, j: int, outgoing: Outgoing) -> None:
        source, end = ends.sources[i], bundle.targets[j]
        self.model = ends.model
        sources = bundle.sources[i].sources
        kind: NodeKind = "token" if source == "tokens" else "error" if isinstance(source, ErrorAt) else "latent"
        is_logit = not isinstance(ends.targets[j], Dictionary)
        edges: EdgeKind = _KINDS[kind, is_logit]
        site = source.site if isinstance(source, Dictionary) else ends.start_of(source)
        table = target_nodes(is_logit, read_site(ends.model, ends.targets[j]), end.targets, end.labels, end.probability)
        change = change_by(call.options.rule, sources)
        nodes = source_nodes(ends.model, kind, site, sources, change)
        self.rows = EdgeRows(edges, nodes, table, sources, call.options, change, end.targets.value if call.bias else None, outgoing)
        at = end.targets.position
        self.whole = None if bool((at.diff() >= 0).all()) else end.targets.value.new_zeros(len(at), len(sources.position))

    def add(self, piece: Piece) -> None:
        """Take some rows."""
        if self.whole is None:
            self.rows.add(piece.gradient)
        else:
            self.whole[piece.place.to(self.whole.device), : piece.gradient.shape[1]] = piece.gradient.to(self.whole.device)

    def edges(self, ids: Tensor) -> Edges:
        """All of them."""
        if self.whole is not None:
            self.rows.add(self.whole)
        return self.rows.edges(self.model, ids, {})


_KINDS: dict[tuple[NodeKind, bool], EdgeKind] = {
    ("token", False): "token_to_latent",
    ("token", True): "token_to_logit",
    ("latent", False): "latent_to_latent",
    ("latent", True): "latent_to_logit",
    ("error", False): "error_to_latent",
    ("error", True): "error_to_logit",
}
