"""Sparse dictionaries as pure functions: parameters as a pytree, a frozen config, encode and decode.

    x'  = (x - shift) / scale                    normalise the input (none, layer_norm, constant_norm_rescale)
    pre = (x' - b_dec) W_enc + b_enc             b_dec subtracted only with apply_b_dec_to_input
    f   = pre · [pre passes the rule]            see `Rule`
    y^  = (f W_dec + b_dec) · scale + shift      decode; transcoders do not put scale and shift back
    y   = y^ + x W_skip + error                  what stands at the sites that it writes

All kinds differ in one mask alone, so everything after it is written once, and where a latent is active its
derivative is that of `pre`: 1 with respect to `pre`, then through W_enc and through the normalisation. What
else a kind has is folded into these parameters where it is read (sources/): decoder norms of TopK dictionaries
that rescale by them, finetuning factors, and gates. A gated latent with gate s + b_gate > 0 and magnitude
relu(e^r s + b_mag), s = x W, is a JumpReLU latent of encoder e^r W, bias b_mag and threshold b_mag - e^r b_gate,
exactly (Rajamanoharan et al. 2024, arXiv:2404.16014, appendix on weight tying).

A dictionary reads one site and writes one or more: an SAE where it reads, a transcoder from mlp_in to mlp_out,
a layer of a cross-layer transcoder to mlp_out of its own and all later layers, side by side in W_dec and b_dec.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple, assert_never, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from attrib.core.devices import check_device, check_dtype
from attrib.core.fingerprints import Fingerprinted, moved
from attrib.core.finite import ask, require_finite, total
from attrib.core.shown import in_one_line
from attrib.core.sparse import canonical, columns_of, holds
from attrib.core.types import FormatError, InputError, Site, SparseLatents, UnsupportedError
from attrib.core.weights import OpenedFile, check_finite
from attrib.dictionaries.metadata import NOTHING, Metadata

Rule = Literal["relu", "jumprelu", "jump", "topk", "rawtopk", "abstopk"]
"""Which latents pass: `relu` above 0; `jumprelu` above 0 and above the threshold; `jump` above the threshold,
which may be negative; `topk` above 0 and among the k largest; `rawtopk` among the k largest, which may be negative;
`abstopk` among the k of largest size, of either sign."""

COMPETING: tuple[Rule, ...] = ("topk", "rawtopk", "abstopk")
"""The rules by which latents compete for k places."""

Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]

NO_SKIP = torch.empty(0, 0)

TILE = 2048
"""Encoder columns that sparse encoding looks at together on a CPU, and at least."""

MOST_OF_A_TILE = 1 << 22
"""Pre-activations that it makes at once on an accelerator, where each tile is waited for."""


class DictionaryParams(NamedTuple):
    """Every tensor of a dictionary. d_out is the width of all that it writes, side by side; d_in for an SAE."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " d_sae"]  # zero but for jumprelu and jump
    W_skip: Float[Tensor, "d_in_or_0 d_out_or_0"] = NO_SKIP  # empty where there is no skip connection

    def __repr__(self) -> str:
        skip = f", W_skip {list(self.W_skip.shape)}" if self.W_skip.numel() else ""
        return f"DictionaryParams(W_enc {list(self.W_enc.shape)}, W_dec {list(self.W_dec.shape)}{skip}, {_dtypes(self)})"


def _dtypes(params: DictionaryParams) -> str:
    """The dtype of the weights and, of a lazy dictionary, that of the biases beside them."""
    return " and ".join(dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in (params.W_enc, params.W_dec, params.b_enc)))


@dataclass(frozen=True)
class DictionaryConfig:
    """The static facts of a dictionary.

    `site` is where it reads; `writes` is empty where it writes there too, and `part_of` all that the whole writes, where this is a
    part of a dictionary that writes at some of its places (`attrib.writing_at`). `k` is used by the rules of COMPETING
    alone. `puts_scale_back` is false for transcoders: they normalise what they read and write what they decode.
    `kind` is its own library's word for it, and `hook_name` and `hook_name_out` that library's words for `site` and
    `writes`, which may say more: behind "ln2.hook_normalized" the norm's weights are still to come (see `after_gain`).
    `metadata` is what its files say of its training; nothing is computed by it, and configs are equal without it.
    `lazy` says that W_enc and W_dec are maps of a file, in its dtype: what is read of them takes the dtype of what it meets.
    """

    site: Site
    rule: Rule
    k: int | None
    apply_b_dec_to_input: bool
    normalisation: Normalisation
    model_name: str | None
    writes: tuple[Site, ...] = ()
    part_of: tuple[Site, ...] = ()
    puts_scale_back: bool = True
    kind: str = ""
    hook_name: str | None = None
    hook_name_out: str | None = None
    lazy: bool = False
    metadata: Metadata = field(default=NOTHING, compare=False)

    def __post_init__(self) -> None:
        for name, words in (("rule", get_args(Rule)), ("normalisation", get_args(Normalisation))):
            if (word := getattr(self, name)) not in words:
                raise UnsupportedError(f"{name}: {word!r}; attrib computes {', '.join(map(repr, words))}.")


@in_one_line
class InputScale(NamedTuple):
    """What normalisation took out of the input and decoding puts back, per position."""

    shift: Float[Tensor, "*batch positions 1"]
    scale: Float[Tensor, "*batch positions 1"]


@dataclass(frozen=True)
class Dictionary(Fingerprinted):
    """Parameters and config of one dictionary: an SAE, a transcoder, or one layer of a cross-layer transcoder."""

    params: DictionaryParams
    config: DictionaryConfig
    name: str
    files: tuple[OpenedFile, ...] = ()
    """The files that W_enc and W_dec of a lazy dictionary are maps of."""

    def __repr__(self) -> str:
        c = self.config
        rule = c.rule if c.k is None else f"{c.rule} k={c.k}"
        kind = rule if c.kind in ("", c.rule) else f"{c.kind} as {rule}"
        writes = f" to {c.writes[0]}{' and later' if len(c.writes) > 1 else ''}" if c.writes else ""
        sizes = f"{self.d_in} -> {self.d_sae} -> {self.d_out}"
        return f"Dictionary({self.name!r}, {kind}, {sizes} from {c.site}{writes}, {_dtypes(self.params)}{', lazy' if c.lazy else ''})"

    @property
    def d_in(self) -> int:
        """Width of the vectors that it reads."""
        return self.params.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """How many latents it has."""
        return self.params.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of all that it writes, side by side."""
        return self.params.W_dec.shape[1]

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.config.site

    @property
    def writes(self) -> tuple[Site, ...]:
        """Where it writes, in the order of its decoder's parts."""
        return self.config.writes or (self.config.site,)

    @property
    def has_skip(self) -> bool:
        """Whether a linear map of its input is added to what its latents write."""
        return self.params.W_skip.numel() > 0

    def to(self, *, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None) -> "Dictionary":
        """Put the dictionary into another dtype or on another device. Maps of a file stay in its dtype, and on this device.

        Raises:
            InputError: for a dtype that is none, and a device that is not there or cannot read the file.
        """
        dtype = None if dtype is None else check_dtype(dtype)
        device = None if device is None else check_device(device)
        if self.config.lazy and device not in (None, self.params.b_enc.device):
            raise InputError(f"device: {device}, but {self.name} is read from its file as it is used; load it without lazy=True.")
        params = pytree.tree_map(lambda p: p.to(dtype=dtype, device=device), self.params._replace(**self._maps(empty=True)))
        if dtype is not None and torch.finfo(dtype).max < torch.finfo(self.params.b_enc.dtype).max:
            check_finite(params._asdict(), f"{self.name} in {dtype}")
        params = params._replace(**self._maps())
        moved(self.params, params)
        return replace(self, params=params)

    def _maps(self, *, empty: bool = False) -> dict[str, Tensor]:
        """The parameters that are maps of a file."""
        maps = {"W_enc": self.params.W_enc, "W_dec": self.params.W_dec} if self.config.lazy else {}
        return dict.fromkeys(maps, NO_SKIP) if empty else maps

    @property
    def _is_fixed(self) -> bool:
        # maps of a file cannot be written, and reading all of it at every call is what they are there to avoid
        return self.config.lazy

    def _hashed(self, how: Callable[..., str]) -> str:
        c = self.config
        facts = (c.site, self.writes, c.rule, c.k, c.apply_b_dec_to_input, c.normalisation, c.puts_scale_back)
        found = how([p for p in self.params if p.numel()], *facts)
        self.check_files()
        return found

    def check_files(self) -> None:
        """Raises FormatError where a file that is read as it is used was written into since it was opened."""
        for file in self.files:
            file.check()

    def encoder(self, first: int = 0, last: int | None = None) -> Float[Tensor, "d_in _"]:
        """W_enc, or some of its columns, in the file's dtype where they lie in one."""
        return self._read("W_enc", self.params.W_enc[:, first:last])

    def encoder_columns(self, latent: Int[Tensor, " latents"]) -> Float[Tensor, "latents d_in"]:
        """Columns of W_enc, each a row here."""
        return self._read("W_enc", columns_of(self.params.W_enc, latent))

    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """W_dec, in the file's dtype where it lies in one."""
        return self._read("W_dec", self.params.W_dec)

    def decoder_rows(self, latent: Int[Tensor, " latents"], part: slice = slice(None)) -> Float[Tensor, "latents _"]:
        """Rows of W_dec, or a part of them."""
        return self._read("W_dec", self.params.W_dec[:, part].index_select(0, latent))

    def _read(self, key: str, values: Tensor) -> Tensor:
        """What was just taken of a weight. Where that was from a file, the file is still what was opened and the numbers are finite."""
        if self.config.lazy:
            self.check_files()
            check_finite({key: values}, f"{self.name}, among what was read of it just now", FormatError)
        return values


# ---------------------------------------------------------------------------------------- the encoder


def normalise_input(
    dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]
) -> tuple[Float[Tensor, "*batch positions d_in"], InputScale]:
    """The input as the encoder wants it, and the scale that decoding puts back: 1 and 0 for transcoders.

    `layer_norm` divides by the unbiased deviation plus 1e-5 and, like sae-lens, multiplies back without the 1e-5.
    """
    one = torch.ones_like(x[..., :1])
    back = InputScale(torch.zeros_like(one), one)
    match dictionary.config.normalisation:
        case "layer_norm":
            shift = x.mean(-1, keepdim=True)
            scale = (x - shift).std(-1, keepdim=True) if x.numel() else shift  # of no rows it would warn
            x, taken = (x - shift) / (scale + 1e-5), InputScale(shift, scale)
        case "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / dictionary.d_in**0.5
            x, taken = x / scale, InputScale(torch.zeros_like(scale), scale)
        case "none":
            taken = back
    return x, taken if dictionary.config.puts_scale_back else back


def _encoder_input(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_in"]:
    x, _ = normalise_input(dictionary, x)
    return x - dictionary.params.b_dec if dictionary.config.apply_b_dec_to_input else x


def pre_activations(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_sae"]:
    """Encoder output before the activation rule; the value of every latent that the rule lets through."""
    return _encoder_input(dictionary, x) @ dictionary.encoder().to(x.dtype) + dictionary.params.b_enc


def _passes(rule: Rule, pre: Float[Tensor, "*any"], threshold: Float[Tensor, "*any_or_last"]) -> Bool[Tensor, "*any"]:
    """The rule without competition: what each latent decides alone."""
    match rule:
        case "jump":
            return (pre > threshold) & (pre != 0)
        case "abstopk" | "rawtopk":
            return pre != 0
        case "relu" | "jumprelu" | "topk":
            return (pre > 0) & (pre > threshold)
    assert_never(rule)


def _competes(rule: Rule, pre: Float[Tensor, "*any"]) -> Float[Tensor, "*any"] | None:
    """The size by which latents compete for k places; None for rules without competition."""
    match rule:
        case "topk" | "rawtopk":
            return pre
        case "abstopk":
            return pre.abs()
        case "relu" | "jumprelu" | "jump":
            return None
    assert_never(rule)


def _largest(size: Float[Tensor, "*batch among"], k: int) -> Bool[Tensor, "*batch among"]:
    """The k largest of every row. Of equal ones the first win, so that any order of computation selects the same."""
    size = size.where(size == size, -torch.inf)  # not a number loses to all, and exactly k win
    least = size.topk(k, dim=-1).values[..., -1:]
    above, tied = size > least, size == least
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= k - above.sum(-1, keepdim=True)))


def active(dictionary: Dictionary, pre: Float[Tensor, "*batch positions d_sae"]) -> Bool[Tensor, "*batch positions d_sae"]:
    """Which latents the rule lets through. Of latents that tie for the last of k places, the first win."""
    config = dictionary.config
    passes = _passes(config.rule, pre, dictionary.params.threshold)
    size = _competes(config.rule, pre)
    return passes if size is None else passes & _largest(size, _places(dictionary))


def _places(dictionary: Dictionary) -> int:
    assert dictionary.config.k is not None  # checked where the dictionary is read
    return dictionary.config.k


def encode(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_sae"]:
    """All latents, dense. `encode_sparse` finds the active ones, and `encode_at` differentiates, without a tensor of this size.

    Raises:
        NotFiniteError: where a pre-activation is NaN or infinite, but for transforms of torch.func.
    """
    pre = pre_activations(dictionary, x)
    if not is_functorch_wrapped_tensor(pre):  # transforms ask nothing that depends on values
        _require_numbers(dictionary, x, [total(pre)])
    return pre.where(active(dictionary, pre), torch.zeros_like(pre))


def encode_at(
    dictionary: Dictionary,
    x: Float[Tensor, "positions d_in"],
    position: Int[Tensor, " targets"],
    latent: Int[Tensor, " targets"],
    gate: Bool[Tensor, " targets"] | None = None,
) -> Float[Tensor, " targets"]:
    """Chosen latents at chosen positions, by gathering their encoder columns alone.

    Its derivative is 1 with respect to `pre` where the latent is active and 0 elsewhere: above the threshold
    (ReLU, JumpReLU), through the magnitude with the gate held (gated, which is JumpReLU here), with the
    selection held (TopK of any kind); and from there through the normalisation, which is differentiated.

    Args:
        gate: for rules with competition, which targets are among the k largest at the primal point (`wins_at`): the
            competition with all other latents, which cannot be seen from the chosen ones. It does not change
            in a neighbourhood of the primal, so derivatives are exact. Ignored by the other rules.
    """
    p, rule = dictionary.params, dictionary.config.rule
    x = _encoder_input(dictionary, x)
    columns = dictionary.encoder_columns(latent)
    pre = (x.index_select(0, position) * columns).sum(-1) + p.b_enc.index_select(0, latent)
    above = _passes(rule, pre, p.threshold.index_select(0, latent))
    if rule in COMPETING and gate is not None:
        above = above & gate
    return pre.where(above, torch.zeros_like(pre))


def selected(dictionary: Dictionary) -> Dictionary:
    """Give a dictionary for latents that have been selected already: `encode_at` gives the value of whichever it is asked for."""
    return replace(dictionary, config=replace(dictionary.config, rule="abstopk"))


# ------------------------------------------------------------------------------- sparse from the start


def tile_columns(positions: int, device: torch.device) -> int:
    """How many encoder columns are multiplied together: on an accelerator, which is waited for after each tile, as many as do no harm."""
    return TILE if device.type == "cpu" else max(TILE, MOST_OF_A_TILE // max(positions, 1))


def encode_sparse(dictionary: Dictionary, x: Float[Tensor, "positions d_in"], *, tile: int | None = None) -> SparseLatents:
    """The active latents of one prompt, sorted by (position, latent), without a dense [positions, d_sae].

    Args:
        tile: how many encoder columns are multiplied together; None is `tile_columns`. Memory is a few times [positions, tile], and
            for rules with competition [positions, k + tile], beside the active latents themselves.

    Raises:
        InputError: for a tile without columns.
        NotFiniteError: where a pre-activation is NaN or infinite.
    """
    tile = tile_columns(len(x), x.device) if tile is None else tile
    if tile < 1:
        raise InputError(f"tile: {tile} encoder columns; expected at least 1. Leave it out for {TILE}.")
    sums: list[Tensor] = []
    tiles = _tiles(dictionary, _encoder_input(dictionary, x), tile, sums)
    found = _first_of_k(dictionary, tiles) if _competes(dictionary.config.rule, x) is not None else _above(dictionary, tiles)
    _require_numbers(dictionary, x, sums)
    return found


def _tiles(
    dictionary: Dictionary, x: Float[Tensor, "positions d_in"], tile: int, sums: list[Tensor]
) -> Iterator[tuple[int, Float[Tensor, "positions columns"]]]:
    """Pre-activations of some columns at a time, with the first column's number; the sum of each is added to `sums`."""
    p = dictionary.params
    for first in range(0, dictionary.d_sae, tile):
        pre = x @ dictionary.encoder(first, first + tile).to(x.dtype) + p.b_enc[first : first + tile]
        sums.append(total(pre))
        yield first, pre


def _require_numbers(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"], sums: Sequence[Tensor]) -> None:
    """Raises NotFiniteError where a pre-activation is NaN or infinite, by the sums of all of them; which is looked up only then.

    A threshold that is NaN lets nothing pass, so it is asked for with them: InputError. An infinite one may mean that.
    """
    # the largest is none where any is, and the only one that this leaves as it is
    largest = dictionary.params.threshold.amax().nan_to_num(torch.nan, 0, 0)
    ask([*sums, largest], partial(_look_for_numbers, dictionary, x))


def _look_for_numbers(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> None:
    threshold = dictionary.params.threshold
    wrong = threshold.isnan()
    if wrong.any():
        raise InputError(f"threshold: nan at latent {int(wrong.nonzero()[0])} of dictionary {dictionary.name}; load it anew.")
    rows = x.flatten(0, -2)
    require_finite({f"{dictionary.site}, which {dictionary.name} reads": rows})
    for first, pre in _tiles(dictionary, _encoder_input(dictionary, rows), TILE, []):
        latents = f"the pre-activations of {dictionary.name} (latents {first} to {first + pre.shape[1] - 1})"
        require_finite({latents: pre}, from_below=True)


def _above(dictionary: Dictionary, tiles: Iterator[tuple[int, Float[Tensor, "positions _"]]]) -> SparseLatents:
    """Rules without competition: each tile is decided alone."""
    found = []
    for first, pre in tiles:
        on = _passes(dictionary.config.rule, pre, dictionary.params.threshold[first : first + pre.shape[1]])
        position, latent = on.nonzero(as_tuple=True)
        found.append((position, latent + first if first else latent, pre[position, latent]))  # the mask would be looked through again
    if len(found) == 1:  # in order already
        return SparseLatents(*found[0])
    return canonical(SparseLatents(*(torch.cat(column) for column in zip(*found, strict=True))))


def _first_of_k(dictionary: Dictionary, tiles: Iterator[tuple[int, Float[Tensor, "positions _"]]]) -> SparseLatents:
    """Rules with competition: the winners so far meet the winners of each tile, both with their latents ascending,
    so that among equals the first latent wins as in `active`."""
    k, rule = _places(dictionary), dictionary.config.rule
    best: tuple[Tensor, Tensor] | None = None
    for first, pre in tiles:
        won = _winners(rule, pre, torch.arange(first, first + pre.shape[1], device=pre.device).expand(pre.shape), k)
        best = won if best is None else _winners(rule, torch.cat([best[0], won[0]], -1), torch.cat([best[1], won[1]], -1), k)
    assert best is not None  # a dictionary has at least one latent
    value, latent = best
    on = _passes(rule, value, torch.zeros_like(value))
    position, place = on.nonzero(as_tuple=True)
    return SparseLatents(position, latent[position, place], value[position, place])


def _winners(
    rule: Rule, pre: Float[Tensor, "positions among"], latent: Int[Tensor, "positions among"], k: int
) -> tuple[Float[Tensor, "positions won"], Int[Tensor, "positions won"]]:
    """The k largest (or all, where there are fewer) and their latents, in the order in which they came."""
    size = cast(Tensor, _competes(rule, pre))
    k = min(k, pre.shape[1])
    won = _largest(size, k)  # k in every row, so what it selects is a rectangle
    columns = torch.nonzero_static(won, size=len(pre) * k)[:, 1].view(len(pre), k)
    return pre.gather(1, columns), latent.gather(1, columns)


def wins_at(
    dictionary: Dictionary,
    x: Float[Tensor, "positions d_in"],
    position: Int[Tensor, " targets"],
    latent: Int[Tensor, " targets"],
    *,
    tile: int | None = None,
) -> Bool[Tensor, " targets"]:
    """Which of the given latents are active on `x`, competition included: the `gate` of `encode_at`."""
    return holds(encode_sparse(dictionary, x, tile=tile), position, latent)


# ---------------------------------------------------------------------------------------- the decoder


def decode(
    dictionary: Dictionary,
    latents: Float[Tensor, "*batch positions d_sae"],
    scale: InputScale | None = None,
) -> Float[Tensor, "*batch positions d_out"]:
    """What dense latents write, at all sites side by side, without the skip connection.

    Args:
        scale: what `normalise_input` returned for the input; needed by dictionaries that normalise.
    """
    out = latents @ dictionary.decoder().to(latents.dtype) + dictionary.params.b_dec
    return out if scale is None else out * scale.scale + scale.shift


def decode_at(
    dictionary: Dictionary,
    value: Float[Tensor, " active"],
    position: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
    scale: InputScale,
) -> Float[Tensor, "positions d_out"]:
    """What sparse latents write, by gathering their decoder rows alone; without the skip connection."""
    rows = value[:, None] * dictionary.decoder_rows(latent)
    out = dictionary.params.b_dec.expand(scale.shift.shape[0], -1).index_add(0, position, rows)
    return out * scale.scale + scale.shift


def skip(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_out"]:
    """The linear map of the input, as it is read and not normalised, beside the latents; zero where there is none."""
    if not dictionary.has_skip:
        return x.new_zeros(*x.shape[:-1], dictionary.d_out)
    return x @ dictionary.params.W_skip


def reconstruct(dictionary: Dictionary, x: Float[Tensor, "*batch positions d_in"]) -> Float[Tensor, "*batch positions d_out"]:
    """The dictionary's whole forward: decode(encode(x)) with the input's own scale, plus skip(x)."""
    out = decode(dictionary, encode(dictionary, x), normalise_input(dictionary, x)[1])
    return out + skip(dictionary, x) if dictionary.has_skip else out


def split(dictionary: Dictionary, written: Float[Tensor, "*batch d_out"]) -> dict[Site, Float[Tensor, "*batch _"]]:
    """What is written (or decoder rows, or b_dec, or errors), by the site at which it is written."""
    parts = written.chunk(len(dictionary.writes), dim=-1)
    return dict(zip(dictionary.writes, parts, strict=True))


# -------------------------------------------------------------------------------- another way of reading


def after_gain(dictionary: Dictionary, w: Float[Tensor, " d_in"], b: Float[Tensor, " d_in"]) -> Dictionary:
    """Give a dictionary that reads x w + b in place of x: behind a norm's weights rather than before them.

    A transcoder trained on "ln2.hook_normalized" of a model whose norms keep their weights reads before them,
    while attrib's mlp_in is what enters the MLP:  x W_enc = (x w + b) W_enc / w - (b / w) W_enc. An SAE, which writes
    there too, then writes y w + b in place of y.

    Raises:
        InputError: where a weight is zero, or the dictionary does more with its input than a linear map can.
    """
    config, p = dictionary.config, dictionary.params
    if config.lazy:
        raise InputError(f"dictionary {dictionary.name}: its encoder stays in its file; load it without lazy=True to change it.")
    if config.normalisation != "none":
        raise InputError(
            f"dictionary {dictionary.name}: it normalises its input ({config.normalisation}), "
            "so a norm's weights cannot be folded into its encoder."
        )
    if (w == 0).any():
        raise InputError(f"w: {int((w == 0).sum())} of {len(w)} weights are zero; what they remove cannot be read behind them.")
    offset, W_enc = b / w, p.W_enc / w[:, None]
    subtracted = offset + p.b_dec if config.apply_b_dec_to_input else offset
    p = p._replace(W_enc=W_enc, b_enc=p.b_enc - subtracted @ p.W_enc)
    if dictionary.has_skip:
        p = p._replace(W_skip=p.W_skip / w[:, None], b_dec=p.b_dec - offset @ p.W_skip)
    if dictionary.writes == (dictionary.site,):
        p = p._replace(W_skip=p.W_skip * w if dictionary.has_skip else p.W_skip, W_dec=p.W_dec * w, b_dec=p.b_dec * w + b)
    check_finite(p._asdict(), f"{dictionary.name} behind the norm's weights")
    return replace(dictionary, params=p, config=replace(config, hook_name=None, apply_b_dec_to_input=False))
