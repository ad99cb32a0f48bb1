"""Domain shifts: what they change, what they leave alone, and what they depend on."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Toy, Tug

from plasticity.envs import CartPole
from plasticity.envs.gather import Gather
from plasticity.envs.task import permute_obs
from plasticity.envs.task_wrapper import TaskWrapper
from plasticity.interventions import ResetAll, SoftShrinkPerturb, chain
from plasticity.rng import Stream, key_for
from plasticity.shifts import (
    ActuatorDamage,
    DelayedRewards,
    Dynamics,
    Expand,
    Noise,
    Offset,
    PartialView,
    Periodic,
    Permute,
    PermuteActions,
    PermuteFeatures,
    RandomDynamics,
    RewardScale,
    Shifts,
    StickyActions,
    Tint,
    Window,
    interpolate,
)
from plasticity.struct import SettingError
from plasticity.training import loop
from plasticity.training.run import check_run

ENV = Gather(levels=7)
ROUNDS = 10


def tasks(shifts, seed=3):
    """The tasks of ten rounds under `shifts`, on the host."""
    run_key = jax.random.key(seed)
    task, step = shifts.begin(ENV.task(seed), ENV, jax.random.fold_in(run_key, 0)), jax.jit(shifts)
    out = [task]
    for round_ in range(1, ROUNDS):
        out.append(step(out[-1], jnp.int32(round_), jax.random.fold_in(run_key, round_)))
    return jax.device_get(out)


def level_ids(task):
    """The set of level ids of a task."""
    return set(range(task.levels.first, task.levels.first + task.levels.size))


def test_permute_obs_moves_whole_blocks():
    """Would catch blocks that are transposed, mixed channels, or a grid of another shape."""
    image = jnp.arange(6 * 4 * 3).reshape(6, 4, 3)
    order = np.array([3, 0, 1, 2])
    seen = np.asarray(permute_obs(image, jnp.asarray(order)))
    for place, block in enumerate(order):
        (row, column), (old_row, old_column) = (divmod(i, 2) for i in (place, block))
        expected = image[3 * old_row : 3 * old_row + 3, 2 * old_column : 2 * old_column + 2]
        at = seen[3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(at, expected)
    task = Shifts.of(Permute(grid=11)).begin(ENV.task(0), ENV, jax.random.key(0))
    assert np.array_equal(task.permutation, np.arange(121))
    with pytest.raises(
        SettingError, match=r"shift\.permute\.grid=16: must divide .* \(11, 11, 3\)"
    ):
        Shifts.of(Permute(grid=16)).check(ENV)


def test_permute_composes_new_permutations():
    """Would catch entries lost or doubled, a permutation used twice, or levels that move."""
    seen = [task.permutation for task in tasks(Shifts.of(Permute()))]
    assert np.array_equal(seen[0], np.arange(363))
    for permutation in seen:
        assert np.array_equal(np.sort(permutation), np.arange(363))
    # Where entry j of the last round's view went; one of 363 stays at home on average.
    moves = [np.argsort(old)[new] for old, new in pairwise(seen)]
    assert len({move.tobytes() for move in moves}) == ROUNDS - 1
    assert max(np.sum(move == np.arange(363)) for move in moves) < 8
    assert all(
        level_ids(task) == level_ids(tasks(Shifts())[0]) for task in tasks(Shifts.of(Permute()))
    )


def test_permute_from_start_permutes_the_first_round_too():
    """Would catch whole images in round 1, or a first shift that is not composed like others."""
    drawn = [task.permutation for task in tasks(Shifts.of(Permute(from_start=True)))]
    assert np.array_equal(np.sort(drawn[0]), np.arange(363))
    assert np.sum(drawn[0] == np.arange(363)) < 8
    assert len({permutation.tobytes() for permutation in drawn}) == ROUNDS
    other = tasks(Shifts.of(Permute(from_start=True)), seed=4)[0].permutation
    assert not np.array_equal(drawn[0], other)
    # All shifts after it are those of a run that began with whole observations.
    whole = [task.permutation for task in tasks(Shifts.of(Permute()))]
    for permuted, plain in zip(drawn, whole, strict=True):
        assert np.array_equal(permuted, drawn[0][plain])


def test_task_transform_obs_permutes_entries():
    """Would catch the permutation applied the wrong way round, or to the wrong axis."""
    observation = np.arange(363, dtype=np.float32).reshape(11, 11, 3)
    task = ENV.task(0)._replace(permutation=jnp.roll(jnp.arange(363), 1))
    seen = np.asarray(task.transform_obs(jnp.asarray(observation)))
    assert seen.shape == (11, 11, 3)
    assert np.array_equal(seen.reshape(-1), np.roll(np.arange(363), 1))


TOKENS = Gather(levels=7, observation="objects")


def test_permute_moves_tokens_between_places():
    """Would catch flags or features that move apart, or a place that moves with its token."""
    task = Shifts.of(Permute(from_start=True)).begin(TOKENS.task(0), TOKENS, jax.random.key(0))
    tokens = np.asarray(TOKENS.observe(task, TOKENS.reset(task, jax.random.key(1))))
    moved = np.asarray(task.transform_obs(jnp.asarray(tokens)))
    assert np.array_equal(np.sort(task.permutation), np.arange(81))
    np.testing.assert_array_equal(moved[:, 1:3], tokens[:, 1:3])
    for place, origin in enumerate(task.permutation):
        np.testing.assert_array_equal(
            moved[place, [0, 3, 4, 5, 6]], tokens[origin, [0, 3, 4, 5, 6]]
        )
    assert not np.array_equal(moved, tokens)


def test_permute_features_changes_what_kinds_look_like():
    """Would catch a flag or a position among the features, or one that is not composed."""
    shift = Shifts.of(PermuteFeatures())
    first = shift.begin(TOKENS.task(0), TOKENS, jax.random.key(0))
    task = first._replace(feature_permutation=jnp.array([2, 0, 1, 3]))
    tokens = TOKENS.observe(task, TOKENS.reset(task, jax.random.key(1)))
    np.testing.assert_array_equal(task.transform_obs(tokens), tokens[:, [0, 1, 2, 5, 3, 4, 6]])
    np.testing.assert_array_equal(first.transform_obs(tokens), tokens)
    after = shift(task, 1, jax.random.key(4)).feature_permutation
    assert np.array_equal(np.sort(after), np.arange(4))
    key = jax.random.key(2)
    later = task._replace(feature_permutation=after)
    for fraction, known in ((0.0, task), (1.0, later)):
        part = interpolate(task, later, jnp.float32(fraction), key).feature_permutation
        np.testing.assert_array_equal(part, known.feature_permutation)


def test_shifts_refuse_what_has_no_meaning_for_tokens(tiny_run):
    """Would catch noise on a token's flag, or tokens asked for where there are none."""
    for env, shift, message in (
        (TOKENS, Offset(), "offset'?: has no meaning for object tokens"),
        (TOKENS, Periodic(number="bias"), "periodic'?: has no meaning for object tokens"),
        (TOKENS, Noise(), "noise'?: has no meaning for object tokens"),
        (TOKENS, Tint(), "needs images"),
        (TOKENS, Permute(grid=9), "must divide the height and width of an image"),
        (ENV, PermuteFeatures(), "needs object tokens"),
    ):
        with pytest.raises(SettingError, match=message):
            check_run(tiny_run(env=env, shift=Shifts.of(shift)))
    gradual = tiny_run(env=TOKENS, shift=Shifts.of(PartialView()))
    gradual = gradual.replace(schedule=gradual.schedule.replace(shift_duration=1))
    with pytest.raises(SettingError, match="shift_duration=1: must be 0 under partial_view"):
        check_run(gradual)
    with pytest.raises(SettingError, match="normalize_observations=True: must be false"):
        check_run(tiny_run(env=TOKENS, agent=tiny_run().agent.replace(normalize_observations=True)))


def test_window_level_sets_are_disjoint_and_adjacent():
    """Would catch levels met again in a later round."""
    windows = [level_ids(task) for task in tasks(Shifts.of(Window()))]
    assert all(len(window) == 7 for window in windows)
    assert set.union(*windows) == set(range(60_000, 60_000 + 7 * ROUNDS))


def test_expand_grows_linearly_and_keeps_old_levels():
    """Would catch growth that doubles, or a window in disguise."""
    sets = [level_ids(task) for task in tasks(Shifts.of(Expand()))]
    assert [len(levels) for levels in sets] == [7 * (i + 1) for i in range(ROUNDS)]
    assert all(old < new for old, new in pairwise(sets))


def test_shifts_compose():
    """Would catch a part that undoes another, or that is handed another's key."""
    both = tasks(Shifts.of(Permute(), Window()))
    windows, permuted = tasks(Shifts.of(Window())), tasks(Shifts.of(Permute()))
    for task, window, permutation in zip(both, windows, permuted, strict=True):
        assert level_ids(task) == level_ids(window)
        assert np.array_equal(task.permutation, permutation.permutation)
    twice = tasks(Shifts.of(Permute(), Permute()))[1].permutation
    assert not np.array_equal(twice, permuted[1].permutation)


def test_shifts_without_parts_change_nothing():
    """Would catch a control that shifts."""
    first, *later = tasks(Shifts())
    for task in later:
        jax.tree.map(np.testing.assert_array_equal, first, task)


@pytest.mark.parametrize("shift", [Permute(), Window(), Expand()])
def test_task_held_out_levels_are_never_trained_on(shift):
    """Would catch a test set that a later round trains on, of this seed or of its neighbours."""
    rounds = tasks(Shifts.of(shift))
    trained = set.union(
        *(level_ids(task) for s in (2, 3, 4, 103) for task in tasks(Shifts.of(shift), s))
    )
    for task in rounds:
        held_out = task.held_out()
        assert len(level_ids(held_out)) == len(level_ids(task))
        assert not trained & level_ids(held_out)
        jax.tree.map(np.testing.assert_array_equal, held_out._replace(levels=task.levels), task)


def test_shift_key_depends_on_seed_and_round_alone(tiny_run):
    """Would catch a shift's key that depends on the intervention, or not on the seed or round."""
    key_of = lambda run, count: tuple(  # noqa: E731
        np.asarray(jax.random.key_data(key_for(run.seed, Stream.SHIFT, count)))
    )
    methods = chain(ResetAll()), chain(SoftShrinkPerturb())
    runs = [tiny_run(seed=1, intervention=method) for method in methods]
    assert key_of(runs[0], 1) == key_of(runs[1], 1)
    others = [key_of(tiny_run(seed=s), c) for s in (1, 2) for c in (1, 2)]
    assert len(set(others)) == 4


N = 2_000
SHOWN = np.random.default_rng(0).normal(size=(11, 11, 3)).astype(np.float32)


def rollout(task, action):
    """Repeats `action` for three steps in N environments. Returns the steps, and observations."""
    env = TaskWrapper(ENV)
    reset_keys, *step_keys = jax.random.split(jax.random.key(1), (4, N))
    state, states = jax.vmap(env.reset, (None, 0))(task, reset_keys), []
    for keys in step_keys:
        step = jax.vmap(env.step, (None, 0, None, 0))(task, state, jnp.int32(action), keys)
        state = step.state
        states.append(step)
    return states, jax.vmap(env.observe, (None, 0))(task, state)


@pytest.mark.slow
def test_permute_actions_changes_the_effect_of_an_action():
    """Would catch the permutation applied the wrong way round, or rounds that do not compose."""
    seen = [task.action_permutation for task in tasks(Shifts.of(PermuteActions()))]
    assert all(sorted(actions) == [0, 1, 2, 3] for actions in seen)
    assert len({tuple(actions) for actions in seen}) > 3
    task = ENV.task(0)._replace(action_permutation=jnp.array([1, 2, 3, 0]))
    (first, *_), _ = rollout(task, 0)
    (plain, *_), _ = rollout(ENV.task(0), 1)
    np.testing.assert_array_equal(first.state.inner.agent, plain.state.inner.agent)


def test_tint_offset_and_noise_transform_observations():
    """Would catch entries in place of channels, a draw that is kept, or noise that stands still."""
    tinted = tasks(Shifts.of(Tint(strength=0.5)))
    assert (tinted[0].gain == 1).all()
    factors = np.array([task.gain[0, 0] for task in tinted[1:]])
    assert (np.abs(np.log(factors)) <= 0.5).all()
    assert len(np.unique(factors)) == factors.size
    np.testing.assert_allclose(tinted[3].transform_obs(SHOWN), SHOWN * factors[2], rtol=1e-6)

    moved = tasks(Shifts.of(Offset(max_offset=2.0), Tint()))
    assert (moved[0].bias == 0).all()
    assert 1.9 < np.abs(moved[1].bias).max() <= 2
    assert len(np.unique(moved[1].bias)) > 350
    np.testing.assert_allclose(
        moved[1].transform_obs(SHOWN), SHOWN * moved[1].gain + moved[1].bias, rtol=1e-5, atol=1e-6
    )

    noisy = tasks(Shifts.of(Noise(values=(0.0, 0.5))))
    assert [float(task.noise) for task in noisy] == [0, 0.5] * 5
    (_, earlier, later), seen = rollout(noisy[1], 0)
    added = seen - jax.vmap(ENV.observe, (None, 0))(noisy[1], later.state.inner)
    assert np.std(added) == pytest.approx(0.5, rel=0.01)
    assert np.mean(added) == pytest.approx(0, abs=0.01)
    assert not np.array_equal(earlier.state.noise, later.state.noise)


def test_sticky_actions_repeat_with_their_probability():
    """Would catch the agent's action kept in place of the environment's, or one draw for all."""
    sticky = tasks(Shifts.of(StickyActions(values=(0.25,))))[0]
    steps, _ = rollout(sticky, 1)
    taken = np.stack([step.state.last_action for step in steps])
    # Action 0 goes on only while no draw has come out otherwise.
    assert (taken == 0).mean(axis=1) == pytest.approx([1 / 4, 1 / 16, 1 / 64], abs=0.02)
    always, _ = rollout(sticky._replace(sticky_prob=jnp.float32(1)), 1)
    assert (always[-1].state.last_action == 0).all()


def test_reward_scale_and_dynamics_set_their_values():
    scaled = tasks(Shifts.of(RewardScale(values=(1.0, -2.0))))
    for one, other in zip(rollout(scaled[1], 2)[0], rollout(ENV.task(3), 2)[0], strict=True):
        np.testing.assert_array_equal(one.reward, -2 * other.reward)
    slippery = tasks(Shifts.of(Dynamics(parameter="slip", values=(0.0, 1.0))))
    (calm, *_), _ = rollout(slippery[0], 1)
    (plain, *_), _ = rollout(ENV.task(3), 1)
    np.testing.assert_array_equal(calm.state.inner.agent, plain.state.inner.agent)
    (wild, *_), _ = rollout(slippery[1], 1)
    # From the middle a random action is up, right, down or left; walls keep some where they are.
    places, counts = np.unique(wild.state.inner.agent, return_counts=True)
    assert set(places) - {60} == {49, 61, 71, 59}
    assert counts.max() < 0.5 * N
    drawn = [t.dynamics["slip"] for t in tasks(Shifts.of(RandomDynamics(low=0.01, high=0.5)))]
    assert len(set(map(float, drawn))) == ROUNDS
    assert 0.01 <= min(drawn) < 0.1 < max(drawn) <= 0.5


def test_partial_view_hides_other_positions_in_each_round():
    """Would catch channels hidden one by one, a fraction of the last view, or one mask for all."""
    first, *later = (task.gain for task in tasks(Shifts.of(PartialView(0.3))))
    np.testing.assert_array_equal(first, np.ones((11, 11, 3)))
    for gain in later:
        assert gain.dtype == np.float32
        assert np.sum(gain[..., 0] == 0) == int(0.3 * 121)
        np.testing.assert_array_equal(gain, np.repeat(gain[..., :1], 3, axis=2))
        assert set(np.unique(gain)) == {0, 1}
    assert len({gain.tobytes() for gain in later}) == ROUNDS - 1


def test_partial_view_hides_whole_tokens():
    """Would catch a token that is shown without its features, or at place (0, 0)."""
    shift = Shifts.of(PartialView(0.4))
    task = shift.begin(TOKENS.task(0), TOKENS, jax.random.key(0))
    tokens = np.asarray(TOKENS.observe(task, TOKENS.reset(task, jax.random.key(1))))
    np.testing.assert_array_equal(task.transform_obs(tokens), tokens)
    task = shift(task, 1, jax.random.key(2))
    hidden = np.asarray(task.gain[:, 0] == 0)
    assert hidden.sum() == int(0.4 * len(tokens))
    assert tokens[hidden, 0].any()
    assert tokens[~hidden, 0].any()
    expected = np.where(hidden[:, None], 0, tokens)
    np.testing.assert_array_equal(task.transform_obs(tokens), expected)


def test_actuator_damage_weakens_clipped_actions():
    """Would catch damage that large actions make up for, or that adds up over rounds."""
    tug = Tug()
    shift = ActuatorDamage(1, 0.25)
    first = shift.begin(tug.task(0), tug, jax.random.key(0))
    action = np.array([[3.0, -0.5], [-2.0, 0.1]])
    np.testing.assert_allclose(first.transform_action(action, True), np.clip(action, -1, 1))
    task, found = first, set()
    for round_ in range(1, ROUNDS):
        task = shift(task, round_, jax.random.key(round_))
        gain = tuple(map(float, task.action_gain))
        found.add(gain)
        host = jax.device_get(task).transform_action(action, True)
        np.testing.assert_allclose(host, np.clip(action, -1, 1) * gain, rtol=1e-6)
        np.testing.assert_allclose(task.transform_action(jnp.asarray(action), True), host)
    assert found == {(0.25, 1.0), (1.0, 0.25)}
    every = ActuatorDamage(5, 0.5)(first, 1, jax.random.key(1))
    assert every.action_gain.tolist() == [0.5, 0.5]
    part_way = interpolate(first, every, jnp.float32(0.5), jax.random.key(0))
    assert part_way.action_gain.tolist() == [0.75, 0.75]
    with pytest.raises(SettingError, match="needs continuous actions"):
        shift.check(ENV)


def test_delayed_rewards_are_paid_later_in_the_episode():
    """Would catch a delay of another round, or rewards that outlive a reset."""
    toy = Toy()
    shift = DelayedRewards((0, 2))
    first = shift.begin(toy.task(0), toy, jax.random.key(0))
    later = shift(first, 1, jax.random.key(1))
    assert [task.reward_kernel.tolist() for task in (first, later)] == [[1, 0, 0], [0, 0, 1]]
    wrapped = TaskWrapper(toy)

    @jax.jit
    def episode(task):
        def step(state, key):
            step = wrapped.step(task, state, jnp.int32(2), key)
            return step.state, step.reward

        state = wrapped.reset(task, jax.random.key(5))
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(6), 5))

    (_, plain), (state, delayed) = episode(first), episode(later)
    np.testing.assert_array_equal(plain, episode(toy.task(0))[1])
    known = [0, 0, plain[0], plain[1], plain[2] + plain[3] + plain[4]]
    np.testing.assert_allclose(delayed, known, rtol=1e-5)
    assert not state.pending.any()


def test_periodic_follows_its_wave():
    """Would catch a wave that is counted in other units, or begins at an end."""
    sine = [float(t.noise) for t in tasks(Shifts.of(Periodic("noise", "sine", 0.0, 2.0, 8.0)))]
    known = [1 + np.sin(2 * np.pi * i / 8) for i in range(ROUNDS)]
    np.testing.assert_allclose(sine, known, atol=1e-5)
    square = tasks(Shifts.of(Periodic("slip", "square", 0.1, 0.3, 4.0)))
    expected = np.where(np.arange(ROUNDS) % 4 < 2, 0.3, 0.1)
    np.testing.assert_allclose([t.dynamics["slip"] for t in square], expected, rtol=1e-6)
    (first, second, *_) = tasks(Shifts.of(Periodic("bias", "sine", -1.0, 3.0, 4.0)))
    np.testing.assert_allclose(first.bias, np.full((11, 11, 3), 1.0), rtol=1e-6)
    np.testing.assert_allclose(second.bias, np.full((11, 11, 3), 3.0), rtol=1e-6)
    assert Periodic("slip").changes_env
    assert not Periodic("gain").changes_env


def test_recur_after_goes_round_the_first_tasks(tiny_run):
    """Would catch a task drawn anew, a cycle one too long, or first rounds unlike those without."""
    shift = Shifts.of(Permute(), Window())

    def tasks_of(**schedule):
        run = tiny_run(shift=shift)
        run = run.replace(schedule=run.schedule.replace(rounds=8, **schedule))
        next_task, out = jax.jit(loop.next_task), [loop.first_task(run)]
        for round_ in range(1, 8):
            out.append(next_task(run, out[-1], jnp.int32(round_)))
        return jax.device_get(out)

    recurring, anew = tasks_of(recur_after=3), tasks_of()
    for i, task in enumerate(recurring):
        jax.tree.map(np.testing.assert_array_equal, task, anew[i % 3])
        for leaf, other in zip(*map(jax.tree.leaves, (task, anew[2])), strict=True):
            assert np.asarray(leaf).dtype == np.asarray(other).dtype
    # The levels of three windows are enough, however many rounds there are.
    run = tiny_run(env=Gather(levels=3000), shift=Shifts.of(Window()))
    long = run.schedule.replace(rounds=10)
    check_run(run.replace(schedule=long.replace(recur_after=3)))
    with pytest.raises(SettingError, match=r"env\.levels"):
        check_run(run.replace(schedule=long))


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (Periodic("gravity"), "number='gravity': must be one of noise, .*, slip"),
        (Periodic("noise", low=-1.0), "low=-1.0: must be a finite number >= 0, for noise"),
        (Periodic("slip", low=0.0, high=2.0), "high=2.0: must be .* for slip"),
        (Periodic(low=2.0), "low=2.0: must be at most 1.5"),
        (Dynamics(parameter="gravity"), "gravity': must be one of slip"),
        (Dynamics(values=(0.0, 1.5)), "must be a finite number >= 0 and <= 1"),
        (RandomDynamics(high=2.0), "high=2.0: must be a finite number >= 0 and <= 1"),
        (RandomDynamics(low=0.5, high=0.1), "low=0.5: must be at most 0.1"),
    ],
)
def test_dynamics_refuse_what_the_environment_lacks(tiny_run, shift, message):
    with pytest.raises(SettingError, match=message):
        check_run(tiny_run(shift=Shifts.of(shift)))


def test_shifts_refuse_environments_without_images_or_levels(tiny_run):
    for shift, message in (
        (Tint(), "needs images"),
        (Window(), "needs an environment with levels"),
    ):
        with pytest.raises(SettingError, match=message):
            check_run(tiny_run(env=CartPole(), shift=Shifts.of(shift)))
    with pytest.raises(
        SettingError, match=r"shift_duration=3: must be at most schedule\.updates_per_round=2"
    ):
        check_run(tiny_run(schedule=tiny_run().schedule.replace(shift_duration=3)))


EVERY = Shifts.of(
    Permute(), Window(), PermuteActions(), Tint(), Offset(), Noise(), Dynamics(values=(0.0, 0.4))
)


def test_interpolate_goes_from_the_old_task_to_the_new():
    """Would catch an end that is not reached to the bit, or a permutation that loses entries."""
    old, new = tasks(EVERY)[:2]
    part_way = jax.jit(interpolate)
    key = jax.random.key(5)
    at = [jax.device_get(part_way(old, new, jnp.float32(x), key)) for x in (0, 0.25, 0.5, 1)]
    jax.tree.map(np.testing.assert_array_equal, at[0], old)
    jax.tree.map(np.testing.assert_array_equal, at[-1], new)
    settled = []
    for task, fraction in zip(at[1:3], (0.25, 0.5), strict=True):
        assert np.array_equal(np.sort(task.permutation), np.arange(363))
        settled.append(set(np.flatnonzero(task.permutation == new.permutation)))
        assert len(settled[-1]) == pytest.approx(fraction * 363, abs=5)
        assert task.levels.first - old.levels.first == int(fraction * 7)
        assert task.dynamics["slip"] == pytest.approx(fraction * 0.4)
        np.testing.assert_allclose(task.bias, fraction * new.bias, rtol=1e-6)
    assert settled[0] <= settled[1]


@pytest.mark.slow
def test_train_updates_interpolate_a_gradual_shift(tiny_run):
    """Would catch a shift that begins late, or is not over when it should be."""
    run = tiny_run(shift=EVERY)
    run = run.replace(schedule=run.schedule.replace(updates_per_round=5, shift_duration=4))
    train_updates = jax.jit(loop.train_updates)
    state, sudden = loop.init(run), run.shift(loop.init(run).task, 1, key_of_shift(run))
    state, _ = train_updates(run, state, 5)
    before = jax.device_get(state.task)
    state = loop.start_round(run, state)
    fractions = []
    for _ in range(5):
        fractions.append(float(state.task.dynamics["slip"]) / 0.4)
        state, _ = train_updates(run, state, 1)
    assert fractions == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.task), jax.device_get(sudden))
    assert not np.array_equal(before.permutation, state.task.permutation)
    # What probes look at is the round's own task all along.
    begun = loop.start_round(run, loop.init(run))
    np.testing.assert_array_equal(
        loop.probe_batch(run, begun), loop.probe_batch(run, state._replace(interpolation=None))
    )


def key_of_shift(run):
    """The key of a run's first shift."""
    return key_for(run.seed, Stream.SHIFT, 1)
