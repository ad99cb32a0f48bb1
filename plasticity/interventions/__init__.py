"""Interventions against plasticity loss, and the interface to write one's own."""

from plasticity.interventions.activations import (
    GELU,
    CReLU,
    FourierFeatures,
    LeakyReLU,
    Rational,
    SmoothLeakyReLU,
    Tanh,
)
from plasticity.interventions.base import Intervention, Interventions, chain
from plasticity.interventions.context import (
    Batch,
    Context,
    GradientStep,
    Rollout,
    TrainState,
    reset_moments,
)
from plasticity.interventions.feature_regularizers import ChurnReduction, InFeR, ProximalFeatures
from plasticity.interventions.injection import PlasticityInjection
from plasticity.interventions.normalization import LayerNorm, RMSNorm, WeightNormalization
from plasticity.interventions.optimizer import Adam, Optimizer
from plasticity.interventions.projection import NormalizeAndProject, WeightClipping
from plasticity.interventions.regularizers import (
    L2,
    L2Init,
    L2Norm,
    Parseval,
    RegenerativeL2,
    RegenerativeW2,
    SpectralRegularization,
    Wasserstein,
)
from plasticity.interventions.resets import (
    HareTortoise,
    ResetAll,
    ResetFinal,
    ResetLayers,
    ResetOptimizer,
    ShrinkPerturb,
    SoftShrinkPerturb,
)
from plasticity.interventions.unit_resets import (
    ContinualBackprop,
    ReDo,
    ReGraMa,
    SelfNormalizedResets,
)
from plasticity.interventions.update_rules import TRAC, UPGD, AdamRel, EqualBetas, Kron

__all__ = [
    "GELU",
    "L2",
    "TRAC",
    "UPGD",
    "Adam",
    "AdamRel",
    "Batch",
    "CReLU",
    "ChurnReduction",
    "Context",
    "ContinualBackprop",
    "EqualBetas",
    "FourierFeatures",
    "GradientStep",
    "HareTortoise",
    "InFeR",
    "Intervention",
    "Interventions",
    "Kron",
    "L2Init",
    "L2Norm",
    "LayerNorm",
    "LeakyReLU",
    "NormalizeAndProject",
    "Optimizer",
    "Parseval",
    "PlasticityInjection",
    "ProximalFeatures",
    "RMSNorm",
    "Rational",
    "ReDo",
    "ReGraMa",
    "RegenerativeL2",
    "RegenerativeW2",
    "ResetAll",
    "ResetFinal",
    "ResetLayers",
    "ResetOptimizer",
    "Rollout",
    "SelfNormalizedResets",
    "ShrinkPerturb",
    "SmoothLeakyReLU",
    "SoftShrinkPerturb",
    "SpectralRegularization",
    "Tanh",
    "TrainState",
    "Wasserstein",
    "WeightClipping",
    "WeightNormalization",
    "chain",
    "reset_moments",
]
