"""Interventions against plasticity loss, and the interface to write new ones."""

from plasticity.interventions import (
    activations,
    feature_regularizers,
    injection,
    normalization,
    projection,
    regularizers,
    resets,
    self_supervision,
    unit_resets,
    update_rules,
)
from plasticity.interventions.activations import *
from plasticity.interventions.base import Intervention, Interventions, chain
from plasticity.interventions.context import (
    Batch,
    Context,
    GradientStep,
    Rollout,
    TrainState,
    reset_moments,
)
from plasticity.interventions.feature_regularizers import *
from plasticity.interventions.injection import *
from plasticity.interventions.normalization import *
from plasticity.interventions.optimizer import Adam, Optimizer
from plasticity.interventions.projection import *
from plasticity.interventions.regularizers import *
from plasticity.interventions.resets import *
from plasticity.interventions.self_supervision import *
from plasticity.interventions.unit_resets import *
from plasticity.interventions.update_rules import *

__all__ = [
    "Adam",
    "Batch",
    "Context",
    "GradientStep",
    "Intervention",
    "Interventions",
    "Optimizer",
    "Rollout",
    "TrainState",
    "chain",
    "reset_moments",
]
__all__ += activations.__all__
__all__ += feature_regularizers.__all__
__all__ += injection.__all__
__all__ += normalization.__all__
__all__ += projection.__all__
__all__ += regularizers.__all__
__all__ += resets.__all__
__all__ += self_supervision.__all__
__all__ += unit_resets.__all__
__all__ += update_rules.__all__
