"""Domain shifts: pure functions from the task of one round to the task of the next."""

from typing import ClassVar

import jax

from plasticity.envs.base import Array, Task
from plasticity.spec import Parts, Spec


class Shift(Spec):
    """What changes at the boundary between two rounds."""

    needs_levels: ClassVar[bool] = False

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """The task of `round` (1 for the first after the beginning), from the last round's."""
        raise NotImplementedError


class Permute(Shift):
    """Composes a fresh uniform permutation of the observation's entries onto the last one."""

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        return task._replace(permutation=jax.random.permutation(key, task.permutation))


class Window(Shift):
    """Replaces the level set by the next disjoint one of the same size."""

    needs_levels: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(first=levels.first + levels.size))


class Expand(Shift):
    """Grows the level set by the size it had at first; the old levels stay."""

    needs_levels: ClassVar[bool] = True

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        levels = task.levels
        return task._replace(levels=levels._replace(size=levels.size + levels.step))


class Shifts(Parts[Shift]):
    """Several shifts at every boundary, in the order given; none at all is the control."""

    @property
    def name(self) -> str:
        """Its name in the results table: `permute+window`, or `none`."""
        return "+".join(self.names) or "none"

    def __call__(self, task: Task, round: Array | int, key: Array) -> Task:
        """The task of `round`, from the last round's."""
        for i, part in enumerate(self.parts):
            task = part(task, round, jax.random.fold_in(key, i))
        return task
