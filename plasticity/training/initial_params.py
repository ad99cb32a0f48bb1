"""The parameters of another run, with which runs begin: `init_from`."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from plasticity.networks import Params
from plasticity.storage import run_dir
from plasticity.storage.checkpoints import flatten, unflatten
from plasticity.storage.table import ResultsError
from plasticity.struct import SettingError
from plasticity.training import loop
from plasticity.training.run import Run

_KEY = "init_from"


def load_initial_params(runs: Sequence[Run]) -> Params | None:
    """Loads the parameters with which runs begin, from the folder that `init_from` names.

    Each run begins with the final ones of the run of the same seed.

    Args:
      runs: runs of equal structure, [S].

    Returns:
      Host arrays [S, ...]; None if the runs draw their own.

    Raises:
      SettingError: the folder holds no finished run, or none of a seed or for the network.
    """
    place = runs[0].init_from
    if place is None:
        return None
    run_dir.check_folder(place, _KEY)
    folder = Path(place).expanduser()
    meta = run_dir.read_meta(folder)
    if meta.get("status") != "finished":
        raise SettingError(_KEY, place, "must be the folder of a finished run")
    seeds = meta.get("seeds", [])
    for run in runs:
        if run.seed not in seeds:
            raise SettingError(_KEY, place, f"must hold a run of seed {run.seed}; has {seeds}")
    try:
        arrays = flatten(run_dir.load_params(folder))
    except (ResultsError, ValueError, OSError) as error:  # what Orbax raises of damaged files
        reason = str(error).splitlines()[0][:200]
        raise SettingError(
            _KEY, place, f"must hold parameters that can be read: {reason}"
        ) from error
    chosen = [seeds.index(run.seed) for run in runs]
    arrays = {name: np.asarray(array)[chosen] for name, array in arrays.items()}
    template = jax.eval_shape(
        jax.vmap(lambda run: loop.init(run).train_state.params),
        jax.tree.map(lambda *leaves: np.stack(leaves), *runs),
    )
    try:
        return unflatten(arrays, template)
    except ValueError as error:
        raise SettingError(_KEY, place, f"must hold a run of the same network: {error}") from error
