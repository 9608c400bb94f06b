"""How much a page holds where nobody says otherwise: it opens in under a second, and is smaller than most pictures."""

NODES = 5_000
EDGES = 100_000
"""Of edges as matrices, in each matrix."""
