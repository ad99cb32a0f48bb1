"""Arguments of the hooks of interventions, of which tests fill in what a method uses."""

from plasticity.interventions import Batch, GradientStep, Rollout


def batch_of(observation):
    """Transitions of which only the observations are used."""
    return Batch(observation, *[None] * 5)


def rollout_of(observation, params=None):
    """A rollout of which only the observations, and the parameters that collected it, are used."""
    return Rollout(batch_of(observation), params)


def step_of(gradients=None, prev_params=None, activations=None, metrics=None, aux=()):
    """A gradient step of which only what is given is used."""
    return GradientStep(gradients, prev_params, activations, metrics, aux)
