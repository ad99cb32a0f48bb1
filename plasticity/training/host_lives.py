"""Lifetimes whose environments live on the host.

Only the rollout is made here: PPO's update, the hooks and the probes are those of `lifetime`.
Every array has a leading axis of runs, [S, ...].
"""

import itertools
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents.ppo import Metrics, Trajectory
from plasticity.envs.base import Task
from plasticity.envs.host import HostEnv, HostEnvs, HostStep
from plasticity.training import lifetime
from plasticity.training.arrangement import Arrangement
from plasticity.training.lifetime import RunState, Stream, Sums, key_for
from plasticity.training.lives import seeds_of, with_probes
from plasticity.training.rollout import Episodes
from plasticity.training.run import Run

Array = jax.Array
T = TypeVar("T")


def draws(runs: Run, stream: Stream, count: int = 0) -> list[np.random.Generator]:
    """The host's generator of each run for the `count`-th use of a stream. [S]."""
    # Trailing zeros would not count: NumPy fills a short seed up with them.
    return [np.random.default_rng([seed, stream, count, 1]) for seed in seeds_of(runs)]


class Crew:
    """S x n environments on the host: n for each of S runs, arrays being [S, n, ...].

    Each run's environments read its own task and draw with its own generator, so that it meets
    the same episodes whatever it is stacked with.
    """

    def __init__(self, runs: Run, num_envs: int) -> None:
        self._runs = runs
        num_runs = len(seeds_of(runs))
        self._shape = (num_runs, num_envs)
        assert isinstance(runs.env, HostEnv)
        self._envs: list[HostEnvs] = [_one(runs.env, s).make(num_envs) for s in range(num_runs)]
        action = (runs.env.num_actions,) if runs.env.continuous_actions else ()
        self._rest = np.zeros((*self._shape, *action), np.float32 if action else np.int64)

    def begin(self, task: Task, stream: Stream, count: int) -> np.ndarray:
        """Begins an episode of `task` in every environment. Observations [S, n, ...]."""
        self._draws = draws(self._runs, stream, count)
        self._last = self._rest
        self.turn_to(task)
        everywhere = np.ones(self._shape[1], bool)
        return np.stack(
            [
                envs.reset(everywhere, draw)
                for envs, draw in zip(self._envs, self._draws, strict=True)
            ]
        )

    def turn_to(self, task: Task) -> None:
        """Makes the next steps and episodes those of another task. Its arrays are on the host."""
        self._task = task
        for s, envs in enumerate(self._envs):
            envs.turn_to(_one(task, s))

    def step(self, actions: np.ndarray | Array) -> tuple[HostStep, np.ndarray]:
        """One step of each, and what each shows to act on next [S, n, ...].

        Where an episode ended that is the first observation of the next.

        Args:
          actions: [S, n]; or [S, n, A], of A numbers each.
        """
        meant = self._meant(np.asarray(actions))
        each = [envs.step(acts) for envs, acts in zip(self._envs, meant, strict=True)]
        step: HostStep = jax.tree.map(lambda *arrays: np.stack(arrays), *each)
        if self._task.reward is not None:
            scale = np.asarray(self._task.reward)[:, None]
            score = None if step.score is None else step.score * scale
            step = step._replace(reward=step.reward * scale, score=score)
        return step, self._follow(step) if step.ended.any() else step.observation

    def close(self) -> None:
        """Frees what the environments hold."""
        for envs in self._envs:
            envs.close()

    def _follow(self, step: HostStep) -> np.ndarray:
        """Begins the next episode wherever one ended. Observations [S, n, ...]."""
        ended = step.ended
        self._last = np.where(_like(ended, self._last), self._rest, self._last)
        return np.stack(
            [
                envs.reset(mask, draw) if mask.any() else seen
                for envs, mask, draw, seen in zip(
                    self._envs, ended, self._draws, step.observation, strict=True
                )
            ]
        )

    def _meant(self, actions: np.ndarray) -> np.ndarray:
        """What actions [S, n] or [S, n, A] are to the environments under the task."""
        task = self._task
        if task.actions is not None:
            order = np.asarray(task.actions)
            if actions.ndim > 2:  # number i is the environment's number order[i]
                back = np.argsort(order, axis=1)[:, None]
                actions = np.take_along_axis(actions, back, axis=2)
            else:
                actions = np.take_along_axis(order, actions, axis=1)
        if task.sticky is not None:
            drawn = np.stack([draw.random(self._shape[1]) for draw in self._draws])
            again = drawn < np.asarray(task.sticky)[:, None]
            self._last = actions = np.where(_like(again, actions), self._last, actions)
        return actions


def _one(stack: T, s: int) -> T:
    """Run `s` of a stack, on the host."""
    return jax.tree.map(lambda x: np.asarray(x)[s], stack)


def _like(flags: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Flags [S, n] as they go with values [S, n, ...]."""
    return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))


class Act(NamedTuple):
    """What a policy did in n environments."""

    seen: Array  # what it saw, [n, *observation_shape]
    action: Array  # [n], or [n, A] of numbers
    log_prob: Array  # [n]
    value: Array  # [n]
    intrinsic_value: Array | None  # [n]


class Told(NamedTuple):
    """What came of it."""

    reward: Array
    terminated: Array
    truncated: Array


def _act(run: Run, state: RunState, observation: Array, stream: Array, step: Array) -> Act:
    seen = _look(run, state, observation, stream, step)
    output = lifetime.policy(run, state)(seen)
    key = jax.random.fold_in(key_for(run, stream, state.update), step)
    chosen = output.policy
    action = chosen.act(chosen.noise(key, (len(observation), run.env.num_actions)))
    return Act(seen, action, chosen.log_prob(action), output.value, output.intrinsic_value)


def _value(run: Run, state: RunState, observation: Array, step: Array) -> tuple[Array, Array]:
    """What an observation that is not acted on is worth, and what is seen of it."""
    seen = _look(run, state, observation, Stream.NOISE, step)
    return lifetime.policy(run, state)(seen).value, seen


def _improve(
    run: Run,
    state: RunState,
    acts: Sequence[Act],
    told: Told,
    cut_off: Sequence[Array],
    following: Array,
) -> tuple[RunState, Metrics, Trajectory]:
    """`lifetime.improve`, of a trajectory that is put together of what policy and host know.

    Args:
      run: the run.
      state: its state.
      acts: what the policy did, for each of T steps [N, ...].
      told: what came of it, [T, N].
      cut_off: for each step [N] the value of the last observation of an episode, wherever it
        was cut off; anything elsewhere.
      following: what the environments show after the last step, [N, ...], not yet viewed.

    Returns:
      State and metrics after the update, and the trajectory.
    """
    done: Act = jax.tree.map(lambda *steps: jnp.stack(steps), *acts)
    last, seen = _value(run, state, following, jnp.asarray(run.agent.num_steps))
    next_value = jnp.concatenate([done.value[1:], last[None]])
    trajectory = Trajectory(
        observation=done.seen,
        action=done.action,
        log_prob=done.log_prob,
        value=done.value,
        next_value=jnp.where(told.truncated, jnp.stack(cut_off), next_value),
        reward=told.reward,
        terminated=told.terminated,
        truncated=told.truncated,
        following=seen,
        intrinsic_value=done.intrinsic_value,
    )
    return *lifetime.improve(run, state, trajectory), trajectory


def _look(
    run: Run, state: RunState, observations: Array, stream: Array | int, step: Array | int
) -> Array:
    """What the agent sees of [n, *observation_shape]; the noise is that of the stream's step."""
    if state.task.noise is None:
        return jax.vmap(state.task.view)(observations)
    key = jax.random.fold_in(key_for(run, Stream.NOISE, state.update), stream)
    noise = jax.random.normal(jax.random.fold_in(key, step), observations.shape)
    return jax.vmap(state.task.view)(observations, noise)


class HostLives:
    """Lifetimes in environments on the host: a rollout there, then an update on the device.

    A stack of several runs is trained by two teams, each on a device of its own where there are
    two. While one waits for its device, for actions or for an update, the other one's
    environments go on. What a run comes to does not depend on that.

    Args:
      runs: the stack, [S].
      state: where they stand, at the end of a round; at the beginning if not given.
    """

    restarts_anywhere: ClassVar[bool] = False  # what happens in an episode cannot be saved

    def __init__(self, runs: Run, state: RunState | None = None) -> None:
        num_runs, devices = len(seeds_of(runs)), jax.local_devices()
        half = -(-num_runs // 2)
        shares = [slice(0, half), slice(half, num_runs)][: min(num_runs, 2)]
        self._teams = [
            Team(_part(runs, share), None if state is None else _part(state, share), device)
            for share, device in zip(shares, itertools.cycle(devices))
        ]

    @property
    def state(self) -> RunState:
        return _joined([team.state for team in self._teams])

    def next_round(self) -> None:
        for team in self._teams:
            team.next_round()

    def advance(self, num_updates: int) -> Sums:
        return _joined(in_turn([team.advance(num_updates) for team in self._teams]))

    def evaluate(self) -> Metrics:
        return _joined(in_turn([team.evaluate() for team in self._teams]))

    def measure(self, probes: Collection[str]) -> Metrics:
        return _joined([team.measure(probes) for team in self._teams])

    def close(self) -> None:
        for team in self._teams:
            team.close()


Waiting = Generator[Any, None, T]  # yields what it waits for, and returns what it came to


def in_turn(tasks: Sequence[Waiting[T]]) -> list[T]:
    """What tasks return. It goes on with one that need not wait, or that has waited longest."""
    done: dict[int, T] = {}
    waiting: list[tuple[int, Any]] = []

    def go_on(number: int) -> None:
        try:
            waiting.append((number, next(tasks[number])))
        except StopIteration as end:
            done[number] = end.value

    for number in range(len(tasks)):
        go_on(number)
    while waiting:
        first = next((i for i, (_, awaited) in enumerate(waiting) if awaited.is_ready()), 0)
        go_on(waiting.pop(first)[0])
    return [done[number] for number in range(len(tasks))]


class Team:
    """Runs of a stack that go through their lifetimes side by side.

    Args:
      runs: the runs, [S].
      state: where they stand, at the end of a round; at the beginning if not given.
      device: what computes them.
    """

    def __init__(self, runs: Run, state: RunState | None, device: jax.Device) -> None:
        self._arrangement = Arrangement.of(1)._replace(devices=(device,))
        self._runs = self._arrangement.place(runs)
        self._trajectory: Trajectory | None = None  # of the last update
        self._crew = Crew(runs, runs.agent.num_envs)
        self._examiners = Crew(runs, runs.schedule.eval_episodes)
        if state is None:
            self.state: RunState = self._compiled(lifetime.begin)(self._runs)
            self._begin_round()
        else:
            self.state = self._arrangement.place(state)

    def next_round(self) -> None:
        """As `Lives` has it."""
        self.state = self._compiled(lifetime.next_round, donate=1)(self._runs, self.state)
        self._begin_round()

    def advance(self, num_updates: int) -> Waiting[Sums]:
        """As `Lives` has it."""
        total: Sums | None = None
        for _ in range(num_updates):
            sums = yield from self._one_update()
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        assert total is not None
        return total

    def evaluate(self) -> Waiting[Metrics]:
        """As `Lives` has it."""
        task = jax.device_get(self.state.task)
        train = yield from self._examine(task, 0)
        metrics = {"eval_train_return": {"all": train}}
        if self._runs.env.num_levels is not None:
            test = yield from self._examine(task.held_out(), 1)
            metrics["eval_test_return"] = {"all": test}
        return metrics

    def measure(self, probes: Collection[str]) -> Metrics:
        """As `Lives` has it."""
        assert self._trajectory is not None
        runs = with_probes(self._runs, probes)
        return self._compiled(lifetime.measure)(
            runs, self.state, self._probe_batch, self._trajectory
        )

    def close(self) -> None:
        """Frees what they hold."""
        self._crew.close()
        self._examiners.close()

    def _begin_round(self) -> None:
        coming = lifetime.task_of_round(self.state)
        looking = self.state._replace(task=coming)
        self._probe_batch = self._compiled(_look, shared=2)(
            self._runs, looking, self._sample(jax.device_get(coming)), Stream.PROBE, 0
        )
        task, round = jax.device_get((self.state.task, self.state.round))
        self._observation = self._crew.begin(task, Stream.ENVS, int(round[0]))
        self._earned = np.zeros(self._observation.shape[:2], np.float32)

    def _one_update(self) -> Waiting[Sums]:
        num_steps, earned = self._runs.agent.num_steps, self._earned
        count, returns = np.zeros((2, len(earned)), np.float32)
        acts, steps, cut_off = [], [], []
        for t in range(num_steps):
            act = self._act(self._observation, Stream.ROLLOUT, t)
            yield act.action
            step, self._observation = self._crew.step(act.action)
            acts.append(act)
            steps.append((step.reward, step.terminated, step.truncated))
            valued = act.value  # stands for what is not asked for
            if step.truncated.any():
                value = self._compiled(_value, shared=1)
                valued, _ = value(self._runs, self.state, step.observation, t)
            cut_off.append(valued)
            earned += step.counted
            count += step.ended.sum(axis=1)
            returns += (earned * step.ended).sum(axis=1)
            earned[step.ended] = 0.0
        self.state, metrics, self._trajectory = self._compiled(_improve, donate=1)(
            self._runs,
            self.state,
            acts,
            Told(*(jnp.asarray(np.stack(each, axis=1)) for each in zip(*steps, strict=True))),
            cut_off,
            self._observation,
        )
        if self.state.boundary is not None:
            self._crew.turn_to(jax.device_get(self.state.task))
        return Sums(
            jnp.ones(len(earned)), metrics, Episodes(jnp.asarray(count), jnp.asarray(returns))
        )

    def _act(self, observation: np.ndarray, stream: Stream, step: int) -> Act:
        act = self._compiled(_act, shared=2)
        return act(self._runs, self.state, observation, stream, step)

    def _compiled(self, function: Callable[..., Any], **how: int) -> Callable[..., Any]:
        return self._arrangement.over_runs(function, **how)

    def _examine(self, task: Task, part: int) -> Waiting[Array]:
        """Mean returns of `eval_episodes` whole episodes of `task`. [S]."""
        update = int(self.state.update[0])
        observation = self._examiners.begin(task, Stream.EVALUATION, 2 * update + part)
        earned = np.zeros(observation.shape[:2], np.float32)
        under_way = np.ones(earned.shape, bool)
        for t in itertools.count():
            act = self._act(observation, Stream.EVALUATION, 2 * t + part)
            yield act.action
            step, observation = self._examiners.step(act.action)
            earned += step.counted * under_way
            under_way &= ~step.ended
            if not under_way.any():
                break
        return jnp.asarray(np.mean(earned, axis=1))

    def _random_actions(self, draw: np.random.Generator, num_envs: int) -> np.ndarray:
        """Actions drawn alike, or numbers drawn normally."""
        env = self._runs.env
        if env.continuous_actions:
            return draw.normal(size=(num_envs, env.num_actions)).astype(np.float32)
        return draw.integers(env.num_actions, size=num_envs)

    def _sample(self, task: Task) -> np.ndarray:
        """Observations met under random actions. [S, probe_batch, ...]."""
        size = self._runs.schedule.probe_batch
        draw_each = draws(self._runs, Stream.PROBE_ACTIONS)
        observation = self._examiners.begin(task, Stream.PROBE, 0)
        num_envs, met = observation.shape[1], []
        for _ in range(max(128, -(-size // num_envs))):
            met.append(observation)
            actions = [self._random_actions(draw, num_envs) for draw in draw_each]
            _, observation = self._examiners.step(np.stack(actions))
        seen = np.concatenate(met, axis=1)
        return np.stack(
            [
                one[draw.choice(len(one), size, replace=False)]
                for one, draw in zip(seen, draw_each, strict=True)
            ]
        )


def _part(tree: Any, share: slice) -> Any:
    """Some runs of a stack."""
    return jax.tree.map(lambda x: x[share], tree)


def _joined(parts: Sequence[Any]) -> Any:
    """Stacks as one, on the host."""
    return jax.tree.map(lambda *each: np.concatenate([np.asarray(x) for x in each]), *parts)
