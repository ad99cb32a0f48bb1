"""Draws speed against quality of the encoder's pieces: `python -m experiments.pareto small`."""

from plasticity.cli.pareto import main

if __name__ == "__main__":
    main()
