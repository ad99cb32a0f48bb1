"""Plasticity: a testbed for the loss of plasticity in on-policy deep reinforcement learning.

import plasticity as pl

run = pl.Run(pl.Gather(levels=10), pl.Shifts.of(pl.Permute()), pl.chain(pl.LayerNorm()))
frame = pl.train([run.replace(seed=seed) for seed in range(4)])
pl.results.overview(frame)
"""

from plasticity import results
from plasticity.agents import PPO
from plasticity.config import runs_from
from plasticity.envs import CartPole, Gather, Gymnasium
from plasticity.interventions import (
    Context,
    CReLU,
    FourierFeatures,
    Intervention,
    Interventions,
    L2Norm,
    LayerNorm,
    Learner,
    ReDo,
    RegenerativeL2,
    RegenerativeW2,
    ResetAll,
    ResetFinal,
    ShrinkPerturb,
    SoftShrinkPerturb,
    chain,
)
from plasticity.networks import Network
from plasticity.probes import (
    DeadUnits,
    DistanceFromInit,
    DormantUnits,
    EffectiveRank,
    InactiveFraction,
    Probe,
    Probes,
    WeightNorm,
    WeightRMS,
)
from plasticity.shifts import Expand, Permute, Shift, Shifts, Window
from plasticity.spec import SettingError, setting, static
from plasticity.training import Run, Schedule, load_params, train

__all__ = [
    "PPO",
    "CReLU",
    "CartPole",
    "Context",
    "DeadUnits",
    "DistanceFromInit",
    "DormantUnits",
    "EffectiveRank",
    "Expand",
    "FourierFeatures",
    "Gather",
    "Gymnasium",
    "InactiveFraction",
    "Intervention",
    "Interventions",
    "L2Norm",
    "LayerNorm",
    "Learner",
    "Network",
    "Permute",
    "Probe",
    "Probes",
    "ReDo",
    "RegenerativeL2",
    "RegenerativeW2",
    "ResetAll",
    "ResetFinal",
    "Run",
    "Schedule",
    "SettingError",
    "Shift",
    "Shifts",
    "ShrinkPerturb",
    "SoftShrinkPerturb",
    "WeightNorm",
    "WeightRMS",
    "Window",
    "chain",
    "load_params",
    "results",
    "runs_from",
    "setting",
    "static",
    "train",
]
