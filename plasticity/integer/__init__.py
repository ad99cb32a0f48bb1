"""Policies that run in integers: operators, conversion of trained networks, and export."""

from plasticity.integer import (
    arithmetic,
    conversion,
    export,
    float_operators,
    operators,
    policy,
)
from plasticity.integer.arithmetic import *
from plasticity.integer.conversion import *
from plasticity.integer.export import *
from plasticity.integer.float_operators import *
from plasticity.integer.operators import *
from plasticity.integer.policy import *

__all__: list[str] = []
__all__ += arithmetic.__all__
__all__ += conversion.__all__
__all__ += export.__all__
__all__ += float_operators.__all__
__all__ += operators.__all__
__all__ += policy.__all__
