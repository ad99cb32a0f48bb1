"""The torso: convolutions on images, then fully connected hidden layers."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.activations import Activation
from plasticity.networks.convolution import convolve
from plasticity.networks.initializers import uniform

__all__ = ["NORMS", "Conv", "Convolution", "Dense", "Layers", "Linear", "Torso", "linear"]

Array = jax.Array


def _layer_norm(name: str, axes: Sequence[int]) -> nn.Module:
    """Builds PyTorch's LayerNorm: two-pass variance, epsilon 1e-5, learned scale and bias.

    On images this is PyTorch's GroupNorm with one group: over channels and space, with a scale
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
    """Builds the same without centering: x / sqrt(mean(x^2) + 1e-5), with a learned scale."""
    return nn.RMSNorm(epsilon=1e-5, param_dtype=float, reduction_axes=axes, name=name)


NORMS: dict[str, Callable[[str, Sequence[int]], nn.Module] | None] = {
    "none": None,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}


class Layers(NamedTuple):
    """The hidden layers of a torso on a batch, by name: [B, units] or [B, H, W, channels]."""

    activations: dict[str, Array]
    preactivations: dict[str, Array]  # inputs of the activation functions, after norms


def linear(module: nn.Module, x: Array, features: int) -> Array:
    """Computes a linear layer with the parameters `kernel` and `bias` of a module.

    Both are drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is PyTorch's default.
    """
    kernel, bias = linear_params(module, x.shape[-1], features)
    return x @ kernel + bias


def linear_params(module: nn.Module, inputs: int, features: int) -> tuple[Array, Array]:
    """Returns `kernel` [inputs, features] and `bias` [features] of a module: see `linear`."""
    bound = 1 / math.sqrt(inputs)
    kernel = module.param("kernel", uniform, (inputs, features), bound)
    return kernel, module.param("bias", uniform, (features,), bound)


# Computes a linear layer with parameters of a module, from inputs and the number of features.
Linear = Callable[[nn.Module, Array, int], Array]


class Dense(nn.Module):
    """A linear layer."""

    features: int
    linear: Linear = linear

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return self.linear(self, x, self.features)


class Convolution(NamedTuple):
    """The size of a convolution."""

    channels: int
    kernel: int
    stride: int
    padding: int

    def output_size(self, size: int) -> int:
        """Returns the length of the output for an input of length `size`; < 1 if too small."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


class Conv(nn.Module):
    """A convolution, channels last. Its weights are drawn as those of `Dense`."""

    size: Convolution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels, kernel_size, stride, padding = self.size
        shape = (kernel_size, kernel_size, x.shape[-1], channels)
        bound = 1 / math.sqrt(math.prod(shape[:-1]))
        kernel = self.param("kernel", uniform, shape, bound)
        bias = self.param("bias", uniform, (channels,), bound)
        return bias + convolve(x.astype(kernel.dtype), kernel, stride, padding)


class Torso(nn.Module):
    """Hidden layers named `hidden_0` and so on: linear or convolution, norm, activation.

    With residual blocks (Espeholt et al. 2018) each convolution writes to a residual stream: its
    output is halved by max-pooling, then each block adds to it. A block reads the activations of
    the stream and applies two convolutions, `hidden_0_0_in` and `hidden_0_0_out` in the first. The
    activations of such a layer are all those read from the stream, concatenated along the height.

    Attributes:
      convolutions: the first layers, on images; none if the torso flattens the observation.
      blocks: number of residual blocks after each convolution.
      hidden: width of each fully connected layer after its activation. If the activation widens,
        the linear layer is narrower, so that the input of the next one keeps its size. Channels
        likewise.
      activation: the activation function.
      norm: a name in `NORMS`.
    """

    convolutions: tuple[Convolution, ...]
    blocks: int
    hidden: tuple[int, ...]
    activation: Activation
    norm: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Layers]:
        layers = Layers({}, {})
        widening = self.activation.widening

        def record(name: str, reads: Sequence[tuple[Array, Array]]) -> Array:
            """Records pairs of preactivations and activations. Returns the last activations."""
            for outputs, arrays in zip(reversed(layers), zip(*reads, strict=True), strict=True):
                outputs[name] = jnp.concatenate(arrays, axis=1) if len(arrays) > 1 else arrays[0]
            return reads[-1][1]

        for i, size in enumerate(self.convolutions):
            name, size = f"hidden_{i}", size._replace(channels=size.channels // widening)
            x = Conv(size, name=name)(x)
            if not self.blocks:
                x = record(name, [self._activate(name, x)])
                continue
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            block_size, last_written, reads = Convolution(size.channels, 3, 1, 1), name, []
            for block in range(self.blocks):
                reads.append(self._activate(last_written, x))
                block_in, last_written = f"{name}_{block}_in", f"{name}_{block}_out"
                inner = Conv(block_size, name=block_in)(reads[-1][1])
                inner = record(block_in, [self._activate(block_in, inner)])
                x = x + Conv(block_size, name=last_written)(inner)
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
        """Returns the preactivations of a linear layer's output, after the norm; and activations.

        `layer` is the name of the linear layer.
        """
        suffix = layer.removeprefix("hidden_")
        if (norm := NORMS[self.norm]) is not None:
            x = norm(f"norm_{suffix}", range(1 - x.ndim, 0))(x)
        return x, self.activation.build(f"activation_{suffix}")(x)
