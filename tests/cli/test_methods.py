"""The listing of methods, and that command line, Python and documentation agree about each."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from plasticity import interventions, probes
from plasticity.cli import methods
from plasticity.struct import TARGET, fields, snake_case

ROOT = Path(__file__).parents[2]
CASES = [
    pytest.param(group, method, id=method.name)
    for group in ("intervention", "probes")
    for method in methods.methods(group)
]
# What has no paper of its own.
PLAIN = {
    "reset_all", "critic_error", "dead_units", "distance_from_init", "distance_from_round_start",
    "feature_cosine",
    "policy_kl", "saturated_units", "weight_norm", "weight_rms",
}  # fmt: skip


@pytest.mark.parametrize(("group", "method"), CASES)
def test_the_command_line_has_each_with_its_own_defaults(group, method):
    """Would catch a coefficient that cannot be set by name, or whose default is another there."""
    declared = {name: field.default for name, field in fields(method.kind)}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in declared.items()}
    path = f"{method.kind.__module__.rpartition('.')[0]}.{method.kind.__name__}"
    known = {method.name: {TARGET: path, **plain}}
    assert snake_case(method.kind.__name__) == method.name
    assert OmegaConf.load(ROOT / f"configs/{group}/{method.name}.yaml") == known
    default = OmegaConf.load(ROOT / "configs/probes/default.yaml")
    assert default.get(method.name, known[method.name]) == known[method.name]


@pytest.mark.parametrize(("group", "module"), [("intervention", interventions), ("probes", probes)])
def test_every_class_can_be_chosen(group, module):
    """Would catch a method that only Python knows."""
    base = {"intervention": interventions.Intervention, "probes": probes.Probe}[group]
    kinds = {
        kind
        for kind in map(vars(module).get, module.__all__)
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }
    assert {method.kind for method in methods.methods(group)} == kinds


@pytest.mark.parametrize(("group", "method"), CASES)
def test_each_is_documented(group, method):
    """Would catch a method of which the listing can say nothing, or too much for a line."""
    assert 10 < len(method.what) <= 100
    assert bool(method.papers) == (method.name not in PLAIN)
    text = inspect.getdoc(method.kind)
    for name, default, allowed in method.settings:
        assert f"  {name}" in text
        assert str(default)
        assert allowed


def test_papers_are_found_wherever_they_are_named():
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


def test_the_listing_names_everything(monkeypatch, capsys):
    """Would catch a group left out, or brackets taken for markup."""
    monkeypatch.setenv("COLUMNS", "120")
    text = run(monkeypatch, capsys)
    for name in (*(case.values[1].name for case in CASES), "permute", "window", "expand"):
        assert f"\n{name} " in text
    assert "[relu(x), relu(-x)]" in text
    assert "tau = 0.025  (a finite number >= 0)" in text
    one = run(monkeypatch, capsys, "redo")
    assert "optimizer's moments" in one
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "rodo")
    assert "error: name='rodo': must be one of adam_rel" in capsys.readouterr().err
