from .files.circuit_tracer_reading import from_circuit_tracer
from .files.circuit_tracer_writing import to_circuit_tracer
from .graph import Graph
from .nodes import Nodes, NodeSet

__all__ = ["Graph", "NodeSet", "Nodes", "from_circuit_tracer", "to_circuit_tracer"]
