"""The torso: convolutions where the agent sees images, then fully connected hidden layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.activations import ACTIVATIONS
from plasticity.networks.convolution import convolve
from plasticity.networks.initializers import uniform

Array = jax.Array


def _layer_norm(name: str, axes: Sequence[int]) -> nn.Module:
    """PyTorch's LayerNorm: two-pass variance, epsilon 1e-5, scale and bias learnt.

    Of an image it is PyTorch's GroupNorm with one group: over channels and space, with a scale
    and a bias for each channel.
    """
    return nn.LayerNorm(
        epsilon=1e-5,
        use_fast_variance=False,
        param_dtype=float,
        reduction_axes=axes,
        name=name,
    )


def _rms_norm(name: str, axes: Sequence[int]) -> nn.Module:
    """The same without centring: x / sqrt(mean(x^2) + 1e-5) and a scale."""
    return nn.RMSNorm(epsilon=1e-5, param_dtype=float, reduction_axes=axes, name=name)


NORMS: dict[str, Callable[[str, Sequence[int]], nn.Module] | None] = {
    "none": None,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}


class Layers(NamedTuple):
    """What the hidden layers of a torso came to, by name: [B, units] or [B, H, W, channels]."""

    activations: dict[str, Array]
    preactivations: dict[str, Array]


def linear(module: nn.Module, x: Array, features: int) -> Array:
    """A linear layer whose parameters are a module's `kernel` and `bias`.

    Both are drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is PyTorch's default.
    """
    bound = 1 / math.sqrt(x.shape[-1])
    kernel = module.param("kernel", uniform, (x.shape[-1], features), bound)
    bias = module.param("bias", uniform, (features,), bound)
    return x @ kernel + bias


class Dense(nn.Module):
    """A linear layer."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return linear(self, x, self.features)


class Convolution(NamedTuple):
    """The size of a convolution."""

    channels: int
    kernel: int
    stride: int
    padding: int

    def output_size(self, size: int) -> int:
        """How long an image is after it that was `size` long, or less than 1."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


class Conv(nn.Module):
    """A convolution, channels last, with weights drawn as those of `Dense`."""

    size: Convolution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels, kernel, stride, padding = self.size
        shape = (kernel, kernel, x.shape[-1], channels)
        bound = 1 / math.sqrt(math.prod(shape[:-1]))
        weights = self.param("kernel", uniform, shape, bound)
        bias = self.param("bias", uniform, (channels,), bound)
        return bias + convolve(x, weights, stride, padding)


class Torso(nn.Module):
    """Hidden layers: linear, norm, activation. Their names are `hidden_0` and so on.

    With residual blocks (Espeholt et al. 2018) a convolution's channels are a stream: it is halved
    by max-pooling, then each block adds to it what two convolutions, `hidden_0_0_in` and
    `hidden_0_0_out` of the first, make of its activations. The activations of such a layer are
    all that is read of the stream, one image below the other.

    Attributes:
      convolutions: the first layers, on an image; none for a torso on the flattened observation.
      blocks: residual blocks after each of them.
      hidden: the width of each fully connected layer after its activation. Where that widens, the
        linear layer is narrower, so that the next one's input keeps its size; channels likewise.
      activation: a name in `ACTIVATIONS`.
      norm: a name in `NORMS`.
    """

    convolutions: tuple[Convolution, ...]
    blocks: int
    hidden: tuple[int, ...]
    activation: str
    norm: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Layers]:
        layers = Layers({}, {})
        widening = ACTIVATIONS[self.activation].widening

        def record(name: str, reads: Sequence[tuple[Array, Array]]) -> Array:
            for known, images in zip(reversed(layers), zip(*reads, strict=True), strict=True):
                known[name] = jnp.concatenate(images, axis=1) if len(images) > 1 else images[0]
            return reads[-1][1]

        for i, size in enumerate(self.convolutions):
            name, size = f"hidden_{i}", size._replace(channels=size.channels // widening)
            x = Conv(size, name=name)(x)
            if not self.blocks:
                x = record(name, [self._activate(name, x)])
                continue
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            inner, last_written, reads = Convolution(size.channels, 3, 1, 1), name, []
            for block in range(self.blocks):
                reads.append(self._activate(last_written, x))
                first, last_written = f"{name}_{block}_in", f"{name}_{block}_out"
                within = Conv(inner, name=first)(reads[-1][1])
                within = record(first, [self._activate(first, within)])
                x = x + Conv(inner, name=last_written)(within)
            if i == len(self.convolutions) - 1:
                reads.append(self._activate(last_written, x))
                x = reads[-1][1]
            record(name, reads)
        x = x.reshape(x.shape[0], -1)
        for i, units in enumerate(self.hidden, start=len(self.convolutions)):
            name = f"hidden_{i}"
            x = Dense(units // widening, name=name)(x)
            x = record(name, [self._activate(name, x)])
        return x, layers

    def _activate(self, layer: str, x: Array) -> tuple[Array, Array]:
        """What the activation after a linear layer takes, norms included, and what it makes."""
        of_layer = layer.removeprefix("hidden_")
        if (norm := NORMS[self.norm]) is not None:
            x = norm(f"norm_{of_layer}", range(1 - x.ndim, 0))(x)
        activate: Callable[[Array], Any] = ACTIVATIONS[self.activation].named(
            f"activation_{of_layer}"
        )
        return x, activate(x)
