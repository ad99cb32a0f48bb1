"""PPO against an independent reading of its equations, in NumPy and float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasticity.agents import PPO, Trajectory, ppo
from plasticity.interventions import (
    Batch,
    Context,
    Intervention,
    Interventions,
    Rollout,
    TrainState,
    chain,
)
from plasticity.networks import Categorical, Network, Output
from plasticity.struct import SettingError

STEPS, ENVS, ACTIONS, SEEN = 7, 3, 3, 4
gae = jax.jit(ppo.gae)


def trajectory_of(seed, steps=STEPS, envs=ENVS):
    """A made-up rollout whose episodes end in every way, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    shape = (steps, envs)
    ending = rng.choice(3, size=shape, p=[0.6, 0.2, 0.2])
    return Trajectory(
        observation=rng.normal(size=(*shape, SEEN)),
        action=rng.integers(ACTIONS, size=shape),
        log_prob=np.log(rng.uniform(0.1, 0.9, size=shape)),
        value=rng.normal(size=shape),
        next_value=rng.normal(size=shape),
        reward=rng.normal(size=shape),
        terminated=ending == 1,
        truncated=ending == 2,
        last_obs=rng.normal(size=(envs, SEEN)),
    )


def advantages(rollout, gamma, lambda_):
    """GAE as a sum over what follows within the episode: sum_l (gamma lambda)^l delta_(t+l)."""
    out = np.zeros_like(rollout.reward)
    for t, n in np.ndindex(out.shape):
        weight = 1.0
        for s in range(t, len(out)):
            bootstrap = 0.0 if rollout.terminated[s, n] else gamma * rollout.next_value[s, n]
            out[t, n] += weight * (rollout.reward[s, n] + bootstrap - rollout.value[s, n])
            if rollout.terminated[s, n] or rollout.truncated[s, n]:
                break
            weight *= gamma * lambda_
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_gae(seed, gamma, lambda_):
    """Would catch a trace across episodes, or a cut-off taken for an end or the reverse."""
    rollout = trajectory_of(seed)
    known = advantages(rollout, gamma, lambda_)
    np.testing.assert_allclose(gae(rollout, gamma, lambda_), known, rtol=1e-4, atol=1e-4)


def test_gae_with_lambda_1_is_the_return_less_the_value():
    """Would catch a bootstrap that is not discounted: the closed form of an unbroken rollout."""
    rollout = trajectory_of(0)._replace(
        terminated=np.zeros((STEPS, ENVS), bool), truncated=np.zeros((STEPS, ENVS), bool)
    )
    rollout.next_value[:-1] = rollout.value[1:]
    discount = 0.9 ** np.arange(STEPS)
    known = discount @ rollout.reward + 0.9**STEPS * rollout.next_value[-1] - rollout.value[0]
    np.testing.assert_allclose(gae(rollout, 0.9, 1.0)[0], known, rtol=1e-5)


def log_softmax(logits):
    """log of exp(z) / sum exp(z)."""
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def loss_of(spec, logits, value, batch):
    """Clipped surrogate, squared error and entropy as the paper writes them: loss and terms."""
    advantage = (batch.advantage - np.mean(batch.advantage)) / np.std(batch.advantage, ddof=1)
    log_probs = log_softmax(logits)
    total = {"policy_loss": 0.0, "value_loss": 0.0, "policy_entropy": 0.0}
    total |= {"approx_kl": 0.0, "clip_fraction": 0.0}
    size = len(value)
    for i in range(size):
        ratio = np.exp(log_probs[i, batch.action[i]] - batch.log_prob[i])
        bounded = min(max(ratio, 1 - spec.clip_eps), 1 + spec.clip_eps)
        total["policy_loss"] -= min(ratio * advantage[i], bounded * advantage[i]) / size
        total["value_loss"] += (value[i] - batch.target[i]) ** 2 / size
        total["policy_entropy"] -= np.exp(log_probs[i]) @ log_probs[i] / size
        total["approx_kl"] += ((ratio - 1) - np.log(ratio)) / size
        total["clip_fraction"] += (abs(ratio - 1) > spec.clip_eps) / size
    loss = total["policy_loss"] + spec.vf_coef * total["value_loss"]
    return loss - spec.ent_coef * total["policy_entropy"], total


def test_loss():
    """Would catch a wrong sign, coefficient, clipping side or normalisation, or half a square."""
    rng = np.random.default_rng(1)
    spec = PPO(clip_eps=0.3, ent_coef=0.07, vf_coef=0.4)
    batch = Batch(
        observation=np.zeros((50, SEEN)),
        action=rng.integers(ACTIONS, size=50),
        log_prob=np.log(rng.uniform(0.2, 0.6, size=50)),
        value=np.zeros(50),
        advantage=rng.normal(2.0, 5.0, size=50),
        target=rng.normal(size=50),
    )
    logits, value = rng.normal(size=(50, ACTIONS)), rng.normal(size=50)
    known, terms = loss_of(spec, logits, value, batch)
    total, metrics = jax.jit(type(spec).loss)(
        spec, Output(Categorical(logits), value, {}, {}), batch
    )
    assert 0.2 < terms["clip_fraction"] < 0.9
    assert float(total) == pytest.approx(known, rel=1e-4)
    assert {k: float(v["all"]) for k, v in metrics.items()} == pytest.approx(terms, rel=1e-4)


def test_value_loss_is_clipped_as_in_cleanrl():
    """Would catch the smaller of both errors, clipping around the target, or of the other head."""
    rng = np.random.default_rng(3)
    value, old, target, other = rng.normal(size=(4, 40))
    batch = Batch(*[None] * 3, value=old, advantage=None, target=target, intrinsic_target=target)
    output = Output(None, value, {}, {}, other)
    known = [
        max((v - t) ** 2, (o + min(max(v - o, -0.3), 0.3) - t) ** 2) + (i - t) ** 2
        for v, o, t, i in zip(value, old, target, other, strict=True)
    ]
    np.testing.assert_allclose(ppo.value_loss(output, batch, 0.3), known, rtol=1e-5)
    assert not np.allclose(ppo.value_loss(output, batch), known)


def test_make_schedule():
    """Would catch a decay that begins at 0, ends late, or a warm-up that starts over."""
    rate = ppo.make_schedule(0.2, "linear", 4, 12)
    np.testing.assert_allclose(
        [rate(i) for i in (0, 1, 4, 8, 12, 30)], [0, 0.05, 0.2, 0.1, 0, 0], atol=1e-7
    )
    cosine = ppo.make_schedule(0.2, "cosine", 0, 8)
    known = [0.1 * (1 + np.cos(np.pi * i / 8)) for i in range(9)]
    np.testing.assert_allclose([cosine(i) for i in range(9)], known, atol=1e-7)
    assert ppo.make_schedule(0.2, None, 4, 0)(50) == pytest.approx(0.2)
    assert ppo.make_schedule(0.2, None, 0, 0) == 0.2  # no count in the optimizer's state


def test_schedule_begins_anew_with_the_optimizer():
    """Would catch steps counted for updates, or a warm-up that a shift does not repeat."""
    spec = PPO(num_envs=2, num_steps=8, minibatch_size=4, num_epochs=2, lr_warmup_updates=3)
    optimizer = spec.optimizer(jax.random.key(0)).build()
    gradient, sizes = {"w": jnp.ones(1)}, []
    for _ in range(2):  # as at a shift
        state = optimizer.init(gradient)
        for _ in range(30):
            update, state = optimizer.update(gradient, state, gradient)
            sizes.append(-float(update["w"][0]) / spec.learning_rate)
    known = [min(i / (3 * 8), 1) for i in range(30)]  # eight steps an update
    np.testing.assert_allclose(sizes, known * 2, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr_schedule": "linear"}, "lr_decay_updates"),
        ({"lr_decay_updates": 9}, "lr_decay_updates"),
        ({"lr_schedule": "cosine", "lr_decay_updates": 3, "lr_warmup_updates": 3}, "lr_warmup"),
    ],
)
def test_check_refuses_a_schedule_without_end(changes, named):
    """Would catch a learning rate that is silently constant, or that never comes down."""
    with pytest.raises(SettingError, match=named):
        PPO(**changes).check()


def test_scan_epochs_stops_at_the_end_of_an_epoch():
    """Would catch a stop within an epoch, one too late, or means over steps that are not made."""
    kl = jnp.array([9.0, 0.1, 0.3, 5.0, 0.2, 7.0, 0.1, 0.1])

    def step(made, kl):
        return made + 1, {"approx_kl": {"all": kl}}

    made, metrics = jax.jit(lambda: ppo.scan_epochs(4, 1.0, step, jnp.int32(0), kl))()
    assert made == 4
    assert float(metrics["gradient_steps"]["all"]) == 4
    assert float(metrics["approx_kl"]["all"]) == pytest.approx(np.mean([9.0, 0.1, 0.3, 5.0]))


def test_entropy_and_log_prob():
    """Would catch bits for nats, and 0 log 0: closed forms of uniform and certain policies."""
    logits = jnp.array([[1.0, 1.0, 1.0, 1.0], [200.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(Categorical(logits).entropy(), [np.log(4), 0], atol=1e-6)
    taken = Categorical(logits).log_prob(jnp.array([3, 0]))
    np.testing.assert_allclose(taken, [-np.log(4), 0], atol=1e-6)


class Record(Intervention):
    """Keeps the first entry of every observation in each minibatch, in order."""

    def init(self, train_state, context):
        return jnp.zeros((0,)), jnp.zeros(())

    def after_step(self, state, train_state, step, context):
        seen, count = state
        seen = jax.lax.dynamic_update_slice(
            seen, step.activations["observation"][None, :, 0], (count.astype(jnp.int32), 0)
        )
        return (seen, count + 1), train_state


def make_context(spec, network, interventions, key=0):
    """What `update` needs of the trainer."""
    module = network.build((SEEN,), ACTIONS)
    return Context(
        key=jax.random.key(key),
        round=jnp.int32(0),
        update=jnp.int32(0),
        init_params=lambda key: module.init(key, jnp.zeros((1, SEEN)))["params"],
        apply=lambda params, x: module.apply({"params": params}, x),
        effective_params=lambda params: params,
        optimizer=interventions.optimizer(spec.optimizer(jax.random.key(0))).build(),
    )


def test_minibatches_partition_the_rollout():
    """Would catch transitions met twice an epoch, a short minibatch, or one order for all."""
    spec = PPO(num_envs=ENVS, num_steps=STEPS, minibatch_size=4, num_epochs=6)
    interventions = chain(Record())
    rollout = jax.tree.map(jnp.asarray, trajectory_of(0))
    rollout = rollout._replace(
        observation=rollout.observation.at[..., 0].set(jnp.arange(21.0).reshape(STEPS, ENVS))
    )

    def update(key):
        context = make_context(spec, Network(hidden=(4,)), interventions)._replace(key=key)
        apply = context.apply
        context = context._replace(
            apply=lambda params, x: apply(params, x)._replace(activations={"observation": x})
        )
        params = context.init_params(jax.random.key(9))
        train_state = TrainState(params, context.optimizer.init(params))
        state = ((jnp.zeros((30, 4)), jnp.zeros(())),)
        data = Rollout(spec.make_batch(rollout), params)
        return spec.update(interventions, state, train_state, data, context)[0][0]

    seen, count = jax.jit(jax.vmap(update))(jax.random.split(jax.random.key(1), 40))
    assert np.all(count == 6 * 5)
    epochs = np.asarray(seen).reshape(40, 6, 20)
    left_out = set()
    for epoch in epochs.reshape(-1, 20):
        assert len(set(epoch)) == 20
        left_out |= set(range(21)) - set(epoch)
    assert left_out == set(range(21))  # not always the same transition
    assert len({epoch.tobytes() for epoch in epochs.reshape(-1, 20)}) == 240


def parameters(seed):
    """A network 4-5-(3, 1), in float64."""
    rng = np.random.default_rng(seed)

    def layer(n, m):
        return {"kernel": rng.normal(size=(n, m)), "bias": rng.normal(size=m)}

    return {
        "torso": {"hidden_0": layer(SEEN, 5)},
        "policy": layer(5, ACTIONS),
        "value": layer(5, 1),
    }


def numpy_loss(spec, params, batch):
    """The loss of a whole batch by a network of one tanh layer."""
    hidden = params["torso"]["hidden_0"]
    features = np.tanh(batch.observation @ hidden["kernel"] + hidden["bias"])
    logits = features @ params["policy"]["kernel"] + params["policy"]["bias"]
    value = features @ params["value"]["kernel"] + params["value"]["bias"]
    return loss_of(spec, logits, value[:, 0], batch)


def slopes(function, params, step=1e-6):
    """The gradient of `function` by central differences, entry by entry."""

    def slope(array):
        out = np.zeros_like(array)
        for i in np.ndindex(array.shape):
            kept = array[i]
            array[i] = kept + step
            above, _ = function()
            array[i] = kept - step
            out[i] = (above - function()[0]) / (2 * step)
            array[i] = kept
        return out

    return jax.tree.map(slope, params)


def norm_of(tree):
    """The 2-norm over all entries of a tree."""
    return np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))


def adam(spec, t, params, mean, square, gradient):
    """The t-th step of Kingma & Ba's algorithm 1: parameters and both moments after it."""
    b1, b2 = spec.adam_b1, spec.adam_b2
    mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, gradient)
    square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, square, gradient)

    def step(p, m, v):
        unbiased = m / (1 - b1**t), v / (1 - b2**t)
        return p - spec.learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + spec.adam_eps)

    return jax.tree.map(step, params, mean, square), mean, square


def numpy_update(spec, params, batch):
    """Adam on gradients clipped by their global norm. Parameters, norms, terms."""
    params = jax.tree.map(np.copy, params)
    mean = square = jax.tree.map(np.zeros_like, params)
    found, terms = [], []
    for t in range(1, spec.num_epochs + 1):
        terms.append(numpy_loss(spec, params, batch)[1])
        gradient = slopes(partial(numpy_loss, spec, params, batch), params)
        found.append(norm_of(gradient))
        share = min(1, spec.max_grad_norm / found[-1])
        clipped = jax.tree.map(partial(np.multiply, share), gradient)
        params, mean, square = adam(spec, t, params, mean, square, clipped)
    return params, found, terms


@pytest.mark.parametrize(("max_grad_norm", "target_kl"), [(0.05, None), (1e6, None), (1e6, 1e-3)])
def test_a_whole_update(max_grad_norm, target_kl):
    """Would catch any departure from clip-then-Adam on PPO's loss, or norms taken after clipping.

    A minibatch is the whole rollout, so that the order within it does not matter. Its actions are
    not the policy's, which is too far away from the first epoch on: with a target it has no other.
    """
    spec = PPO(
        num_envs=ENVS, num_steps=STEPS, minibatch_size=ENVS * STEPS, num_epochs=3,
        learning_rate=0.02, adam_b1=0.8, adam_b2=0.95, adam_eps=1e-3, ent_coef=0.1,
        gamma=0.9, gae_lambda=0.8, max_grad_norm=max_grad_norm,
    )  # fmt: skip
    rollout, params = trajectory_of(5), parameters(6)
    advantage = advantages(rollout, spec.gamma, spec.gae_lambda)
    batch = Batch(*(
        x.reshape(ENVS * STEPS, *x.shape[2:])
        for x in (
            rollout.observation, rollout.action, rollout.log_prob, rollout.value, advantage,
            advantage + rollout.value,
        )
    ))  # fmt: skip
    if target_kl is not None:
        known, found, terms = numpy_update(spec.replace(num_epochs=1), params, batch)
        spec = spec.replace(target_kl=target_kl)
    else:
        known, found, terms = numpy_update(spec, params, batch)

    with jax.enable_x64(True):
        context = make_context(spec, Network(hidden=(5,), activation="tanh"), Interventions())

        @jax.jit
        def update(start, rollout):
            train_state = TrainState(start, context.optimizer.init(start))
            data = Rollout(spec.make_batch(rollout), start)
            return spec.update(Interventions(), (), train_state, data, context)

        state, train_state, metrics = update(*jax.tree.map(jnp.asarray, (params, rollout)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
        train_state.params,
        known,
    )
    assert state == ()
    assert float(metrics["gradient_norm"]["all"]) == pytest.approx(np.mean(found), rel=1e-6)
    change = norm_of(jax.tree.map(np.subtract, known, params))
    size = sum(x.size for x in jax.tree.leaves(params))
    assert float(metrics["update_size"]["all"]) == pytest.approx(change / np.sqrt(size), rel=1e-6)
    for name in terms[0]:
        known = np.mean([term[name] for term in terms])
        assert float(metrics[name]["all"]) == pytest.approx(known, rel=1e-6)
