"""Interventions on the architecture: what follows each hidden layer."""

from plasticity.interventions.base import Intervention
from plasticity.networks import Network


class FourierFeatures(Intervention):
    """Deep Fourier features, [sin(x), cos(x)], at half the width (Lewandowski et al. 2024).

    Of the two one is always near its linear part. Widths and parameters as under `CReLU`.
    """

    def network(self, network: Network) -> Network:
        return network.replace(activation="fourier")


class CReLU(Intervention):
    """Concatenated ReLU, [relu(x), relu(-x)], at half the width (Abbas et al. 2023).

    Every layer keeps the number of its activations, and so the next one the size of its input;
    there are about half as many parameters.
    """

    def network(self, network: Network) -> Network:
        return network.replace(activation="crelu")
