"""Shared code of the tests of probes."""

import dataclasses

import jax

from plasticity.probes import View


def view_of(params, apply, per_sample_loss=None, batch=None, observation=None, **others):
    """Makes a view whose current and earlier parameters are all `params`, unless given."""
    all_params = dict.fromkeys(("prev_params", "round_params", "initial_params"), params)
    tools = {"key": jax.random.key(3), "init_params": None}
    return View(
        params=params,
        apply=apply,
        effective_params=lambda params: params,
        per_sample_loss=per_sample_loss,
        compute_batch=lambda: batch,
        observation=observation,
        **(all_params | tools | others),
    )


def measure(probe, view):
    """Runs a probe on a new copy of a view, so that nothing is cached. Returns plain numbers."""
    return {
        name: float(x) for name, x in jax.jit(lambda: probe(dataclasses.replace(view)))().items()
    }
