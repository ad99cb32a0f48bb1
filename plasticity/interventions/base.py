"""What an intervention is: a small frozen pytree with pure hooks, one for each context.

The trainer calls the hooks of one `Interventions`, which hands each on to its parts in
the order written; it knows no method by name. A hook that a method leaves alone costs nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plasticity.networks import Network, Output, Params
from plasticity.spec import Parts, SettingError, Spec, fields

Array = jax.Array
State = Any  # an intervention's own pytree


class Learner(NamedTuple):
    """What learns: the parameters and the optimiser's state for them."""

    params: Params
    opt_state: optax.OptState


class Adam(NamedTuple):
    """The coefficients of Adam."""

    b1: Array | float = 0.9
    b2: Array | float = 0.999
    eps: Array | float = 1e-8


class Optimizer(NamedTuple):
    """The update rule, as three stages that act one after the other.

    `direction` begins with Adam, or with what a method has put in its place by
    `replacing_adam`; a decoupled decay goes to its end. What wraps a whole optimiser goes into
    `around`, and so is around what later methods do to `direction` and `step` as well. A
    transformation that draws noise takes a key of its own from `split`; the key is of this run
    and round, and the transformation counts its steps.
    """

    gradient: tuple[optax.GradientTransformation, ...]  # on the raw gradient: clipping
    direction: tuple[optax.GradientTransformation, ...]  # gradient to direction: Adam
    step: tuple[optax.GradientTransformation, ...]  # direction to step: the learning rate
    key: Array
    adam: Adam | None = Adam()  # that `direction` begins with; None where it does not
    around: tuple[Callable[[optax.GradientTransformation], optax.GradientTransformation], ...] = ()

    def build(self) -> optax.GradientTransformation:
        """The three stages as one transformation."""
        rule = optax.chain(*self.direction, *self.step)
        for wrap in self.around:
            rule = wrap(rule)
        return optax.chain(*self.gradient, rule)

    def split(self) -> tuple["Optimizer", Array]:
        """An optimiser with another key, and a key that nothing else has."""
        key, own = jax.random.split(self.key)
        return self._replace(key=key), own

    def replacing_adam(
        self, by: "Intervention", make: Callable[[Adam], optax.GradientTransformation]
    ) -> "Optimizer":
        """An optimiser with another transformation in Adam's place, made from its coefficients.

        Raises:
          SettingError: naming the method `by`, if Adam is not there any more.
        """
        if self.adam is None:
            raise SettingError(
                "intervention", type(by).__name__, "must have Adam, which another method replaces"
            )
        return self._replace(direction=(make(self.adam), *self.direction[1:]), adam=None)


class Batch(NamedTuple):
    """Transitions that PPO learns from, each array [B, ...].

    Advantages are as they were estimated: PPO's loss normalises them in each minibatch.
    """

    observation: Array
    action: Array
    log_prob: Array  # of the action, under the policy that took it
    advantage: Array
    target: Array  # of the value
    intrinsic_target: Array | None = None  # of the intrinsic value, where there is one


class Context(NamedTuple):
    """What a hook may see and use.

    Attributes:
      key: randomness for this hook alone.
      round: the round under way, 0 for the first; int32 [].
      update: PPO updates completed before this one; int32 [].
      fresh: draws parameters from their initial distribution, by key.
      apply: the network, of parameters and observations [B, ...].
      effective: the parameters that it computes with, of those that are trained.
      optimizer: the update rule, built.
      rollout: the transitions of this update; None at the beginning and at a shift.
      rollout_params: the parameters that the rollout was made with; None where it is.
      minibatch: the transitions of this gradient step; None but in the loss and after a step.
      output: the network's on the minibatch, before the step; None where that is.
      gradient: of the loss of the minibatch, before clipping; None but after a step.
      previous: the parameters before the step; None but after a step.
    """

    key: Array
    round: Array
    update: Array
    fresh: Callable[[Array], Params]
    apply: Callable[[Params, Array], Output]
    effective: Callable[[Params], Params]
    optimizer: optax.GradientTransformation
    rollout: Batch | None = None
    rollout_params: Params | None = None
    minibatch: Batch | None = None
    output: Output | None = None
    gradient: Params | None = None
    previous: Params | None = None


class Intervention(Spec):
    """Does nothing at any moment. Subclass it and write the hooks that your method needs.

    Fields declared by `setting` are the method's coefficients: they sweep without a new
    compilation, are set on the command line by name, and are checked against their range.
    The first line of its docstring says what it does, and the docstring names its paper, as
    (Author et al. year): `python -m experiments.methods` lists them.
    A hook that changes parameters decides what becomes of the optimiser's moments for them,
    which are in `learner.opt_state`: see `cleared`.
    """

    def network(self, network: Network) -> Network:
        """The description of the network, before it is built."""
        return network

    def extend(self, params: Params, key: Array) -> Params:
        """Freshly drawn parameters with the method's own beside them, trained like the rest.

        One that belongs to the units of a hidden layer goes into that layer's entry, under a
        name of its own, its last axis counting the units: what redraws a unit redraws its share.
        One that belongs to a head goes into the head's entry, and all else into a dict of its
        own beside the heads. What the method does without may be taken away, if `effective` puts
        something in its place.
        """
        return params

    def effective(self, params: Params) -> Params:
        """The parameters that the network computes with, of those that are trained."""
        return params

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The update rule, before it is built."""
        return optimizer

    def init(self, learner: Learner, context: Context) -> State:
        """The method's own state at the beginning of a lifetime: any pytree of arrays."""
        return ()

    def loss(self, state: State, params: Params, context: Context) -> Array | float:
        """What is added to PPO's loss of a minibatch; `context.output` is that of `params`."""
        return 0.0

    def after_step(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        """After every gradient step."""
        return state, learner

    def after_update(
        self, state: State, learner: Learner, context: Context
    ) -> tuple[State, Learner]:
        """After every PPO update."""
        return state, learner

    def on_shift(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        """At the boundary of two rounds.

        The optimiser's state is created anew right after, unless `agent.reset_optimizer` is off.
        """
        return state, learner


class Interventions(Parts[Intervention]):
    """Any number of interventions, whose hooks act in the order written.

    None at all is `warm_start`, the baseline. The state is a tuple, one entry a part.
    """

    @property
    def name(self) -> str:
        """Its name in the results table: `layer_norm+soft_shrink_perturb`, or `warm_start`."""
        return "+".join(self.names) or "warm_start"

    def network(self, network: Network) -> Network:
        """See `Intervention.network`.

        Raises:
          SettingError: two parts want different things of the network.
        """
        settled: dict[str, str] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            before, network = network, part.network(network)
            for field, _ in fields(network):
                if getattr(network, field) == getattr(before, field):
                    continue
                if field in settled:
                    raise SettingError(
                        "intervention", self.name, f"{settled[field]} and {name} both set {field}"
                    )
                settled[field] = name
        return network

    def extend(self, params: Params, key: Array) -> Params:
        """See `Intervention.extend`."""
        for i, part in enumerate(self.parts):
            params = part.extend(params, jax.random.fold_in(key, i))
        return params

    def effective(self, params: Params) -> Params:
        """See `Intervention.effective`; what the last part has added it takes away first."""
        for part in reversed(self.parts):
            params = part.effective(params)
        return params

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """See `Intervention.optimizer`."""
        for part in self.parts:
            optimizer = part.optimizer(optimizer)
        return optimizer

    def init(self, learner: Learner, context: Context) -> State:
        """See `Intervention.init`."""
        return tuple(
            part.init(learner, own)
            for part, own in zip(self.parts, self._split(context), strict=True)
        )

    def loss(self, state: State, params: Params, context: Context) -> Array | float:
        """See `Intervention.loss`."""
        return sum(
            part.loss(own, params, its)
            for part, own, its in zip(self.parts, state, self._split(context), strict=True)
        )

    def after_step(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        """See `Intervention.after_step`."""
        return self._each("after_step", state, learner, context)

    def after_update(
        self, state: State, learner: Learner, context: Context
    ) -> tuple[State, Learner]:
        """See `Intervention.after_update`."""
        return self._each("after_update", state, learner, context)

    def on_shift(self, state: State, learner: Learner, context: Context) -> tuple[State, Learner]:
        """See `Intervention.on_shift`."""
        return self._each("on_shift", state, learner, context)

    def _each(
        self, hook: str, state: State, learner: Learner, context: Context
    ) -> tuple[State, Learner]:
        states = []
        for part, own, its in zip(self.parts, state, self._split(context), strict=True):
            own, learner = getattr(part, hook)(own, learner, its)
            states.append(own)
        return tuple(states), learner

    def _split(self, context: Context) -> list[Context]:
        return [
            context._replace(key=jax.random.fold_in(context.key, i)) for i in range(len(self.parts))
        ]


def chain(*parts: Intervention) -> Interventions:
    """The interventions given, acting in that order, each named after its class."""
    return Interventions.of(*parts)


def cleared(learner: Learner, touched: Params, context: Context) -> optax.OptState:
    """The optimiser's state with zero for the moments of some parameters.

    Args:
      learner: whose state it is.
      touched: which, a tree like the parameters of bool arrays that broadcast against them.
      context: for the optimiser.
    """

    def clear(moment: Array, touched: Array) -> Array:
        return jnp.where(touched, jnp.zeros_like(moment), moment)

    return optax.tree.map_params(context.optimizer, clear, learner.opt_state, touched)
