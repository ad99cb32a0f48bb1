"""Interventions that replace the activation function of every hidden layer."""

from plasticity.interventions.base import Intervention
from plasticity.networks import BaseNetwork

__all__ = [
    "GELU",
    "CReLU",
    "FourierFeatures",
    "LeakyReLU",
    "Rational",
    "SmoothLeakyReLU",
    "Tanh",
]


class FourierFeatures(Intervention):
    """Uses deep Fourier features, [sin(x), cos(x)], at half the width (Lewandowski et al. 2024).

    At every x, one of the two is nearly linear. Widths and parameters are as under `CReLU`.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="fourier")


class CReLU(Intervention):
    """Uses concatenated ReLU, [relu(x), relu(-x)], at half the width (Abbas et al. 2023).

    Each layer has half as many units and as many activations as before, so that the next layer's
    input keeps its size. The network has about half as many parameters.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="crelu")


class LeakyReLU(Intervention):
    """Uses leaky ReLU, max(x, 0.01 x), after each hidden layer (Maas et al. 2013)."""

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="leaky_relu")


class SmoothLeakyReLU(Intervention):
    """Uses smooth leaky ReLU, a x + (1 - a) x sigmoid(c x / p) (Lillo & Cheney 2025).

    This is Smooth-Leaky (equation 1 of the paper), with a = 0.1, c = 5 and p = 3. The equation was
    taken from a secondary source, not from the paper itself. The paper's randomized variant is not
    included. Elsewhere, a leaky ReLU smoothed by a softplus has the same name.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="smooth_leaky_relu")


class GELU(Intervention):
    """Uses Gaussian error linear units, x Phi(x) (Hendrycks & Gimpel 2016).

    Applied after each hidden layer. Phi is the exact normal distribution function, not its tanh
    approximation.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="gelu")


class Tanh(Intervention):
    """Uses tanh after each hidden layer, as in PPO's paper (Schulman et al. 2017)."""

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="tanh")


class Rational(Intervention):
    """Learns a rational activation function for each hidden layer (Molina et al. 2020).

    It is sum_i a_i x^i / (1 + sum_j |b_j x^j|) with i = 0..5 and j = 1..4: the Padé activation
    unit in its safe version A, which Delfosse et al. (2024) brought to reinforcement learning. The
    units of a layer share ten coefficients, and each layer has its own (Delfosse et al. also try
    one set for all layers). The coefficients start near leaky ReLU and are trained by the same
    optimizer at the same learning rate as the weights. They are parameters named "activation_0"
    and so on. They belong to no single unit, so methods that reset units leave them alone.
    """

    def network(self, network: BaseNetwork) -> BaseNetwork:
        return network.replace(activation="rational")
