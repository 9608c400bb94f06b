from . import tasks as tasks
from .ablating import ablate_each
from .ablations import Ablations
from .agreement import Agreement
from .asking import AnswerRanks, answer_ranks
from .components import EdgeRanking, edge_faithfulness, rank_edges
from .continuing import Piece
from .edits import Ablate, Add, Edit, Head, Latents, Scale, Set, parse_edit, text_of
from .faithfulness_curves import Faithfulness, faithfulness
from .generating import Continuation, generate
from .generators import Contrast, Contrasts, indirect_objects, subject_verb_agreement
from .graph_curves import graph_faithfulness, values_with
from .intervals import Interval, bootstrap
from .intervening import PreActivations, intervene
from .keeping import logit_difference
from .looking import DictionaryValues, dictionary_values
from .losses import loss
from .parity import Parity, compare, compare_rules
from .rankings import Ranking, rank
from .sampling import Sampling, probabilities
from .stored import verify_stored
from .verifying import verify

__all__ = [
    "Ablate",
    "Ablations",
    "Add",
    "Agreement",
    "AnswerRanks",
    "Continuation",
    "Contrast",
    "Contrasts",
    "DictionaryValues",
    "EdgeRanking",
    "Edit",
    "Faithfulness",
    "Head",
    "Interval",
    "Latents",
    "Parity",
    "Piece",
    "PreActivations",
    "Ranking",
    "Sampling",
    "Scale",
    "Set",
    "ablate_each",
    "answer_ranks",
    "bootstrap",
    "compare",
    "compare_rules",
    "dictionary_values",
    "edge_faithfulness",
    "faithfulness",
    "generate",
    "graph_faithfulness",
    "indirect_objects",
    "intervene",
    "logit_difference",
    "loss",
    "parse_edit",
    "probabilities",
    "rank",
    "rank_edges",
    "subject_verb_agreement",
    "tasks",
    "text_of",
    "values_with",
    "verify",
    "verify_stored",
]
