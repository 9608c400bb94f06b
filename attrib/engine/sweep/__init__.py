"""Many rows through many blocks: which of them can be other than zero, in which order of places, and where both sides meet."""
