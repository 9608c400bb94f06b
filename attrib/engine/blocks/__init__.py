"""One block's derivative, part by part: norms and MLP, attention, dictionaries that are passed."""
