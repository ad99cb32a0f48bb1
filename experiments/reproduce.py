"""Reproduces the study of Juliani & Ash (2024): `python -m experiments.reproduce smoke`."""

from experiments.juliani_ash_2024.reproduce import main

if __name__ == "__main__":
    main()
