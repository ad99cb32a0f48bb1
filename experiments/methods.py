"""Lists what a run is made of: `python -m experiments.methods`."""

from plasticity.cli.methods import main

if __name__ == "__main__":
    main()
