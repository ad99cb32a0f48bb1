"""Interventions on the architecture: what normalises a layer before its activation."""

from plasticity.interventions.base import Intervention
from plasticity.networks import Network


class LayerNorm(Intervention):
    """Layer normalisation before each hidden activation (Ba et al. 2016; Lyle et al. 2023)."""

    def network(self, network: Network) -> Network:
        return network.replace(norm="layer_norm")
