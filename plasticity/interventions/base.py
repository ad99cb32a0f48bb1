"""What an intervention is: a small frozen pytree with pure hooks, one for each context.

The trainer calls the hooks of one `Interventions`, which hands each on to its parts in
the order written; it knows no method by name. A hook that a method leaves alone costs nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from plasticity.networks import Network, Output, Params
from plasticity.spec import Parts, Spec

Array = jax.Array
State = Any  # an intervention's own pytree


class Learner(NamedTuple):
    """What learns: the parameters and the optimiser's state for them."""

    params: Params
    opt_state: optax.OptState


class Optimizer(NamedTuple):
    """The update rule, as three stages that act one after the other.

    A decoupled decay goes to the end of `direction`; what wraps a whole optimiser takes the
    place of `step`, around all that was in `direction` and `step`.
    """

    gradient: tuple[optax.GradientTransformation, ...]  # on the raw gradient: clipping
    direction: tuple[optax.GradientTransformation, ...]  # gradient to direction: Adam
    step: tuple[optax.GradientTransformation, ...]  # direction to step: the learning rate

    def build(self) -> optax.GradientTransformation:
        """The three stages as one transformation."""
        return optax.chain(*self.gradient, *self.direction, *self.step)


class Context(NamedTuple):
    """What a hook may see and use.

    Attributes:
      key: randomness for this hook alone.
      round: the round under way, 0 for the first; int32 [].
      update: PPO updates completed before this one; int32 [].
      fresh: draws parameters from the network's initial distribution, by key.
      apply: the network, of parameters and observations [B, ...].
      optimizer: the update rule, built.
      observations: of the minibatch [B, ...] in the loss and after a step, of the whole rollout
        [T * N, ...] after an update; None elsewhere.
      output: the network's on that minibatch, before the step; None where there is none.
      gradient: of the loss of that minibatch, before clipping; None but after a step.
    """

    key: Array
    round: Array
    update: Array
    fresh: Callable[[Array], Params]
    apply: Callable[[Params, Array], Output]
    optimizer: optax.GradientTransformation
    observations: Array | None = None
    output: Output | None = None
    gradient: Params | None = None


class Intervention(Spec):
    """Does nothing at any context. Subclass it and write the hooks that your method needs.

    Fields declared by `setting` are the method's coefficients: they sweep without a new
    compilation, are set on the command line by name, and are checked against their range.
    Where a hook changes parameters midway through a round it decides what becomes of the
    optimiser's moments for them: they are in `learner.opt_state`.
    """

    def network(self, network: Network) -> Network:
        """The description of the network, before it is built."""
        return network

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
        """At the boundary of two rounds. The optimiser's state is created anew right after."""
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
        """See `Intervention.network`."""
        for part in self.parts:
            network = part.network(network)
        return network

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
