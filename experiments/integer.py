"""Converts a finished run's policy to integers: `python -m experiments.integer RUN_FOLDER`."""

from plasticity.cli.integer import main

if __name__ == "__main__":
    main()
