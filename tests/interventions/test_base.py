"""Each intervention against its equation, and chains of them: stacked, shifted, diverging."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Void, same
from intervention_helpers import rollout_of, step_of
from scipy import stats

from plasticity.agents import PPO
from plasticity.interventions import (
    CReLU,
    FourierFeatures,
    Intervention,
    Interventions,
    L2Norm,
    LayerNorm,
    ReDo,
    RegenerativeL2,
    RegenerativeW2,
    ResetAll,
    ResetFinal,
    ShrinkPerturb,
    SoftShrinkPerturb,
    TrainState,
    chain,
    reset_moments,
)
from plasticity.networks import Network
from plasticity.struct import SettingError
from plasticity.training import loop, trainer
from plasticity.training.placement import Placement
from plasticity.training.run import stack

METHODS = {
    "warm_start": Interventions(),
    "reset_all": chain(ResetAll()),
    "reset_final": chain(ResetFinal()),
    "shrink_perturb": chain(ShrinkPerturb()),
    "soft_shrink_perturb": chain(SoftShrinkPerturb()),
    "regenerative_l2": chain(RegenerativeL2()),
    "regenerative_w2": chain(RegenerativeW2()),
    "l2_norm": chain(L2Norm()),
    "crelu": chain(CReLU()),
    "fourier_features": chain(FourierFeatures()),
    "redo": chain(ReDo()),
    "layer_norm": chain(LayerNorm()),
}


def shifted(part, params, context):
    """The parameters after a shift under `part`."""
    state, train_state = part.on_shift(
        (), TrainState(params, context.optimizer.init(params)), context
    )
    assert state == ()
    return jax.device_get(train_state.params)


def test_interventions_are_named_after_their_class():
    """Would catch a method that goes by another name in the table."""
    assert {name: method.name for name, method in METHODS.items()} == {n: n for n in METHODS}


def test_reset_all_draws_from_the_initial_distribution(context, old):
    """Would catch a remnant of the past, one draw for all shifts, or another distribution."""
    keys = jax.random.split(jax.random.key(0), 50)
    draws = [shifted(ResetAll(), old, context._replace(key=key)) for key in keys]
    for name, fan_in in (("policy", 8), ("value", 8)):
        kernels = np.concatenate([draw[name]["kernel"].reshape(-1) for draw in draws])
        assert len(np.unique(kernels)) > 0.99 * len(kernels)
        bound = 1 / np.sqrt(fan_in)
        assert stats.kstest(kernels, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    zero = jax.tree.map(jnp.zeros_like, old)
    same(draws[0], shifted(ResetAll(), zero, context._replace(key=keys[0])))


def test_reset_final_leaves_the_torso_alone(context, old):
    """Would catch a torso that is redrawn, or a head (the value's) that is forgotten."""
    new = shifted(ResetFinal(), old, context)
    same(new["torso"], old["torso"])
    for head in ("policy", "value"):
        for array, before in zip(new[head].values(), old[head].values(), strict=True):
            assert np.abs(array).max() <= 1 / np.sqrt(8)
            assert not np.any(array == before)


@pytest.mark.parametrize(("shrink", "perturb"), [(0.5, 0.5), (0.8, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_shrink_perturb_matches_its_equation(context, old, shrink, perturb):
    """Would catch coefficients exchanged, or a share of the old network where a new one is due."""
    new = shifted(ShrinkPerturb(shrink, perturb), old, context)
    fresh = context.init_params(context.key)
    same(new, jax.tree.map(lambda a, b: shrink * a + perturb * b, old, fresh), rtol=1e-6, atol=1e-7)
    if (shrink, perturb) == (1.0, 0.0):
        same(new, old)
    if (shrink, perturb) == (0.0, 1.0):
        same(new, shifted(ResetAll(), old, context))


def test_soft_shrink_perturb_matches_its_recursion(context, old):
    """Would catch one fresh network for all steps, or a rate applied to one share alone."""
    rate, steps, runs = 0.1, 12, 300
    part = SoftShrinkPerturb(rate)

    def iterate(key):
        params = old
        for i in range(steps):
            step_context = context._replace(key=jax.random.fold_in(key, i))
            _, train_state = part.after_step((), TrainState(params, None), None, step_context)
            params = train_state.params
        return params["torso"]["hidden_0"]["kernel"]

    ends = np.asarray(jax.jit(jax.vmap(iterate))(jax.random.split(jax.random.key(5), runs)))
    kept = (1 - rate) ** steps
    # theta_n = (1 - r)^n theta_0 + r sum_i (1 - r)^i fresh_i, each fresh_i of variance bound^2 / 3.
    variance = rate**2 * (1 - kept**2) / (1 - (1 - rate) ** 2) / 6 / 3
    residual = ends - kept * np.asarray(old["torso"]["hidden_0"]["kernel"])
    assert abs(residual.mean()) < 5 * np.sqrt(variance / residual.size)
    assert np.abs(residual.mean(0)).max() < 5 * np.sqrt(variance / runs)
    assert residual.var() == pytest.approx(variance, rel=0.05)


def test_soft_shrink_perturb_keeps_the_moments(context, old):
    """Would catch an optimizer that is reset at every gradient step."""
    opt_state = context.optimizer.init(old)
    _, train_state = SoftShrinkPerturb(0.1).after_step(
        (), TrainState(old, opt_state), None, context
    )
    assert train_state.opt_state is opt_state


@pytest.mark.slow
def test_regenerative_l2_pulls_with_constant_force(context, old):
    """Would catch the square for the norm, a norm for each tensor, or NaN where it began."""
    part = RegenerativeL2(0.03)
    start = context.init_params(context.key)
    state = part.init(TrainState(start, None), context)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: part.penalty(state, p, context)))
    value, pull = value_and_grad(start)
    assert float(value) == 0
    assert all(np.all(x == 0) for x in jax.tree.leaves(pull))
    pairs = zip(*map(jax.tree.leaves, (old, start)), strict=True)
    way = [np.asarray(a, float) - b for a, b in pairs]
    distance = np.sqrt(sum(np.sum(x**2) for x in way))
    value, pull = value_and_grad(old)
    assert float(value) == pytest.approx(0.03 * distance, rel=1e-5)
    for force, x in zip(jax.tree.leaves(pull), way, strict=True):
        np.testing.assert_allclose(force, 0.03 * x / distance, rtol=1e-4, atol=1e-7)


def test_regenerative_w2_compares_sorted_tensors(context, old):
    """Would catch sorting across tensors or on one side only, or a gradient put back unsorted."""
    part = RegenerativeW2(0.03)
    start = context.init_params(context.key)
    state = part.init(TrainState(start, None), context)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: part.penalty(state, p, context)))

    shuffled = jax.tree.map(lambda x: jax.random.permutation(context.key, x.ravel()), start)
    shuffled = jax.tree.map(lambda x, like: x.reshape(like.shape), shuffled, start)
    assert float(value_and_grad(shuffled)[0]) == 0
    assert all(np.all(x == 0) for x in jax.tree.leaves(value_and_grad(shuffled)[1]))

    ways, places = [], []
    for a, b in zip(*map(jax.tree.leaves, (old, start)), strict=True):
        places.append(np.argsort(np.ravel(a), kind="stable"))
        ways.append(np.ravel(a)[places[-1]].astype(float) - np.sort(np.ravel(b)))
    distance = np.sqrt(sum(np.sum(way**2) for way in ways))
    value, pull = value_and_grad(old)
    assert float(value) == pytest.approx(0.03 * distance, rel=1e-5)
    for force, way, place in zip(jax.tree.leaves(pull), ways, places, strict=True):
        expected = np.zeros(way.size)
        expected[place] = 0.03 * way / distance
        np.testing.assert_allclose(np.ravel(force), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_fourier_features_are_sine_and_cosine_at_half_the_width():
    """Would catch a layer twice as wide, or halves in another order."""
    module = chain(FourierFeatures()).network(Network(hidden=(8,))).build((4,), 3)
    obs = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    params = module.init(jax.random.key(0), obs)["params"]
    linear = obs @ params["torso"]["hidden_0"]["kernel"] + params["torso"]["hidden_0"]["bias"]
    assert linear.shape == (9, 4)
    np.testing.assert_allclose(
        module.apply({"params": params}, obs).activations["hidden_0"],
        np.concatenate([np.sin(linear), np.cos(linear)], axis=1),
        rtol=1e-5,
        atol=1e-6,
    )


def test_crelu_is_both_sides_of_relu_at_half_the_width():
    """Would catch a layer twice as wide, one side twice, or halves in another order."""
    module = chain(CReLU()).network(Network(hidden=(8, 6))).build((5,), 3)
    obs = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    params = module.init(jax.random.key(0), obs)["params"]
    assert params["torso"]["hidden_0"]["kernel"].shape == (5, 4)
    assert params["torso"]["hidden_1"]["kernel"].shape == (8, 3)
    assert params["policy"]["kernel"].shape == (6, 3)
    linear = obs @ params["torso"]["hidden_0"]["kernel"] + params["torso"]["hidden_0"]["bias"]
    sides = np.concatenate([np.maximum(linear, 0), np.maximum(-linear, 0)], axis=1)
    np.testing.assert_allclose(
        module.apply({"params": params}, obs).activations["hidden_0"], sides, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(
        SettingError, match=r"network\.hidden=\(8, 5\): each must be a multiple of 2"
    ):
        chain(CReLU()).network(Network(hidden=(8, 5))).build((5,), 3)


@pytest.fixture(scope="module")
def recycled(context):
    """A train state with units that are dead, dormant and alive, before and after ReDo was due."""
    before = context.init_params(jax.random.key(3))
    torso = jax.tree.map(np.array, before["torso"])
    torso["hidden_0"]["bias"][[2, 5]] = -50  # never active
    torso["hidden_0"]["kernel"][:, 7] *= 1e-3  # hardly
    torso["hidden_0"]["bias"][7] = 1e-3
    torso["hidden_1"]["bias"][3] = -50
    before = {**before, "torso": torso}
    obs = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    opt_state = context.optimizer.init(before)
    opt_state = jax.tree.map(lambda x: x + 1, opt_state)
    train_state = TrainState(before, opt_state)

    @jax.jit
    def at(update):
        now = context._replace(update=update)
        return ReDo(0.02, 10).after_update((), train_state, rollout_of(obs), now)[1]

    return train_state, at, obs


def test_redo_waits_until_it_is_due(recycled):
    """Would catch an interval off by one: it acts after the tenth update, not before."""
    train_state, at, _ = recycled
    for update in (0, 8, 10):
        same(at(update), train_state)
    assert not np.array_equal(
        at(9).params["value"]["kernel"], train_state.params["value"]["kernel"]
    )


def test_redo_recycles_dormant_units_only(context, recycled):
    """Against the paper's equation, unit by unit, moments included."""
    train_state, at, obs = recycled
    first, second = (train_state.params["torso"][f"hidden_{i}"] for i in (0, 1))
    x = np.maximum(obs @ first["kernel"] + first["bias"], 0)
    y = np.maximum(x @ second["kernel"] + second["bias"], 0)
    dormant = [np.abs(h).mean(0) / np.abs(h).mean() <= 0.02 for h in (x, y)]
    assert set(np.flatnonzero(dormant[0])) >= {2, 5, 7}
    assert set(np.flatnonzero(dormant[1])) >= {3}

    fresh = jax.device_get(context.init_params(context.key))
    expected = jax.tree.map(np.array, train_state.params)
    touched = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), expected)
    for mask, name in zip(dormant, ("hidden_0", "hidden_1"), strict=True):
        for leaf in ("kernel", "bias"):
            expected["torso"][name][leaf][..., mask] = fresh["torso"][name][leaf][..., mask]
            touched["torso"][name][leaf][..., mask] = True
    for tree, value in ((expected, 0), (touched, True)):
        tree["torso"]["hidden_1"]["kernel"][dormant[0]] = value
        tree["policy"]["kernel"][dormant[1]] = value
        tree["value"]["kernel"][dormant[1]] = value
    after = at(9)
    same(after.params, expected)
    for moments in (optax.tree.get(after.opt_state, "mu"), optax.tree.get(after.opt_state, "nu")):
        same(moments, jax.tree.map(lambda leaf: np.where(leaf, 0.0, 1.0), touched))
    assert optax.tree.get(after.opt_state, "count") == 1


def test_the_first_step_after_cleared_moments_is_longer(context):
    """Against Adam's formula: would catch a count that is reset, or a documented length of old."""
    optimizer = optax.adam(1.0, eps=1e-8)
    gradient = {"x": jnp.array([0.3, -2.0])}
    opt_state = jax.tree.map(lambda x: x + 1, optimizer.init(gradient))
    opt_state = optax.tree.set(opt_state, count=jnp.int32(20_000))
    tools = context._replace(optimizer=optimizer)
    train_state = TrainState(gradient, opt_state)
    opt_state = reset_moments(train_state, {"x": jnp.array([True, True])}, tools)
    steps = []
    for _ in range(30):
        step, opt_state = optimizer.update(gradient, opt_state)
        steps.append(float(jnp.abs(step["x"][1])))
    assert steps[0] == pytest.approx((1 - 0.9) / np.sqrt(1 - 0.999), rel=1e-3)
    assert steps[0] == pytest.approx(3.2, abs=0.05)
    assert max(steps) == pytest.approx(6.6, abs=0.05)
    new, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(new["x"], [-1, 1], rtol=1e-5)


def test_redo_of_dead_units_changes_no_output(context, recycled):
    """Would catch a change by dead units; with tau = 0, which recycles no others."""
    train_state, _, obs = recycled
    due = context._replace(update=jnp.int32(9))
    rollout = rollout_of(obs)
    after = jax.jit(lambda: ReDo(0.0, 10).after_update((), train_state, rollout, due)[1])()
    assert not np.array_equal(
        after.params["policy"]["kernel"], train_state.params["policy"]["kernel"]
    )
    one, other = (context.apply(params, obs) for params in (train_state.params, after.params))
    same((one.policy.logits, one.value), (other.policy.logits, other.value), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_redo_takes_both_sides_of_crelu_for_one_unit(tiny_run):
    """Would catch a mask of activations on a layer of half as many units."""
    run = tiny_run(env=Void(), intervention=chain(CReLU(), ReDo()))
    context = loop.make_context(run, jnp.int32(0), jnp.int32(9))
    params = jax.tree.map(np.array, context.init_params(jax.random.key(0)))
    for leaf in params["torso"]["hidden_0"].values():
        leaf[..., 5] = 0
    obs = np.ones((4, 6), np.float32)
    train_state = TrainState(params, context.optimizer.init(params))
    due = context._replace(key=jax.random.key(1))
    rollout = rollout_of(obs)
    after = jax.jit(lambda: ReDo(0.0, 10).after_update((), train_state, rollout, due)[1].params)()
    kernel = np.asarray(after["torso"]["hidden_1"]["kernel"])
    assert np.all(kernel[[5, 13]] == 0)
    same(
        np.delete(kernel, [5, 13], 0), np.delete(params["torso"]["hidden_1"]["kernel"], [5, 13], 0)
    )
    assert np.all(after["torso"]["hidden_0"]["kernel"][:, 5] != 0)


@pytest.mark.slow
def test_l2_norm_equals_adamw(old):
    """Would catch decay through Adam's moments, clipped, or without the learning rate."""
    agent = PPO(learning_rate=0.01, adam_eps=1e-5, max_grad_norm=0.5)
    built = L2Norm(0.2).optimizer(agent.optimizer(jax.random.key(0))).build()
    adamw = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(0.01, eps=1e-5, weight_decay=0.2)
    )

    def train_with(transformation):
        params, state = old, transformation.init(old)
        for i in range(5):
            gradient = jax.tree.map(lambda x: jnp.sin(40 * x + i), params)  # noqa: B023
            change, state = transformation.update(gradient, state, params)
            params = optax.apply_updates(params, change)
        return params

    ours, theirs = jax.jit(lambda: (train_with(built), train_with(adamw)))()
    same(ours, theirs, rtol=1e-6, atol=1e-7)
    # Where there is no gradient, the decay alone: theta (1 - learning rate * decay).
    zero = jax.tree.map(jnp.zeros_like, old)
    change, _ = built.update(zero, built.init(old), old)
    same(change, jax.tree.map(lambda x: -0.01 * 0.2 * x, old), rtol=1e-5)


def test_layer_norm_normalizes_before_the_activation():
    """Would catch a norm over the batch, after the activation, or in one layer alone."""
    network = chain(LayerNorm()).network(Network(hidden=(64, 32), activation="tanh"))
    assert network == Network(hidden=(64, 32), activation="tanh", norm="layer_norm")
    module = network.build((6,), 3)
    obs = 0.3 * np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32) + 2

    @jax.jit
    def answer(key):
        params = module.init(key, obs)["params"]
        return params, module.apply({"params": params}, obs)

    params, output = answer(jax.random.key(0))
    for x in output.activations.values():
        normal = np.arctanh(np.asarray(x, float))
        np.testing.assert_allclose(normal.mean(1), 0, atol=1e-3)
        np.testing.assert_allclose(normal.var(1), 1, atol=1e-2)
    assert set(params["torso"]) == {"hidden_0", "norm_0", "hidden_1", "norm_1"}


class Add(Intervention):
    """Adds one at a shift, and twice that after a step."""

    def on_shift(self, state, train_state, context):
        return state, train_state._replace(params=train_state.params + 1)

    def after_step(self, state, train_state, step, context):
        return state, train_state._replace(params=train_state.params + 2)


class Double(Intervention):
    """Doubles at a shift and after an update, and counts the shifts."""

    def init(self, train_state, context):
        return jnp.zeros(())

    def on_shift(self, state, train_state, context):
        return state + 1, train_state._replace(params=2 * train_state.params)

    def after_update(self, state, train_state, rollout, context):
        return self.on_shift(state, train_state, context)


def test_chain_calls_hooks_in_order(context):
    """Would catch parts in another order, a hook called for another, or states mixed up."""
    for parts, known in (((Add(), Double()), 8.0), ((Double(), Add()), 7.0)):
        both = chain(*parts)
        train_state = TrainState(jnp.float32(3), None)
        state = both.init(train_state, context)
        state, after = both.on_shift(state, train_state, context)
        assert float(after.params) == known
        assert [float(x) for x in jax.tree.leaves(state)] == [1.0]
        assert float(both.after_step(state, train_state, step_of(), context)[1].params) == 5
        assert (
            float(both.after_update(state, train_state, rollout_of(None), context)[1].params) == 6
        )


class WithLoss(Intervention):
    """A method that adds to the loss, and does not set `needs_policy`."""

    def loss(self, state, params, output, minibatch, rollout, context):
        return jnp.mean(output.value)


def test_intervention_with_a_loss_needs_the_policy():
    """Would catch a user's loss that RND, which never calls it, accepts and leaves out."""
    assert WithLoss.needs_policy
    assert not Add.needs_policy
    assert not Intervention.needs_policy


class Collect(Intervention):
    """Appends a random number at a shift."""

    def on_shift(self, state, train_state, context):
        return (), train_state._replace(
            params=[*train_state.params, jax.random.normal(context.key)]
        )


def test_chain_gives_each_part_a_different_key(context):
    """Would catch two parts that draw the same numbers."""
    three = chain(Collect(), Collect(), Collect())
    _, train_state = three.on_shift(((), (), ()), TrainState([], None), context)
    assert len({float(x) for x in train_state.params}) == 3


@pytest.mark.slow
def test_start_round_resets_every_optimizer(tiny_run):
    """Would catch moments that survive a boundary, or theta_0 forgotten there."""
    for method in METHODS.values():
        run = tiny_run(env=Void(), intervention=method)

        @jax.jit
        def shift(run=run):
            state = loop.init(run)
            stale = jax.tree.map(lambda x: x + 1, state.train_state)
            return state, loop.start_round(run, state._replace(train_state=stale))

        before, after = shift()
        same(after.train_state.opt_state, before.train_state.opt_state)
        same(after.initial_params, before.initial_params)
        same(after.intervention, before.intervention)
        assert (int(before.round), int(after.round)) == (0, 1)


def all_in_one(shrink=0.6, perturb=0.3, rate=1e-3, coefficient=0.02, decay=0.05):
    """Every method that has a coefficient, and those that leave something of the past."""
    return chain(
        LayerNorm(),
        ResetFinal(),
        ShrinkPerturb(shrink, perturb),
        SoftShrinkPerturb(rate),
        RegenerativeL2(coefficient),
        L2Norm(decay),
    )


COEFFICIENTS = [
    {}, {"shrink": 0.9}, {"perturb": 0.9}, {"rate": 0.05}, {"coefficient": 0.5}, {"decay": 0.9},
]  # fmt: skip


def train(runs, mode="batch"):
    """Two updates, a shift and an update of a stack of runs, and the episodes' returns."""
    placement = Placement((jax.local_devices()[0],), mode)
    together = trainer.JaxTrainer(runs, placement=placement)
    first = together.train_updates(2)
    middle = jax.device_get(together.state)
    together.start_round()
    last = together.train_updates(1)
    return jax.device_get((middle, together.state, first, last))


@pytest.fixture(scope="module")
def stacked(tiny_run):
    """Runs that differ in seed and in one coefficient each, and their outcome as a stack."""
    runs = [
        tiny_run(
            seed=i // 2,
            intervention=all_in_one(**changed),
            agent=tiny_run().agent.replace(adam_eps=1e-4),
        )
        for i, changed in enumerate(COEFFICIENTS)
    ]
    return runs, train(stack(runs))


def one_of(stack, i):
    """The i-th run of a stack's outcome."""
    return jax.tree.map(lambda x: x[i], stack)


@pytest.mark.slow
def test_chain_in_a_stack_equals_each_run_alone(stacked):
    """Would catch a coefficient that is not batched, or a run that takes another's randomness."""
    runs, together = stacked
    same(together, train(stack(runs), "loop"), rtol=2e-3, atol=2e-5)


def test_chain_uses_every_coefficient(stacked):
    """Would catch a coefficient that the program does not read."""
    _, (_, state, _, _) = stacked
    weights = np.asarray(state.train_state.params["torso"]["hidden_1"]["kernel"])
    for i, j in ((0, 1), (2, 3), (4, 5)):  # pairs of one seed
        assert np.abs(weights[i] - weights[j]).max() > 1e-5


def test_chain_of_a_diverging_run_does_not_affect_others(stacked):
    """Would catch NaNs that spread along the stack, or divergence that goes unnoticed."""
    runs, together = stacked
    diverging = runs[2].replace(agent=runs[2].agent.replace(learning_rate=1e30))
    outcome = train(stack([*runs[:2], diverging, *runs[3:]]))
    for i in (0, 1, 3, 4, 5):
        same(one_of(outcome, i), one_of(together, i))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(one_of(outcome, i)))
    diverged = outcome[1].diverged
    assert diverged[2] in (1, 2)
    assert not diverged[[0, 1, 3, 4, 5]].any()


def test_stack_refuses_runs_of_different_structure(tiny_run):
    """Would catch runs of different programs trained as one."""
    with pytest.raises(ValueError, match="2 different structures among 2 runs"):
        stack([tiny_run(), tiny_run(network=Network(hidden=(4,)))])
