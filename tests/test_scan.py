"""Loops that are unrolled on GPUs alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plasticity.scan import scan

LENGTH, UNROLL = 7, 3  # the last trip is an incomplete one


def decayed_sums(inputs, reverse=False):
    """Sums of which each step takes one sine."""
    return scan(
        lambda total, x: (0.9 * total + jnp.sin(x), total),
        jnp.zeros(()),
        inputs,
        gpu_unroll=UNROLL,
        reverse=reverse,
    )


def steps_of_a_trip(platform):
    """How many steps follow one another in the program for a platform, which need not be there."""
    traced = jax.jit(jax.vmap(decayed_sums)).trace(jnp.zeros((2, LENGTH)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (loop,) = re.findall(r"stablehlo\.while.*?stablehlo\.return %iterArg", text, re.DOTALL)
    return max(loop.count("call @closed_call"), loop.count("stablehlo.sine"))


def test_scan_is_unrolled_on_gpus_alone():
    """Would catch a CPU that compiles each step several times, or a GPU that launches each."""
    assert steps_of_a_trip("cpu") == 1
    assert steps_of_a_trip("cuda") == UNROLL


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_equals_a_loop(reverse):
    """Would catch steps out of order, or a total of before taken for one of after."""
    inputs = np.linspace(-2, 2, LENGTH)
    total, totals = 0.0, []
    for x in inputs[::-1] if reverse else inputs:
        totals.append(total)
        total = 0.9 * total + np.sin(x)
    last, stacked = jax.jit(decayed_sums, static_argnames="reverse")(inputs, reverse=reverse)
    np.testing.assert_allclose(last, total, rtol=1e-6)
    np.testing.assert_allclose(stacked, totals[::-1] if reverse else totals, rtol=1e-5, atol=1e-7)
