"""The update rules against NumPy readings of their equations, and what other methods do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Void, same
from scipy import special

from plasticity.agents import PPO
from plasticity.interventions import (
    SAM,
    TRAC,
    UPGD,
    Adam,
    AdamRel,
    EqualBetas,
    Kron,
    L2Norm,
    Optimizer,
    TrainState,
    chain,
    reset_moments,
)
from plasticity.interventions.update_rules import erfi, fit_factors, norm_bound
from plasticity.struct import SettingError
from plasticity.training import loop

KEY = jax.random.key(4)
PARAMS = {
    "kernel": np.array([[0.5, -1.0], [0.0, 2.0], [-0.3, 0.1]], np.float32),
    "bias": np.array([0.0, 0.7], np.float32),
}


def gradients(steps, mean=0.3):
    """Known gradients of each step, those of its second half larger."""
    random = np.random.default_rng(0)

    def draw(size):
        return jax.tree.map(
            lambda x: (size * random.normal(mean, 1, x.shape)).astype(np.float32), PARAMS
        )

    return [draw(1 + (i > steps // 2)) for i in range(steps)]


def rule(method, key=KEY, **agent):
    """PPO's update rule with the method, clipping so high that it does nothing."""
    agent = {"learning_rate": 0.01, "adam_eps": 1e-3, "max_grad_norm": 1e9, **agent}
    return chain(*method).optimizer(PPO(**agent).optimizer(key)).build()


def train(built, steps, params=PARAMS, mean=0.3):
    """The parameters after each step, and the state at the end."""

    @jax.jit
    def run_steps(gradients):
        def step(carry, gradient):
            params, state = carry
            change, state = built.update(gradient, state, params)
            params = optax.apply_updates(params, change)
            return (params, state), params

        stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
        (_, state), path = jax.lax.scan(step, (params, built.init(params)), stacked)
        return path, state

    path, state = run_steps(gradients(steps, mean))
    return [jax.tree.map(lambda x: np.asarray(x[i]), path) for i in range(steps)], state  # noqa: B023


def adam(gradients, b1, b2, eps, counts=None):
    """Adam's direction at each step, entry by entry."""
    m, v, directions = 0.0, 0.0, []
    for t, g in zip(counts or range(1, len(gradients) + 1), gradients, strict=True):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.astype(float) ** 2
        directions.append((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps))
    return directions


def test_equal_betas_equals_adam_with_one_beta():
    """Would catch one beta left as it was, PPO's epsilon lost, or a decay dropped with Adam."""
    path, _ = train(rule([L2Norm(0.2), EqualBetas(0.8)]), 8)
    for name, x in PARAMS.items():
        x = x.astype(float)
        for step, direction in enumerate(adam([g[name] for g in gradients(8)], 0.8, 0.8, 1e-3)):
            x = x - 0.01 * (direction + 0.2 * x)
            np.testing.assert_allclose(path[step][name], x, rtol=1e-5, atol=1e-6)


def test_equal_betas_bounds_the_step():
    """What it is for: when gradients suddenly grow, no weight moves by more than the rate."""
    sizes = jnp.where(jnp.arange(400) < 390, 1e-3, 1.0)

    def longest(method):
        built = rule(method, adam_eps=1e-8)

        def step(state, size):
            gradient = jax.tree.map(lambda x: jnp.full_like(x, size), PARAMS)
            change, state = built.update(gradient, state, PARAMS)
            return state, jnp.max(jnp.abs(change["bias"]))

        return float(jnp.max(jax.jit(lambda: jax.lax.scan(step, built.init(PARAMS), sizes))()[1]))

    assert longest([EqualBetas()]) <= 0.01 * (1 + 1e-4)
    assert longest([]) > 0.02


def test_replace_adam_refuses_a_second_method():
    """Would catch a method that another drops without a word, in either order."""
    for methods in ((Kron(), UPGD()), (UPGD(), Kron()), (Kron(), EqualBetas())):
        with pytest.raises(SettingError, match=rf"intervention='{type(methods[1]).__name__}'"):
            rule(methods)
    rule([EqualBetas(), UPGD()])
    optimizer = EqualBetas(0.7).optimizer(PPO(adam_eps=0.1).optimizer(KEY))
    assert optimizer.adam == Adam(0.7, 0.7, 0.1)


@pytest.mark.parametrize("around", [(), (TRAC(),)])
def test_adam_rel_resets_the_count_and_keeps_moments(context, around):
    """Would catch moments cleared too, or a count that goes on, or another count that does not."""
    method = chain(*around, AdamRel())
    optimizer = PPO().optimizer(KEY)
    scheduled = (*optimizer.step, optax.scale_by_schedule(lambda count: 1.0 + 0 * count))
    built = method.optimizer(optimizer._replace(step=scheduled)).build()
    _, state = train(built, 3)
    _, train_state = method.after_update(
        method.init(None, context), TrainState(PARAMS, state), None, context
    )
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    before, after = (
        jax.tree.leaves(x, is_leaf=lambda x: isinstance(x, kinds))
        for x in (state, train_state.opt_state)
    )
    counted = [(x, y) for x, y in zip(before, after, strict=True) if isinstance(x, kinds)]
    assert tuple(type(x) for x, _ in counted) == kinds
    assert [(int(x.count), int(y.count)) for x, y in counted] == [(3, 0), (3, 3)]
    assert counted[0][1].count.dtype == counted[0][0].count.dtype
    same(counted[0][1][1:], counted[0][0][1:])
    assert jax.tree.structure(train_state.opt_state) == jax.tree.structure(state)


def test_adam_rel_equals_adam_on_local_time(context):
    """Against the equation: moments since the beginning, bias corrections since the last update."""
    built = rule([AdamRel()], adam_b1=0.7, adam_b2=0.9)
    params, state = PARAMS, built.init(PARAMS)
    expected = {name: x.astype(float) for name, x in PARAMS.items()}
    directions = {
        name: adam([g[name] for g in gradients(6)], 0.7, 0.9, 1e-3, counts=[1, 2, 3] * 2)
        for name in PARAMS
    }
    for i, gradient in enumerate(gradients(6)):
        change, state = built.update(gradient, state, params)
        params = optax.apply_updates(params, change)
        expected = {name: x - 0.01 * directions[name][i] for name, x in expected.items()}
        same(params, expected, rtol=1e-5, atol=1e-6)
        if i == 2:
            _, train_state = AdamRel().after_update((), TrainState(params, state), None, context)
            state = train_state.opt_state


def test_erfi_equals_scipy():
    """Would catch the factor by which the published JAX code is off, or an infinity."""
    x = np.linspace(-8.9, 8.9, 101)
    np.testing.assert_allclose(erfi(jnp.array(x)), special.erfi(x), rtol=2e-5)
    assert np.isfinite(erfi(jnp.array([-1e9, 1e9]))).all()


def tuned(changes, gradients, start, epsilon):
    """TRAC on a base rule of known changes: a path of parameters, each one vector."""
    discounts = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])
    base, v, sigma, path, scales = start, np.zeros(6), np.full(6, epsilon), [], []
    for u, g in zip(changes, gradients, strict=True):
        h = g @ (base - start)
        base = base + u
        v, sigma = discounts**2 * v + h**2, discounts * sigma - h
        shares = special.erfi(sigma / (np.sqrt(2 * v) + epsilon)) / special.erfi(np.sqrt(0.5))
        scales.append(max(epsilon * np.sum(shares), 0.0))
        path.append(start + scales[-1] * (base - start))
    return path, scales


def flat(tree):
    """All entries as one vector of float64."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(float)


def test_trac_scales_the_distance_from_its_reference():
    """Would catch a scale of the step for one of the distance, h after the change, or each layer's.

    The base rule is plain gradient descent, whose changes are known.
    """
    steps, drawn = 50, gradients(50, mean=1)
    plain = Optimizer((), (optax.identity(),), (optax.scale(-0.02),), KEY)
    path, state = train(TRAC(1e-6).optimizer(plain).build(), steps, mean=1)
    g = [flat(x) for x in drawn]
    expected, scales = tuned([-0.02 * x for x in g], g, flat(PARAMS), 1e-6)
    assert scales[-1] > 0.1
    for ours, theirs in zip(path, expected, strict=True):
        np.testing.assert_allclose(flat(ours), theirs, rtol=1e-3, atol=2e-5)
    assert float(optax.tree.get(state, "scale")) == pytest.approx(scales[-1], rel=1e-3)


@pytest.mark.slow
def test_trac_returns_to_its_reference_after_a_wrong_direction():
    """Would catch a negative scale, which would train backwards."""
    built = TRAC(1e-2).optimizer(Optimizer((), (optax.identity(),), (optax.scale(-1.0),), KEY))
    built = built.build()
    params, state = PARAMS, built.init(PARAMS)
    one = jax.tree.map(jnp.ones_like, PARAMS)
    for sign in (1, 1, 1, -20):
        change, state = built.update(optax.tree.scale(float(sign), one), state, params)
        params = optax.apply_updates(params, change)
        moved = float(params["bias"][0] - PARAMS["bias"][0])
        assert moved < 0 or sign < 0
    assert float(optax.tree.get(state, "scale")) == 0
    same(params, PARAMS, atol=1e-6)


def test_trac_keeps_changes_by_other_methods(context):
    """Would catch a reset that is pulled back, or a reference zeroed along with moments."""
    steps = 30
    optimizer = Optimizer((), (optax.identity(),), (optax.scale(-0.02),), KEY)
    built = TRAC(1e-2).optimizer(optimizer).build()
    path, state = train(built, steps)
    before = path[-1]
    touched = jax.tree.map(lambda x: np.zeros(x.shape, bool), PARAMS)
    touched["kernel"][1] = True
    edited = {**before, "kernel": np.where(touched["kernel"], 9.0, before["kernel"])}
    now = context._replace(optimizer=built)
    state = reset_moments(TrainState(edited, state), touched, now)
    assert np.all(np.asarray(optax.tree.get(state, "displacement")["kernel"])[1] == 0)
    assert np.all(np.asarray(optax.tree.get(state, "displacement")["kernel"])[[0, 2]] != 0)
    old_scale = float(optax.tree.get(state, "scale"))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    change, state = built.update(zero, state, edited)
    after = optax.apply_updates(edited, change)
    scale = float(optax.tree.get(state, "scale"))
    assert scale != old_scale
    np.testing.assert_array_equal(after["kernel"][1], 9.0)
    # All else is where the new scale puts it.
    for name in PARAMS:
        rest = ~touched[name]
        np.testing.assert_allclose(
            after[name][rest],
            PARAMS[name][rest] + scale / old_scale * (before[name] - PARAMS[name])[rest],
            rtol=1e-4,
            atol=1e-5,
        )


def test_upgd_protects_what_is_useful():
    """Would catch utility of the other sign, of each tensor, uncorrected, or the factor 2 lost."""
    path, _ = train(rule([UPGD(0.9, noise=0.0, decay=0.1)]), 8)
    params, utility = flat(PARAMS), 0.0
    directions = adam([flat(g) for g in gradients(8)], 0.9, 0.999, 1e-3)
    for step, gradient in enumerate(gradients(8)):
        utility = 0.9 * utility + 0.1 * -flat(gradient) * params
        corrected = utility / (1 - 0.9 ** (step + 1))
        share = 1 / (1 + np.exp(-corrected / corrected.max()))
        params = params - 0.01 * (2 * directions[step] * (1 - share) + 0.1 * params)
        np.testing.assert_allclose(flat(path[step]), params, rtol=1e-5, atol=1e-6)


def test_upgd_without_utility_equals_adam():
    """Would catch NaN or a flipped sign where no weight's utility is positive."""
    zero = jax.tree.map(np.zeros_like, PARAMS)
    path, _ = train(rule([UPGD(noise=0.0)]), 1, params=zero)
    same(path, train(rule([]), 1, params=zero)[0], rtol=1e-6)
    built = rule([UPGD(noise=0.0, decay=0.0)])
    one = jax.tree.map(jnp.ones_like, PARAMS)
    change, _ = built.update(one, built.init(one), one)  # each utility is -1
    same(change, jax.tree.map(lambda x: jnp.full_like(x, -0.02 / 1.001), one), rtol=1e-4)


def test_upgd_draws_new_noise_at_every_step():
    """Would catch noise of another size, the same at each step, in each tensor, or for each run."""
    params = {"a": jnp.zeros((50, 40)), "b": jnp.zeros((50, 40))}
    draws = {}
    for key in (0, 1):
        built = rule([UPGD(noise=0.3)], key=jax.random.key(key))
        state = built.init(params)
        for step in range(2):
            change, state = built.update(params, state, params)
            for name, x in change.items():
                draws[key, step, name] = np.ravel(x) / 0.01
    for x in draws.values():  # 2 (1 - sigmoid(0)) noise
        assert x.std() == pytest.approx(0.3, rel=0.1)
        assert abs(x.mean()) < 0.03
    closeness = np.corrcoef(np.stack(list(draws.values()))) - np.eye(len(draws))
    assert np.abs(closeness).max() < 0.15


def test_optimizer_split_gives_different_keys():
    """Would catch one key for two that draw."""
    optimizer = PPO().optimizer(KEY)
    first, caller_key = optimizer.split()
    _, other = first.split()
    keys = {tuple(jax.random.key_data(key).tolist()) for key in (KEY, first.key, caller_key, other)}
    assert len(keys) == 4


TRIANGLE = np.triu(np.array([[1.2, 0.3, -0.5], [0, 0.8, 0.4], [0, 0, 1.5]]))
CORNER = np.array([[0.9, -0.2], [0, 1.1]])


@pytest.mark.slow
def test_kron_fit_matches_its_equation():
    """Against the Kronecker product as one matrix; would catch axes or a transpose exchanged."""
    random = np.random.default_rng(0)
    g, v = random.normal(size=(2, 3, 2))
    new = fit_factors((jnp.array(TRIANGLE), jnp.array(CORNER)), jnp.array(g), jnp.array(v), 0.1)
    whole = np.kron(TRIANGLE, CORNER)
    a = (whole @ g.ravel()).reshape(3, 2)
    b = (np.linalg.inv(whole).T @ v.ravel()).reshape(3, 2)
    for q, ours, one, other in (
        (TRIANGLE, new[0], a @ a.T, b @ b.T),
        (CORNER, new[1], a.T @ a, b.T @ b),
    ):
        bound = float(norm_bound(jnp.array(one + other)))
        exact = np.linalg.norm(one + other, 2)
        assert exact / np.sqrt(2) <= bound <= exact * (1 + 1e-5)
        expected = q - 0.1 * np.triu(one - other) @ q / bound
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
        assert np.all(np.tril(ours, -1) == 0)
    diagonal = np.array([0.5, 2.0, 1.0])
    one, other = (diagonal * g[:, 0]) ** 2, (v[:, 0] / diagonal) ** 2
    np.testing.assert_allclose(
        fit_factors((jnp.array(diagonal),), jnp.array(g[:, 0]), jnp.array(v[:, 0]), 0.1)[0],
        diagonal * (1 - 0.1 * (one - other) / np.max(one + other)),
        rtol=1e-5,
    )


def test_kron_preconditions_momentum():
    """Would catch a preconditioner on one side, uncorrected momentum, or no bound on its size."""
    built = rule([Kron(decay=0.8, max_rms=0.5)], learning_rate=1.0)
    state = jax.tree.map(lambda x: x, built.init(PARAMS))
    bias = np.array([0.3, 0.5])
    held = optax.tree.set(
        state,
        factors=((jnp.array(bias),), (jnp.array(TRIANGLE), jnp.array(CORNER))),
        steps_since_fit=jnp.int32(-100),  # so that nothing is fitted meanwhile
    )
    first, second = gradients(2)
    _, held = built.update(first, held, PARAMS)
    change, held = built.update(second, held, PARAMS)
    momentum = {n: (0.16 * first[n] + 0.2 * second[n]) / (1 - 0.8**2) for n in PARAMS}
    expected = {
        "bias": bias**2 * momentum["bias"],
        "kernel": TRIANGLE.T @ TRIANGLE @ momentum["kernel"] @ CORNER.T @ CORNER,
    }
    sizes = {n: np.sqrt(np.mean(x**2)) for n, x in expected.items()}
    assert sizes["kernel"] > 0.5 > sizes["bias"]
    expected["kernel"] *= 0.5 / sizes["kernel"]
    same(change, {n: -x for n, x in expected.items()}, rtol=1e-4, atol=1e-6)


def white_after(method, steps, draw):
    """The covariance of preconditioned gradients over the last half of the steps."""
    optimizer = Optimizer((), (optax.identity(),), (), KEY)
    built = method.optimizer(optimizer).build()

    @jax.jit
    def run_steps():
        def step(state, key):
            change, state = built.update(draw(key), state)
            return state, change["kernel"].reshape(-1)

        start = built.init(jax.tree.map(jnp.zeros_like, draw(KEY)))
        state, path = jax.lax.scan(step, start, jax.random.split(KEY, steps))
        return state, path[steps // 2 :]

    state, path = run_steps()
    return state, np.cov(np.asarray(path, float).T)


def test_kron_whitens_gradients():
    """What defines it: gradients of a known Kronecker covariance come out white."""
    left = jnp.array([[1.0, 0.0, 0.0], [2.0, 1.5, 0.0], [-1.0, 0.3, 0.2]])
    right = jnp.array([[5.0, 0.0], [3.0, 0.5]])

    def draw(key):
        return {"kernel": left @ jax.random.normal(key, (3, 2)) @ right.T}

    raw = np.kron(left @ left.T, right @ right.T)
    assert np.linalg.cond(raw) > 1e4
    always = Kron(decay=0.0, rate=0.05, min_probability=1.0, max_rms=1e9)
    _, covariance = white_after(always, 6000, draw)
    assert np.linalg.cond(covariance) < 3
    assert np.trace(covariance) / 6 == pytest.approx(1, rel=0.3)
    # With diagonal factors alone no correlation goes.
    _, covariance = white_after(always.replace(max_size=1), 2000, draw)
    assert np.linalg.cond(covariance) > 30


def test_kron_waits_longer_and_longer():
    """Would catch fits at a wrong interval: one a step, then one in 1 / probability, rounded up."""
    method = Kron(min_probability=0.3, anneal=0.5, anneal_from=3)
    built = rule([method])
    state, fits = built.init(PARAMS), []
    update = jax.jit(built.update)
    for gradient in gradients(16):
        before = optax.tree.get(state, "factors")
        _, state = update(gradient, state, PARAMS)
        fits.append(not np.array_equal(before[0][0], optax.tree.get(state, "factors")[0][0]))
    waited, expected = 0, []
    for step in range(1, 17):
        waited += 1
        expected.append(waited >= 1 / np.clip(np.exp(-0.5 * (step - 3)), 0.3, 1))
        waited *= not expected[-1]
    assert fits == expected
    assert fits[:3] == [True] * 3
    assert fits[-5:].count(True) == 1


def test_kron_without_gradients():
    """Would catch factors that grow with every step in which a layer is dead, or NaN."""
    built = rule([Kron()])
    state = start = built.init(PARAMS)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    change, state = built.update(zero, state, PARAMS)
    same(change, zero)
    same(optax.tree.get(state, "factors"), optax.tree.get(start, "factors"))


@pytest.mark.parametrize("method", [EqualBetas(), TRAC(), UPGD(), Kron(), AdamRel()])
def test_reset_moments_resets_moments_only(context, method):
    """Would catch a preconditioner or a tuner cleared with a unit, or moments that are not."""
    built = rule([method])
    _, state = train(built, 3)
    touched = jax.tree.map(lambda x: np.zeros(x.shape, bool), PARAMS)
    touched["kernel"][1] = True
    after = reset_moments(TrainState(PARAMS, state), touched, context._replace(optimizer=built))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    names = {"mu", "nu", "utility", "displacement", "momentum"}
    num_reset = 0
    pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        named = {str(getattr(key, "name", getattr(key, "key", ""))) for key in path}
        if named & names and "kernel" in named:
            np.testing.assert_array_equal(new, np.where(touched["kernel"], 0, old))
            assert np.any(old[1] != 0)
            num_reset += 1
        else:
            np.testing.assert_array_equal(new, old)
    assert num_reset == {"TRAC": 3, "UPGD": 3, "Kron": 1}.get(type(method).__name__, 2)


def test_update_rules_keep_their_types(tiny_run):
    """Would catch a state that a scan or a shift refuses, in one precision or with two torsos."""
    run = tiny_run(env=Void(), intervention=chain(AdamRel(), EqualBetas(), UPGD(), TRAC()))
    for changed in (run, run.replace(intervention=chain(Kron(), L2Norm(), TRAC()))):
        changed = changed.replace(network=changed.network.replace(shared=False))
        with jax.enable_x64(True):
            state = jax.eval_shape(lambda run=changed: loop.init(run))

            def step(train_state, run=changed):
                tools = loop.make_context(run, jnp.int32(0), jnp.int32(0))
                change, opt_state = tools.optimizer.update(
                    train_state.params, train_state.opt_state, train_state.params
                )
                return TrainState(optax.apply_updates(train_state.params, change), opt_state)

            after = jax.eval_shape(step, state.train_state)
            same_types = jax.tree.map(
                lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state.train_state, after
            )
            assert all(jax.tree.leaves(same_types))
            assert {x.dtype for x in jax.tree.leaves(after)} <= {
                np.dtype(np.float64),
                np.dtype(np.int32),
            }


def test_sam_takes_the_gradient_at_the_edge_of_the_ball():
    """Would catch a radius for each tensor, a step downhill, or metrics of the perturbed loss."""

    def loss(params):
        value = jnp.sum(params["kernel"] ** 4) + jnp.sum(jnp.exp(params["bias"]))
        return value, value

    found, aux = chain(SAM(0.3)).gradient(jax.grad(loss, has_aux=True))(PARAMS)
    kernel, bias = PARAMS["kernel"].astype(float), PARAMS["bias"].astype(float)
    slopes = 4 * kernel**3, np.exp(bias)
    norm = np.sqrt(sum(np.sum(slope**2) for slope in slopes))
    kernel, bias = kernel + 0.3 * slopes[0] / norm, bias + 0.3 * slopes[1] / norm
    same(found, {"kernel": 4 * kernel**3, "bias": np.exp(bias)}, rtol=1e-5)
    assert float(aux) == pytest.approx(float(loss(PARAMS)[0]))
    flat = chain(SAM(0.3)).gradient(jax.grad(lambda x: (0.0 * x, ()), has_aux=True))
    assert flat(jnp.ones(()))[0] == 0
