"""Continuations of prompts, token by token, with a cache of keys and values: greedy or drawn, streamed, many at once.

Each prompt is read by itself, so what it is continued from does not depend on the others. Then all go on together, one new position
a row; a row that has ended leaves the batch.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.adapters.given import as_dictionaries, as_model, takes
from attrib.causal.changes import Change
from attrib.causal.continuing import Ending, Growing, Piece, decoder_of, grown, stops_of
from attrib.causal.edits import EditsLike
from attrib.causal.onward import Onward, onward
from attrib.causal.sampling import Sampling, drawn, probabilities, uniform
from attrib.core.room import memory_named
from attrib.core.shown import in_one_line
from attrib.core.types import InputError, NotFiniteError, UnsupportedError, warn
from attrib.dictionaries.dictionary import Dictionary
from attrib.models.tokens import PromptIds, TokensLike, to_prompts
from attrib.models.transformer import Model, unembed
from attrib.passes.cached import Cache, empty_cache, extended, stacked


@in_one_line
class Continuation(NamedTuple):
    """What follows one prompt."""

    prompt: Int[Tensor, " positions"]
    tokens: Int[Tensor, " new"]
    """The new tokens, with the one that ended it."""
    text: str
    """Their text, without what ended it; "" where the model has no tokenizer."""
    ended: Ending
    log_probs: Float[Tensor, " new"]
    """Natural logarithm of each token's probability by the model itself (with its edits), before temperature, top_k and top_p."""


@memory_named("generating", "Give fewer prompts, a smaller batch, or a smaller max_tokens.")
@takes(model=as_model, dictionaries=as_dictionaries)
def generate(
    model: Model,
    tokens: TokensLike,
    *,
    max_tokens: int = 50,
    temperature: int | float = 0.0,
    top_k: int | None = None,
    top_p: int | float | None = None,
    seed: int = 0,
    stop: int | str | Sequence[int | str] = (),
    stop_at_end: bool = True,
    stream: Callable[[Piece], Any] | None = None,
    batch: int = 32,
    dictionaries: Sequence[Dictionary] = (),
    edits: EditsLike = (),
    errors: Any = "live",
    edited: str = "all",
) -> tuple[Continuation, ...]:
    """Continue prompts, each by up to `max_tokens` tokens; under edits, where some are given.

    Args:
        tokens: one prompt or several, of any lengths, as the attributions take them.
        temperature: what logits are divided by; 0 takes the most probable token always.
        top_k, top_p: leave out all but the k most probable tokens, then all but the fewest that reach this probability together.
        seed: of the draws. They depend on it, on the prompt's own tokens, and on how many equal prompts come before it in the call: a
            prompt is continued alike alone and among others (but where two tokens are as good as equally probable: a batch rounds
            otherwise), and equal prompts differ.
        stop: texts and token ids that end a continuation; a text is looked for in what is generated alone, and not shown.
        stop_at_end: whether the tokenizer's token that ends a text does, too.
        stream: is called with a `Piece` as each token is there.
        batch: how many prompts go on together; their keys and values are in memory.
        dictionaries: put in together, as `attrib.causal.intervene` does it; their latents are computed along the pass.
        edits: `Set`, `Scale`, `Add`, `Ablate`, or their text, one or a list. Their positions are those of the prompts. Edits without
            positions, and with a slice that is open to the right ("-1:"), go on over all that is generated.
        errors: "live", what a dictionary does not decode is computed along the pass and added, so that a dictionary that is not
            edited changes nothing; False, it is left out. One for all dictionaries, or one for each.
        edited: "all", or "prompt" or "generated", where edits are made alone.

    Raises:
        InputError: for what is no prompt, prompts that with `max_tokens` are longer than the context, options that make no sense, and
            edits and dictionaries that cannot be.
        NotFiniteError: where logits are NaN or infinite.
        UnsupportedError: for a model whose attention is not causal.
    """
    if not model.config.causal:
        raise UnsupportedError(
            f"model: {model.name} has attention that is not causal: every position sees those behind it, and a text is continued by what "
            "stands before. Take a causal model."
        )
    sampling = Sampling(temperature, top_k, top_p, seed)
    for name, count in (("max_tokens", max_tokens), ("batch", batch)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{name}: {count!r}; expected a whole number of at least 1.")
    stops = stops_of(stop, model.tokenizer, model.config.d_vocab, at_end=stop_at_end)
    prompts = to_prompts(model, tokens)
    _check_lengths(model, prompts, max_tokens)
    going = onward(model, dictionaries, edits, errors, edited)
    changes = [going.in_prompt(number, len(ids)) for number, ids in enumerate(prompts)]
    if stop_at_end and stops.end is not None and (ended := [n for n, ids in enumerate(prompts) if int(ids[-1]) == stops.end]):
        warn(f"tokens: prompt {ended[0]} ends in the token that ends a text (id {stops.end}); what follows is another text.")
    seen: Counter[bytes] = Counter()
    begun = []
    for number, ids in enumerate(prompts):
        begun.append(Growing(number, seen[_bytes(ids)]))
        seen[_bytes(ids)] += 1
    decoders = [decoder_of(model.tokenizer, ids.tolist()) for ids in prompts]

    def next_of(logits: Float[Tensor, "rows d_vocab"], live: Sequence[Growing]) -> Iterator[Growing]:
        for one, token, log_prob in zip(live, *_chosen(logits, live, prompts, sampling), strict=True):
            longer, piece = grown(one, token, log_prob, decoders[one.prompt], stops, max_tokens)
            if stream is not None:
                stream(piece)
            yield longer

    def together(rows: Sequence[Growing]) -> Iterator[Growing]:
        read = [_read(going, prompts[one.prompt], changes[one.prompt]) for one in rows]
        return _together(going, read, rows, next_of)

    with torch.no_grad():
        done = [one for first in range(0, len(begun), batch) for one in together(begun[first : first + batch])]
    return tuple(
        Continuation(prompts[one.prompt], torch.tensor(one.tokens), one.text, one.ended or "length", torch.tensor(one.log_probs))
        for one in sorted(done, key=lambda one: one.prompt)
    )


Next = Callable[[Tensor, Sequence[Growing]], Iterator[Growing]]
"""From logits of the rows that go on to the rows, each one token longer."""


def _together(
    going: Onward, read: Sequence[tuple[Float[Tensor, " d_model"], Cache]], live: Sequence[Growing], next_of: Next
) -> Iterator[Growing]:
    """The rows of one batch, each when it has ended.

    Args:
        read: what was read of each row's prompt: the last stream at its last position, and its cache.
    """
    model = going.splice.model
    lasts, caches = zip(*read, strict=True)
    last, cache = torch.stack(lasts), stacked(caches)
    while live:
        longer = list(next_of(unembed(model, last), live))
        on = [row for row, one in enumerate(longer) if one.ended is None]
        yield from (one for one in longer if one.ended is not None)
        live = [longer[row] for row in on]
        if not live:
            return
        cache = cache if len(on) == len(longer) else cache.rows(on)
        new = torch.tensor([one.tokens[-1:] for one in live], device=model.device)
        stream, cache = extended(model, new, cache, going.put(going.generated))
        last = stream[:, -1]


def _read(going: Onward, ids: Int[Tensor, " positions"], changes: Sequence[Change]) -> tuple[Float[Tensor, " d_model"], Cache]:
    """A prompt's last stream at its last position, and its cache."""
    model = going.splice.model
    stream, cache = extended(model, ids, empty_cache(model), going.put(changes))
    return stream[-1], cache


def _chosen(
    logits: Float[Tensor, "rows d_vocab"], live: Sequence[Growing], prompts: PromptIds, sampling: Sampling
) -> tuple[list[int], list[float]]:
    """The next token of each row and the logarithm of its probability."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    most = logits.amax(-1)  # NaN where there is one
    if not bool(most.isfinite().all()):
        row = int((~most.isfinite()).nonzero()[0, 0])
        one = live[row]
        raise NotFiniteError("the logits", len(prompts[one.prompt]) + len(one.tokens) - 1, float(most[row]), one.prompt)
    if sampling.is_greedy:
        token = logits.argmax(-1)
    else:
        u = [uniform(sampling.seed, _bytes(prompts[one.prompt]), one.repeat, len(one.tokens)) for one in live]
        token = drawn(probabilities(logits, sampling), torch.tensor(u, dtype=torch.float64, device=logits.device))
    log_prob = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return token.tolist(), log_prob.tolist()


def _check_lengths(model: Model, prompts: PromptIds, max_tokens: int) -> None:
    context = model.config.n_ctx
    for number, ids in enumerate(prompts):
        if len(ids) + max_tokens > context:
            raise InputError(
                f"max_tokens: {max_tokens} behind prompt {number}, which has {len(ids)}, and the context of {model.name} is {context}; "
                f"expected {context - len(ids)} at most, or a shorter prompt."
            )


def _bytes(ids: Int[Tensor, " positions"]) -> bytes:
    return ids.cpu().numpy().astype("<i8").tobytes()
