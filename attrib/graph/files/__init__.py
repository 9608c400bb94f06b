"""Attribution graphs in the formats of other tools: each a pair of pure functions, from a graph to a file and back."""
