"""Entry points, to be run from the top of the repository: `python -m experiments.train`."""
