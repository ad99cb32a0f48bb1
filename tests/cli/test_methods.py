"""The listing of methods, and that command line, Python and documentation agree about each."""

import inspect
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import plasticity as pl
from plasticity import interventions, probes, shifts
from plasticity.cli import config_groups, methods
from plasticity.cli.command import CONFIG, CONFIGS
from plasticity.struct import TARGET, fields, snake_case

CASES = [
    pytest.param(group, method, id=method.name)
    for group in ("intervention", "probes")
    for method in methods.methods(group)
]
# What has no paper of its own.
PLAIN = {
    "freeze",
    "reset_all", "critic_error", "dead_units", "distance_from_init", "distance_from_round_start",
    "feature_cosine",
    "policy_kl", "saturated_units", "weight_norm", "weight_rms",
}  # fmt: skip


@cache
def composed(override):
    """The configuration under an override, in plain containers."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose(CONFIG, [override]))


@pytest.mark.parametrize(("group", "method"), CASES)
def test_method_has_the_defaults_of_its_class_on_the_command_line(group, method):
    """Would catch a coefficient that cannot be set by name, or whose default is another there."""
    declared = {name: field.default for name, field in fields(method.kind)}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in declared.items()}
    path = f"{method.kind.__module__.rpartition('.')[0]}.{method.kind.__name__}"
    known = {method.name: {TARGET: path, **plain}}
    assert snake_case(method.kind.__name__) == method.name
    assert composed(f"{group}={method.name}")[group] == known
    default = composed("probes=default")["probes"]
    assert default.get(method.name, known[method.name]) == known[method.name]


@pytest.mark.parametrize(("group", "module"), [("intervention", interventions), ("probes", probes)])
def test_methods_lists_every_exported_class(group, module):
    """Would catch a method that only Python knows."""
    base = {"intervention": interventions.Intervention, "probes": probes.Probe}[group]
    kinds = {
        kind
        for kind in map(vars(module).get, module.__all__)
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }
    assert {method.kind for method in methods.methods(group)} == kinds


def test_exported_classes_takes_a_new_class_from_the_package(monkeypatch):
    """Would catch a second place that a new shift must be entered in, or a base class listed."""

    class SaltAndPepper(pl.Shift):
        """Sets entries to black or white."""

        density: float = pl.field(0.1, ge=0, le=1)
        levels: tuple[int, ...] = pl.static_field((0, 1))

    monkeypatch.setattr(shifts, "SaltAndPepper", SaltAndPepper, raising=False)
    monkeypatch.setattr(shifts, "__all__", [*shifts.__all__, "SaltAndPepper"])
    monkeypatch.setitem(ConfigStore.instance().repo, "shift", {})
    config_groups.register_config_groups()
    assert composed("shift=[tint,salt_and_pepper]")["shift"] == {
        "tint": {TARGET: "plasticity.shifts.Tint", "strength": 1.0},
        "salt_and_pepper": {
            TARGET: "plasticity.shifts.SaltAndPepper", "density": 0.1, "levels": [0, 1],
        },
    }  # fmt: skip
    assert {"shift", "value_schedule"}.isdisjoint(config_groups.exported_classes("shift"))


@pytest.mark.parametrize(("group", "method"), CASES)
def test_method_is_documented(group, method):
    """Would catch a method of which the listing can say nothing, or too much for a line."""
    assert 10 < len(method.summary) <= 100
    assert bool(method.papers) == (method.name not in PLAIN)
    text = inspect.getdoc(method.kind)
    for name, default, allowed in method.settings:
        assert f"  {name}" in text
        assert str(default)
        assert allowed


def test_papers_finds_every_form_of_citation():
    """Would catch a citation missed, cut short, or left in the line beside its column."""

    def cited(text):
        return methods.papers(text)

    assert cited("Does it (Sokar et al. 2023).") == ("Sokar et al. 2023",)
    assert cited("As in the code of Juliani & Ash (2024); (Ba et al. 2016; Lyle et al. 2023)") == (
        "Juliani & Ash 2024", "Ba et al. 2016", "Lyle et al. 2023",
    )  # fmt: skip
    assert cited("No more than 2048 steps, in 2 parts") == ()


def run(monkeypatch, capsys, *words):
    """What `python -m plasticity.cli.methods` prints."""
    monkeypatch.setattr("sys.argv", ["methods", *words])
    methods.main()
    return capsys.readouterr().out


def test_main_lists_every_method(monkeypatch, capsys):
    """Would catch a group left out, or brackets taken for markup."""
    monkeypatch.setenv("COLUMNS", "120")
    text = run(monkeypatch, capsys)
    for name in (*(case.values[1].name for case in CASES), "permute", "window", "expand"):
        assert f"\n{name} " in text
    for name in ("a2c", "cartpole", "impala", "rnd_atari", "none"):
        assert f"\n{name} " in text
    assert "\nEnvironments: env=NAME\n" in text
    assert "[relu(x), relu(-x)]" in text
    assert "tau = 0.025  (a finite number >= 0)" in text
    one = run(monkeypatch, capsys, "redo")
    assert "optimizer's moments" in one
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "rodo")
    assert "error: name='rodo': must be one of adam_rel" in capsys.readouterr().err
