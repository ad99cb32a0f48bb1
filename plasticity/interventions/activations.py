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


class LeakyReLU(Intervention):
    """Leaky ReLU, max(x, 0.01 x), after each hidden layer (Maas et al. 2013)."""

    def network(self, network: Network) -> Network:
        return network.replace(activation="leaky_relu")


class SmoothLeakyReLU(Intervention):
    """Smooth leaky ReLU, a x + (1 - a) x sigmoid(c x / p) (Lillo & Cheney 2025).

    Equation 1 of their Smooth-Leaky, with the a = 0.1, c = 5 and p = 3 that they show it with;
    a leaky ReLU smoothed by a softplus goes by the same name elsewhere. The equation is taken from
    a second-hand account of the paper. Its randomised variant is another activation.
    """

    def network(self, network: Network) -> Network:
        return network.replace(activation="smooth_leaky_relu")


class GELU(Intervention):
    """Gaussian error linear units, x Phi(x), after each hidden layer (Hendrycks & Gimpel 2016).

    Phi is the normal distribution function itself, not its approximation by tanh.
    """

    def network(self, network: Network) -> Network:
        return network.replace(activation="gelu")


class Tanh(Intervention):
    """The hyperbolic tangent after each hidden layer, as in PPO's paper (Schulman et al. 2017)."""

    def network(self, network: Network) -> Network:
        return network.replace(activation="tanh")


class Rational(Intervention):
    """A learnt rational function after each hidden layer (Molina et al. 2020).

    sum_i a_i x^i / (1 + sum_j |b_j x^j|), i = 0..5, j = 1..4: the Padé activation unit in its
    safe version A, which Delfosse et al. (2024) brought to reinforcement learning. The units of a
    layer share ten coefficients, and each layer has its own (Delfosse et al. also try one set for
    all layers). They begin near leaky ReLU, learn by the same optimiser and at the same rate
    as the weights, are parameters under "activation_0" and so on, and belong to no single unit:
    what recycles units leaves them alone.
    """

    def network(self, network: Network) -> Network:
        return network.replace(activation="rational")
