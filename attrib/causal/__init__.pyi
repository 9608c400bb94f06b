from .keeping import logit_difference
from .agreement import Agreement
from .components import EdgeRanking, edge_faithfulness, rank_edges
from .faithfulness_curves import Faithfulness, faithfulness
from .generators import Example, Task, indirect_objects, subject_verb_agreement
from .parity import Parity, compare, compare_rules
from .rankings import Ranking, rank
from .stored import verify_stored
from .verifying import verify

__all__ = [
    "Agreement",
    "EdgeRanking",
    "Example",
    "Faithfulness",
    "Parity",
    "Ranking",
    "Task",
    "compare",
    "compare_rules",
    "edge_faithfulness",
    "faithfulness",
    "indirect_objects",
    "logit_difference",
    "rank",
    "rank_edges",
    "subject_verb_agreement",
    "verify",
    "verify_stored",
]
