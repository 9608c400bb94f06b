"""The engine against other ways to the same Jacobian, values first."""
