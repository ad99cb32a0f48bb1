"""Entry points, to be run from the top of the repository: `python -m plasticity.cli.train`."""

import os

# The probes' small matrices gain nothing from OpenBLAS's threads, which take a hundred times as
# long where they have to wait for a busy core. It is read when NumPy or SciPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
