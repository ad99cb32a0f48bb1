"""Interventions against plasticity loss, and the hooks to write one's own."""

from plasticity.interventions.activations import CReLU, FourierFeatures
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
from plasticity.interventions.normalization import LayerNorm
from plasticity.interventions.regularizers import L2Norm, RegenerativeL2, RegenerativeW2
from plasticity.interventions.resets import (
    ResetAll,
    ResetFinal,
    ShrinkPerturb,
    SoftShrinkPerturb,
)
from plasticity.interventions.units import ReDo

__all__ = [
    "Batch",
    "CReLU",
    "Context",
    "FourierFeatures",
    "Intervention",
    "Interventions",
    "L2Norm",
    "LayerNorm",
    "Learner",
    "Optimizer",
    "ReDo",
    "RegenerativeL2",
    "RegenerativeW2",
    "ResetAll",
    "ResetFinal",
    "ShrinkPerturb",
    "SoftShrinkPerturb",
    "chain",
    "cleared",
]
