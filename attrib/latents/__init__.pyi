from .files import faults, open, save
from .surveyed import Asked, Band, Example, LatentSurvey, Survey
from .surveying import merge, survey

__all__ = ["Asked", "Band", "Example", "LatentSurvey", "Survey", "faults", "merge", "open", "save", "survey"]
