from .factors import Contribution
from .graph import Graph
from .nodes import Nodes, NodeSet
from .paths import Path, Pattern, graph_of, where_paths_begin, without_positions
from .patterns import PathFilter, select
from .ranking import Ranking, sources
from .search import every_path, greedy, strongest
from .where import NodeFilter, Where

__all__ = [
    "Contribution",
    "Graph",
    "NodeFilter",
    "NodeSet",
    "Nodes",
    "Path",
    "PathFilter",
    "Pattern",
    "Ranking",
    "Where",
    "every_path",
    "graph_of",
    "greedy",
    "select",
    "sources",
    "strongest",
    "where_paths_begin",
    "without_positions",
]
