"""`python -m bench.kernels`."""

from bench.kernels.run import app

app()
