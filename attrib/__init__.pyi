from . import dictionary as dictionary
from . import export as export
from . import fit as fit
from . import jobs as jobs
from . import model as model
from . import paths as paths
from . import sources as sources
from . import stats as stats
from . import store as store
from . import types as types
from .attribute import latent_to_latent, latent_to_logit, latent_to_metric, token_to_latent
from .capturing import capture, logits
from .dictionary import Dictionary, decode, encode
from .edges import Edges
from .forecast import Plan, plan
from .model import Model, embed, unembed
from .paths import path
from .replacement import replace
from .segments import block, segment
from .sources import SMOLLM2, check_model, from_hugging_face, from_sae_lens, from_transformer_lens, load_dictionary, load_model
from .store import open, save
from .types import (
    EXACT,
    LINEAR,
    AttribError,
    AttribWarning,
    BudgetError,
    Dense,
    Difference,
    Direction,
    FetchError,
    FormatError,
    InputError,
    Mass,
    NotFiniteError,
    OutOfMemoryError,
    Policy,
    Site,
    Threshold,
    Tokens,
    TopK,
    TopLogits,
    UnsupportedError,
)
from .version import __version__

__all__ = [
    "EXACT",
    "LINEAR",
    "SMOLLM2",
    "AttribError",
    "AttribWarning",
    "BudgetError",
    "Dense",
    "Dictionary",
    "Difference",
    "Direction",
    "Edges",
    "FetchError",
    "FormatError",
    "InputError",
    "Mass",
    "Model",
    "NotFiniteError",
    "OutOfMemoryError",
    "Plan",
    "Policy",
    "Site",
    "Threshold",
    "Tokens",
    "TopK",
    "TopLogits",
    "UnsupportedError",
    "__version__",
    "block",
    "capture",
    "check_model",
    "decode",
    "embed",
    "encode",
    "from_hugging_face",
    "from_sae_lens",
    "from_transformer_lens",
    "latent_to_latent",
    "latent_to_logit",
    "latent_to_metric",
    "load_dictionary",
    "load_model",
    "logits",
    "open",
    "path",
    "plan",
    "replace",
    "save",
    "segment",
    "token_to_latent",
    "unembed",
]
