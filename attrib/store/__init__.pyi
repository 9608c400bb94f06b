from .building import build_graphs
from .collection import Collection, faults, open, open_collection
from .dataset import EdgeDataset
from .graph_collection import GraphCollection, open_graphs
from .graphs import Graphs
from .layout import Block
from .merged import merge
from .reading import Fault
from .select import select_latents
from .shard import Store, open_shard
from .write import save

__all__ = [
    "Block",
    "Collection",
    "EdgeDataset",
    "Fault",
    "GraphCollection",
    "Graphs",
    "Store",
    "build_graphs",
    "faults",
    "merge",
    "open",
    "open_collection",
    "open_graphs",
    "open_shard",
    "save",
    "select_latents",
]
