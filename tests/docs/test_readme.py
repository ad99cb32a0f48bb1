"""What README says: its commands can be typed, and its numbers are those of the shipped results."""

import json
import re
import shlex
import sys

import pandas as pd
import pytest
from helpers import ROOT, pages, write_examples
from omegaconf import OmegaConf

import plasticity
from experiments.juliani_ash_2024.reproduce import markdown
from experiments.juliani_ash_2024.size import evaluate_sizes
from experiments.juliani_ash_2024.size import markdown as sizes_markdown
from plasticity import results
from plasticity.cli.command import runs_of
from plasticity.cli.methods import methods

PAGES = pages()
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
BOUNDS = ("", "_low", "_high")
COMMANDS = sorted(
    set(re.findall(r"^python -m experiments\.train (.*[^\\\n])$", EVERYTHING, flags=re.MULTILINE))
)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line != "--help"])
def test_each_command_names_what_there_is(line, monkeypatch, tmp_path):
    """Would catch an option or a key that was renamed; of a sweep the first job is looked at."""
    write_examples(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert runs_of(*first_job(line))
    except plasticity.SettingError as error:
        if re.search(r"must be installed: .*\[(craftax|metaworld|forager)\]", str(error)):
            pytest.skip(str(error))  # the extras that dev does not have
        raise


def test_every_public_name_has_its_place_in_the_reference():
    """Would catch a class that is exported and documented nowhere, and one that is gone."""
    reference = "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    assert "automodule:: plasticity.results" in reference
    named = set(re.findall(r"^\.\. [\w:]+:: plasticity\.(\w+)$", reference, flags=re.MULTILINE))
    assert named - {"results"} == set(plasticity.__all__) - {"results"}


def first_job(line):
    """The overrides of a sweep's first job."""
    words = [word for word in shlex.split(line) if word != "-m"]
    return [re.sub(r"^([\w.]+=[^\[{,]+),.*", r"\1", word) for word in words]


def test_the_command_that_a_notebook_ends_with_finds_its_class(monkeypatch, tmp_path):
    cells = json.loads((ROOT / "notebooks/write_your_own.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    (code,) = (text for text in texts if text.startswith("class Shrink"))
    (tmp_path / "my_interventions.py").write_text(f"import jax\nimport plasticity as pl\n{code}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_interventions", raising=False)
    (line,) = re.findall(r"python -m experiments.train ((?:.*\\\n)*.*)", texts[-1])
    (run,) = runs_of(*first_job(line.replace("\\\n", " ").replace("=[0,1,2,3,4]", "=0")))
    assert run.intervention.parts[0].keep == 0.3


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    """Would catch a page or a figure that was moved."""
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        if not re.match(r"https?:", link):
            target = (ROOT / page).parent / link
            copied = ROOT / "notebooks" / target.name  # `make docs` copies them to docs/notebooks
            assert target.exists() or (target.suffix == ".ipynb" and copied.exists()), link


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile(page):
    """Would catch an example with a syntax error."""
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL):
        compile(code, page, "exec")


def test_the_numbers_are_those_of_the_shipped_tables():
    """Would catch a README that the results have moved away from."""
    summary = results.summary(results.load(ROOT / "docs/quickstart")).set_index("intervention")
    assert len(summary) == 4
    for name, row in summary.iterrows():
        (line,) = re.findall(rf"^\| {name} \|(.*\[.*)$", README, flags=re.MULTILINE)
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[0] == f"{row.return_first:.2f} → {row.return_last:.2f}"
        assert cells[1] == f"{row.loss:.2f} [{row.loss_low:.2f}, {row.loss_high:.2f}]"
        if name != "warm_start":
            assert cells[2] == f"{row.gain:+.2f} [{row.gain_low:.2f}, {row.gain_high:.2f}]"
        assert cells[3] == f"{row.dead_units_first:.2f} → {row.dead_units_last:.2f}"
        assert cells[4] == f"{row.weight_norm_first:.1f} → {row.weight_norm_last:.1f}"
        assert cells[5] == f"{row.effective_rank_first:.1f} → {row.effective_rank_last:.1f}"
    # What the preset was chosen for: the loss is there to see, and not noise.
    assert summary.loc["reset_all", "gain_low"] > 0


def test_forgetting_and_transfer_are_those_of_the_shipped_tables():
    """Would catch a guide that the results, or the definition, have moved away from."""
    names = ["warm_start", "layer_norm", "shrink_perturb"]
    frame = results.load(ROOT / "docs/study/small")
    frame = frame[frame["intervention"].isin([*names, "reset_all"])]
    table = results.transfer_metrics(frame).set_index(["intervention", "shift"])
    for name in names:
        cells = [
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(
                *(table.loc[(name, shift), f"forward_transfer{bound}"] for bound in BOUNDS)
            )
            for shift in ("permute", "window", "expand")
        ]
        assert f"| `{name}` | {' | '.join(cells)} |" in PAGES["docs/guides/plasticity_loss.md"]
    table = results.aged_against_fresh(frame)
    table = table[table["intervention"] == "warm_start"].set_index(["shift", "round"])
    for shift in ("permute", "window", "expand"):
        cells = [
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(
                *(table.loc[(shift, round_), f"lost{bound}"] for bound in BOUNDS)
            )
            for round_ in (2, 5, 10)
        ]
        assert f"| {shift} | {' | '.join(cells)} |" in PAGES["docs/guides/plasticity_loss.md"]
    table = results.transfer_metrics(results.load(ROOT / "docs/forgetting"))
    for row in table[:2].itertuples():
        interval = f"{row.forgetting:.2f} [{row.forgetting_low:.2f}, {row.forgetting_high:.2f}]"
        assert interval in PAGES["docs/guides/plasticity_loss.md"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "column", "seeds"), [("small", 2, 12), ("medium", 3, 6)])
def test_the_verdicts_are_those_of_the_shipped_study(size, column, seeds):
    """Would catch docs that rules or results have moved away from, and results shipped in part."""
    frame = results.load(ROOT / "docs/study" / size)
    claims, returns, transfer, effects = markdown(frame)
    assert all(part in PAGES["docs/study.md"] for part in (claims, returns, transfer))
    assert effects in PAGES["docs/study_effects.md"]
    for line in claims.splitlines()[2:]:
        name, text, here = (cell.strip() for cell in line.strip("|").split("|"))
        (row,) = re.findall(rf"^\| {name} \|.*\|$", README, flags=re.MULTILINE)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == text
        assert here.startswith(f"**{cells[column]}**")
    runs = frame[["shift", "intervention", "seed"]].drop_duplicates()
    assert len(runs) == 3 * 13 * seeds


def test_the_sizes_are_those_that_were_searched():
    """Would catch a table, or a rule, that the shipped search has moved away from."""
    table = evaluate_sizes(pd.read_csv(ROOT / "docs/study/size/returns.csv"))
    assert sizes_markdown(table) in (ROOT / "docs/study.md").read_text()


@pytest.mark.parametrize(("size", "prefix"), [("small", ""), ("medium", "medium_")])
def test_the_coefficients_are_those_that_were_chosen(size, prefix):
    """Would catch a table, or a configuration, that a later search has moved away from."""
    tables = PAGES["docs/study.md"].split(f"chosen for `{size}`")[1]
    for name in ("l2_norm", "regenerative_l2", "soft_shrink_perturb"):
        found = pd.read_csv(ROOT / f"docs/study/tune/{prefix}{name}.csv")
        key = found.columns[0].rpartition(".")[2]
        line = re.search(rf"^\| `{name}` {key} \|(.*?)\|(.*?)\|", tables, re.MULTILINE)
        told = dict(re.findall(r"(\S+) \*\*(\S+)\*\*", line[1]))
        assert {float(x): y for x, y in told.items()} == {
            row[0]: f"{row[1]:.2f}" for row in found.itertuples(index=False)
        }
        chosen = OmegaConf.load(ROOT / f"configs/intervention/{size}/{name}.yaml")
        assert float(line[2]) == found.iloc[0, 0]
        assert chosen[name][key] == found.iloc[0, 0]


def test_the_numbers_of_methods_are_those_that_the_command_lists():
    """Would catch counts that later methods have moved away from."""
    counts = {group: len(methods(group)) for group in ("intervention", "probes", "shift")}
    text = "In total there are {intervention} interventions, {probes} probes and {shift} shifts"
    assert text.format(**counts) in README
