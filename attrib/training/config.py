"""What one dictionary is trained with, as pydantic holds it: a key that an architecture has no use for is refused by its name."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, model_validator

from attrib.core.devices import check_device
from attrib.core.types import InputError, Site
from attrib.runs.spec import checked

Architecture = Literal["standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "matryoshka_batchtopk"]
Bias = Literal["zeros", "mean", "geometric-median"]
"""Where b_dec begins, on what is to be written."""
Dtype = Literal["float32", "float64", "float16", "bfloat16"]

_L1 = ("l1_coefficient", "l1_warm_up_steps")
_TOPK = ("k", "aux_loss_coefficient")
_JUMPRELU = (
    "l0_coefficient", "l0_warm_up_steps", "jumprelu_bandwidth", "jumprelu_init_threshold", "jumprelu_sparsity_loss_mode",
    "jumprelu_tanh_scale", "jumprelu_ste_to_input", "pre_act_loss_coefficient", "target_l0",
)  # fmt: skip
TAKES: dict[Architecture, tuple[str, ...]] = {
    "standard": (*_L1, "lp_norm"),
    "gated": _L1,
    "jumprelu": _JUMPRELU,
    "topk": _TOPK,
    "abstopk": _TOPK,
    "batchtopk": (*_TOPK, "topk_threshold_lr"),
    "matryoshka_batchtopk": (*_TOPK, "topk_threshold_lr", "matryoshka_widths"),
}
"""What each architecture has of its own, under sae-lens' names, which are handed to its config as they are."""

RESAMPLED: tuple[Architecture, ...] = ("standard", "gated")
"""Architectures without a loss for dead latents, which may be resampled instead."""
_RESAMPLING = ("resample_rows", "resample_scale")

TRANSCODERS: tuple[Architecture, ...] = ("standard", "jumprelu", "batchtopk", "matryoshka_batchtopk")
"""Architectures whose trained form sae-lens has as a transcoder too: of ReLU or JumpReLU."""


def _site(name: str) -> str:
    try:
        return str(Site.parse(name))
    except InputError as error:
        raise ValueError(str(error)) from None


def _device(name: str) -> str:
    try:
        return str(check_device(name))
    except InputError as error:
        raise ValueError(str(error).removeprefix("device: ")) from None


def _whole_where_it_is(number: float) -> int | float:
    return int(number) if number == int(number) else number


SiteName = Annotated[str, AfterValidator(_site)]
Count = Annotated[int, Field(ge=1, lt=1 << 40, strict=True)]
Steps = Annotated[int, Field(ge=0, lt=1 << 40, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class Training(BaseModel, extra="forbid", frozen=True):
    """One dictionary: where it stands, what it is, and the numbers of its training. None is sae-lens' own default.

    A step is one batch. Coefficients and learning rates are for activations that are scaled to a mean norm of √d, which is
    undone in the weights at the end; see `scale`.
    """

    reads: SiteName
    writes: SiteName | None = None
    """Where a transcoder writes; None for a SAE, which writes where it reads."""
    architecture: Architecture
    width: Count
    """Latents (d_sae)."""
    skip: bool = False
    """Whether a transcoder has a linear map beside its latents (W_skip)."""

    k: Annotated[Positive, AfterValidator(_whole_where_it_is)] | None = None
    """Active latents of a token; of batchtopk on average, so it need not be whole. The architectures that have it need it."""
    aux_loss_coefficient: Coefficient | None = None
    """Of the loss by which dead latents learn what the others leave."""
    topk_threshold_lr: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """How fast the threshold follows that a batchtopk dictionary is saved with."""
    matryoshka_widths: list[Count] | None = None
    """Widths of the inner dictionaries, the smallest first; `width` itself is the last, and is added where it is missing."""
    l1_coefficient: Coefficient | None = None
    l1_warm_up_steps: Steps | None = None
    lp_norm: Positive | None = None
    l0_coefficient: Coefficient | None = None
    l0_warm_up_steps: Steps | None = None
    jumprelu_bandwidth: Positive | None = None
    jumprelu_init_threshold: Coefficient | None = None
    jumprelu_sparsity_loss_mode: Literal["step", "tanh", "quadratic"] | None = None
    jumprelu_tanh_scale: Positive | None = None
    jumprelu_ste_to_input: bool | None = None
    pre_act_loss_coefficient: Coefficient | None = None
    target_l0: Positive | None = None

    samples: Count = 2_000_000
    """Rows that are trained on, each as often as it takes; what is left over of whole batches is left out."""
    batch: Count = 2048
    lr: Positive = 1e-3
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_end: Positive | None = None
    """Where a cosine ends; None is a tenth of `lr`."""
    lr_warm_up_steps: Steps | None = None
    """None is a quarter of all steps, and 100 at most."""
    lr_decay_steps: Steps | None = None
    """Steps at the end in which the learning rate falls to 0. None is a fifth of all."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.999
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] = 0
    bias: Bias = "zeros"
    scale: Literal["mean-norm", "none"] = "mean-norm"
    """Whether activations come scaled to a mean norm of √d, so that one learning rate does for all sites."""
    max_norm: Positive | None = None
    """Rows with a norm of so many medians, where it reads or writes, are left out: attention sinks. None leaves none out."""

    dead_feature_window: Count = 200
    """Steps after which a latent that was not active counts as dead."""
    resample_every: Count | None = None
    """Steps between resamplings of dead latents, none of them in `lr_decay_steps`; None never does."""
    resample_rows: Annotated[int, Field(ge=1, lt=1 << 24, strict=True)] = 8192
    """Rows of which the badly reconstructed ones are found."""
    resample_scale: Positive = 0.2
    """Norm of a new encoder row, of the mean norm of the living ones."""

    device: Annotated[str, AfterValidator(_device)] = "cpu"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    autocast: bool = False
    """Whether products are in bfloat16."""
    saved_as: Dtype | None = None
    """Dtype of the weights on disk; None is `dtype`."""
    checkpoint_every: Count | None = None
    """Steps; None is a fifth of all."""
    log_every: Count | None = None
    """Steps; None makes 200 rows."""

    @property
    def site(self) -> Site:
        """Where it reads."""
        return Site.parse(self.reads)

    @property
    def site_out(self) -> Site:
        """Where it writes."""
        return self.site if self.writes is None else Site.parse(self.writes)

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes elsewhere than it reads."""
        return self.site_out != self.site

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.samples // self.batch

    @property
    def own(self) -> dict[str, Any]:
        """The numbers that only this architecture has, as far as they are given, for sae-lens' config."""
        given = {name: value for name in TAKES[self.architecture] if (value := getattr(self, name)) is not None}
        return given | {"k": float(self.k)} if self.k is not None and "batchtopk" in self.architecture else given

    @property
    def warm_up(self) -> int:
        """Steps in which the learning rate rises."""
        return min(100, self.steps // 4) if self.lr_warm_up_steps is None else self.lr_warm_up_steps

    @property
    def decay(self) -> int:
        """Steps in which it falls to 0."""
        return self.steps // 5 if self.lr_decay_steps is None else self.lr_decay_steps

    @property
    def logged(self) -> int:
        """Steps between two rows of the curves."""
        return self.log_every or max(1, self.steps // 200)

    @property
    def checkpointed(self) -> int:
        """Steps between two checkpoints."""
        return self.checkpoint_every or max(1, self.steps // 5)

    def resamples_after(self, step: int) -> bool:
        """Whether dead latents are resampled once so many steps are done."""
        return self.resample_every is not None and step % self.resample_every == 0 and step <= self.steps - self.decay

    @model_validator(mode="after")
    def _takes_what_it_is_given(self) -> "Training":
        taken = TAKES[self.architecture]
        for name in sorted({name for names in TAKES.values() for name in names} - {*taken}):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: no effect on {self.architecture}, which takes {', '.join(taken)}; leave it out.")
        if "k" in taken:
            self._check_k()
        if self.resample_every is not None and self.architecture not in RESAMPLED:
            own = "has a loss for dead latents (aux_loss_coefficient)" if "k" in taken else "has pre_act_loss_coefficient for dead latents"
            raise ValueError(f"resample_every: {self.architecture} is not resampled; it {own}. Leave it out.")
        if self.resample_every is None and (given := sorted(self.model_fields_set & {*_RESAMPLING})):
            raise ValueError(f"{given[0]}: no effect without resample_every; leave it out.")
        return self

    def _check_k(self) -> None:
        if self.k is None:
            raise ValueError(f"k: missing, and {self.architecture} needs it: how many latents are active at a token.")
        if self.architecture in ("topk", "abstopk") and self.k != int(self.k):
            raise ValueError(f"k: {self.k}; expected a whole number, since {self.architecture} has so many latents at each token.")
        if self.k > self.width or self.k * self.batch < 1:
            raise ValueError(f"k: {self.k:g} active latents of {self.width}; expected at most the width, and one in a batch at least.")

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> "Training":
        mode = self.jumprelu_sparsity_loss_mode
        if self.jumprelu_tanh_scale is not None and mode != "tanh":
            raise ValueError("jumprelu_tanh_scale: no effect without jumprelu_sparsity_loss_mode 'tanh'; leave it out.")
        if (self.target_l0 is not None) != (mode == "quadratic"):
            raise ValueError("target_l0: jumprelu_sparsity_loss_mode 'quadratic' needs it, and no other takes it.")
        if self.target_l0 is not None and self.target_l0 > self.width:
            raise ValueError(f"target_l0: {self.target_l0:g} of {self.width} latents; expected the width at most.")
        widths = self.matryoshka_widths
        if self.architecture == "matryoshka_batchtopk" and not widths:
            raise ValueError("matryoshka_widths: missing, and matryoshka_batchtopk needs at least one, under the width.")
        if widths and (sorted({*widths}) != widths or widths[-1] > self.width):
            raise ValueError(f"matryoshka_widths: {widths}; expected numbers that grow, the width {self.width} at most.")
        return self

    @model_validator(mode="after")
    def _stands_somewhere(self) -> "Training":
        if not self.is_transcoder:
            if self.skip:
                raise ValueError("skip: a dictionary that writes where it reads has no skip connection; leave it out, or give writes.")
            return self
        if self.site_out.depth <= self.site.depth:
            raise ValueError(f"writes: {self.writes} is computed no later than {self.reads}, where it reads; expected a place behind it.")
        if self.architecture not in TRANSCODERS:
            raise ValueError(
                f"architecture: a transcoder of {self.architecture}, which sae-lens could not load; expected {', '.join(TRANSCODERS)}."
            )
        return self

    @model_validator(mode="after")
    def _has_time(self) -> "Training":
        if not self.steps:
            raise ValueError(f"samples: {self.samples}, fewer than a batch of {self.batch}; give more, or smaller batches.")
        if self.warm_up + self.decay > self.steps:
            raise ValueError(
                f"lr_warm_up_steps: {self.warm_up} and {self.decay} of lr_decay_steps are more than all {self.steps} steps; give fewer."
            )
        if self.lr_end is not None and self.lr_scheduler == "constant":
            raise ValueError("lr_end: no effect on a constant learning rate; leave it out, or take lr_scheduler 'cosine'.")
        return self


def training(given: "Training | dict[str, Any]", argument: str = "config") -> Training:
    """A training as it is, or of its keys. Raises InputError that names every key that is wrong."""
    return given if isinstance(given, Training) else checked(Training, given, argument)


ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
