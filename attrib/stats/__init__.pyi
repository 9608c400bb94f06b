from .build import merge, of, of_files
from .files import open, save
from .statistics import BlockStatistics, Statistics

__all__ = ["BlockStatistics", "Statistics", "merge", "of", "of_files", "open", "save"]
