"""Gather: the gridworld of Juliani & Ash (2024), as pure functions.

The agent starts in the middle of a walled 11 x 11 room and has 100 steps to collect gems and to
avoid pits. `plasticity.envs.host.gather_minigrid` is the same environment with MiniGrid's objects.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.envs.base import Array, CompiledEnv, Step, Task, level_key
from plasticity.envs.task import check_level_id
from plasticity.networks.tokens import TokenShape, join_tokens
from plasticity.struct import Range, SettingError, field, static_field

__all__ = ["Gather", "Level"]

SIZE = 11
CELLS = SIZE * SIZE
START = CELLS // 2
NUM_WALLS, NUM_GEMS, NUM_PITS = 10, 5, 5

_LEVEL_SEED = 2405_19153 % 2**31  # of the key of all levels, which no run's seed can equal
_RING = np.pad(np.zeros((SIZE - 2, SIZE - 2), bool), 1, constant_values=True).reshape(-1)
_ROWS, _COLUMNS = np.divmod(np.arange(CELLS), SIZE)
# The cells of walls, gems and pits: rows 2 to 8 and columns 1 to 9, except the start.
_FREE = np.flatnonzero((_ROWS >= 2) & (_ROWS <= 8) & ~_RING & (np.arange(CELLS) != START))
_RED, _GREEN, _BLUE = np.eye(3, dtype=np.float32)
_GRAY = np.full(3, 0.5, np.float32)
# Object tokens: a slot for each cell inside the ring, of which none holds two things.
_INNER = np.flatnonzero(~_RING)
_TOKENS = TokenShape(
    len(_INNER), 4, (SIZE - 2, SIZE - 2), max_tokens=1 + NUM_WALLS + NUM_GEMS + NUM_PITS
)
_INNER_POSITIONS = np.stack([_ROWS[_INNER], _COLUMNS[_INNER]], axis=-1) - 1
_MOVES = np.array([-SIZE, 1, SIZE, -1])  # up, right, down, left


class Level(NamedTuple):
    """The layout of an episode's room."""

    walls: Array  # bool [11, 11], including the outer ring
    objects: Array  # int8 [11, 11]: 1 a gem, -1 a pit


class GatherState(NamedTuple):
    """The state of an episode, with cells in row-major order."""

    walls: Array  # bool [121]
    objects: Array  # int8 [121]
    agent: Array  # int32 []
    steps: Array  # int32 []


class Gather(CompiledEnv):
    """The gridworld of Juliani & Ash (2024): collect gems, avoid pits.

    Actions are 0 up, 1 right, 2 down, 3 left. Observations are 11 x 11 x 3, channels last: the
    agent, the objects (`reward` at gems, `-reward` at pits) and the walls; or an image of the room;
    or object tokens.
    Every episode terminates after `episode_steps` steps, as in the study's code: the bootstrap
    value is 0, although the time is not observed.

    Attributes:
      levels: the size of a level set.
      reward: the reward of a gem, and the cost of a pit. The study's code has 0.75, its text 1.
      episode_steps: the length of every episode.
      pixels: the width and height of the picture, 64 in the study; 0 for the three planes. In the
        picture the agent is blue, gems are green, pits red and walls gray, on black.
      observation: `grid`; or `objects`, tokens of the kind agent, gem, pit or wall (one-hot) with a
        position. There is a slot for each of the 81 cells within the outer walls, so none can be
        missing, and at most 21 are valid.

    A task may set `slip`, the probability that a random action replaces the agent's.
    """

    levels: int = field(100, kind=int, ge=1)
    reward: float = field(0.75, gt=0)
    episode_steps: int = static_field(100, ge=1)
    pixels: int = static_field(0, ge=0)
    observation: str = static_field("grid", choices=("grid", "objects"))

    @property
    def name(self) -> str:
        return "gather"

    @property
    def observation_shape(self) -> tuple[int, ...]:
        if self.observation == "objects":
            return _TOKENS
        size = self.pixels or SIZE
        return (size, size, 3)

    @property
    def num_actions(self) -> int:
        return len(_MOVES)

    @property
    def num_levels(self) -> int | Array:
        return self.levels

    @property
    def min_episode_steps(self) -> int:
        return self.episode_steps

    @property
    def truncates(self) -> bool:
        return False

    @property
    def dynamics(self) -> Mapping[str, Range]:
        return {"slip": Range(float, ge=0, le=1)}

    def level(self, level_id: Array | int) -> Level:
        """Returns the level of that id: the same for every agent, seed and machine.

        Args:
          level_id: an int32 [], or a whole number from 0 on and below 2 147 480 000.

        Raises:
          SettingError: it is a number that is no level's.
        """
        if not isinstance(level_id, jax.Array):
            check_level_id(level_id)
        # Ranks of random bits draw without replacement. Counting the smaller ones ranks them
        # without a sort; the index breaks the (rare) ties.
        key = level_key(_LEVEL_SEED, level_id)
        bits = jax.random.bits(key, _FREE.shape)
        index = np.arange(_FREE.size)
        below = (bits[None] < bits[:, None]) | (
            (bits[None] == bits[:, None]) & (index[None] < index[:, None])
        )
        rank = jnp.sum(below, axis=1)
        gem = (rank >= NUM_WALLS) & (rank < NUM_WALLS + NUM_GEMS)
        pit = (rank >= NUM_WALLS + NUM_GEMS) & (rank < NUM_WALLS + NUM_GEMS + NUM_PITS)
        walls = jnp.asarray(_RING).at[_FREE].set(rank < NUM_WALLS)
        objects = jnp.zeros(CELLS, jnp.int8).at[_FREE].set(gem.astype(jnp.int8) - pit)
        return Level(walls.reshape(SIZE, SIZE), objects.reshape(SIZE, SIZE))

    def start(self, level: Level) -> GatherState:
        """Returns the first state of an episode on `level`."""
        zero = jnp.zeros((), jnp.int32)
        return GatherState(
            walls=jnp.asarray(level.walls, bool).reshape(-1),
            objects=jnp.asarray(level.objects, jnp.int8).reshape(-1),
            agent=zero + START,
            steps=zero,
        )

    def reset(self, task: Task, key: Array) -> GatherState:
        return self.start(self.level(task.levels.draw(key)))

    def check(self) -> None:
        if 0 < self.pixels < SIZE:
            raise SettingError("env.pixels", self.pixels, f"must be 0, or at least {SIZE}")
        if self.pixels and self.observation != "grid":
            raise SettingError("env.pixels", self.pixels, "must be 0 for env.observation=objects")

    def observe(self, task: Task, state: GatherState) -> Array:
        if self.observation == "objects":
            return self._tokens(state)
        if self.pixels:
            return self._picture(state)
        planes = (
            jnp.arange(CELLS) == state.agent,
            state.objects * jnp.asarray(self.reward, jnp.float32),
            state.walls,
        )
        return jnp.stack([plane.astype(jnp.float32) for plane in planes], -1).reshape(
            self.observation_shape
        )

    def _tokens(self, state: GatherState) -> Array:
        """Returns the observation as object tokens. float32 [81, 7]."""
        kinds = (
            jnp.arange(CELLS) == state.agent,
            state.objects > 0,
            state.objects < 0,
            state.walls,
        )
        kind = jnp.stack(kinds, axis=-1)[_INNER]
        return join_tokens(kind.any(axis=-1), _INNER_POSITIONS, kind)

    def _picture(self, state: GatherState) -> Array:
        """Returns the observation as a picture. float32 [pixels, pixels, 3]."""
        planes = (state.objects < 0, state.objects > 0, jnp.arange(CELLS) == state.agent)
        colors = jnp.where(state.walls[:, None], _GRAY, jnp.zeros(3))
        for plane, color in zip(planes, (_RED, _GREEN, _BLUE), strict=True):
            colors = jnp.where(plane[:, None], color, colors)
        cell = np.arange(self.pixels) * SIZE // self.pixels  # the cell of each pixel
        return colors.reshape(SIZE, SIZE, 3)[cell][:, cell]

    def step(self, task: Task, state: GatherState, action: Array, key: Array) -> Step:
        if "slip" in task.dynamics:
            slip_key, action_key = jax.random.split(key)
            slips = jax.random.bernoulli(slip_key, task.dynamics["slip"])
            random_action = jax.random.randint(action_key, (), 0, self.num_actions)
            action = jnp.where(slips, random_action, action)
        target = state.agent + jnp.asarray(_MOVES, jnp.int32)[action]
        agent = jnp.where(state.walls[target], state.agent, target)
        entered = state.objects[agent]
        steps = state.steps + 1
        return Step(
            state=state._replace(
                objects=jnp.where(jnp.arange(CELLS) == agent, jnp.int8(0), state.objects),
                agent=agent,
                steps=steps,
            ),
            reward=entered * jnp.asarray(self.reward, jnp.float32),
            terminated=steps >= self.episode_steps,
            truncated=jnp.zeros((), bool),
        )
