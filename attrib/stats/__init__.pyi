from .build import merge, of, of_files
from .files import faults, open, save
from .statistics import BlockStatistics, Statistics

__all__ = ["BlockStatistics", "Statistics", "faults", "merge", "of", "of_files", "open", "save"]
