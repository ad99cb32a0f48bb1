"""Interventions against plasticity loss, and the hooks to write one's own."""

from plasticity.interventions.activations import (
    GELU,
    CReLU,
    FourierFeatures,
    LeakyReLU,
    Rational,
    SmoothLeakyReLU,
    Tanh,
)
from plasticity.interventions.base import (
    Batch,
    Context,
    Intervention,
    Interventions,
    Learner,
    Optimizer,
    chain,
    cleared,
)
from plasticity.interventions.functional import ChurnReduction, InFeR, ProximalFeatures
from plasticity.interventions.injection import PlasticityInjection
from plasticity.interventions.normalization import LayerNorm, RMSNorm, WeightNormalization
from plasticity.interventions.optimizers import TRAC, UPGD, AdamRel, EqualBetas, Kron
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
from plasticity.interventions.units import (
    ContinualBackprop,
    ReDo,
    ReGraMa,
    SelfNormalizedResets,
)

__all__ = [
    "GELU",
    "L2",
    "TRAC",
    "UPGD",
    "AdamRel",
    "Batch",
    "CReLU",
    "ChurnReduction",
    "Context",
    "ContinualBackprop",
    "EqualBetas",
    "FourierFeatures",
    "HareTortoise",
    "InFeR",
    "Intervention",
    "Interventions",
    "Kron",
    "L2Init",
    "L2Norm",
    "LayerNorm",
    "LeakyReLU",
    "Learner",
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
    "SelfNormalizedResets",
    "ShrinkPerturb",
    "SmoothLeakyReLU",
    "SoftShrinkPerturb",
    "SpectralRegularization",
    "Tanh",
    "Wasserstein",
    "WeightClipping",
    "WeightNormalization",
    "chain",
    "cleared",
]
