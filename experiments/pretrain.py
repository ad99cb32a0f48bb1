"""Pretrains an encoder by masked modeling: `python -m experiments.pretrain --help`."""

from plasticity.cli.pretrain import main

if __name__ == "__main__":
    main()
