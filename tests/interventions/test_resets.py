"""Resets of weights and of the optimizer, the hare and the tortoise, plasticity injection."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Void, same
from intervention_helpers import rollout_of, step_of

from plasticity.interventions import (
    FIRE,
    CReLU,
    HareTortoise,
    PlasticityInjection,
    ReDo,
    ResetAll,
    ResetFinal,
    ResetLayers,
    ResetOptimizer,
    SelectiveWeightReinitialization,
    TrainState,
    chain,
    reset_moments,
)
from plasticity.interventions.resets import last_layers, polar_factor
from plasticity.interventions.unit_resets import recycle
from plasticity.networks import Network, connections
from plasticity.training import loop

HEADS = ("policy", "value")
OBS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def worn(params, context):
    """A train state of these parameters whose moments, and Adam's count, are all one."""
    opt_state = jax.tree.map(lambda x: x + 1, context.optimizer.init(params))
    return TrainState(params, opt_state)


def moments_of(train_state):
    """Adam's first and second moments, each a tree like the parameters."""
    return [optax.tree.get(train_state.opt_state, name) for name in ("mu", "nu")]


def tools(run):
    """The hooks' tools for a run of a void."""
    return loop.make_context(run, jnp.int32(0), jnp.int32(0))._replace(key=jax.random.key(11))


def check_redrawn(before, after, fresh, entries):
    """Asserts that the entries named, by path, are fresh without moments, and no other is."""

    def expect(path, old, new):
        names = tuple(key.key for key in path)
        return new if any(names[: len(entry)] == entry for entry in entries) else old

    zero = jax.tree.map(jnp.zeros_like, before.params)
    ones = jax.tree.map(jnp.ones_like, before.params)
    same(after.params, jax.tree.map_with_path(expect, before.params, fresh))
    for moments in moments_of(after):
        same(moments, jax.tree.map_with_path(expect, ones, zero))
    assert optax.tree.get(after.opt_state, "count") == 1


def test_resets_at_a_shift_reset_moments(context, old):
    """Would catch moments of weights that are gone, or a torso that loses its own."""
    before = worn(old, context)
    _, after = ResetAll().on_shift((), before, context)
    same(after.params, context.init_params(context.key))
    same(after.opt_state, context.optimizer.init(old))
    _, after = ResetFinal().on_shift((), before, context)
    check_redrawn(before, after, context.init_params(context.key), [("policy",), ("value",)])


LAST = {
    1: [("policy",), ("value",)],
    2: [
        *[("policy",), ("value",)],
        *[(torso, name) for torso in ("torso", "value_torso") for name in ("hidden_1", "norm_1")],
    ],
    3: [("policy",), ("value",), ("torso",), ("value_torso",)],
    7: [("policy",), ("value",), ("torso",), ("value_torso",)],
}


@pytest.fixture(scope="module")
def apart(tiny_run):
    """The tools for a network with two normalized layers in each of two torsos."""
    network = Network(hidden=(16, 8), norm="layer_norm", shared=False)
    return tools(tiny_run(env=Void(), network=network))


@pytest.mark.slow
@pytest.mark.parametrize("last", LAST)
def test_reset_layers_counts_from_the_heads(apart, last):
    """Would catch layers counted from the input, a torso or a norm forgotten, or moments kept."""
    before = worn(jax.tree.map(lambda x: 3 * x + 0.5, apart.init_params(jax.random.key(1))), apart)

    @jax.jit
    def at(update, every):
        return ResetLayers(last, every).after_update(
            (), before, None, apart._replace(update=update)
        )[1]

    check_redrawn(before, at(9, 5), apart.init_params(apart.key), LAST[last])
    check_redrawn(before, at(0, 1), apart.init_params(apart.key), LAST[last])
    for update, every in ((0, 5), (3, 5), (5, 5), (9, 200)):
        same(at(update, every), before)
    assert ResetLayers(last).on_shift((), before, apart)[1] is before


def test_reset_layers_works_under_crelu(tiny_run):
    """Would catch counting that relies on widths or on a shared torso's shape."""
    context = tools(tiny_run(env=Void(), intervention=chain(CReLU())))
    before = worn(context.init_params(jax.random.key(1)), context)
    after = jax.jit(lambda: ResetLayers(2, 1).after_update((), before, None, context)[1])()
    entries = [("policy",), ("value",), ("torso", "hidden_1")]
    check_redrawn(before, after, context.init_params(context.key), entries)


def test_reset_optimizer_keeps_to_its_interval(context, old):
    """Would catch an interval off by one, a zero that divides, or a shift that is passed over."""
    before, initial = worn(old, context), context.optimizer.init(old)

    @jax.jit
    @jax.vmap
    def at(every, update):
        now = context._replace(update=update)
        return ResetOptimizer(every).after_update((), before, None, now)[1]

    every, update = (x.ravel() for x in np.meshgrid([0, 1, 3], np.arange(7), indexing="ij"))
    after = at(every, update)
    counts = np.asarray(optax.tree.get(after.opt_state, "count")).reshape(3, 7)
    np.testing.assert_array_equal(counts[0], 1)
    np.testing.assert_array_equal(counts[1], 0)
    np.testing.assert_array_equal(counts[2], [1, 1, 0, 1, 1, 0, 1])
    for i, count in enumerate(counts.ravel()):
        same(after.params, jax.tree.map(lambda x: np.stack([x] * 21), old))
        same(
            jax.tree.map(lambda x: x[i], after.opt_state),  # noqa: B023
            before.opt_state if count else initial,
        )
    for interval in (0, 3):
        _, shifted = ResetOptimizer(interval).on_shift((), before, context)
        assert shifted.params is old
        same(shifted.opt_state, initial)


def test_reset_optimizer_makes_the_first_step_the_learning_rate(tiny_run):
    """Would catch a count that is kept: the first step would then be some three times as long."""
    run = tiny_run(env=Void())
    context = tools(run)
    params = context.init_params(jax.random.key(1))

    @jax.jit
    def first_step():
        gradient = jax.tree.map(lambda x: 1e-3 * jnp.sign(x), params)
        _, (_, opt_state) = ResetOptimizer(1).after_update((), worn(params, context), None, context)
        return context.optimizer.update(gradient, opt_state, params)[0]

    rate = run.agent.learning_rate
    same(first_step(), jax.tree.map(lambda x: -rate * np.sign(x), params), rtol=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_hare_tortoise_matches_its_recursion(context, decay):
    """Would catch the two exchanged, an average begun at zero, or a reset of the tortoise.

    Against the equations, in plain loops: seven updates of three steps, a return after every third.
    """
    start = jax.tree.map(np.asarray, context.init_params(jax.random.key(1)))

    @jax.jit
    def train(decay):
        part = HareTortoise(decay, 3)
        train_state = worn(start, context)
        state, kernels = part.init(train_state, context), []
        for update in range(7):
            for step in range(3):
                moved = jax.tree.map(lambda x: x + 0.1 * (update + step), train_state.params)  # noqa: B023
                state, train_state = part.after_step(
                    state, train_state._replace(params=moved), None, context
                )
            now = context._replace(update=jnp.int32(update))
            state, train_state = part.after_update(state, train_state, None, now)
            if update == 4:
                state, train_state = part.on_shift(state, train_state, context)
            kernels.append(train_state.params["torso"]["hidden_0"]["kernel"])
        return kernels, train_state.opt_state

    kernels, opt_state = train(decay)
    hare = tortoise = start["torso"]["hidden_0"]["kernel"].astype(float)
    for update in range(7):
        for step in range(3):
            hare = hare + 0.1 * (update + step)
            tortoise = decay * tortoise + (1 - decay) * hare
        if update in (2, 5):
            hare = tortoise
        np.testing.assert_allclose(kernels[update], hare, rtol=1e-5, atol=1e-6)
    same(opt_state, worn(start, context).opt_state)
    if decay == 1:
        np.testing.assert_array_equal(kernels[2], start["torso"]["hidden_0"]["kernel"])


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "apart"])
def injectable(request, tiny_run):
    """The tools for a network under plasticity injection, with one torso or two."""
    network = Network(hidden=(16, 8), shared=request.param)
    return tools(tiny_run(env=Void(), network=network, intervention=chain(PlasticityInjection())))


def outputs_of(params, obs):
    """Features, logits and values in NumPy: each head is old + new - copy."""
    params = jax.tree.map(lambda x: np.asarray(x, float), params)
    features, out = {}, {}
    for head, torso in (("policy", "torso"), ("value", "value_torso")):
        x = obs.astype(float)
        for name in ("hidden_0", "hidden_1"):
            layer = params.get(torso, params["torso"])[name]
            x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
        layer = params[head]
        parts = [x @ part["kernel"] + part["bias"] for part in (layer, layer["new"], layer["copy"])]
        features[head], out[head] = x, parts[0] + parts[1] - parts[2]
    return features, out


def learned(params, key):
    """The parameters as after some training: all but the copies have moved."""
    keys = iter(jax.random.split(key, 99))
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params)
    for head in HEADS:
        moved[head] = {**moved[head], "copy": params[head]["copy"]}
    return moved


@pytest.fixture(scope="module")
def injected(injectable):
    """A run with two injections: parameters before and after each, and after some learning."""

    @jax.jit
    def live():
        part = PlasticityInjection()
        start = injectable.init_params(jax.random.key(1))
        train_states = [worn(start, injectable)]
        for i in range(2):
            context = injectable._replace(key=jax.random.key(50 + i))
            _, after = part.on_shift((), train_states[-1], context)
            train_states.append(after)
            train_states.append(worn(learned(after.params, jax.random.key(i)), context))
        return train_states, [
            injectable.apply(train_state.params, OBS) for train_state in train_states
        ]

    return jax.device_get(live())


def test_injection_changes_no_output(injected):
    """Would catch a copy of another draw, or an injection that forgets what it replaces."""
    train_states, outputs = injected
    for before, after in ((0, 1), (2, 3)):
        same(outputs[after], outputs[before], rtol=1e-6, atol=1e-6)
        assert not np.allclose(train_states[after].params["policy"]["new"]["kernel"], 0)
    assert not np.allclose(outputs[2].policy.logits, outputs[1].policy.logits)


def test_injection_computes_old_plus_new_minus_copy(injected):
    """Would catch a sign, a bias left out, or a head of the other torso's features."""
    for train_state, output in zip(*injected, strict=True):
        _, out = outputs_of(train_state.params, OBS)
        np.testing.assert_allclose(output.policy.logits, out["policy"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(output.value, out["value"][:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_injection_merges_earlier_ones(injected, injectable):
    """Would catch learned weights lost, one draw for all injections, or a changed torso."""
    train_states, _ = injected
    for before, after, i in ((0, 1, 0), (2, 3, 1)):
        one, other = train_states[before].params, train_states[after].params
        fresh = injectable.init_params(jax.random.key(50 + i))
        for head in HEADS:
            for leaf in ("kernel", "bias"):
                old, new, copy = (np.asarray(x[leaf]) for x in (
                    one[head], one[head]["new"], one[head]["copy"]
                ))  # fmt: skip
                np.testing.assert_allclose(other[head][leaf], old + new - copy, atol=1e-6)
                for part in ("new", "copy"):
                    np.testing.assert_array_equal(other[head][part][leaf], fresh[head][leaf])
        for torso in set(one) - set(HEADS):
            same(other[torso], one[torso])
        for moments in moments_of(train_states[after]):
            for name, part in moments.items():
                assert all(np.all(x == (name not in HEADS)) for x in jax.tree.leaves(part))
        assert optax.tree.get(train_states[after].opt_state, "count") == 1


@pytest.mark.parametrize("freeze", [False, True])
def test_injection_gradients(injectable, injected, freeze):
    """Would catch a copy that learns, a new head that does before its time, or a torso's gradient.

    Of the sum of all outputs times known numbers, whose gradient for a head is features' times
    these, and for a torso that of a plain network with the three heads in one.
    """
    train_states, _ = injected
    part = PlasticityInjection(freeze)
    rng = np.random.default_rng(1)
    pull = {"policy": rng.normal(size=(20, 3)), "value": rng.normal(size=(20, 1))}
    plain = Network(hidden=(16, 8), shared="value_torso" not in train_states[0].params).build(
        (5,), 3
    )

    @jax.jit
    @jax.grad
    def gradient(params):
        output = plain.apply({"params": part.effective_params(params)}, OBS)
        return jnp.sum(output.policy.logits * pull["policy"]) + output.value @ pull["value"][:, 0]

    @jax.jit
    @jax.grad
    def gradient_of_plain(params):
        output = plain.apply({"params": params}, OBS)
        return jnp.sum(output.policy.logits * pull["policy"]) + output.value @ pull["value"][:, 0]

    for train_state, in_use in ((train_states[0], False), (train_states[2], True)):
        params = train_state.params
        got = gradient(params)
        features, _ = outputs_of(params, OBS)
        for head in HEADS:
            expected = {"kernel": features[head].T @ pull[head], "bias": pull[head].sum(0)}
            zero = jax.tree.map(np.zeros_like, expected)
            old = {name: got[head][name] for name in ("kernel", "bias")}
            same(old, zero if in_use and freeze else expected, rtol=1e-4, atol=1e-4)
            same(got[head]["new"], expected if in_use else zero, rtol=1e-4, atol=1e-4)
            same(got[head]["copy"], zero)
        whole = {
            name: {
                leaf: layer[leaf] + layer["new"][leaf] - layer["copy"][leaf]
                for leaf in ("kernel", "bias")
            } if name in HEADS else layer
            for name, layer in params.items()
        }  # fmt: skip
        through = gradient_of_plain(whole)
        for torso in set(params) - set(HEADS):
            same(got[torso], through[torso], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("freeze", [False, True])
def test_injection_restores_frozen_parameters(injectable, injected, freeze):
    """Would catch a copy that a penalty erodes, to which Adam gives steps of full length."""
    train_states, _ = injected
    part = PlasticityInjection(freeze)
    for train_state, in_use in ((train_states[0], False), (train_states[2], True)):
        moved = jax.tree.map(lambda x: x + 1.0, train_state.params)
        step = step_of(prev_params=train_state.params)
        _, after = part.after_step((), TrainState(moved, train_state.opt_state), step, injectable)
        for head in HEADS:
            frozen = {"copy"} | ({"kernel", "bias"} if in_use and freeze else set())
            frozen |= set() if in_use else {"new"}
            for name, leaf in after.params[head].items():
                same(leaf, (train_state.params if name in frozen else moved)[head][name])
        for torso in set(moved) - set(HEADS):
            same(after.params[torso], moved[torso])


def test_injection_frozen_equals_baseline_with_reset_moments(injectable):
    """Would catch a frozen head that moves, or clipping that counts a gradient twice."""
    start = worn(injectable.init_params(jax.random.key(1)), injectable)

    @jax.jit
    def train():
        def end_of(part, train_state):
            def objective(params):
                return optax.tree.sum(
                    jax.tree.map(lambda x: jnp.sin(9 * x), part.effective_params(params))
                )

            params, opt_state = train_state
            for _ in range(2):
                gradient = jax.grad(objective)(params)
                change, opt_state = injectable.optimizer.update(gradient, opt_state, params)
                params = optax.apply_updates(params, change)
            return part.effective_params(params)

        frozen, free = PlasticityInjection(True), PlasticityInjection(False)
        heads = last_layers(start.params, 1)
        forgetful = start._replace(opt_state=reset_moments(start, heads, injectable))
        return (
            end_of(frozen, forgetful),
            end_of(frozen, frozen.on_shift((), start, injectable)[1]),
            end_of(free, free.on_shift((), start, injectable)[1]),
        )

    baseline, frozen, free = train()
    same(frozen, baseline, rtol=1e-5, atol=1e-6)
    assert not np.allclose(free["policy"]["kernel"], baseline["policy"]["kernel"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [False, True])
def test_injection_has_no_effect_before_the_first_shift(tiny_run, freeze):
    """Would catch a head that learns, or counts in clipping, before it is in use; to the bit."""

    def first_round(run):
        state, sums = jax.jit(lambda: loop.train_updates(run, loop.init(run), 2))()
        return jax.device_get((state.train_state.params, sums))

    plain, expected = first_round(tiny_run())
    params, sums = first_round(tiny_run(intervention=chain(PlasticityInjection(freeze))))
    for head in HEADS:
        for part in ("new", "copy"):
            assert all(np.all(x == 0) for x in params[head].pop(part).values())
    same(params, plain)
    for metrics in (sums.metrics, expected.metrics):
        metrics.pop("update_size")  # a mean over entries, of which there are more
    same(sums, expected)


def test_redo_recycles_injected_heads(injectable, injected):
    """Would catch a unit that is cut off from the old head and still speaks through the new."""
    train_state = injected[0][2]
    after = jax.jit(
        lambda: recycle(train_state, {"hidden_1": jnp.arange(8) == 3}, injectable).params
    )()
    whole, before = (PlasticityInjection().effective_params(x) for x in (after, train_state.params))
    led = HEADS if "value_torso" not in after else HEADS[:1]
    for head in HEADS:
        kernel, old = (np.asarray(x[head]["kernel"]) for x in (whole, before))
        assert np.all(kernel[3] == 0) == (head in led)
        np.testing.assert_array_equal(np.delete(kernel, 3, 0), np.delete(old, 3, 0))
    paths = connections(train_state.params)
    prefixes = [(head, *inner) for head in led for inner in ((), ("new",), ("copy",))]
    assert set(paths["hidden_1"].outgoing) == {(*prefix, "kernel") for prefix in prefixes}
    assert paths["hidden_0"].outgoing == (("torso", "hidden_1", "kernel"),)
    due, rollout = injectable._replace(update=jnp.int32(9)), rollout_of(OBS)
    _, recycled = jax.jit(lambda: ReDo(0.5).after_update((), train_state, rollout, due))()
    assert jax.tree.structure(recycled) == jax.tree.structure(train_state)


def newton_schulz(matrix, iterations=10):
    """The iteration of the published code, on the side that it is on there."""
    tall = matrix if matrix.shape[1] <= matrix.shape[0] else matrix.T
    x = tall / np.linalg.norm(tall)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.T @ x)
    return x if matrix.shape[1] <= matrix.shape[0] else x.T


def test_fire_is_the_published_reinitialization(context):
    """Would catch a scale the other way round, kernels of images taken whole, or biases that go."""
    rng = np.random.default_rng(3)
    shapes = {"hidden_0": (3, 3, 2, 5), "hidden_1": (20, 4), "policy": (4, 9), "value": (4, 1)}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.ones(shape[-1])}
        for name, shape in shapes.items()
    }
    after = jax.jit(lambda before: FIRE().on_shift((), before, context)[1])(worn(params, context))
    for name, shape in shapes.items():
        same(after.params[name]["bias"], params[name]["bias"])
        kernel, found = (x[name]["kernel"].reshape(-1, *shape[-2:]) for x in (params, after.params))
        for old, new in zip(kernel, found, strict=True):
            known = newton_schulz(old.T).T * np.sqrt(shape[-1] / shape[-2]) / len(kernel)
            np.testing.assert_allclose(new, known, atol=1e-5)
    same(after.opt_state, context.optimizer.init(params))


def test_polar_factor_is_the_nearest_orthogonal_matrix():
    """Would catch an iteration that converges to another matrix, or NaN for a layer of zeros."""
    matrix = np.random.default_rng(4).normal(size=(6, 4)).astype(np.float32)
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    for x, known in ((matrix, u @ v), (matrix.T, (u @ v).T)):
        np.testing.assert_allclose(polar_factor(x, 30), known, atol=1e-5)
    assert not np.any(polar_factor(jnp.zeros((3, 2)), 10))


@pytest.mark.parametrize(
    ("pruning", "utility"), [("proportional", "gradient"), ("threshold", "magnitude")]
)
def test_selective_weight_reinitialization_redraws_the_least_useful(context, old, pruning, utility):
    """Would catch the most useful, a threshold of the whole network, or an average begun late."""
    part = SelectiveWeightReinitialization(0.3, 0.6, every=3, utility=utility, pruning=pruning)
    rng = np.random.default_rng(5)
    state, before = part.init(worn(old, context), context), worn(old, context)
    known = jax.tree.map(np.zeros_like, old)
    for _ in range(4):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), old)
        state, _ = part.after_step(state, before, step_of(gradients), context)
        known = jax.tree.map(
            lambda u, w, g: 0.6 * u + 0.4 * abs(w * g if utility == "gradient" else w),
            known,
            jax.device_get(old),
            gradients,
        )
    same(state, known, rtol=1e-5, atol=1e-7)
    update = jax.jit(
        lambda update: part.after_update(state, before, None, context._replace(update=update))
    )
    same(update(jnp.int32(1)), (state, before))
    utilities, after = update(jnp.int32(2))
    same(after.opt_state, before.opt_state)

    def check(u, new, old, left):
        changed = np.asarray(new != old)
        if pruning == "threshold":
            assert np.array_equal(changed, u <= 0.3 * u.mean())
        else:
            assert np.floor(0.3 * u.size) <= changed.sum() <= np.ceil(0.3 * u.size)
            if changed.any():
                assert u[changed].max() < u[~changed].min()
        same(left, 0 * u if changed.any() else u)

    jax.tree.map(check, jax.device_get(state), after.params, old, utilities)
