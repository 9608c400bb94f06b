from .files.circuit_tracer_reading import from_circuit_tracer
from .files.circuit_tracer_writing import to_circuit_tracer
from .files.networks import to_networkx, write_graphml
from .files.neuronpedia_reading import from_neuronpedia
from .files.neuronpedia_writing import to_neuronpedia
from .graph import Graph
from .nodes import Nodes, NodeSet

__all__ = [
    "Graph",
    "NodeSet",
    "Nodes",
    "from_circuit_tracer",
    "from_neuronpedia",
    "to_circuit_tracer",
    "to_networkx",
    "to_neuronpedia",
    "write_graphml",
]
