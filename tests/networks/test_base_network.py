"""Networks and activations of a user, found by import path and never by an edit of the package."""

import jax
import numpy as np
import pytest

from plasticity import config, train
from plasticity.networks import ACTIVATIONS, Network, get_activation
from plasticity.probes import DeadUnits, DormantUnits, EffectiveRank, Probes, WeightNorm
from plasticity.struct import SettingError, to_config

USER_MODULE = '''
import flax.linen as nn
import jax.numpy as jnp

from plasticity.networks import Activation, BaseNetwork, Categorical, Network, Output
from plasticity.struct import static_field


def swish(x):
    return x * nn.sigmoid(x)


def pair(x):
    return jnp.concatenate([x, -x], axis=-1)


doubled = Activation(pair, widening=2)


def total(x):
    return x.sum(axis=-1)


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(self.param("scale", nn.initializers.ones, ()) * x)


class Sized(nn.Module):
    size: int

    def __call__(self, x):
        return x


class Layers(nn.Module):
    units: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.units, name="hidden_0")(x.reshape(len(x), -1))


class Model(nn.Module):
    units: int
    num_actions: int

    @nn.compact
    def __call__(self, observation):
        z = Layers(self.units, name="torso")(observation)
        x = nn.relu(z)
        return Output(
            Categorical(nn.Dense(self.num_actions, name="policy")(x)),
            nn.Dense(1, name="value")(x)[:, 0],
            {"hidden_0": x},
            {"hidden_0": z},
        )


class Named(BaseNetwork):
    """Has the names that probes and interventions look for."""

    units: int = static_field(8, ge=1)

    def build(self, observation_shape, num_actions, continuous=False, intrinsic=False):
        return Model(self.units, num_actions)


class Bare(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, observation):
        x = nn.Dense(1 + self.num_actions)(observation.reshape(len(observation), -1))
        return Output(Categorical(x[:, 1:]), x[:, 0], {}, {})


class Unnamed(BaseNetwork):
    """Has none of the names."""

    def build(self, observation_shape, num_actions, continuous=False, intrinsic=False):
        return Bare(num_actions)


class Incomplete(BaseNetwork):
    pass


class Pair(BaseNetwork):
    def build(self, observation_shape, num_actions, continuous=False, intrinsic=False):
        return Layers(num_actions)


class NotFlax(BaseNetwork):
    def build(self, observation_shape, num_actions, continuous=False, intrinsic=False):
        return lambda observation: observation


class TooFew(BaseNetwork):
    def build(self, observation_shape, num_actions, continuous=False, intrinsic=False):
        return Bare(num_actions - 1)
'''


@pytest.fixture(scope="module", autouse=True)
def user_module(tmp_path_factory):
    """Writes the user's module to a folder that Python imports from."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_networks.py").write_text(USER_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def settings(network, **changes):
    """A tiny run's configuration with the default probes."""
    return {
        "env": {"_target_": "plasticity.Gather", "levels": 3, "episode_steps": 10},
        "network": network,
        "agent": {"num_envs": 2, "num_steps": 20, "minibatch_size": 20},
        "probes": to_config(Probes.of(DeadUnits(), DormantUnits(), WeightNorm(), EffectiveRank())),
        "schedule": {
            "rounds": 1,
            "updates_per_round": 2,
            "log_every": 1,
            "eval_every": 0,
            "eval_episodes": 2,
            "probe_every": 1,
            "probe_batch_size": 16,
        },
        "seed": 0,
        **changes,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "layers"),
    [
        ({"_target_": "my_networks.Named", "units": 4}, {"hidden_0", "policy", "value", "all"}),
        ({"_target_": "my_networks.Unnamed"}, {"Dense_0", "all"}),
        (
            {"hidden": [8], "activation": "my_networks.Scaled"},
            {"hidden_0", "activation_0", "policy", "value", "all"},
        ),
    ],
)
def test_user_network_trains_with_default_probes(network, layers, tmp_path):
    """Would catch a network or activation that must be registered, or a probe that needs names."""
    runs = config.from_config(settings(network))
    frame = train(runs, tmp_path / "run", progress=False)
    weights = frame[frame.metric == "weight_norm"]
    assert set(weights.layer) == layers
    assert np.isfinite(weights.value).all()
    has_units = "hidden_0" in layers
    assert set(frame[frame.metric == "dead_units"].layer) == (
        {"hidden_0", "all"} if has_units else set()
    )


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"_target_": "my_networks.Model"}, "'my_networks.Model': must be a kind of BaseNetwork"),
        ({"_target_": "my_networks.swish"}, "'my_networks.swish': must be a kind of BaseNetwork"),
        ({"_target_": "my_networks.Missing"}, "'my_networks.Missing': must be an import path"),
        (
            {"_target_": "my_networks.Incomplete"},
            "'my_networks.Incomplete': must be a class that def",
        ),
        ({"_target_": "my_networks.Pair"}, "'my_networks.Pair': .*Output, not an array"),
        ({"_target_": "my_networks.NotFlax"}, "'my_networks.NotFlax': .* Flax module, not func"),
        ({"_target_": "my_networks.TooFew"}, "'my_networks.TooFew': .* Categorical over 4 actions"),
    ],
)
def test_user_network_is_refused(network, message):
    """Would catch a TypeError from within the loop, or an error that names no class."""
    with pytest.raises(SettingError, match=rf"network\._target_={message}") as error:
        config.from_config(settings(network))
    assert "\n" not in str(error.value)


def test_user_network_without_intrinsic_value_is_refused():
    """Would catch a missing second value head that fails while training."""
    intrinsic = {"_target_": "plasticity.RND"}
    with pytest.raises(SettingError, match=r"'my_networks\.Named': the intrinsic_value of its out"):
        config.from_config(settings({"_target_": "my_networks.Named"}, intrinsic=intrinsic))


@pytest.mark.parametrize(
    ("method", "field"), [("LayerNorm", "norm"), ("CReLU", "activation"), ("Parseval", None)]
)
def test_interventions_on_user_network(method, field):
    """Would catch a TypeError where a method sets a field that the network lacks."""
    part = {"_target_": f"plasticity.{method}"}
    configuration = settings({"_target_": "my_networks.Named"}, intervention={"method": part})
    if field is None:
        assert config.from_config(configuration)
        return
    with pytest.raises(SettingError, match=f"'my_networks.Named': must have the field {field}, "):
        config.from_config(configuration)


@pytest.mark.slow
def test_activation_by_import_path():
    """Would catch a widening that is dropped, or a module taken for a function."""
    assert get_activation("my_networks.doubled").widening == 2
    assert get_activation("my_networks.swish").widening == 1
    assert isinstance(get_activation("my_networks.Scaled").apply, type)
    assert get_activation("relu") is ACTIVATIONS["relu"]
    module = Network(hidden=(6,), activation="my_networks.doubled").build((3,), 2)
    params = module.init(jax.random.key(0), np.zeros((1, 3)))["params"]
    assert params["torso"]["hidden_0"]["kernel"].shape == (3, 3)
    assert params["policy"]["kernel"].shape == (6, 2)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("foo", "must be one of relu, .*, or the import path of a function"),
        ("my_networks.missing", r"must be one of relu, .*no attribute 'missing'"),
        ("my_networks.USER", r"must be one of relu"),
        ("my_networks.Named", r"must be one of relu"),
        ("my_networks.pair", r"must map arrays \[\.\.\., n\] to \[\.\.\., 1 \* n\] .*\(2, 3, 8\)"),
        ("my_networks.total", r"must map arrays .* but maps \(2, 3, 4\) to \(2, 3\)"),
        ("my_networks.Sized", r"must map arrays .* \(TypeError: .*size"),
    ],
)
def test_activation_is_refused(activation, message):
    """Would catch an error of the compiler's, or a widening found out by a shape error."""
    with pytest.raises(SettingError, match=rf"network\.activation='{activation}': {message}") as e:
        config.from_config(settings({"activation": activation}))
    assert "\n" not in str(e.value)
