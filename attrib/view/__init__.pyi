from .figures import bars, curves, heatmap, histogram, labels_of, scatter
from .highlighting import highlighted
from .latent_pages.gathered import Table
from .latent_pages.making import dashboard, task_dashboard
from .pages import Page, beside, graph, matrix

__all__ = [
    "Page",
    "Table",
    "bars",
    "beside",
    "curves",
    "dashboard",
    "graph",
    "heatmap",
    "highlighted",
    "histogram",
    "labels_of",
    "matrix",
    "scatter",
    "task_dashboard",
]
