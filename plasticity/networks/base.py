"""The interface of networks: a description that builds a Flax module, and what that returns."""

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from plasticity.networks.attention import AttentionLayer
from plasticity.networks.distributions import Distribution, distribution_class
from plasticity.networks.memory import Memory, Sequences
from plasticity.networks.tokens import Tokens
from plasticity.networks.values import CategoricalValue
from plasticity.struct import TARGET, SettingError, Struct, fields

__all__ = ["BaseNetwork", "NetworkShapes", "Output", "Params", "check_network", "network_shapes"]

Array = jax.Array
Params = Any  # a parameter tree: {"torso": {layer: ...}, "policy": ..., "value": ...}


class TokenPrediction(NamedTuple):
    """The tokens that an encoder reads, and what it predicts of each: for masked modeling."""

    tokens: Tokens  # [B, T, ...]
    features: Array  # [B, T, F]: the prediction of `tokens.features`


class Output(NamedTuple):
    """The output of a network on a batch of B observations.

    If a network with memory computes n sequences of T steps, what is [B] is [n, T], and activations
    have n * T rows.
    """

    policy: Distribution  # [B]
    value: Array  # [B]
    activations: dict[str, Array]  # of each hidden layer by name: [B, units] or [B, H, W, channels]
    preactivations: dict[str, Array]  # inputs of the activation functions, after norms
    intrinsic_value: Array | None = None  # [B]: of intrinsic rewards, if asked for
    attention: dict[str, AttentionLayer] | None = None  # of attention layers by name, if any
    tokens: TokenPrediction | None = None  # where the network predicts the features of its tokens
    memory: Memory = ()  # after the step, or the last one of a sequence; () without memory
    value_distribution: CategoricalValue | None = None  # [B]: of which `value` is the mean, if any

    def value_loss(self, target: Array) -> Array:
        """Returns the loss of the value of each observation, [B].

        It is the squared error; or the cross-entropy, if the value is categorical.

        Args:
          target: the return that the value should be, [B].
        """
        if self.value_distribution is None:
            return jnp.square(self.value - target)
        return self.value_distribution.loss(target)


class BaseNetwork(Struct):
    """Base class of networks: a description, which interventions may change, and its `build`.

    A user's network is a subclass with fields (see `plasticity.struct.static_field`) and a method
    `build`. In a configuration `network._target_` is its import path, beside its fields:
    `python -m experiments.train ~network +network._target_=my_networks.MyNetwork +network.units=64`
    replaces the preset. Any Flax module that returns an `Output` can be trained, evaluated and
    checkpointed.

    Probes and interventions find layers by name. The module's parameter tree should have:

      - "torso", with an entry "hidden_<i>" for each hidden layer, counted from 0, that holds a
        "kernel" (inputs next to last, units last) and a "bias". Norms are "norm_<i>";
        activations with parameters are "activation_<i>".
      - "value_torso", the same for the value, if it does not share the policy's torso.
      - "policy" and "value", the linear heads; "intrinsic_value" beside them, if asked for.

    `Output.activations` and `.preactivations` have the layers of the torso under the same names,
    and those of the value's under "value_hidden_<i>". If the heads read no hidden layer, as where
    these write to a residual stream, `activations` has what they read as "features".

    Without these names less is measured, and some methods do not apply:

      - Without `activations`, probes of hidden layers (units, ranks, features) report nothing.
      - Without "hidden_<i>" in "torso", methods that act on hidden units or layers (`ReDo`,
        `ResetLayers`, `WeightNormalization`, ...) are refused, see `Intervention.needs_units`.
      - Without "policy" and "value", so are methods that act on heads (`ResetFinal`,
        `PlasticityInjection`), see `Intervention.needs_heads`.
      - Probes of parameters take the top entries of the tree for layers. Methods that treat all
        parameters alike (`L2Init`, `ShrinkPerturb`, `ResetAll`, ...) and update rules need no
        names.

    A network with memory overrides `initial_memory` as well, and its module also reads `Steps` and
    `Sequences`. If it has a recurrent layer "memory" between torso and heads, as `RecurrentLayer`
    is, and "value_memory" for a torso of the value's own, `Output.activations` has its outputs
    under these names, and probes of features measure them.

    An encoder of tokens may have a field `masked_modeling`. If true, its module takes `Tokens` in
    place of observations, and returns `Output.tokens`.

    Interventions that change the architecture set a field of the description, `norm` or
    `activation`: see `replace`. `check_run` refuses them for a network without that field.
    """

    @abstractmethod
    def build(
        self,
        observation_shape: tuple[int, ...],
        num_actions: int,
        continuous: bool = False,
        intrinsic: bool = False,
    ) -> nn.Module:
        """Builds the Flax module: from observations [B, *observation_shape] to an `Output`.

        Args:
          observation_shape: the shape of one observation.
          num_actions: number of discrete actions, or dimensions of a continuous one.
          continuous: whether actions are continuous. The policy is a `Gaussian` then, and a
            `Categorical` otherwise.
          intrinsic: whether the module must return an `intrinsic_value`.

        Raises:
          SettingError: the description does not suit the observations or actions.
        """
        raise NotImplementedError

    def initialize(self, params: Params, key: Array) -> Params:
        """Changes newly drawn parameters of the module, before interventions add theirs.

        Args:
          params: the parameters, as the module draws them.
          key: randomness.
        """
        return params

    def project(self, params: Params) -> Params:
        """Projects parameters onto the set that they belong to, as the unit sphere.

        It is called after every gradient step, and after interventions have changed parameters.

        Args:
          params: the trained parameters, with those that interventions have added.
        """
        return params

    def initial_memory(self, batch_size: int) -> Memory:
        """Returns the memory at the beginning of an episode: zeros [batch_size, ...], or ()."""
        return ()

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed.

        Raises:
          SettingError: the network has no such field, as where an intervention sets one.
        """
        known = [name for name, _ in fields(self)]
        for name in changes:
            if name not in known:
                there = ", ".join(known) or "none"
                raise SettingError(
                    f"network.{TARGET}",
                    _import_path(self),
                    f"must have the field {name}, which an intervention sets; there are {there}",
                )
        return super().replace(**changes)


class NetworkShapes(NamedTuple):
    """The shapes of a network's parameters, and of its output on a batch."""

    params: Params
    output: Output


def check_network(
    network: BaseNetwork,
    observation_shape: tuple[int, ...],
    num_actions: int,
    continuous: bool = False,
    intrinsic: bool = False,
) -> Params:
    """Returns the shapes of a network's parameters: see `network_shapes`."""
    return network_shapes(network, observation_shape, num_actions, continuous, intrinsic).params


@lru_cache(maxsize=64)
def network_shapes(
    network: BaseNetwork,
    observation_shape: tuple[int, ...],
    num_actions: int,
    continuous: bool = False,
    intrinsic: bool = False,
) -> NetworkShapes:
    """Checks that a network's module returns an `Output` of the right shapes.

    Traces the module without computing anything. Results are cached.

    Args:
      network: the network, as interventions change it.
      observation_shape: see `BaseNetwork.build`, as for all following.
      num_actions: number of actions.
      continuous: whether actions are continuous.
      intrinsic: whether an `intrinsic_value` is required.

    Returns:
      The shapes of the module's parameters and output.

    Raises:
      SettingError: the module returns something else; or `build` raises it.
    """

    def require(condition: bool, allowed: str) -> None:
        if not condition:
            raise SettingError(f"network.{TARGET}", _import_path(network), allowed)

    require(type(network).build is not BaseNetwork.build, "must have a method build")
    module = network.build(
        observation_shape, num_actions, continuous=continuous, intrinsic=intrinsic
    )
    require(
        isinstance(module, nn.Module),
        f"build must return a Flax module, not {type(module).__name__}",
    )
    batch_size = 2
    init: Callable[..., Any] = module.init_with_output
    observation = jax.ShapeDtypeStruct((batch_size, *observation_shape), jnp.float32)
    output, variables = jax.eval_shape(init, jax.random.key(0), observation)
    output_type = "an array" if hasattr(output, "shape") else type(output).__name__
    require(
        isinstance(output, Output),
        f"its module must return a plasticity.networks.Output, not {output_type}",
    )
    require(
        set(variables) == {"params"},
        f"its module must have the collection params alone, not {', '.join(variables) or 'none'}",
    )
    kind = distribution_class(continuous)
    require(
        isinstance(output.policy, kind)
        and output.policy.outputs.shape == (batch_size, num_actions),
        f"the policy of its output must be a {kind.__name__} over {num_actions} actions, [B, "
        f"{num_actions}]",
    )
    for name in ("value", "intrinsic_value") if intrinsic else ("value",):
        value = getattr(output, name)
        shape = None if value is None else value.shape
        require(
            shape == (batch_size,), f"the {name} of its output must be of shape [B], not {shape}"
        )
    memory = jax.eval_shape(lambda: network.initial_memory(batch_size))
    require(
        jax.tree.map(jnp.shape, output.memory) == jax.tree.map(jnp.shape, memory),
        "the memory of its output must be shaped as that of its initial_memory",
    )
    if jax.tree.leaves(memory):
        apply: Callable[..., Any] = module.apply

        def compute(params: Params, memory: Memory) -> Any:
            steps = jnp.zeros((batch_size, 3, *observation_shape))
            not_done = jnp.ones((batch_size, 3), bool)
            return apply(params, Sequences(steps, memory, not_done)).value

        shape = jax.eval_shape(compute, variables, memory).shape
        require(
            shape == (batch_size, 3),
            f"the value of its output must be of shape [n, T] for sequences, not {shape}",
        )
    return NetworkShapes(variables["params"], output)


def _import_path(network: BaseNetwork) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"
