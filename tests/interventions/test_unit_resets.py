"""Unit resets other than ReDo, each unit by unit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Void, same
from intervention_helpers import step_of

from plasticity.interventions import (
    CalibratedPartialResets,
    ContinualBackprop,
    CReLU,
    LayerNorm,
    ReDoStudy,
    ReGraMa,
    SelfNormalizedResets,
    TrainState,
    chain,
)
from plasticity.interventions.unit_resets import recycle
from plasticity.networks import Network
from plasticity.training import loop

# The entries after each hidden layer, from the network's description.
SHARED = {
    "hidden_0": ("torso", "hidden_0", [("torso", "hidden_1")]),
    "hidden_1": ("torso", "hidden_1", [("policy",), ("value",)]),
}
SEPARATE = {
    "hidden_0": ("torso", "hidden_0", [("torso", "hidden_1")]),
    "hidden_1": ("torso", "hidden_1", [("policy",)]),
    "value_hidden_0": ("value_torso", "hidden_0", [("value_torso", "hidden_1")]),
    "value_hidden_1": ("value_torso", "hidden_1", [("value",)]),
}


def part_of(tree, path):
    """What is at a path of a tree."""
    for name in path:
        tree = tree[name]
    return tree


def by_hand(train_state, fresh, chosen, wiring=SHARED, cut=True):
    """Parameters and Adam's first moments after the units chosen are recycled, in NumPy."""
    params = jax.tree.map(np.array, train_state.params)
    moments = jax.tree.map(np.array, optax.tree.get(train_state.opt_state, "mu"))
    for layer, units in chosen.items():
        torso, name, _ = wiring[layer]
        for leaf in ("kernel", "bias"):
            params[torso][name][leaf][..., units] = np.array(fresh[torso][name][leaf])[..., units]
            moments[torso][name][leaf][..., units] = 0
    for layer, units in chosen.items() if cut else ():
        for path in wiring[layer][2]:
            for tree in (params, moments):
                kernel = part_of(tree, path)["kernel"]
                width = part_of(params, wiring[layer][:2])["bias"].size
                for side in range(len(kernel) // width):
                    kernel[units + side * width] = 0
    return params, moments


def assert_recycled(after, before, fresh, chosen, **kwargs):
    """Asserts that the units chosen were recycled, and nothing else changed."""
    params, moments = by_hand(before, fresh, chosen, **kwargs)
    same(after.params, params)
    same(optax.tree.get(after.opt_state, "mu"), moments)
    assert optax.tree.get(after.opt_state, "count") == optax.tree.get(before.opt_state, "count")


def trained(context, seed=3):
    """A train state whose optimizer remembers something everywhere."""
    params = context.init_params(jax.random.key(seed))
    return TrainState(params, jax.tree.map(lambda x: x + 1, context.optimizer.init(params)))


def stepper(part, context):
    """The hook after a step, compiled: of state, train state, activations and key."""

    @jax.jit
    def step(state, train_state, activations, key):
        step = step_of(activations=activations)
        return part.after_step(state, train_state, step, context._replace(key=key))

    return step


@pytest.fixture(scope="module")
def widened(tiny_run):
    """The tools for a network with two torsos and twice as many activations as units."""
    network = Network(hidden=(8, 6), shared=False)
    run = tiny_run(env=Void(), network=network, intervention=chain(CReLU()))
    tools = loop.make_context(run, jnp.int32(0), jnp.int32(0))
    return tools._replace(init_params=jax.jit(tools.init_params))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shared", "widened"])
def test_continual_backprop_matches_the_published_algorithm(context, widened, kind):
    """Would catch a wrong order, correction, age limit, share, or a head or a side forgotten."""
    tools, wiring, sides = (context, SHARED, 1) if kind == "shared" else (widened, SEPARATE, 2)
    rate, maturity, decay = 0.137, 3, 0.8
    part = ContinualBackprop(rate, maturity, decay)
    step = stepper(part, tools)
    train_state = trained(tools)
    state = part.init(train_state, tools)
    widths = {
        name: part_of(train_state.params, path[:2])["bias"].size for name, path in wiring.items()
    }
    ages, utilities = ({name: np.zeros(n) for name, n in widths.items()} for _ in range(2))
    owed = dict.fromkeys(widths, 0.0)
    replaced = 0
    rng = np.random.default_rng(0)
    for i in range(16):
        moved = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), train_state.params)
        train_state = train_state._replace(params=jax.tree.map(jnp.float32, moved))
        activations = {
            name: rng.normal(size=(5, n * sides)).astype(np.float32) for name, n in widths.items()
        }
        chosen = {}
        for name, n in widths.items():
            out = [part_of(train_state.params, path)["kernel"] for path in wiring[name][2]]
            for unit in range(n):
                contribution = sum(
                    np.mean(np.abs(activations[name][:, j]))
                    * sum(np.sum(np.abs(kernel[j])) for kernel in out)
                    for j in range(unit, n * sides, n)
                )
                ages[name][unit] += 1
                utilities[name][unit] *= decay
                utilities[name][unit] += (1 - decay) * contribution
            mature = [unit for unit in range(n) if ages[name][unit] > maturity]
            owed[name] += rate * len(mature)
            mature.sort(key=lambda u: utilities[name][u] / (1 - decay ** ages[name][u]))
            chosen[name] = np.array(mature[: int(owed[name])], int)
            owed[name] -= int(owed[name])
            ages[name][chosen[name]] = utilities[name][chosen[name]] = 0
            replaced += len(chosen[name])
        assert i >= maturity or replaced == 0
        key = jax.random.key(100 + i)
        state, after = step(state, train_state, activations, key)
        assert_recycled(after, train_state, tools.init_params(key), chosen, wiring=wiring)
        train_state = after
        for name in widths:
            np.testing.assert_array_equal(state[name].age, ages[name])
            np.testing.assert_allclose(state[name].utility, utilities[name], rtol=1e-4)
            np.testing.assert_allclose(state[name].num_to_replace, owed[name], atol=1e-5)
    assert replaced > 10


def test_continual_backprop_at_its_bounds(context):
    """Would catch ties that replace too many, all or none, or young units taken for want of old."""
    train_state = trained(context)
    silence = {"hidden_0": np.zeros((5, 16), np.float32), "hidden_1": np.zeros((5, 8), np.float32)}

    @jax.jit
    def ages(rate, maturity):
        part = ContinualBackprop(rate, maturity)
        state = part.init(train_state, context)
        for _ in range(2):
            step = step_of(activations=silence)
            state, after = part.after_step(state, train_state, step, context)
        return {layer: state[layer].age for layer in state}, after.params

    for rate, maturity, known in (
        (0.0, 0, (0, 0)),
        (1.0, 2, (0, 0)),  # nothing is older than 2
        (0.25, 1, (4, 2)),  # all are, and are alike: the share is exact
        (1.0, 0, (16, 8)),
    ):
        by_layer, params = ages(rate, maturity)
        assert tuple(int(np.sum(age == 0)) for age in by_layer.values()) == known
        if not any(known):
            same(params, train_state.params)


def silences(part, context, fires):
    """For each step and unit of the first layer, whether it is reset. fires: bool [T, 16]."""
    others = np.ones((1, 8), np.float32)

    @jax.jit
    def live(train_state):
        def step(carry, fires):
            activations = {"hidden_0": jnp.where(fires, 1.0, -1.0)[None], "hidden_1": others}
            state, train_state = part.after_step(*carry, step_of(activations=activations), context)
            return (state, train_state), ~fires & (state["hidden_0"].silent_steps == 0)

        return jax.lax.scan(step, (part.init(train_state, context), train_state), fires)

    (state, _), resets = live(trained(context))
    return jax.device_get((state, resets))


@pytest.fixture(scope="module")
def firing():
    """Units that fire at different rates, one never, and one that dies after 30 steps."""
    rates = np.concatenate([[0, 1], np.linspace(0.6, 0.99, 13), [1]])
    fires = np.random.default_rng(1).random((90, 16)) < rates
    fires[30:, 15] = False
    return fires


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4])
def test_self_normalized_resets_test_each_unit_by_its_own_past(context, firing, threshold):
    """Against a list of each unit's silences: would catch a threshold that units share."""
    state, resets = silences(SelfNormalizedResets(threshold), context, firing)
    for unit in range(16):
        past, silent = [], 0
        for t, fires in enumerate(firing[:, unit]):
            silent += not fires
            probability = (1 + sum(a >= silent for a in past)) / (1 + len(past))
            reset = not fires and probability <= threshold
            # Beyond this a bin holds several lengths, and there is a separate test.
            assert silent <= 8 or not past or threshold == 0
            assert resets[t, unit] == reset, (t, unit)
            if fires or reset:
                past.append(silent)
                silent = 0
        assert state["hidden_0"].silent_steps[unit] == silent
        assert state["hidden_0"].counts[unit].sum() == len(past)
    assert not resets[:, :2].any()  # those that never fired, and that always did
    assert resets.any() == (threshold > 0)
    assert resets[30, 15] == (threshold > 0)  # the first failure of one that always fired


def test_self_normalized_resets_are_late_by_a_quarter_at_most_and_never_early(context):
    """Would catch bins too wide, lengths that fall out of the histogram, or an early reset."""
    usual = np.array([1, 2, 5, 8, 9, 10, 12, 15, 17, 20, 23, 27, 30, 35, 41, 50])
    t = np.arange(1600)[:, None]
    # Twenty silences of the usual length, and then one without end.
    fires = (t % (usual + 1) == 0) & (t <= 20 * (usual + 1))
    _, resets = silences(SelfNormalizedResets(0.06), context, fires)
    begun = 20 * (usual + 1)
    after = np.argmax(resets, axis=0) - begun  # steps into the last silence
    assert resets.any(axis=0).all()
    assert np.all(after > usual)
    assert np.all(after <= np.ceil(1.25 * (usual + 1)))
    assert np.all(after[:3] == usual[:3] + 1)  # bins of one length


def test_self_normalized_resets_recycle_the_silent(context):
    """Would catch a reset of the units that fire, of one layer alone, or of stale moments."""
    part, train_state = SelfNormalizedResets(0.3), trained(context)
    step = stepper(part, context)
    loud = {"hidden_0": np.ones((3, 16), np.float32), "hidden_1": np.ones((3, 8), np.float32)}
    quiet = {name: x.copy() for name, x in loud.items()}
    chosen = {"hidden_0": np.array([2, 5]), "hidden_1": np.array([7])}
    for layer, units in chosen.items():
        quiet[layer][:, units] = 0
    quiet["hidden_0"][1:, 9] = -1  # fires in one transition, which will do
    state = part.init(train_state, context)
    key = jax.random.key(7)
    for _ in range(3):
        state, after = step(state, train_state, loud, key)
        same(after, train_state)
    _, after = step(state, train_state, quiet, key)
    assert_recycled(after, train_state, context.init_params(key), chosen)


@pytest.fixture(scope="module")
def gradients(context):
    """Three minibatches' gradients, in which some units are inactive and others seem to be."""
    rng = np.random.default_rng(2)
    params = context.init_params(jax.random.key(0))
    gradients = []
    for sign in (1, -1, 1):
        gradient = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
        first, second = (gradient["torso"][f"hidden_{i}"] for i in (0, 1))
        first["kernel"][:, 3] *= 0.02
        first["bias"][3] = 10  # does not count
        first["kernel"][:, 6] = 0.3 * sign * np.resize([1, -1], 6)  # cancels, but for its size
        first["kernel"][:, 8] *= 0.1 if sign > 0 else 1  # inactive in two of three
        second["kernel"][:, 1] = 0
        second["kernel"][3] = 0  # what leads out of unit 3
        gradients.append(gradient)
    return gradients


def grama(part, context, train_state, gradients, update):
    """The train state after an update with these minibatches, and the state left."""
    state = part.init(train_state, context)
    for gradient in gradients:
        state, unchanged = part.after_step(state, train_state, step_of(gradients=gradient), context)
        assert unchanged is train_state
    return part.after_update(state, train_state, None, context._replace(update=update))


@pytest.mark.parametrize("cut", [True, False])
def test_regrama_measures_gradients(context, gradients, cut):
    """Would catch signs that cancel, biases that count, or a mean over layers."""
    train_state, tau = trained(context), 0.05
    chosen = {}
    for i, name in enumerate(("hidden_0", "hidden_1")):
        stacked = np.stack([gradient["torso"][name]["kernel"] for gradient in gradients])
        size = np.array([np.mean(np.abs(stacked[:, :, unit])) for unit in range((16, 8)[i])])
        chosen[name] = np.flatnonzero(size / size.mean() <= tau)
    assert [list(units) for units in chosen.values()] == [[3], [1]]
    part = ReGraMa(tau, 2, clear_outgoing=cut)
    update_once = jax.jit(lambda update: grama(part, context, train_state, gradients, update))
    state, after = update_once(1)
    assert_recycled(after, train_state, context.init_params(context.key), chosen, cut=cut)
    assert not any(np.any(x) for x in state.values())  # the next update starts from zero
    for update in (0, 2):
        state, after = update_once(update)
        same(after, train_state)
        assert not any(np.any(x) for x in state.values())


def test_regrama_at_its_bounds(context, gradients):
    """Would catch NaN where there is no gradient, or tau = 0 that spares the dead."""
    train_state = trained(context)

    @jax.jit
    def after(tau, scale):
        scaled = [jax.tree.map(lambda x: scale * x, gradient) for gradient in gradients]
        return grama(ReGraMa(tau, 1), context, train_state, scaled, 0)[1]

    fresh = context.init_params(context.key)
    nothing = np.array([], int)
    assert_recycled(
        after(0.0, 1.0), train_state, fresh, {"hidden_0": nothing, "hidden_1": np.array([1])}
    )
    everything = {"hidden_0": np.arange(16), "hidden_1": np.arange(8)}
    for outcome in (after(0.0, 0.0), after(100.0, 1.0)):
        assert_recycled(outcome, train_state, fresh, everything)


@pytest.mark.slow
def test_recycle_in_a_stack_equals_each_alone(context):
    """Would catch a condition on all runs together, where each has units of its own to recycle."""
    train_states = jax.tree.map(lambda *x: jnp.stack(x), *(trained(context, i) for i in range(3)))
    masks = {"hidden_0": np.zeros((3, 16), bool), "hidden_1": np.zeros((3, 8), bool)}
    masks["hidden_0"][0, 4] = masks["hidden_1"][2, :] = True  # and none in the second

    def one(train_state, chosen):
        return recycle(train_state, chosen, context)

    together = jax.jit(jax.vmap(one))(train_states, masks)
    alone = jax.jit(one)
    for i in range(3):
        train_state, chosen = jax.tree.map(lambda x, i=i: x[i], (train_states, masks))
        of_stack = jax.tree.map(lambda x, i=i: x[i], together)
        same(of_stack, alone(train_state, chosen))
        units = {layer: np.flatnonzero(mask) for layer, mask in chosen.items()}
        assert_recycled(of_stack, train_state, context.init_params(context.key), units)


def recycled_by_the_study(params, activations, fresh, tau):
    """The published code of Juliani & Ash (2024), in NumPy: modules in order, one after another."""
    params = jax.tree.map(np.array, params)
    names = sorted(params["torso"])
    modules = [("torso", name) for name in names] + [("policy",), ("value",)]
    for i, name in enumerate(names):
        h = np.array(activations[name], np.float64)
        with np.errstate(invalid="ignore"):
            scores = (h / h.mean(axis=-1, keepdims=True)).mean(axis=0)
        while scores.ndim > 1:
            scores = scores.mean(axis=0)
        dormant = scores <= tau
        this, following = (part_of(params, path)["kernel"] for path in modules[i : i + 2])
        this[..., dormant] = np.array(fresh["torso"][name]["kernel"])[..., dormant]
        if this.ndim == following.ndim:
            following[..., dormant, :] = 0
    return params


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "convolutions"])
def test_redo_study_is_the_published_code_of_the_study(context, tiny_run, kind):
    """Would catch ReDo in its place: other scores, biases, moments, heads, layers or updates."""
    if kind == "convolutions":
        network = Network(channels=(4, 6), kernel=(3,), stride=(2,), padding=(0,), hidden=(8, 5))
        context = loop.make_context(tiny_run(network=network), jnp.int32(0), jnp.int32(0))
    part = ReDoStudy(0.3, 4)
    train_state = trained(context)
    layers = train_state.params["torso"]
    rng = np.random.default_rng(0)

    def activations():
        """Units that are dead, dormant for the layer's mean alone, dormant, and alive."""
        shapes = {
            name: (12, *((3, 3) if layer["kernel"].ndim == 4 else ()), layer["bias"].size)
            for name, layer in layers.items()
        }
        drawn = {name: np.maximum(rng.normal(1, 1, shape), 0) for name, shape in shapes.items()}
        for h in drawn.values():
            h[..., 0] = 0
            h[..., 1] *= 0.2
            h[..., 2] *= 0.4
            h[0] *= 50  # one observation for many
        return {name: jnp.float32(h) for name, h in drawn.items()}

    batches = [activations() for _ in range(3)]
    # A layer that is silent for one observation is left alone.
    batches[2]["hidden_1"] = batches[2]["hidden_1"].at[3].set(0)

    @jax.jit
    def one_update(update, batch):
        state = part.init(train_state, context)
        step = step_of(activations=batch)
        state, _ = part.after_step(state, train_state, step, context)
        return part.after_update(state, train_state, None, context._replace(update=update))[1]

    fresh = context.init_params(context.key)
    for batch in batches:
        after = one_update(jnp.int32(8), batch)
        same(after.params, recycled_by_the_study(train_state.params, batch, fresh, 0.3))
        same(after.opt_state, train_state.opt_state)
    assert any(
        np.any(x != y)
        for x, y in zip(*map(jax.tree.leaves, (after.params, train_state.params)), strict=True)
    )
    for update in (0, 3, 7, 9):
        same(one_update(jnp.int32(update), batches[0]), train_state)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [CReLU(), LayerNorm()])
def test_redo_study_leaves_other_layers_alone(tiny_run, architecture):
    """Would catch a method that the study's code does not have beside these two."""
    run = tiny_run(env=Void(), intervention=chain(architecture))
    context = loop.make_context(run, jnp.int32(0), jnp.int32(10))
    train_state, part = trained(context), ReDoStudy()
    output = context.apply(train_state.params, jnp.zeros((4, 6)))
    silence = jax.tree.map(jnp.ones_like, output.activations)
    silence = {name: x.at[:, 0].set(0) for name, x in silence.items()}
    state = part.init(train_state, context)
    state, _ = part.after_step(state, train_state, step_of(activations=silence), context)
    same(part.after_update(state, train_state, None, context)[1], train_state)


def test_continual_backprop_without_decay_has_the_instantaneous_utility(context):
    """Would catch a correction by 0, or a utility of earlier minibatches."""
    part = ContinualBackprop(1 / 16, 0, decay=0.0)
    train_state, step = trained(context), stepper(part, context)
    state, rng = part.init(train_state, context), np.random.default_rng(1)
    for _ in range(3):
        activations = {
            "hidden_0": rng.normal(size=(5, 16)).astype(np.float32),
            "hidden_1": rng.normal(size=(5, 8)).astype(np.float32),
        }
        state, after = step(state, train_state, activations, context.key)
        out = np.abs(train_state.params["torso"]["hidden_1"]["kernel"]).sum(axis=1)
        useless = np.argmin(np.abs(activations["hidden_0"]).mean(axis=0) * out)
        changed = np.any(
            after.params["torso"]["hidden_0"]["kernel"]
            != train_state.params["torso"]["hidden_0"]["kernel"],
            axis=0,
        )
        assert np.flatnonzero(changed) == [useless]


@pytest.mark.parametrize("kind", ["shared", "widened"])
def test_calibrated_partial_resets_match_the_published_code(context, widened, kind):
    """Would catch outgoing weights before incoming ones, moments reset, or utilities that go on."""
    tools, wiring = (context, SHARED) if kind == "shared" else (widened, SEPARATE)
    part = CalibratedPartialResets(0.4, 3.0, 0.9, 0.7, every=2)
    before = trained(tools)
    state, rng = part.init(before, tools), np.random.default_rng(2)
    utilities = {
        name: np.ones(part_of(before.params, path[:2])["bias"].size)
        for name, path in wiring.items()
    }
    for _ in range(3):
        gradients = jax.tree.map(
            lambda x: (
                rng.normal(size=x.shape[-1]).astype(np.float32)
                * rng.normal(size=x.shape).astype(np.float32)
            ),
            before.params,
        )
        state, _ = part.after_step(state, before, step_of(gradients), tools)
        for name, path in wiring.items():
            size = np.abs(part_of(gradients, path[:2])["kernel"]).mean(axis=0)
            utilities[name] = 0.7 * utilities[name] + 0.3 * size / (size.mean() + 1e-8)
    same(state, utilities, rtol=1e-5)
    after_update = jax.jit(
        lambda update: part.after_update(state, before, None, tools._replace(update=update))
    )
    same(after_update(jnp.int32(2)), (state, before))
    state, after = after_update(jnp.int32(1))
    same(state, jax.tree.map(np.ones_like, utilities))
    same(after.opt_state, before.opt_state)

    fresh = tools.init_params(tools.key)
    params = jax.tree.map(np.array, before.params)
    for name, (torso, layer, following) in wiring.items():
        share = 0.4 * np.minimum(2 / (1 + np.exp(3 * (utilities[name] - 0.9))), 1)
        assert 0.01 < share.min() < share.max() <= 0.4
        kernel = params[torso][layer]["kernel"]
        kernel[:] = (1 - share) * kernel + share * np.array(fresh[torso][layer]["kernel"])
        for path in following:
            kernel = part_of(params, path)["kernel"]
            kernel *= 1 - np.tile(share, len(kernel) // len(share))[:, None]
    same(after.params, params, rtol=1e-4, atol=1e-6)
