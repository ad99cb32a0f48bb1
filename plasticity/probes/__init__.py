"""Probes: measures of a network on a fixed batch."""

from plasticity.probes.base import Probe, Probes, View
from plasticity.probes.curvature import HessianEigenvalue
from plasticity.probes.features import FeatureCosine, FeatureNorm
from plasticity.probes.gradients import GradientCosine, GradientCovarianceRank
from plasticity.probes.ntk import NTKRank
from plasticity.probes.policy import CriticError, PolicyChurn, PolicyKL, ValueChurn
from plasticity.probes.ranks import ApproximateRank, EffectiveRank, FeatureRank, Srank, StableRank
from plasticity.probes.trainability import Trainability
from plasticity.probes.units import (
    DeadUnits,
    DormantUnits,
    GradientDormantUnits,
    InactiveFraction,
    RolloutInactiveFraction,
    SaturatedFraction,
    SaturatedUnits,
)
from plasticity.probes.weights import (
    DistanceFromInit,
    DistanceFromRoundStart,
    SpectralNorm,
    WeightNorm,
    WeightRMS,
)

__all__ = [
    "ApproximateRank",
    "CriticError",
    "DeadUnits",
    "DistanceFromInit",
    "DistanceFromRoundStart",
    "DormantUnits",
    "EffectiveRank",
    "FeatureCosine",
    "FeatureNorm",
    "FeatureRank",
    "GradientCosine",
    "GradientCovarianceRank",
    "GradientDormantUnits",
    "HessianEigenvalue",
    "InactiveFraction",
    "NTKRank",
    "PolicyChurn",
    "PolicyKL",
    "Probe",
    "Probes",
    "RolloutInactiveFraction",
    "SaturatedFraction",
    "SaturatedUnits",
    "SpectralNorm",
    "Srank",
    "StableRank",
    "Trainability",
    "ValueChurn",
    "View",
    "WeightNorm",
    "WeightRMS",
]
