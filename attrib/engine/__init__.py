"""Jacobians of a segment of the model: exact, within a memory budget, by a written adjoint or by torch.func."""
