from .building import build, plan
from .comparing import Average, Comparison, EdgeTable, Stability, average, compare, stability, union
from .expected import expected_activations
from .factors import Contribution
from .files.circuit_tracer_reading import from_circuit_tracer
from .files.circuit_tracer_writing import to_circuit_tracer
from .files.networks import to_networkx, write_graphml
from .files.neuronpedia_reading import from_neuronpedia
from .files.neuronpedia_writing import cumulative_influence, to_neuronpedia
from .graph import Graph
from .headed import with_heads
from .heads import HeadLoadings, head_loadings
from .keys import Key, KeyTable, key_of
from .kin import relatives
from .latents import Latents
from .layer_scores import OWN
from .lazy import LazyGraph
from .means import MeanAttributions, mean_attributions
from .merging import MergedGraph, merge, merge_positions
from .neurons import Neurons
from .nodes import Nodes, NodeSet
from .outputs import Custom, Span
from .ov import OVNorms, ov_norms
from .paths import Path, Pattern, graph_of, where_paths_begin, without_positions
from .patterns import PathFilter, select
from .pruning import Pruned, prune
from .qk import Attended, Marginals, QKAttribution, qk_attribution
from .ranking import Ranking, sources
from .scoring import CONSTANTS, Scores, influence, scores
from .search import every_path, greedy, strongest
from .supernodes import read_supernodes, write_supernodes
from .vocabulary import LogitHistogram, TokenWeights, de_embeddings, logit_histogram, logit_weights
from .weights import VirtualWeights, global_weights, virtual_weights
from .where import NodeFilter, Where

__all__ = [
    "CONSTANTS",
    "OWN",
    "Attended",
    "Average",
    "Comparison",
    "Contribution",
    "Custom",
    "EdgeTable",
    "Graph",
    "HeadLoadings",
    "Key",
    "KeyTable",
    "Latents",
    "LazyGraph",
    "LogitHistogram",
    "Marginals",
    "MeanAttributions",
    "MergedGraph",
    "Neurons",
    "NodeFilter",
    "NodeSet",
    "Nodes",
    "OVNorms",
    "Path",
    "PathFilter",
    "Pattern",
    "Pruned",
    "QKAttribution",
    "Ranking",
    "Scores",
    "Span",
    "Stability",
    "TokenWeights",
    "VirtualWeights",
    "Where",
    "average",
    "build",
    "compare",
    "cumulative_influence",
    "de_embeddings",
    "every_path",
    "expected_activations",
    "from_circuit_tracer",
    "from_neuronpedia",
    "global_weights",
    "graph_of",
    "greedy",
    "head_loadings",
    "influence",
    "key_of",
    "logit_histogram",
    "logit_weights",
    "mean_attributions",
    "merge",
    "merge_positions",
    "ov_norms",
    "plan",
    "prune",
    "qk_attribution",
    "read_supernodes",
    "relatives",
    "scores",
    "select",
    "sources",
    "stability",
    "strongest",
    "to_circuit_tracer",
    "to_networkx",
    "to_neuronpedia",
    "union",
    "virtual_weights",
    "where_paths_begin",
    "with_heads",
    "without_positions",
    "write_graphml",
    "write_supernodes",
]
