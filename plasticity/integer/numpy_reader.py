"""Computes the greedy actions of an exported policy with NumPy: `act(load(path), observation)`."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def load(path: Any) -> Any:
    with np.load(path) as file:
        return {k: a.astype(np.int64) if a.dtype.kind == "i" else a for k, a in file.items()}


def act(policy: Any, x: Any) -> Any:
    bound = 2 ** (policy["bits"] - 1) - 1
    x = np.clip(np.round(x / policy["observation_scale"]), -bound, bound).astype(np.int64)
    for name in map(str, policy["operators"]):
        start = f"{name}."
        x = compute({k.removeprefix(start): a for k, a in policy.items() if k.startswith(start)}, x)
    return x.argmax(-1)


def shift_down(x: Any, shift: Any, bits: int) -> Any:
    return np.clip((x + (1 << shift >> 1)) >> shift, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)


def requantize(x: Any, dyadic: Any, bits: int = 15) -> Any:
    return shift_down(x * dyadic[0], dyadic[1], bits)


def divide_by_norm(x: Any, eps: Any, axes: Any) -> Any:
    largest = abs(x).max(axes, keepdims=True)
    own, shift = (np.maximum(np.frexp(m)[1] - 15, 0) for m in (largest, np.maximum(largest, eps)))
    total = (shift_down(x, shift, 16) ** 2).sum(axes, keepdims=True) + (eps >> shift) ** 2
    e = (np.frexp(total)[1] - 30) >> 1
    root = np.sqrt(total << np.maximum(-2 * e, 0) >> np.maximum(2 * e, 0)).astype(np.int64)
    product = shift_down(x, own, 16) * (2**30 // np.maximum(root, 1))
    return shift_down(product, np.minimum(e + 15 + shift - own, 30), 32)


def compute(op: Any, x: Any) -> Any:
    kind, axes, rescale = str(op["operator"]), tuple(range(1, x.ndim)), op["rescale"]
    if kind == "linear":
        return requantize(x.reshape(len(x), -1) @ op["kernel"] + op["bias"], rescale)
    if kind == "convolution":
        x = np.pad(x, [(0, 0), *[(op["padding"],) * 2] * 2, (0, 0)])
        x = sliding_window_view(x, op["kernel"].shape[:2], (1, 2))[:, :: op["stride"]]
        x = np.tensordot(x[:, :, :: op["stride"]], op["kernel"], ([4, 5, 3], [0, 1, 2]))
        return requantize(x + op["bias"], rescale)
    if kind in ("layer_norm", "rms_norm"):
        x = x if kind == "rms_norm" else x[0].size * x - x.sum(axes, keepdims=True)
        x = divide_by_norm(x << op["fraction_bits"], op["epsilon"], axes)
        return np.clip(requantize(x, rescale) + op["bias"], -16383, 16383)
    if kind == "gelu":
        u = np.minimum(requantize(abs(x), op["argument"]), 14492) - 14492
        x = x * (8192 + np.sign(x) * (8192 - (((u * u + 4096 >> 13) * 4732 + 8192) >> 14)))
    elif kind == "tanh":
        halvings, r = np.divmod(requantize(abs(x), op["argument"]), 710)
        e = ((((1385 - r) ** 2 + 32 >> 6) * 5874 + 8192 >> 14) + 5636) >> halvings
        x = np.sign(x) * (((16384 - np.minimum(e, 16384)) << 14) // (16384 + np.minimum(e, 16384)))
    return requantize(x * (x > 0) if kind == "relu" else x, rescale, int(op["bits"]))
