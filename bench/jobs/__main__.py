"""`python -m bench.jobs`."""

from bench.jobs.cost import main

main()
