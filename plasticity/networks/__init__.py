"""Torsos, heads, norms and activations."""

from plasticity.networks.activations import ACTIVATIONS
from plasticity.networks.actor_critic import ActorCritic, Network, Output, Params
from plasticity.networks.distributions import Categorical, Gaussian, Policy, policy_class
from plasticity.networks.param_tree import (
    Connections,
    at,
    by_layer,
    connections,
    depth_of,
    layer_index,
    map_hidden,
    norms,
    root_mean_squares,
    value_heads,
)
from plasticity.networks.torso import NORMS

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "ActorCritic",
    "Categorical",
    "Connections",
    "Gaussian",
    "Network",
    "Output",
    "Params",
    "Policy",
    "at",
    "by_layer",
    "connections",
    "depth_of",
    "layer_index",
    "map_hidden",
    "norms",
    "policy_class",
    "root_mean_squares",
    "value_heads",
]
