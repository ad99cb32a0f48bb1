"""Probes: measures of a network on a fixed batch of observations or on a rollout."""

from plasticity.probes import (
    attention,
    base,
    curvature,
    features,
    gradients,
    ntk,
    policy,
    quantization,
    ranks,
    trainability,
    units,
    weights,
)
from plasticity.probes.attention import *
from plasticity.probes.base import *
from plasticity.probes.curvature import *
from plasticity.probes.features import *
from plasticity.probes.gradients import *
from plasticity.probes.ntk import *
from plasticity.probes.policy import *
from plasticity.probes.quantization import *
from plasticity.probes.ranks import *
from plasticity.probes.trainability import *
from plasticity.probes.units import *
from plasticity.probes.weights import *

__all__: list[str] = []
__all__ += attention.__all__
__all__ += base.__all__
__all__ += curvature.__all__
__all__ += features.__all__
__all__ += gradients.__all__
__all__ += ntk.__all__
__all__ += policy.__all__
__all__ += quantization.__all__
__all__ += ranks.__all__
__all__ += trainability.__all__
__all__ += units.__all__
__all__ += weights.__all__
