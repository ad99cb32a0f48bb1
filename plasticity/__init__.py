"""Plasticity: a testbed for the loss of plasticity in on-policy deep reinforcement learning.

import plasticity as pl

run = pl.Run(pl.Gather(levels=10), pl.Shifts.of(pl.Permute()), pl.chain(pl.LayerNorm()))
frame = pl.train([run.replace(seed=seed) for seed in range(4)])
pl.results.overview(frame)
"""

from typing import Any

from plasticity import agents, envs, interventions, probes, results, shifts, triggers
from plasticity.agents import *
from plasticity.config import from_config
from plasticity.envs import *
from plasticity.interventions import *
from plasticity.networks import BaseNetwork, Mosaic, Network, Output, Regressor, SimBa, SimBaV2
from plasticity.probes import *
from plasticity.renamed import renamed_attribute
from plasticity.shifts import *
from plasticity.struct import SettingError, field, static_field
from plasticity.training import Run, Schedule, load_obs_stats, load_params, train
from plasticity.triggers import *

__all__ = [
    "BaseNetwork",
    "Mosaic",
    "Network",
    "Output",
    "Regressor",
    "Run",
    "Schedule",
    "SettingError",
    "SimBa",
    "SimBaV2",
    "field",
    "from_config",
    "load_obs_stats",
    "load_params",
    "results",
    "static_field",
    "train",
]
__all__ += agents.__all__
__all__ += envs.__all__
__all__ += interventions.__all__
__all__ += probes.__all__
__all__ += shifts.__all__
__all__ += triggers.__all__

_RENAMED = {
    "Learner": "TrainState",
    "cleared": "reset_moments",
    "runs_from": "from_config",
    "setting": "field",
    "static": "static_field",
}


def __getattr__(name: str) -> Any:
    return renamed_attribute(__name__, name, _RENAMED)
