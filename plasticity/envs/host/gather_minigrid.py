"""Gather as a MiniGrid environment: a plain reference of the JAX environment.

Gather is the gridworld of Juliani & Ash 2024 (arXiv 2405.19153): an agent walks an 11 x 11 grid,
gains a reward for each gem it enters and loses as much for each pit. This module implements the
rules of `plasticity.envs.gather` with MiniGrid's grid, objects and renderer, one Python step at a
time, so that each can be tested against the other and any level can be rendered.

Importing the module registers the environment with Gymnasium as `Plasticity/Gather-v0`.
`gymnasium.make("plasticity.envs.host.gather_minigrid:Plasticity/Gather-v0")` imports it as well.

Arrays are indexed (row, column); MiniGrid's grid is addressed as (x, y) = (column, row).
"""

import math
import operator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import TILE_PIXELS
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Floor, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import ArrayLike, NDArray

ENV_ID = "Plasticity/Gather-v0"
SIZE = 11
START = (5, 5)
N_WALLS = 10
N_GEMS = 5
N_PITS = 5
PLACEMENT_ROWS = range(2, 9)
PLACEMENT_COLUMNS = range(1, 10)
# (row, column) displacements of the actions up, right, down and left.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
# MiniGrid's index of "up". Moving does not turn the agent.
FACING_UP = 3

__all__ = ["ENV_ID", "GatherMiniGrid", "check_level", "draw_level"]

Walls = NDArray[np.bool_]
Objects = NDArray[np.int8]
Observation = NDArray[np.float32]


class Gem(Ball):
    """A green ball that is collected by entering its cell."""

    def __init__(self) -> None:
        WorldObj.__init__(self, "ball", "green")

    def can_overlap(self) -> bool:
        """Returns True: the agent may enter the cell."""
        return True

    def can_pickup(self) -> bool:
        """Returns False: gems are collected on entry; there is no pick-up action."""
        return False


class Pit(Floor):
    """A red tile with a negative reward when it is entered."""

    def __init__(self) -> None:
        super().__init__("red")


class GatherMiniGrid(MiniGridEnv):
    """Gather on MiniGrid's grid, with the whole grid as a symbolic observation.

    Actions are 0 up, 1 right, 2 down and 3 left; a move into a wall leaves the agent where it is.
    Entering a gem gives `+reward` and entering a pit `-reward`, and the object disappears; nothing
    else is rewarded. Every episode has exactly `episode_steps` steps and ends as `terminated`:
    `truncated` is always False.

    Observations are float32 [11, 11, 3], indexed (row, column, channel): channel 0 is 1 at the
    agent, channel 1 is `+reward` at gems and `-reward` at pits, channel 2 is 1 at walls; all else
    is 0.
    """

    # For "human" Gymnasium opens a window by itself if only "rgb_array" is supported.
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        walls: ArrayLike | None = None,
        objects: ArrayLike | None = None,
        *,
        reward: float = 0.75,
        episode_steps: int = 100,
        render_mode: str | None = None,
        tile_size: int = TILE_PIXELS,
    ) -> None:
        """Makes an environment whose episodes have one given level, or a new level each.

        Args:
            walls: 11 x 11, 1 (or True) at walls and 0 elsewhere. The outer ring becomes wall
                whatever its values. None, with `objects` None too, draws a level at each reset.
            objects: 11 x 11, +1 at gems, -1 at pits and 0 elsewhere.
            reward: the reward of a gem and the cost of a pit; positive and finite.
            episode_steps: the number of steps of an episode, at least 1.
            render_mode: None, or "rgb_array" for `render` to return a uint8 picture of the grid.
                `gymnasium.make` also accepts "human" and shows these pictures in a window.
            tile_size: the width and height of a rendered cell, in pixels.

        Raises:
            ValueError: the level or another argument is not as described.
        """
        if not (math.isfinite(reward) and reward > 0):
            raise ValueError(f"reward is {reward}, must be a positive finite number")
        if episode_steps < 1:
            raise ValueError(f"episode_steps is {episode_steps}, must be at least 1")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, must be None or 'rgb_array'")
        super().__init__(
            mission_space=MissionSpace(mission_func=_mission),
            grid_size=SIZE,
            max_steps=episode_steps,
            see_through_walls=True,
            render_mode=render_mode,
            highlight=False,
            tile_size=tile_size,
        )
        self.reward = float(reward)
        self.action_space = spaces.Discrete(len(MOVES))
        self.observation_space = _observation_space(self.reward)
        self._given_level = _optional_level(walls, objects)
        self._level: tuple[Walls, Objects] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode. Returns its first observation and an empty info.

        Args:
            seed: seeds `np_random`, from which a level is drawn when none is given.
            options: "walls" and "objects", together, set the level of this episode alone, in the
                form the constructor takes. Other keys are ignored.

        Raises:
            ValueError: the level in `options` is not valid; the current episode is not changed.
        """
        options = options or {}
        level = _optional_level(options.get("walls"), options.get("objects")) or self._given_level
        # Seeded here because MiniGrid's own reset needs the level, which is drawn first.
        gym.Env.reset(self, seed=seed)
        self._level = draw_level(self.np_random) if level is None else level
        return super().reset()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Moves the agent once.

        Args:
            action: an integer of any type: 0 up, 1 right, 2 down, 3 left.

        Returns:
            The observation after the move, the reward, `terminated` (True from the episode's last
            step on), `truncated` (always False) and an empty info.

        Raises:
            TypeError: the action is not an integer.
            ValueError: the action is another integer.
        """
        index = operator.index(action)
        if index not in range(len(MOVES)):
            raise ValueError(f"action is {index}, must be 0 up, 1 right, 2 down or 3 left")
        self.step_count += 1
        reward = self._move(*MOVES[index])
        return self.gen_obs(), reward, self.step_count >= self.max_steps, False, {}

    def level(self) -> tuple[Walls, Objects]:
        """Returns copies of the current episode's initial level, in the form the constructor takes.

        Returns:
            Walls, bool [11, 11] with the outer ring, and objects, int8 [11, 11].

        Raises:
            gymnasium.error.ResetNeeded: no episode was started.
        """
        if self._level is None:
            raise gym.error.ResetNeeded("no episode has a level yet, call reset first")
        walls, objects = self._level
        return walls.copy(), objects.copy()

    def gen_obs(self) -> Observation:
        """Returns the observation of the current state in a new array, float32 [11, 11, 3]."""
        observation = np.zeros((SIZE, SIZE, 3), np.float32)
        for row, column in np.ndindex(SIZE, SIZE):
            cell = self.grid.get(column, row)
            observation[row, column, 1] = _sign(cell) * self.reward
            observation[row, column, 2] = isinstance(cell, Wall)
        x, y = self.agent_pos
        observation[y, x, 0] = 1
        return observation

    def _move(self, row_step: int, column_step: int) -> float:
        """Moves the agent, unless a wall blocks it, onto what is there. Returns the reward."""
        x, y = self.agent_pos
        target = (x + column_step, y + row_step)
        cell = self.grid.get(*target)
        if isinstance(cell, Wall):
            return 0.0
        self.agent_pos = target
        self.grid.set(*target, None)
        return _sign(cell) * self.reward

    def _gen_grid(self, width: int, height: int) -> None:
        """Builds the grid of the episode's level, with the agent at the start."""
        walls, objects = self.level()
        self.grid = Grid(width, height)
        for row, column in np.ndindex(SIZE, SIZE):
            if walls[row, column]:
                self.put_obj(Wall(), column, row)
            elif objects[row, column]:
                self.put_obj(Gem() if objects[row, column] > 0 else Pit(), column, row)
        start_row, start_column = START
        self.agent_pos = (start_column, start_row)
        self.agent_dir = FACING_UP


def draw_level(rng: np.random.Generator) -> tuple[Walls, Objects]:
    """Draws a level: 10 inner walls, 5 gems and 5 pits, uniformly over distinct cells.

    The cells are those with row in 2..8 and column in 1..9, except the start cell.

    Returns:
        Walls, bool [11, 11] with the outer ring, and objects, int8 [11, 11].
    """
    cells = np.array([(r, c) for r in PLACEMENT_ROWS for c in PLACEMENT_COLUMNS if (r, c) != START])
    drawn = rng.choice(cells, N_WALLS + N_GEMS + N_PITS, replace=False)
    wall_cells, gem_cells, pit_cells = np.split(drawn, [N_WALLS, N_WALLS + N_GEMS])
    walls = _outer_ring()
    walls[tuple(wall_cells.T)] = True
    objects = np.zeros((SIZE, SIZE), np.int8)
    objects[tuple(gem_cells.T)] = 1
    objects[tuple(pit_cells.T)] = -1
    return walls, objects


def check_level(walls: ArrayLike, objects: ArrayLike) -> tuple[Walls, Objects]:
    """Checks a level and returns it in its canonical form, as new arrays.

    Args:
        walls: 11 x 11 of 0 and 1; the outer ring becomes wall whatever its values.
        objects: 11 x 11 of +1 (gem), -1 (pit) and 0.

    Returns:
        Walls, bool [11, 11] with the outer ring, and objects, int8 [11, 11].

    Raises:
        ValueError: a shape or a value is not as described, a wall is on the start cell, or an
            object is on the start cell, on a wall or on the outer ring.
    """
    checked_walls = _as_grid("walls", walls, (0, 1)).astype(np.bool_) | _outer_ring()
    checked_objects = _as_grid("objects", objects, (-1, 0, 1)).astype(np.int8)
    if checked_walls[START]:
        raise ValueError(f"walls has a wall on the start cell {START}, which must be free")
    if checked_objects[START]:
        raise ValueError(f"objects has an object on the start cell {START}, which must be free")
    blocked = np.argwhere(checked_walls & (checked_objects != 0))
    if len(blocked):
        row, column = blocked[0].tolist()
        raise ValueError(
            f"objects has an object on the wall at {(row, column)}, "
            f"must be on free cells inside the outer ring"
        )
    return checked_walls, checked_objects


def _optional_level(
    walls: ArrayLike | None, objects: ArrayLike | None
) -> tuple[Walls, Objects] | None:
    """Returns the checked level, or None if neither part is given; ValueError if only one is."""
    if walls is None and objects is None:
        return None
    if walls is None or objects is None:
        missing = "walls" if walls is None else "objects"
        raise ValueError(f"{missing} is missing, walls and objects must be given together")
    return check_level(walls, objects)


def _as_grid(name: str, values: ArrayLike, allowed: tuple[int, ...]) -> NDArray[np.float64]:
    """Converts values to an 11 x 11 array; ValueError if the shape or a value is not allowed."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an {SIZE} x {SIZE} array of numbers") from error
    if array.shape != (SIZE, SIZE):
        raise ValueError(f"{name} has shape {array.shape}, must be {(SIZE, SIZE)}")
    wrong = np.argwhere(~np.isin(array, allowed))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"{name} has the value {array[row, column]:g} at {(row, column)}, "
            f"must be one of {allowed}"
        )
    return array


def _outer_ring() -> Walls:
    """Returns the outer ring. bool [11, 11]."""
    ring = np.ones((SIZE, SIZE), np.bool_)
    ring[1:-1, 1:-1] = False
    return ring


def _observation_space(reward: float) -> spaces.Box:
    """Returns the space of float32 [11, 11, 3] observations: [0, 1], [-reward, reward], [0, 1]."""
    low = np.broadcast_to(np.array([0, -reward, 0], np.float32), (SIZE, SIZE, 3))
    high = np.broadcast_to(np.array([1, reward, 1], np.float32), (SIZE, SIZE, 3))
    return spaces.Box(low, high, dtype=np.float32)


def _sign(cell: WorldObj | None) -> int:
    """Returns +1 for a gem, -1 for a pit, 0 for anything else."""
    return isinstance(cell, Gem) - isinstance(cell, Pit)


def _mission() -> str:
    """Returns MiniGrid's one-line description of the goal."""
    return "gather the green gems, keep out of the red pits"


if ENV_ID not in gym.registry:
    gym.register(ENV_ID, entry_point="plasticity.envs.host.gather_minigrid:GatherMiniGrid")
