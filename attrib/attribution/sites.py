"""Places of the model itself as sources: gradients of targets by what stands there, and gradient × activation by position and head.

With x_s what stands at a site s, and F a target as a function of it, everything behind s being computed anew:

    gradient[t, q]  =  ∂F_t / ∂x_s[q]            attribution[t, q]  =  gradient[t, q] · x_s[q]

A gradient is the total one: where several sites are asked for, the later ones stand in the way of none. All sites share one backward pass.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vjp, vmap

from attrib.adapters.given import as_bytes, as_model, as_target, takes
from attrib.attribution.loop import of_prompt_number, track
from attrib.attribution.options import check_policy
from attrib.core.finite import require_finite
from attrib.core.positions import Positions, PositionsLike, plain_positions
from attrib.core.room import memory_named
from attrib.core.types import EXACT, Direction, InputError, Logits, Policy, Progress, Site, TopLogits
from attrib.dictionaries.dictionary import Dictionary
from attrib.dictionaries.fit import fitted
from attrib.engine.tiles import DEFAULT_BUDGET
from attrib.engine.transforms import WorkingMemory, chunk_size, working_memory
from attrib.models.tokens import TokensLike, to_prompts, token_strings
from attrib.models.transformer import Model, check_end, embed, place, unembed, walk
from attrib.passes.capture import capture
from attrib.paths.targets import LogitsLike, Read, as_logits, read_direction, read_latents, read_logits, read_site

if TYPE_CHECKING:
    import pandas as pd

Metric = Callable[[Float[Tensor, "positions d_vocab"]], Float[Tensor, ""]]


@dataclass(frozen=True, repr=False)
class SiteGradients:
    """One prompt's gradients by what stands at some sites of the model. `site_gradients` makes it."""

    tokens: Int[Tensor, " positions"]
    strings: tuple[str, ...]
    position: Int[Tensor, " targets"]
    """Of each target; the last of a metric, which reads all."""
    labels: tuple[str, ...]
    """Of each target: a latent's number, a logit's token, a metric's name."""
    value: Float[Tensor, " targets"]
    activation: Mapping[Site, Float[Tensor, "positions _"]]
    gradient: Mapping[Site, Float[Tensor, "targets positions _"]]
    n_heads: int
    policy: Policy = field(default=EXACT)

    def __repr__(self) -> str:
        return f"SiteGradients({len(self.value):,} targets by {', '.join(map(str, self.gradient))}; {len(self.tokens):,} positions)"

    def attribution(self, site: Site | str) -> Float[Tensor, "targets positions"]:
        """Gradient × activation at each position of a site. Raises InputError for a site that was not asked for."""
        at = self._asked(site)
        return (self.gradient[at] * self.activation[at]).sum(-1)

    def by_head(self, site: Site | str) -> Float[Tensor, "targets positions heads"]:
        """The same, head by head, of `z`. Raises InputError for a site whose width heads do not share."""
        at = self._asked(site)
        if at.kind != "z":
            raise InputError(f"site: {at}; expected the heads' outputs, as 'blocks.{at.layer}.attn.hook_z', which heads share.")
        return (self.gradient[at] * self.activation[at]).unflatten(-1, (self.n_heads, -1)).sum(-1)

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each target, site and position, and for each head of `z`; `head` is -1 elsewhere."""
        import pandas as pd

        tables = []
        for at in self.gradient:
            share = self.by_head(at) if at.kind == "z" else self.attribution(at)[..., None]
            sizes = self.gradient[at].unflatten(-1, (share.shape[-1], -1)).norm(dim=-1)
            target, position, head = (index.flatten() for index in torch.meshgrid(*map(torch.arange, share.shape), indexing="ij"))
            tables.append(
                pd.DataFrame(
                    {
                        "target": [self.labels[row] for row in target.tolist()], "target_position": self.position[target].numpy(),
                        "site": str(at), "position": position.numpy(), "token": [self.strings[q] for q in position.tolist()],
                        "head": head.numpy() if at.kind == "z" else -1, "gradient_norm": sizes.flatten().numpy(),
                        "attribution": share.flatten().numpy(),
                    }
                )
            )  # fmt: skip
        return pd.concat(tables, ignore_index=True)

    def _asked(self, site: Site | str) -> Site:
        at = Site.parse(site)
        if at not in self.gradient:
            raise InputError(f"site: {at} was not asked for; expected one of {', '.join(map(str, self.gradient))}.")
        return at


@memory_named("taking gradients by sites", "Give fewer sites, targets or prompts.")
@takes(model=as_model, target=as_target, budget=as_bytes)
def site_gradients(
    model: Model,
    sites: Site | str | Iterable[Site | str],
    tokens: TokensLike,
    target: Dictionary | LogitsLike | Metric = TopLogits(),  # noqa: B008
    *,
    policy: Policy = EXACT,
    positions: PositionsLike = None,
    budget: int = DEFAULT_BUDGET,
    progress: bool | Progress = False,
) -> list[SiteGradients]:
    """How targets move with what stands at places of the model, prompt by prompt.

    Args:
        sites: one or several, as TransformerLens names them; all share the backward passes.
        tokens: as the attributions take them.
        target: a choice of logits, as `attrib.latent_to_logit` takes it; a dictionary, whose active latents are the targets; or a
            metric, from the logits of a prompt [positions, d_vocab] to a scalar.
        policy: which nonlinearities are differentiated.
        positions: of the targets, None is all for latents and the last for logits; a metric has none.
        budget: bytes of working memory for the backward passes that go together, beside the result, which is dense.

    Raises:
        InputError: for a bad argument, a site behind the target, or one named twice.
        BudgetError: where the budget is too small for one backward pass.
        NotFiniteError: for a prompt at which a value is NaN or infinite.
    """
    check_policy(policy)
    named = [check_end(model, site, "sites") for site in ([sites] if isinstance(sites, Site | str) else sites)]
    if not named:
        raise InputError("sites: none; expected names such as 'blocks.7.hook_resid_pre'.")
    places = {place(model, site): site for site in named}
    if len(places) < len(named):
        raise InputError(f"sites: {', '.join(map(str, named))}, of which two are one place; give it once.")
    is_metric = callable(target) and not isinstance(target, Dictionary)
    what: Any = target if is_metric or isinstance(target, Dictionary) else as_logits(target)
    if is_metric and positions is not None:
        raise InputError(f"positions: {positions!r} beside a metric, which reads all logits; leave it out.")
    if isinstance(what, Dictionary):
        what = fitted(model, what.to(dtype=model.dtype, device=model.device), "target")
    end = model.config.last if is_metric else read_site(model, what)
    if late := [site for site in named if site.depth > end.depth]:
        raise InputError(f"sites: {late[0]} is behind the target's {end}, which it does not move; choose earlier sites.")
    prompts = to_prompts(model, tokens)
    asked = plain_positions(positions, [len(ids) for ids in prompts])
    one = partial(_of_prompt, model, places, what, end, policy, asked, budget)
    done = track(list(prompts), progress)
    return [of_prompt_number(number, partial(one, number), ids) for number, ids in enumerate(done)]


@torch.no_grad()
def _of_prompt(
    model: Model,
    places: Mapping[Site, Site],
    what: Any,
    end: Site,
    policy: Policy,
    positions: Positions,
    budget: int,
    number: int,
    ids: Int[Tensor, " positions"],
) -> SiteGradients:
    last = model.config.last
    seen = capture(model, ids, {*places, end, *([] if isinstance(what, Dictionary | Direction) else [last])})
    require_finite({str(at): seen[at] for at in sorted(seen, key=lambda at: at.depth)})
    is_metric = not isinstance(what, Dictionary | Logits)
    read = None if is_metric else _read(model, what, seen, end, positions, policy)

    def function(moved: dict[str, Float[Tensor, "positions _"]]) -> Float[Tensor, " targets"]:
        def put(at: Site, value: Tensor) -> Tensor:
            return moved[str(at)] + value - value.detach() if str(at) in moved else value

        for at, value in walk(model, Site(0, "resid_pre"), embed(model, ids), policy=policy, put=put):
            if at.depth == end.depth:
                found = value
                break
        if read is None:
            scalar: Tensor = what(unembed(model, found, policy=policy))
            if not isinstance(scalar, Tensor) or scalar.shape != ():
                raise InputError(f"metric: gave {type(scalar).__name__}; expected a scalar tensor made from the logits.")
            return scalar[None]
        return read.function(found.index_select(0, read.position))

    at = {str(where): seen[where] for where in places}
    values, pull, *_ = vjp(function, at)
    rows = sum(value.numel() for value in at.values()) * values.dtype.itemsize
    working = working_memory(
        model.config, Site(0, "resid_pre"), end, len(ids), model.config.d_vocab if is_metric else 0, values.dtype.itemsize
    )
    chunk = chunk_size(WorkingMemory(working.fixed, working.row + rows), budget, number)
    seeds = torch.eye(len(values), dtype=values.dtype, device=values.device)
    pulled = [vmap(pull)(some)[0] for some in seeds.split(chunk)] if len(values) else []
    gradient = {
        site: (torch.cat([part[str(where)] for part in pulled]) if pulled else seen[where].new_zeros(0, *seen[where].shape)).cpu()
        for where, site in places.items()
    }
    require_finite({f"the gradients by {site}": each.flatten(1) for site, each in gradient.items()})
    if read is None:
        position = torch.tensor([len(ids) - 1])
        labels: tuple[str, ...] = (getattr(what, "__name__", "metric"),)
    else:
        position, labels = read.position.cpu(), read.labels or tuple(map(str, read.latent.tolist()))
    activation = {site: seen[where].cpu() for where, site in places.items()}
    return SiteGradients(
        ids.cpu(), token_strings(model, ids), position, labels, values.cpu(), activation, gradient, model.config.n_heads, policy
    )


def _read(model: Model, what: Dictionary | Logits, seen: Mapping[Site, Tensor], end: Site, positions: Positions, policy: Policy) -> Read:
    """What is read of the value at the end."""
    if isinstance(what, Dictionary):
        return read_latents(what, seen[end], seen[end], positions)
    if isinstance(what, Direction):
        return read_direction(what, seen[end], positions)
    return read_logits(model, what, seen[end], positions, policy)
