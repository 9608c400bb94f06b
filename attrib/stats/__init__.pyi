from .build import merge, of, of_files
from .files import faults, open, save
from .scoring import LatentScores, scores
from .statistics import BlockStatistics, Statistics

__all__ = ["BlockStatistics", "LatentScores", "Statistics", "faults", "merge", "of", "of_files", "open", "save", "scores"]
