from .activations import ActivationStore, store_activations
from .biases import geometric_median, initial_bias
from .config import ARCHITECTURES, Training
from .contexts import hold_out, pack
from .curves import curves_page, read_curves
from .fitting import Trained, train
from .resampling import resample
from .several import TrainingFile, Watch, read_training_file, train_several, training_file
from .texts import sources_of, visible_text

__all__ = [
    "ARCHITECTURES",
    "ActivationStore",
    "Trained",
    "Training",
    "TrainingFile",
    "Watch",
    "curves_page",
    "geometric_median",
    "hold_out",
    "initial_bias",
    "pack",
    "read_curves",
    "read_training_file",
    "resample",
    "sources_of",
    "store_activations",
    "train",
    "train_several",
    "training_file",
    "visible_text",
]
