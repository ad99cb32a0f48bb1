"""Probes: measures of a network on a fixed batch."""

from plasticity.probes.base import Probe, Probes, View
from plasticity.probes.ranks import EffectiveRank
from plasticity.probes.units import DeadUnits, DormantUnits, InactiveFraction
from plasticity.probes.weights import DistanceFromInit, WeightNorm, WeightRMS

__all__ = [
    "DeadUnits",
    "DistanceFromInit",
    "DormantUnits",
    "EffectiveRank",
    "InactiveFraction",
    "Probe",
    "Probes",
    "View",
    "WeightNorm",
    "WeightRMS",
]
