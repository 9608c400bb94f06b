from . import tokenizer as tokenizer
from . import tokens as tokens
from . import transformer as transformer

__all__ = ["tokenizer", "tokens", "transformer"]
