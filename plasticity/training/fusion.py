"""Fuses runs of different shifts and interventions into runs of equal structure.

Runs train in one program if their settings differ in numbers only. Shifts, and interventions that
act between updates alone, differ in code that is small beside an update: a fused run holds the
alternatives of all runs, and the index of its own, which is a number.

Runs of shifts that transform observations, actions or rewards differently are fused by giving each
all transformations, of which those that are not its own change nothing. That costs a little at each
step, and the compiler may then order sums differently: on a GPU, where a program of its own costs
far more, it is done; on a CPU it is not, so that results are the same to the bit as alone.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from plasticity.envs.base import Array, Env, Task
from plasticity.interventions import Context, Intervention, Interventions, Rollout, TrainState
from plasticity.interventions.base import GRADIENT_STEP_HOOKS, State, overrides
from plasticity.shifts import Shift, Shifts, num_permuted
from plasticity.struct import Struct, field
from plasticity.training.run import Run

P = TypeVar("P", bound=Struct)
T = TypeVar("T")

_TRANSFORMATIONS = (
    "permutation",
    "action_permutation",
    "gain",
    "bias",
    "reward_scale",
    "action_gain",
    "feature_permutation",
)
_IN_UPDATES = (*GRADIENT_STEP_HOOKS, "init", "after_step")


class Unchanged(Shift):
    """Changes nothing: stands for the shift that a run with fewer shifts does not have."""

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        return task


class OneOfShifts(Shift):
    """Applies one of several shifts.

    Attributes:
      options: the shifts.
      index: which of them is applied.
    """

    options: tuple[Shift, ...]
    index: int = field(0, kind=int, ge=0)

    def begin(self, task: Task, env: Env, key: Array) -> Task:
        tasks = [option.begin(task, env, key) for option in self.options]
        tasks = [_with_fields_of(task, tasks, env) for task in tasks]
        return _select(self.index, [partial(_identity, task) for task in tasks], tasks[0])

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        branches = [partial(option, task, round, key) for option in self.options]
        return _select(self.index, branches, task)


class OneOfInterventions(Intervention):
    """Calls the hooks of one of several interventions that act between updates alone.

    Attributes:
      options: the interventions.
      index: which of them acts.
    """

    options: tuple[Intervention, ...]
    index: int = field(0, kind=int, ge=0)

    def after_update(
        self, state: State, train_state: TrainState, rollout: Rollout, context: Context
    ) -> tuple[State, TrainState]:
        if not any(overrides(option, "after_update") for option in self.options):
            return state, train_state
        branches = [
            partial(option.after_update, (), train_state, rollout, context)
            for option in self.options
        ]
        return _select(self.index, branches, ((), train_state))

    def on_shift(
        self, state: State, train_state: TrainState, context: Context
    ) -> tuple[State, TrainState]:
        branches = [partial(option.on_shift, (), train_state, context) for option in self.options]
        return _select(self.index, branches, ((), train_state))


def acts_between_updates(intervention: Intervention) -> bool:
    """Returns whether a method has no part in an update: no state, and hooks at its end alone."""
    return not (
        intervention.needs_policy or any(overrides(intervention, hook) for hook in _IN_UPDATES)
    )


class FusionKey(NamedTuple):
    """What runs must have in common to be fused: runs of equal keys can be.

    Attributes:
      settings: the structure of everything but shifts and interventions.
      methods: the structure of the interventions that have a part in updates, by position.
      noise: whether observations are noisy. Like the next two, it changes which random numbers
        are drawn at each step.
      sticky_actions: whether actions are repeated at random.
      dynamics: the parameters of the environment that shifts set.
      permutation: the number of entries, or blocks, that are permuted.
      reward_kernel: the steps over which rewards are paid, 0 if they are not delayed.
      transformations: what a task of the run does to observations, actions and rewards, where runs
        are to be equal to the bit.
    """

    settings: Hashable
    methods: Hashable
    noise: bool
    sticky_actions: bool
    dynamics: tuple[str, ...]
    permutation: int
    reward_kernel: int
    transformations: tuple[str, ...]


def fusion_key(run: Run, exact: bool | None = None) -> FusionKey:
    """Returns the key of a run in a JAX environment.

    Args:
      run: the run.
      exact: whether only runs with the same transformations are fused, so that results are the
        same to the bit as alone; by default on a CPU.
    """
    if exact is None:
        exact = jax.default_backend() == "cpu"
    rest = run.replace(shift=Shifts(), intervention=Interventions())
    task = jax.eval_shape(
        lambda: run.shift.begin(run.env.task(run.seed), run.env, jax.random.key(0))
    )
    methods = [
        () if acts_between_updates(part) else (type(part), jax.tree.structure(part))
        for part in run.intervention.parts
    ]
    while methods and not methods[-1]:
        methods.pop()
    size = num_permuted(run.env)
    return FusionKey(
        settings=jax.tree.structure(rest),
        methods=tuple(methods),
        noise=task.noise is not None,
        sticky_actions=task.sticky_prob is not None,
        dynamics=tuple(sorted(task.dynamics)),
        permutation=size if task.permutation is None else len(task.permutation),
        reward_kernel=0 if task.reward_kernel is None else len(task.reward_kernel),
        transformations=tuple(
            name for name in _TRANSFORMATIONS if exact and getattr(task, name) is not None
        ),
    )


def fuse(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Returns runs of equal structure that compute the same as the given ones.

    Runs of equal structure are returned as they are.

    Args:
      runs: runs of equal `fusion_key`.
    """
    if len({jax.tree.structure(run) for run in runs}) == 1:
        return tuple(runs)
    shifts = _align([run.shift.parts for run in runs], Unchanged(), OneOfShifts)
    methods = _align([run.intervention.parts for run in runs], Intervention(), OneOfInterventions)
    return tuple(
        run.replace(
            shift=Shifts(shift, _numbers(shift)),
            intervention=Interventions(method, _numbers(method)),
        )
        for run, shift, method in zip(runs, shifts, methods, strict=True)
    )


def _align(
    chains: Sequence[tuple[P, ...]], nothing: P, one_of: Callable[[tuple[P, ...], int], P]
) -> list[tuple[P, ...]]:
    """Makes chains equally long and of equal structure, position by position.

    A position keeps its number, which the random numbers of its part depend on.
    """
    columns = []
    for position in range(max(map(len, chains))):
        parts = [chain[position] if position < len(chain) else nothing for chain in chains]
        structures = [jax.tree.structure(part) for part in parts]
        # By hash: structures of classes without fields are equal by `==`, whatever the class.
        number = {one: i for i, one in enumerate(dict.fromkeys(structures))}
        if len(number) > 1:
            options = {number[one]: part for one, part in zip(structures, parts, strict=True)}
            indices = [number[one] for one in structures]
            parts = [
                one_of(tuple((options | {index: part}).values()), index)
                for part, index in zip(parts, indices, strict=True)
            ]
        columns.append(parts)
    return list(zip(*columns, strict=True)) if columns else [()] * len(chains)


def _select(index: Array | int, branches: Sequence[Callable[[], Any]], like: Any) -> Any:
    """Returns the result of the branch of that index, with the types of `like`."""

    def as_type_of(old: Any, new: Any) -> Array:
        new = jnp.asarray(new)
        # What no branch computes may be weakly typed; all branches must have the same types.
        return jax.lax.convert_element_type(new, jnp.result_type(old)) if new.weak_type else new

    def typed(branch: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: jax.tree.map(as_type_of, like, branch())

    return jax.lax.switch(jnp.asarray(index), [typed(branch) for branch in branches])


def _identity(value: T) -> T:
    return value


def _with_fields_of(task: Task, others: Sequence[Task], env: Env) -> Task:
    """Adds to a task what any of the others has, set so that it changes nothing.

    Dynamics have no such value; whatever is set here, a later shift of the run sets again.
    """
    missing = [name for name in Task._fields if getattr(task, name) is None]
    added: dict[str, Any] = {
        name: _neutral(name, env, theirs[0])
        for name in missing
        if (theirs := [x for x in (getattr(other, name) for other in others) if x is not None])
    }
    dynamics = {name: value for other in others for name, value in other.dynamics.items()}
    return task._replace(**added, dynamics=dynamics | task.dynamics)


def _neutral(name: str, env: Env, other: Array) -> Array:
    """Returns the value of a task's field that changes nothing, for that of another task."""
    match name:
        case "permutation":
            return jnp.arange(num_permuted(env), dtype=jnp.int32)
        case "action_permutation":
            return jnp.arange(env.num_actions, dtype=jnp.int32)
        case "feature_permutation":
            return jnp.arange(env.observation_shape[-1] - 3, dtype=jnp.int32)
        case "gain":
            return jnp.ones_like(other)  # of partial view of object tokens one a place
        case "bias":
            return jnp.zeros(env.observation_shape)
        case "reward_scale":
            return jnp.ones((), jnp.float32)
        case "reward_kernel":
            return jnp.zeros_like(other).at[0].set(1.0)
        case "action_gain":
            return jnp.ones(env.num_actions)
    return jnp.zeros((), jnp.float32)  # noise, sticky_prob


def _numbers(parts: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, range(len(parts))))
