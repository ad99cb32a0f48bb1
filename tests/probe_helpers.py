"""What tests of probes share."""

import dataclasses

import jax

from plasticity.probes import View


def view_of(params, apply, losses=None, batch=None, observations=None, **others):
    """What a probe sees, of these parameters at every moment unless told otherwise."""
    moments = dict.fromkeys(("previous_params", "round_params", "initial_params"), params)
    tools = {"key": jax.random.key(3), "fresh": None}
    return View(
        params=params,
        apply=apply,
        effective=lambda params: params,
        losses=losses,
        make_batch=lambda: batch,
        observations=observations,
        **(moments | tools | others),
    )


def told(probe, seen):
    """A probe's answer as plain numbers, of a view that has computed nothing yet."""
    return {
        name: float(x) for name, x in jax.jit(lambda: probe(dataclasses.replace(seen)))().items()
    }
