"""Torsos, heads, norms and activations."""

from plasticity.networks.activations import ACTIVATIONS
from plasticity.networks.actor_critic import ActorCritic, Network, Output, Params
from plasticity.networks.torso import NORMS
from plasticity.networks.tree import (
    Connections,
    at,
    by_layer,
    connections,
    depth_of,
    layer_index,
    map_hidden,
    norms,
    root_mean_squares,
)

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "ActorCritic",
    "Connections",
    "Network",
    "Output",
    "Params",
    "at",
    "by_layer",
    "connections",
    "depth_of",
    "layer_index",
    "map_hidden",
    "norms",
    "root_mean_squares",
]
