from .dictionaries import load_dictionaries, load_dictionary
from .dictionaries.sae_lens import from_sae_lens
from .dictionaries.sae_lens_writing import save_dictionary
from .dictionaries.shipping import shipped, shipped_folder
from .dictionaries.tensors import from_tensors
from .given import as_dictionary, as_model
from .models import LENS_OPTIONS, SMOLLM2, load_model
from .models.check import Check, check_model
from .models.hugging_face import from_hugging_face
from .models.transformer_lens import from_transformer_lens

__all__ = [
    "LENS_OPTIONS",
    "SMOLLM2",
    "Check",
    "as_dictionary",
    "as_model",
    "check_model",
    "from_hugging_face",
    "from_sae_lens",
    "from_tensors",
    "from_transformer_lens",
    "load_dictionaries",
    "load_dictionary",
    "load_model",
    "save_dictionary",
    "shipped",
    "shipped_folder",
]
