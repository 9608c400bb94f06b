"""Corpus statistics: aggregates of edges per pair of latents, streaming, mergeable in any order, within a memory bound.

docs/statistics.md defines every number and the guarantees, and specifies the file.
"""

from attrib.stats.build import merge, of, of_files
from attrib.stats.files import open, save
from attrib.stats.statistics import BlockStatistics, Statistics

__all__ = ["BlockStatistics", "Statistics", "merge", "of", "of_files", "open", "save"]
