from .evaluating import ByWay, Evaluation, Quality, evaluate

__all__ = ["ByWay", "Evaluation", "Quality", "evaluate"]
