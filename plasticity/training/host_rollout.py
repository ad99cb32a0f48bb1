"""Rollouts, evaluation and probe batches of host environments.

The update, the hooks and the probes are those of `plasticity.training.loop`. Every array has a
leading axis of runs, [S, ...].
"""

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from plasticity.agents import Metrics, Trajectory
from plasticity.envs.base import Task
from plasticity.envs.host import HostEnv
from plasticity.envs.host.vector_env import HostVecEnv
from plasticity.networks import Memory, Params, reset_memory
from plasticity.rng import Stream, key_for, past_evaluation_stream
from plasticity.training import loop
from plasticity.training.past_tasks import PastTasks, past_metrics
from plasticity.training.placement import Placement
from plasticity.training.rollout import warn_of_cut_off_episodes
from plasticity.training.run import Run, initial_memory, seeds_of
from plasticity.training.state import EpisodeStats, MetricSums, RunState

Array = jax.Array
T = TypeVar("T")
Waiting = Generator[Any, None, T]  # yields the arrays it waits for, and returns its result


class PolicyStep(NamedTuple):
    """The policy's part of a step of n environments."""

    observation: Array  # as the agent sees it, [n, *observation_shape]
    action: Array  # [n], or [n, A] where actions are continuous
    log_prob: Array  # [n]
    value: Array  # [n]
    intrinsic_value: Array | None  # [n]


class TimeStep(NamedTuple):
    """The environments' part of a step, or of a rollout."""

    reward: Array
    terminated: Array
    truncated: Array


def make_rngs(runs: Run, stream: Stream | int, count: int = 0) -> list[np.random.Generator]:
    """Returns each run's NumPy generator for the `count`-th use of a stream. [S]."""
    # Trailing zeros would not count: NumPy pads a short seed with them.
    return [np.random.default_rng([seed, stream, count, 1]) for seed in seeds_of(runs)]


def run_interleaved(
    tasks: Sequence[Waiting[T]], check_signals: Callable[[], None] = lambda: None
) -> list[T]:
    """Runs generators alternately: resumes one that need not wait, or has waited longest.

    Args:
      tasks: the generators.
      check_signals: called before each is resumed; what it raises ends them all.

    Returns:
      What each of them returned.
    """
    done: dict[int, T] = {}
    waiting: list[tuple[int, Any]] = []

    def resume(number: int) -> None:
        try:
            waiting.append((number, next(tasks[number])))
        except StopIteration as end:
            done[number] = end.value

    for number in range(len(tasks)):
        resume(number)
    while waiting:
        check_signals()
        first = next((i for i, (_, awaited) in enumerate(waiting) if awaited.is_ready()), 0)
        resume(waiting.pop(first)[0])
    return [done[number] for number in range(len(tasks))]


def _observe(
    run: Run, state: RunState, observation: Array, stream: Array | int, step: Array | int
) -> Array:
    """Returns observations [n, *observation_shape] as the agent sees them under the task.

    The noise depends on the stream and the step.
    """
    if state.task.noise is None:
        return jax.vmap(state.task.transform_obs)(observation)
    key = jax.random.fold_in(key_for(run.seed, Stream.OBSERVATION_NOISE, state.update), stream)
    noise = jax.random.normal(jax.random.fold_in(key, step), observation.shape)
    return jax.vmap(state.task.transform_obs)(observation, noise)


def _act(
    run: Run, state: RunState, observation: Array, memory: Memory, stream: Array, step: Array
) -> tuple[PolicyStep, Memory]:
    """Returns the policy's part of a step, and the network's memory after it."""
    observation = _observe(run, state, observation, stream, step)
    output = loop.policy(run, state)(observation, memory)
    key = jax.random.fold_in(key_for(run.seed, stream, state.update), step)
    policy = output.policy
    action = policy.act(policy.noise(key, (len(observation), run.env.num_actions)))
    acted = PolicyStep(
        observation, action, policy.log_prob(action), output.value, output.intrinsic_value
    )
    return acted, output.memory


def _value(
    run: Run, state: RunState, observation: Array, memory: Memory, step: Array
) -> tuple[Array, Array]:
    """Returns the value of observations that are not acted on, and what the agent sees of them."""
    observation = _observe(run, state, observation, Stream.OBSERVATION_NOISE, step)
    return loop.policy(run, state)(observation, memory).value, observation


def _make_trajectory(
    run: Run,
    state: RunState,
    policy_steps: Sequence[PolicyStep],
    time_steps: TimeStep,
    truncation_values: Sequence[Array],
    last_obs: Array,
    memory: Memory,
    last_memory: Memory,
) -> Trajectory:
    """Assembles a rollout.

    Args:
      run: the run.
      state: its state.
      policy_steps: the policy's part of each of T steps, [N, ...].
      time_steps: the environments' part, [T, N].
      truncation_values: for each step [N] the value of the last observation of an episode,
        wherever it was truncated; anything elsewhere.
      last_obs: the environments' observations after the last step, [N, ...].
      memory: the network's before the first step, [N, ...].
      last_memory: the same after the last step.
    """
    steps: PolicyStep = jax.tree.map(lambda *steps: jnp.stack(steps), *policy_steps)
    last_step = jnp.asarray(run.agent.num_steps)
    last_value, last_obs = _value(run, state, last_obs, last_memory, last_step)
    next_value = jnp.concatenate([steps.value[1:], last_value[None]])
    return Trajectory(
        **steps._asdict(),
        **time_steps._asdict(),
        next_value=jnp.where(time_steps.truncated, jnp.stack(truncation_values), next_value),
        last_obs=last_obs,
        memory=memory,
        last_memory=last_memory,
    )


def _update(run: Run, state: RunState, *rollout: Any) -> tuple[RunState, Metrics]:
    """Makes one update of the agent from the parts of a rollout: see `_make_trajectory`."""
    return loop.update(run, state, _make_trajectory(run, state, *rollout))


def _run_probes(run: Run, state: RunState, observation: Array, *rollout: Any) -> Metrics:
    """Runs the probes, with the parts of a rollout if they need one."""
    trajectory = _make_trajectory(run, state, *rollout) if rollout else None
    return loop.run_probes(run, state, observation, trajectory)


class HostWorker:
    """Trains some runs of a stack on one device.

    Args:
      runs: the runs, [S].
      state: the state at the end of a round to continue from; the beginning if not given.
      device: the device.
      check_signals: called between steps that sample a probe batch.
      params: the initial parameters, [S, ...]; drawn at random if not given.
    """

    def __init__(
        self,
        runs: Run,
        state: RunState | None,
        device: jax.Device,
        check_signals: Callable[[], None],
        params: Params | None = None,
    ) -> None:
        self._check_signals = check_signals
        self._placement = Placement((device,), Placement.of(1).mode)
        self._runs = self._placement.put(runs)
        self._past_tasks = PastTasks(self._runs, self._placement)
        self._open_envs: list[HostVecEnv] = []
        try:
            self._train_envs = self._make_envs(runs.agent.num_envs)
            # Probe batches are sampled in these too.
            self._eval_envs = self._make_envs(runs.schedule.eval_episodes or runs.agent.num_envs)
            self._probe_envs: HostVecEnv | None = None
            if state is None:
                given = [] if params is None else [self._placement.put(params)]
                self.state: RunState = self._compiled(loop.init)(self._runs, *given)
                self._start_envs()
            else:
                self.state = self._placement.put(state)
        except BaseException:
            self.close()
            raise

    @property
    def probe_batch(self) -> Array:
        """The probe batch of the round, [S, B, *observation_shape]."""
        return self._probe_batch

    def start_round(self) -> None:
        """See `Trainer.start_round`."""
        self.state = self._compiled(loop.start_round, donate=1)(self._runs, self.state)
        self._start_envs()

    def train_updates(self, num_updates: int) -> Waiting[MetricSums]:
        """See `Trainer.train_updates`."""
        total = yield from self._train_update()
        for _ in range(num_updates - 1):
            sums = yield from self._train_update()
            total = jax.tree.map(jnp.add, total, sums)
        return total

    def evaluate(self) -> Waiting[Metrics]:
        """See `Trainer.evaluate`."""
        tasks = loop.eval_tasks(self._runs, jax.device_get(self.state.task))
        metrics: Metrics = {}
        for number, (name, task) in enumerate(tasks.items()):
            returns = yield from self._evaluate(self.state, task, Stream.EVALUATION, number, 2)
            metrics[name] = {"all": returns}
        return metrics

    def evaluate_past(self, num_rounds: int) -> Waiting[Metrics]:
        """See `Trainer.evaluate_past`."""
        returns = []
        for round, task in enumerate(self._past_tasks.first(num_rounds)):
            state, stream = self.state._replace(task=task), int(past_evaluation_stream(round))
            mean = yield from self._evaluate(state, jax.device_get(task), stream)
            returns.append(mean)
        return past_metrics(returns)

    def run_probes(self, probes: Collection[str]) -> Waiting[Metrics]:
        """See `Trainer.run_probes`.

        A probe that asks for transitions gets a rollout of the current policy, from the beginning
        of episodes in environments of its own.
        """
        runs = loop.at_full_precision(self._runs)
        probed = runs.replace(probes=runs.probes.only(probes))
        rollout: tuple[Any, ...] = ()
        if loop.needs_rollout(probed, self.state, self._probe_batch):
            if self._probe_envs is None:
                self._probe_envs = self._make_envs(runs.agent.num_envs)
            update = int(self.state.update[0])
            rngs = make_rngs(runs, Stream.PROBE_ROLLOUT, update)
            observation = self._probe_envs.reset(jax.device_get(self.state.task), rngs)
            memory = self._empty_memory(runs.agent.num_envs)
            rollout, *_ = yield from self._rollout(
                runs, self._probe_envs, observation, memory, Stream.PROBE_ROLLOUT
            )
        return self._compiled(_run_probes)(probed, self.state, self._probe_batch, *rollout)

    def close(self) -> None:
        """Closes the environments."""
        for envs in self._open_envs:
            envs.close()

    def _make_envs(self, num_envs: int) -> HostVecEnv:
        env: HostEnv = self._runs.env
        envs = HostVecEnv(env, len(seeds_of(self._runs)), num_envs)
        self._open_envs.append(envs)
        return envs

    def _start_envs(self) -> None:
        """Samples the probe batch of the round, and starts its first episodes."""
        task = loop.task_of_round(self.state)
        self._probe_batch = self._compiled(_observe, shared=2)(
            self._runs,
            self.state._replace(task=task),
            self._sample(jax.device_get(task)),
            Stream.PROBE,
            0,
        )
        task, round = jax.device_get((self.state.task, self.state.round))
        rngs = make_rngs(self._runs, Stream.ENVS, int(round[0]))
        self._observation = self._train_envs.reset(task, rngs)
        self._memory = self._empty_memory(self._observation.shape[1])
        self._episode_return = np.zeros(self._observation.shape[:2], np.float32)

    def _train_update(self) -> Waiting[MetricSums]:
        rollout, self._observation, self._memory, steps = yield from self._rollout(
            self._runs, self._train_envs, self._observation, self._memory, Stream.ROLLOUT
        )
        episode_return = self._episode_return
        count, return_sum = np.zeros((2, len(episode_return)), np.float32)
        for reward, done in steps:
            episode_return += reward
            count += done.sum(axis=1)
            return_sum += (episode_return * done).sum(axis=1)
            episode_return[done] = 0.0
        self.state, metrics = self._compiled(_update, donate=1)(self._runs, self.state, *rollout)
        if self.state.interpolation is not None:
            self._train_envs.set_task(jax.device_get(self.state.task))
        return MetricSums(
            jnp.ones(len(episode_return)),
            metrics,
            EpisodeStats(jnp.asarray(count), jnp.asarray(return_sum)),
        )

    def _rollout(
        self, runs: Run, envs: HostVecEnv, observation: np.ndarray, memory: Memory, stream: Stream
    ) -> Waiting[tuple[tuple[Any, ...], np.ndarray, Memory, list[tuple[np.ndarray, np.ndarray]]]]:
        """Makes T steps in each environment.

        Returns:
          The parts of the rollout (see `_make_trajectory`), the observation and the network's
          memory after it, and of each step what returns count and whether an episode ended.
        """
        first_memory = memory
        policy_steps, time_steps, truncation_values, counts = [], [], [], []
        for t in range(runs.agent.num_steps):
            act, memory = self._compiled(_act, shared=2)(
                runs, self.state, observation, memory, stream, t
            )
            yield act.action
            step, observation = envs.step(act.action)
            policy_steps.append(act)
            time_steps.append((step.reward, step.terminated, step.truncated))
            values = act.value  # placeholders where nothing was truncated
            if step.truncated.any():
                value = self._compiled(_value, shared=1)
                values, _ = value(runs, self.state, step.observation, memory, t)
            truncation_values.append(values)
            counts.append((step.counted, step.done))
            memory = reset_memory(memory, step.done)
        stacked = TimeStep(
            *(jnp.asarray(np.stack(each, axis=1)) for each in zip(*time_steps, strict=True))
        )
        rollout = (policy_steps, stacked, truncation_values, observation, first_memory, memory)
        return rollout, observation, memory, counts

    def _empty_memory(self, num_envs: int) -> Memory:
        """Returns the memory of the networks at the beginning of episodes. [S, num_envs, ...]."""
        memory = jax.vmap(lambda run: initial_memory(run, num_envs))(self._runs)
        return self._placement.put(memory)

    def _compiled(self, function: Callable[..., Any], **options: int) -> Callable[..., Any]:
        return self._placement.map_runs(function, **options)

    def _evaluate(
        self, state: RunState, task: Task, stream: int, number: int = 0, of: int = 1
    ) -> Waiting[Array]:
        """Returns mean returns of `eval_episodes` episodes of a task. [S].

        Args:
          state: the state, whose task says how the agent sees observations.
          task: the task of the episodes, on the host.
          stream: the stream of randomness.
          number: which of several evaluations of the stream this is.
          of: how many there are.
        """
        update = int(state.update[0])
        rngs = make_rngs(self._runs, stream, of * update + number)
        observation = self._eval_envs.reset(task, rngs)
        episode_return = np.zeros(observation.shape[:2], np.float32)
        running = np.ones(episode_return.shape, bool)
        memory = self._empty_memory(observation.shape[1])
        schedule = self._runs.schedule
        for t in range(schedule.eval_max_steps):
            act, memory = self._compiled(_act, shared=2)(
                self._runs, state, observation, memory, stream, of * t + number
            )
            yield act.action
            step, observation = self._eval_envs.step(act.action)
            episode_return += step.counted * running
            running &= ~step.done
            memory = reset_memory(memory, step.done)
            if not running.any():
                break
        else:
            warn_of_cut_off_episodes(self._runs.env.name, schedule.eval_max_steps)
        return jnp.asarray(np.mean(episode_return, axis=1))

    def _random_actions(self, rng: np.random.Generator, num_envs: int) -> np.ndarray:
        """Draws actions uniformly, or from a standard normal where they are continuous."""
        env = self._runs.env
        if env.continuous_actions:
            return rng.normal(size=(num_envs, env.num_actions)).astype(np.float32)
        return rng.integers(env.num_actions, size=num_envs)

    def _sample(self, task: Task) -> np.ndarray:
        """Samples observations met under random actions. [S, probe_batch_size, ...]."""
        size = self._runs.schedule.probe_batch_size
        action_rngs = make_rngs(self._runs, Stream.PROBE_ACTIONS)
        observation = self._eval_envs.reset(task, make_rngs(self._runs, Stream.PROBE))
        num_envs, observations = observation.shape[1], []
        for _ in range(max(128, -(-size // num_envs))):
            self._check_signals()
            observations.append(observation)
            actions = [self._random_actions(rng, num_envs) for rng in action_rngs]
            _, observation = self._eval_envs.step(np.stack(actions))
        met = np.concatenate(observations, axis=1)
        return np.stack(
            [
                one[rng.choice(len(one), size, replace=False)]
                for one, rng in zip(met, action_rngs, strict=True)
            ]
        )
