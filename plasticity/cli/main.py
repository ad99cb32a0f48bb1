"""The console command: `plasticity train`, `plasticity report` and others."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

_COMMANDS = {
    "train": "trains a run, or the runs of a sweep (-m); --help lists what can be set",
    "pretrain": "pretrains an encoder by masked modeling, for runs to begin with",
    "report": "compares the runs in folders of results: a table and a figure",
    "pareto": "draws speed against quality of an encoder's pieces",
    "integer": "converts a finished run's policy to integers, and compares both",
    "methods": "lists interventions, probes, agents and what else there is, with coefficients",
}
_USAGE = "usage: plasticity COMMAND ...\n\n" + "\n".join(
    f"  plasticity {name:<8} {help}" for name, help in _COMMANDS.items()
)


def main() -> None:
    """Runs the subcommand that the command line names; the rest of the line is its own."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_USAGE)
    elif name == "--version":
        print(f"plasticity-rl {version('plasticity-rl')}")
    elif name in _COMMANDS:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: users' own classes are found there
        run: Callable[[], None] = import_module(f"plasticity.cli.{name}").main
        sys.argv = [f"plasticity {name}", *sys.argv[2:]]
        run()
    else:
        print(f"error: {name!r}: must be one of {', '.join(_COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
