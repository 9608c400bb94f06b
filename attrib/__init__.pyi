import torch
import typing_extensions

from . import adapters as adapters
from . import causal as causal
from . import core as core
from . import dictionaries as dictionaries
from . import export as export
from . import graph as graph
from . import jobs as jobs
from . import latents as latents
from . import models as models
from . import paths as paths
from . import stats as stats
from . import store as store
from . import training as training
from . import view as view
from .adapters import SMOLLM2, check_model, from_hugging_face, from_sae_lens, from_transformer_lens, load_dictionary, load_model
from .attribution.dfa import HeadAttribution, head_attribution
from .attribution.jacobian import jacobian, plan_jacobian
from .attribution.plan import plan
from .attribution.planned import Plan
from .attribution.questions import latent_to_latent, latent_to_logit, latent_to_metric, token_to_latent
from .attribution.several import latents_to_metric
from .attribution.sites import SiteGradients, site_gradients
from .core.edges import Edges
from .core.rules import Ablation, Gradient, GradientTimesActivation, IntegratedGradients, Patching
from .core.types import (
    EXACT,
    LINEAR,
    RELP,
    AttribError,
    AttribWarning,
    BudgetError,
    Dense,
    Difference,
    Direction,
    ErrorAt,
    FetchError,
    FormatError,
    InputError,
    Mass,
    NotFiniteError,
    OutOfMemoryError,
    Policy,
    Site,
    Threshold,
    TokenLogits,
    TopK,
    TopLogits,
    UnsupportedError,
)
from .core.version import __version__
from .dictionaries.dictionary import Dictionary
from .engine.segment import block, segment
from .models.transformer import Model, embed, unembed
from .models.wrapped import as_module
from .passes.cached import cached_forward
from .passes.capture import capture, forward, walk
from .passes.compose import cut, decode, encode, encode_sparse, reconstruct, writing_at
from .passes.heads import attention_heads, attention_patterns, head_outputs, head_weights
from .passes.replacement import replace
from .paths.path import path
from .store import build_graphs, open, open_graphs, save

__all__ = [
    "EXACT",
    "LINEAR",
    "RELP",
    "SMOLLM2",
    "Ablation",
    "AttribError",
    "AttribWarning",
    "BudgetError",
    "Dense",
    "Dictionary",
    "Difference",
    "Direction",
    "Edges",
    "ErrorAt",
    "FetchError",
    "FormatError",
    "Gradient",
    "GradientTimesActivation",
    "HeadAttribution",
    "InputError",
    "IntegratedGradients",
    "Mass",
    "Model",
    "NotFiniteError",
    "OutOfMemoryError",
    "Patching",
    "Plan",
    "Policy",
    "Site",
    "SiteGradients",
    "Threshold",
    "TokenLogits",
    "TopK",
    "TopLogits",
    "UnsupportedError",
    "__version__",
    "as_module",
    "attention_heads",
    "attention_patterns",
    "block",
    "build_graphs",
    "cached_forward",
    "capture",
    "check_model",
    "cut",
    "decode",
    "embed",
    "encode",
    "encode_sparse",
    "forward",
    "from_hugging_face",
    "from_sae_lens",
    "from_transformer_lens",
    "head_attribution",
    "head_outputs",
    "head_weights",
    "jacobian",
    "latent_to_latent",
    "latent_to_logit",
    "latent_to_metric",
    "latents_to_metric",
    "load_dictionary",
    "load_model",
    "open",
    "open_graphs",
    "path",
    "plan",
    "plan_jacobian",
    "reconstruct",
    "replace",
    "save",
    "segment",
    "site_gradients",
    "token_to_latent",
    "unembed",
    "walk",
    "writing_at",
]

# old names, which `attrib.__getattr__` finds; no import, so they are not listed by `dir`

@typing_extensions.deprecated("attrib.Tokens is now called attrib.TokenLogits")
class Tokens(TokenLogits): ...

@typing_extensions.deprecated("attrib.logits is now called attrib.forward")
def logits(model: Model, tokens: object) -> torch.Tensor: ...
