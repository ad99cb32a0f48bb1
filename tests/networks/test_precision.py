"""The precision in which networks are computed, read from their programs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import products

from plasticity.networks import Network, at_precision

DEFAULT, HIGHEST = jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST


class Own(nn.Module):
    """A network of a user's, with a norm and a product that is no layer of Flax's."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(4)(x.reshape(len(x), -1)))
        return {"value": jnp.einsum("bi,bj->b", x, x), "count": jnp.arange(2)}


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", {(frozenset({"float32"}), HIGHEST)}),
        ("tf32", {(frozenset({"float32"}), DEFAULT)}),
        ("bf16", {(frozenset({"bfloat16"}), HIGHEST)}),
    ],
)
@pytest.mark.parametrize("kind", ["cnn", "own"])
def test_all_products_of_a_network_and_its_gradient_have_the_precision(kind, precision, expected):
    """Would catch a layer, a derivative or a user's network that is computed in another one."""
    image = jax.ShapeDtypeStruct((2, 9, 9, 2), jnp.float32)
    networks = {"cnn": Network(channels=(3,), hidden=(4,)).build((9, 9, 2), 3), "own": Own()}
    module = networks[kind]
    params = jax.eval_shape(module.init, jax.random.key(0), image)
    compute = at_precision(module.apply, precision)

    def gradients(params, x):
        def loss(params):
            output = compute(params, x)
            value = output.value + output.policy.logits[:, 0] if kind == "cnn" else output["value"]
            return jnp.sum(value)

        return jax.grad(loss)(params)

    with jax.default_matmul_precision("float32"):  # as around all programs
        assert products(jax.make_jaxpr(gradients)(params, image).jaxpr) == expected
    shapes = jax.eval_shape(compute, params, image), jax.eval_shape(gradients, params, image)
    assert {str(x.dtype) for x in jax.tree.leaves(shapes)} <= {"float32", "int32"}


def test_bf16_rounds_the_factors_of_products_and_not_the_parameters():
    """Would catch parameters that lose small steps, or a precision that a CPU ignores."""
    x, w = np.ones((1, 2), np.float32), np.asarray([1 + 2.0**-8, 1], np.float32)
    for precision, expected in (("bf16", 2.0), ("float32", 2 + 2.0**-8)):
        compute = jax.jit(at_precision(lambda w, x: x @ w, precision))
        assert compute(w, x) == expected
        gradient = jax.grad(lambda w, compute=compute: compute(w, x)[0])(w)
        np.testing.assert_array_equal(w - 2.0**-20 * gradient, w - np.float32(2.0**-20))
