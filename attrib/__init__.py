"""attrib: which input of a sparse-dictionary view of a transformer moves which output, and by how much.

Pure functions of explicit arguments; see README.md for the first result and docs/ for the rest.
"""

from attrib.attribute import latent_to_latent, latent_to_logit, latent_to_metric, token_to_latent
from attrib.capture import capture
from attrib.dictionary import Dictionary, decode, encode
from attrib.edges import Edges
from attrib.forecast import Plan, plan
from attrib.model import Model, embed, logits, unembed
from attrib.path import path
from attrib.replace import replace
from attrib.segment import block, segment
from attrib.sources import SMOLLM2, check_model, from_hugging_face, from_sae_lens, from_transformer_lens, load_dictionary, load_model
from attrib.store import open_store as open
from attrib.store import save
from attrib.types import (
    EXACT,
    LINEAR,
    AttribError,
    BudgetError,
    Dense,
    Difference,
    Direction,
    FetchError,
    FormatError,
    InputError,
    Mass,
    Policy,
    Site,
    Threshold,
    Tokens,
    TopK,
    TopLogits,
    UnsupportedError,
)

__all__ = [
    "EXACT",
    "LINEAR",
    "SMOLLM2",
    "AttribError",
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
    "Plan",
    "Policy",
    "Site",
    "Threshold",
    "Tokens",
    "TopK",
    "TopLogits",
    "UnsupportedError",
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
