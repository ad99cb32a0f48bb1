"""Compares the runs in folders of results: `python -m experiments.report FOLDER ...`."""

from plasticity.cli.report import main

if __name__ == "__main__":
    main()
