"""What tests of several files share."""

from functools import partial

import jax
import numpy as np

from plasticity.envs.base import Env


class Void(Env):
    """Something to see and to do, and no episode: for what needs no environment."""

    @property
    def name(self):
        return "void"

    @property
    def observation_shape(self):
        return (6,)

    @property
    def num_actions(self):
        return 3


def same(one, other, rtol=0.0, atol=0.0):
    """Asserts that two trees agree, to the bit unless told otherwise."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), one, other)
