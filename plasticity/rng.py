"""Random keys, derived from a run's seed, a purpose and a counter.

No key is part of a run's state, so a run does not depend on where it is interrupted.
"""

import enum

import jax

Array = jax.Array

_MAX_STREAMS = 256  # so that those of one purpose for several rounds are no other's


class Stream(enum.IntEnum):
    """The purposes that randomness serves. Each has its own stream of keys.

    The numbers are part of every result: changing one changes the runs of every seed.
    """

    PARAMS = 0
    INTERVENTION = 1
    ENVS = 2
    SHIFT = 3
    ROLLOUT = 4
    UPDATE = 5
    EVALUATION = 6
    PROBE = 7
    PROBE_ACTIONS = 8
    OPTIMIZER = 9
    PROBE_ROLLOUT = 10
    PROBE_SAMPLING = 11
    OBSERVATION_NOISE = 12
    INTERPOLATION = 13
    INTRINSIC = 14
    INTRINSIC_SHIFT = 15
    INTRINSIC_UPDATE = 16
    INTRINSIC_OPTIMIZER = 17
    PAST_EVALUATION = 18
    PRETRAINING = 19
    PRETRAINING_OBSERVATIONS = 20


def past_evaluation_stream(round: Array | int) -> Array | int:
    """Returns the stream of evaluations on the task of a round; each round has its own."""
    return int(Stream.PAST_EVALUATION) + _MAX_STREAMS * round


def key_for(seed: Array | int, stream: Stream | Array | int, count: Array | int = 0) -> Array:
    """Returns the key for the `count`-th use of a stream.

    Each key is either split or folded into, never both: `split(key, n)[i]` equals
    `fold_in(key, i)`. The generator is named, so JAX's global default does not matter.

    Args:
      seed: the run's seed.
      stream: the purpose.
      count: how often the stream has been used before.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, stream), count)
