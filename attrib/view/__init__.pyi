from .figures import bars, curves, heatmap, histogram, labels_of, scatter
from .highlighting import highlighted
from .pages import Page, beside, graph, matrix

__all__ = [
    "Page",
    "bars",
    "beside",
    "curves",
    "graph",
    "heatmap",
    "highlighted",
    "histogram",
    "labels_of",
    "matrix",
    "scatter",
]
