"""The interface of interventions: a small frozen pytree with pure hooks.

The training loop calls the hooks of one `Interventions`, which calls those of its parts in the
order given. A hook that a method does not override costs nothing.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar

import jax

from plasticity.interventions.context import (
    Array,
    Batch,
    Context,
    GradientStep,
    Rollout,
    TrainState,
    reset_moments,
)
from plasticity.interventions.optimizer import Optimizer
from plasticity.networks import BaseNetwork, Output, Params
from plasticity.struct import Chain, SettingError, Struct, fields

__all__ = [
    "GRADIENT_STEP_HOOKS",
    "Array",
    "Batch",
    "ComputeGradient",
    "Context",
    "GradientStep",
    "Intervention",
    "Interventions",
    "Optimizer",
    "Rollout",
    "State",
    "TrainState",
    "chain",
    "overrides",
    "reset_moments",
]

State = Any  # an intervention's own pytree of arrays
# The hooks through which a method takes part in every gradient step.
GRADIENT_STEP_HOOKS = (
    "network",
    "add_params",
    "effective_params",
    "optimizer",
    "penalty",
    "loss",
    "gradient",
)
ComputeGradient = Callable[[Params], tuple[Params, Any]]


class Intervention(Struct):
    """Base class of interventions. Changes nothing: override the hooks that a method needs.

    Fields declared by `field` are the method's coefficients: they are set and swept by name on the
    command line, without a new compilation, and are checked against their range. The first line of
    the docstring says what the method does, and the docstring names its paper as (Author et al.
    year): `python -m experiments.methods` lists both.

    A hook that changes parameters decides what happens to the optimizer's moments for them, which
    are in `train_state.opt_state`: see `reset_moments`.

    Attributes:
      needs_policy: whether hooks need the actor-critic network: its output or heads, hidden units
        as `connections` finds them, `context.apply`, or the transitions of a rollout. If not, the
        method may also act on the predictor of an intrinsic reward. Always true of a method that
        overrides `loss` or `gradient`.
      needs_units: whether the method does nothing, or fails, without hidden layers named as
        `BaseNetwork` describes.
      needs_heads: the same of the heads `policy` and `value`.
      needs_metrics: the metrics of the agent's loss that `after_step` reads, such as `policy_loss`.
    """

    needs_policy: ClassVar[bool] = False
    needs_units: ClassVar[bool] = False
    needs_heads: ClassVar[bool] = False
    needs_metrics: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.loss is not Intervention.loss or cls.gradient is not Intervention.gradient:
            cls.needs_policy = True

    def check(self) -> None:
        """Raises `SettingError` if coefficients do not go together."""

    def network(self, network: BaseNetwork) -> BaseNetwork:
        """Changes the description of the network, before it is built."""
        return network

    def add_params(self, params: Params, key: Array) -> Params:
        """Adds the method's trained parameters to newly drawn ones.

        A parameter of the units of a hidden layer goes into that layer's entry, under a new name
        and with the units as its last axis: methods that redraw a unit then redraw it too. A
        parameter of a head goes into the head's entry, any other into a new dict beside the heads.
        The method may also remove parameters that `effective_params` computes.

        Args:
          params: newly drawn parameters, with those of earlier methods in the chain.
          key: randomness for the added parameters.
        """
        return params

    def effective_params(self, params: Params) -> Params:
        """Computes the parameters that the network uses from the trained ones."""
        return params

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Changes the update rule, before it is built."""
        return optimizer

    def init(self, train_state: TrainState, context: Context) -> State:
        """Returns the method's state at the beginning of a run: any pytree of arrays."""
        return ()

    def penalty(self, state: State, params: Params, context: Context) -> Array | float:
        """Returns a scalar to add to the loss of each minibatch, computed from parameters alone."""
        return 0.0

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> Array | float | tuple[Array | float, Any]:
        """Returns a scalar to add to the loss of a minibatch, or the scalar and auxiliary values.

        Auxiliary values, any pytree of arrays, are `step.aux` in the `after_step` that follows.

        Args:
          state: the method's state.
          params: the trained parameters.
          output: the network's output under `params` on the minibatch.
          minibatch: the transitions of this gradient step, [M, ...].
          rollout: all transitions of this update, and the parameters that collected them.
          context: the tools.
        """
        return 0.0

    def gradient(self, compute: ComputeGradient) -> ComputeGradient:
        """Changes how the gradient of a minibatch's loss is computed.

        Args:
          compute: computes it from parameters: the gradient, and what else is known of the loss at
            these parameters, which is to be returned as it is.
        """
        return compute

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        """Changes the train state after every gradient step.

        Args:
          state: the method's state.
          train_state: parameters and optimizer after the step.
          step: the step: gradients, the parameters before it, activations, the agent's metrics.
          context: the tools.
        """
        return state, train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        """Changes the train state after every update of the agent, of all its gradient steps.

        Args:
          state: the method's state.
          train_state: parameters and optimizer after the update.
          rollout: the transitions of the update, and the parameters that collected them.
          context: the tools.
        """
        return state, train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        """Changes the train state at the boundary of two rounds.

        The optimizer's state is reset right after, unless `agent.reset_optimizer` is off.
        """
        return state, train_state


def overrides(intervention: Intervention, hook: str) -> bool:
    """Returns whether a method has a hook of its own."""
    return getattr(type(intervention), hook) is not getattr(Intervention, hook)


class Interventions(Chain[Intervention]):
    """A chain of interventions, whose hooks are called in the order given.

    The empty chain is `warm_start`, the baseline. The state is a tuple of the parts' states. Each
    part's hook gets a different key.

    A method that occurs twice, under two names, acts twice.
    """

    @property
    def name(self) -> str:
        """The name in the results table: `layer_norm+soft_shrink_perturb`, or `warm_start`."""
        return "+".join(self.names) or "warm_start"

    def check(self) -> None:
        """Raises `SettingError` if a part does, or if one that adds parameters occurs twice."""
        for name, part in zip(self.names, self.parts, strict=True):
            try:
                part.check()
            except SettingError as error:
                raise error.within(f"intervention.{name}") from error
        classes = [type(part) for part in self.parts]
        adding = [cls for cls in classes if cls.add_params is not Intervention.add_params]
        if len(set(adding)) < len(adding):
            raise SettingError(
                "intervention", self.name, "must not have a method that adds parameters twice"
            )

    def check_layers(self, network: BaseNetwork, params: Params) -> None:
        """Raises `SettingError` if a method needs layers that a network does not have.

        Args:
          network: the network.
          params: its parameters, or their shapes.
        """
        torso = params.get("torso", {})
        hidden = any(name.startswith("hidden_") for name in torso) if hasattr(torso, "keys") else 0
        for name, part in zip(self.names, self.parts, strict=True):
            missing = []
            if part.needs_units and not hidden:
                missing.append('hidden layers "hidden_0", ... in "torso"')
            if part.needs_heads and not {"policy", "value"} <= set(params):
                missing.append('the heads "policy" and "value"')
            if missing:
                raise SettingError(
                    f"intervention.{name}",
                    type(part).__name__,
                    f"needs {' and '.join(missing)} among the parameters of the network, but "
                    f"{type(network).__name__} has {', '.join(params)}",
                )

    def check_metrics(self, agent: object, metrics: Collection[str]) -> None:
        """Raises `SettingError` if a method reads metrics that an agent's loss does not have.

        Args:
          agent: the agent.
          metrics: the metrics of its loss.
        """
        for name, part in zip(self.names, self.parts, strict=True):
            if missing := [metric for metric in part.needs_metrics if metric not in metrics]:
                raise SettingError(
                    f"intervention.{name}",
                    type(part).__name__,
                    f"needs {' and '.join(missing)} among the metrics of the agent's loss, but "
                    f"{type(agent).__name__} has {', '.join(metrics) or 'none'}",
                )

    def network(self, network: BaseNetwork) -> BaseNetwork:
        """See `Intervention.network`.

        Raises:
          SettingError: two parts change the same field of the network.
        """
        changed_by: dict[str, str] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            before, network = network, part.network(network)
            for key, _ in fields(network):
                if getattr(network, key) == getattr(before, key):
                    continue
                if key in changed_by:
                    raise SettingError(
                        "intervention", self.name, f"{changed_by[key]} and {name} both set {key}"
                    )
                changed_by[key] = name
        return network

    def add_params(self, params: Params, key: Array) -> Params:
        """See `Intervention.add_params`."""
        for i, part in enumerate(self.parts):
            params = part.add_params(params, jax.random.fold_in(key, i))
        return params

    def effective_params(self, params: Params) -> Params:
        """See `Intervention.effective_params`. In reverse order: the last part first."""
        for part in reversed(self.parts):
            params = part.effective_params(params)
        return params

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """See `Intervention.optimizer`."""
        for part in self.parts:
            optimizer = part.optimizer(optimizer)
        return optimizer

    def init(self, train_state: TrainState, context: Context) -> State:
        """See `Intervention.init`."""
        return tuple(
            part.init(train_state, part_context)
            for part, part_context in zip(self.parts, self._split(context), strict=True)
        )

    def penalty(self, state: State, params: Params, context: Context) -> Array | float:
        """See `Intervention.penalty`. The sum over parts."""
        return sum(
            part.penalty(part_state, params, part_context)
            for part, part_state, part_context in self._each(state, context)
        )

    def loss(
        self,
        state: State,
        params: Params,
        output: Output,
        minibatch: Batch,
        rollout: Rollout,
        context: Context,
    ) -> tuple[Array | float, tuple[Any, ...]]:
        """See `Intervention.loss`. The sum over parts, penalties included, and the aux of each."""
        terms, auxes = [], []
        for part, part_state, part_context in self._each(state, context):
            term = part.loss(part_state, params, output, minibatch, rollout, part_context)
            term, aux = term if isinstance(term, tuple) else (term, ())
            terms.append(part.penalty(part_state, params, part_context) + term)
            auxes.append(aux)
        return sum(terms), tuple(auxes)

    def gradient(self, compute: ComputeGradient) -> ComputeGradient:
        """See `Intervention.gradient`. The last part is called first."""
        for part in self.parts:
            compute = part.gradient(compute)
        return compute

    def after_step(
        self, state: State, train_state: TrainState, step: GradientStep, context: Context
    ) -> tuple[State, TrainState]:
        """See `Intervention.after_step`."""
        states = []
        auxes = step.aux or [()] * len(self.parts)  # of a predictor, which calls no `loss`, none
        for aux, (part, part_state, part_context) in zip(
            auxes, self._each(state, context), strict=True
        ):
            part_step = step._replace(aux=aux)
            new, train_state = part.after_step(part_state, train_state, part_step, part_context)
            states.append(new)
        return tuple(states), train_state

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        """See `Intervention.after_update`."""
        states = []
        for part, part_state, part_context in self._each(state, context):
            new, train_state = part.after_update(part_state, train_state, rollout, part_context)
            states.append(new)
        return tuple(states), train_state

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        """See `Intervention.on_shift`."""
        states = []
        for part, part_state, part_context in self._each(state, context):
            new, train_state = part.on_shift(part_state, train_state, part_context)
            states.append(new)
        return tuple(states), train_state

    def _each(
        self, state: State, context: Context
    ) -> Iterator[tuple[Intervention, State, Context]]:
        return zip(self.parts, state, self._split(context), strict=True)

    def _split(self, context: Context) -> list[Context]:
        """Returns a context with a different key for each part."""
        return [
            context._replace(key=jax.random.fold_in(context.key, i)) for i in range(len(self.parts))
        ]


def chain(*parts: Intervention) -> Interventions:
    """Chains interventions in the order given, each named after its class."""
    return Interventions.of(*parts)
