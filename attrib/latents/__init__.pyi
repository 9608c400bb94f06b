from .banding import quantile_bands
from .evaluating import ByWay, Evaluation, Quality, evaluate
from .files import faults, open, save
from .finding import Found, search
from .labels import Label, Labels, logit_labels, read_labels, save_labels, token_labels
from .links import neuronpedia_link, neuronpedia_list
from .neighbours import Nearest, nearest
from .prompted import Strongest, strongest
from .subspace import Components, pca
from .surveyed import Asked, Band, Example, LatentSurvey, Survey
from .surveying import merge, survey

__all__ = [
    "Asked",
    "Band",
    "ByWay",
    "Components",
    "Evaluation",
    "Example",
    "Found",
    "Label",
    "Labels",
    "LatentSurvey",
    "Nearest",
    "Quality",
    "Strongest",
    "Survey",
    "evaluate",
    "faults",
    "logit_labels",
    "merge",
    "nearest",
    "neuronpedia_link",
    "neuronpedia_list",
    "open",
    "pca",
    "quantile_bands",
    "read_labels",
    "save",
    "save_labels",
    "search",
    "strongest",
    "survey",
    "token_labels",
]
