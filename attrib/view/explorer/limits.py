"""How much a page holds where nobody says otherwise: it opens in under a second, and is smaller than most pictures."""

NODES = 5_000
EDGES = 100_000
"""Of edges as matrices, in each matrix."""
LATENTS = 1_000
"""Latents of which more is told than the graph says: what they write to logits, and where they are active in a corpus."""
TOKENS = 10
"""Of a latent's logit weights, at either end."""
EXAMPLES = 5
"""Places in a corpus, of each latent."""
WAYS = 20
"""Of an edge through heads, and pairs of nodes of an attention score."""
DIFFERENCES = 2_000
"""Edges that are listed where two graphs stand beside each other."""
LONGEST = 200
"""Characters of a token that another file brings."""
