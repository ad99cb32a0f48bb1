"""Networks: torsos, heads, normalization layers, activations and distributions over actions.

A network of your own is a subclass of `BaseNetwork`.
"""

from plasticity.networks import (
    activations,
    actor_critic,
    attention,
    base,
    convolution,
    distributions,
    initializers,
    linalg,
    masked_modeling,
    memory,
    mosaic,
    param_tree,
    precision,
    recurrent,
    regressor,
    simba,
    tokens,
    torso,
    values,
)
from plasticity.networks.activations import *
from plasticity.networks.actor_critic import *
from plasticity.networks.attention import *
from plasticity.networks.base import *
from plasticity.networks.convolution import *
from plasticity.networks.distributions import *
from plasticity.networks.initializers import *
from plasticity.networks.linalg import *
from plasticity.networks.masked_modeling import *
from plasticity.networks.memory import *
from plasticity.networks.mosaic import *
from plasticity.networks.param_tree import *
from plasticity.networks.precision import *
from plasticity.networks.recurrent import *
from plasticity.networks.regressor import *
from plasticity.networks.simba import *
from plasticity.networks.tokens import *
from plasticity.networks.torso import *
from plasticity.networks.values import *

__all__: list[str] = []
__all__ += activations.__all__
__all__ += actor_critic.__all__
__all__ += attention.__all__
__all__ += base.__all__
__all__ += convolution.__all__
__all__ += distributions.__all__
__all__ += initializers.__all__
__all__ += linalg.__all__
__all__ += masked_modeling.__all__
__all__ += memory.__all__
__all__ += mosaic.__all__
__all__ += param_tree.__all__
__all__ += precision.__all__
__all__ += recurrent.__all__
__all__ += regressor.__all__
__all__ += simba.__all__
__all__ += tokens.__all__
__all__ += torso.__all__
__all__ += values.__all__
