"""A loop for steps that are small beside what a GPU takes to launch their kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax

Carry = TypeVar("Carry")
Input = TypeVar("Input")


def scan(
    step: Callable[[Carry, Input], tuple[Carry, Any]],
    init: Carry,
    inputs: Input,
    *,
    gpu_unroll: int,
    reverse: bool = False,
) -> tuple[Carry, Any]:
    """Computes `jax.lax.scan`, with several steps in each trip of the loop on GPUs.

    Kernels of neighboring steps are then fused, and a GPU launches fewer of them. The operations
    and their order are the same. On a CPU nothing would be gained, and compiling takes longer.

    Args:
      step: see `jax.lax.scan`.
      init: see `jax.lax.scan`.
      inputs: the arrays that are scanned over, [T, ...].
      gpu_unroll: steps in a trip of the loop, where the program is compiled for a GPU.
      reverse: see `jax.lax.scan`.
    """
    rolled = partial(jax.lax.scan, step, reverse=reverse)
    unrolled = partial(rolled, unroll=gpu_unroll)
    return jax.lax.platform_dependent(init, inputs, cuda=unrolled, rocm=unrolled, default=rolled)
