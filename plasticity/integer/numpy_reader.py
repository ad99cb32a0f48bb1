"""Computes the greedy actions of an exported policy with NumPy: `act(load(path), observation)`."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view as windows


def load(path: Any) -> Any:
    with np.load(path) as file:
        return {k: a.astype(np.int64) if a.dtype.kind == "i" else a for k, a in file.items()}


def act(policy: Any, x: Any) -> Any:
    x = np.round((x - policy["offset"]) / policy["scale"])
    results = [np.clip(x, -policy["bound"], policy["bound"]).astype(np.int64)]
    for name in map(str, policy["operators"]):
        start = f"{name}."
        op = {k.removeprefix(start): a for k, a in policy.items() if k.startswith(start)}
        results.append(compute(op, *(results[i] for i in op["inputs"])))
    return results[-1] if policy["continuous"] else results[-1].argmax(-1)


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


def exp_negative(x: Any) -> Any:
    halvings, r = np.divmod(x, 710)
    return ((((1385 - r) ** 2 + 32 >> 6) * 5874 + 8192 >> 14) + 5636) >> halvings


def split(x: Any, heads: Any) -> Any:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def is_valid(tokens: Any, length: int) -> Any:
    extra = length - tokens.shape[1]
    return np.pad(tokens[..., 0] > 0, [(0, 0), (extra, 0)], constant_values=True)


def compute(op: Any, x: Any, y: Any = None, z: Any = None) -> Any:
    """Computes an operator. The cases without `return` are requantized at the end."""
    rescale, bits = op.get("rescale"), int(op.get("bits", 15))
    match str(op["operator"]):
        case "linear":
            x = np.tensordot(x, op["kernel"], op["kernel"].ndim - 1) + op["bias"]
        case "convolution":
            x = np.pad(x, [(0, 0), *[(op["padding"],) * 2] * 2, (0, 0)])
            x = windows(x, op["kernel"].shape[:2], (1, 2))[:, :: op["stride"], :: op["stride"]]
            x = np.tensordot(x, op["kernel"], ([4, 5, 3], [0, 1, 2])) + op["bias"]
        case "layer_norm" | "rms_norm":
            axes = tuple(range(-op["num_axes"], 0))
            size = np.prod([x.shape[i] for i in axes])
            x = size * x - x.sum(axes, keepdims=True) if op["center"] else x
            x = divide_by_norm(x << op["fraction_bits"], op["epsilon"], axes)
            return np.clip(requantize(x, rescale) + op["bias"], -16383, 16383)
        case "relu":
            x = np.maximum(x, 0)
        case "gelu":
            u = np.minimum(requantize(abs(x), op["argument"]), 14492) - 14492
            x = x * (8192 + np.sign(x) * (8192 - (((u * u + 4096 >> 13) * 4732 + 8192) >> 14)))
        case "tanh":
            e = np.minimum(exp_negative(requantize(abs(x), op["argument"])), 16384)
            x = np.sign(x) * (((16384 - e) << 14) // (16384 + e))
        case "max_pool":
            sides = [(n % 2, 1) for n in x.shape[1:3]]
            x = np.pad(x, [(0, 0), *sides, (0, 0)], constant_values=-16384)
            return windows(x, (3, 3), (1, 2))[:, ::2, ::2].max((-2, -1))
        case "residual_sum":
            x, y = requantize(x, op["x_scale"]), requantize(y, op["y_scale"])
            return np.clip(x + y, -16383, 16383)
        case "gate":
            x = x * y
        case "object_tokens":
            if op["size"]:
                first = np.argsort(x[..., 0] <= 0, axis=1, kind="stable")[:, : op["size"]]
                x = np.take_along_axis(x, first[..., None], 1)
            coordinates = requantize(2 * x[..., 1:3] - op["last"], rescale, bits)
            return np.concatenate([x, coordinates], -1) * (x[..., :1] > 0)
        case "select_tokens":
            return np.where(op["index"] < 0, op["constant"], x.reshape(len(x), -1)[:, op["index"]])
        case "add_positions":
            cell = np.clip(y[..., 1] * op["columns"] + y[..., 2], 0, len(op["table"]) - 1)
            x = requantize(x, op["x_scale"]) + requantize(op["table"][cell], op["y_scale"])
            return np.clip(x, -16383, 16383)
        case "prepend_summary":
            summary = np.broadcast_to(op["summary"], (len(x), 1, x.shape[-1]))
            return np.concatenate([summary, requantize(x, rescale)], 1)
        case "attention_scores":
            x = requantize(split(x, op["heads"]) @ split(y, op["heads"]).swapaxes(2, 3), rescale)
            if "slopes" in op:
                distance = abs(z[:, :, None, 1:3] - z[:, None, :, 1:3]).sum(-1)
                extra = (x.shape[-1] - z.shape[1], 0)
                distance = np.pad(distance, [(0, 0), extra, extra])[:, None]
                x = np.clip(x - requantize(distance, op["slopes"]), -16383, 16383)
            return x
        case "softmax":
            counts = is_valid(y, x.shape[-1])[:, None, None]
            x = np.where(counts, x, -16383)
            e = exp_negative(requantize(x.max(-1, keepdims=True) - x, op["argument"])) * counts
            total = np.maximum(e.sum(-1, keepdims=True), 1)
            return ((e << 15) + total // 2) // total
        case "attention_sum":
            x = (x @ split(y, x.shape[1])).swapaxes(1, 2).reshape(y.shape)
        case "summary_token":
            return x[:, 0]
        case "mean_token":
            total = (x * is_valid(y, x.shape[1])[..., None]).sum(1)
            count = np.maximum(is_valid(y, x.shape[1]).sum(1, keepdims=True), 1)
            return (2 * total + count) // (2 * count)
    return requantize(x, rescale, bits)
