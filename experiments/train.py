"""Trains a run, or the runs of a sweep: `python -m experiments.train --help`."""

from plasticity.cli.train import main

if __name__ == "__main__":
    main()
