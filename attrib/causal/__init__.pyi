from .ablating import logit_difference
from .agreement import Agreement
from .faithfulness_curves import Faithfulness, faithfulness
from .generators import Example, Task, indirect_objects, subject_verb_agreement
from .rankings import Ranking, rank
from .stored import verify_stored
from .verifying import verify

__all__ = [
    "Agreement",
    "Example",
    "Faithfulness",
    "Ranking",
    "Task",
    "faithfulness",
    "indirect_objects",
    "logit_difference",
    "rank",
    "subject_verb_agreement",
    "verify",
    "verify_stored",
]
