"""Where the jobs of a sweep are, after values of its settings have been added or left out."""

import re

import pytest
from omegaconf import OmegaConf

import plasticity as pl
from plasticity.renamed import ADDED
from plasticity.training.sweep_folders import NumberedJob, find_folders
from plasticity.training.train import Job


@pytest.fixture
def place(tmp_path, tiny_run):
    """Finds the folders of jobs, each a method and a seed or a list of them, and fills them."""

    def job(number, method, seed, rate, rounds):
        seeds = seed if isinstance(seed, list) else [seed]
        runs = tuple(tiny_run(seed=one) for one in seeds)
        config = {
            "intervention": {method: {"rate": rate}},
            "seed": seed,
            "init_from": None,
            "schedule": {**ADDED["schedule"], "rounds": rounds},
        }

        def folder_of(number):
            return tmp_path / f"{number}_{method}"

        return NumberedJob(Job(runs, folder_of(number), config), folder_of)

    def place(*jobs, rate=1.0, rounds=2):
        numbered = [job(number, *one, rate, rounds) for number, one in enumerate(jobs)]
        found = find_folders(numbered, tmp_path, len(jobs))
        for part in (part for parts in found for part in parts):
            assert not part.is_finished()  # refuses a folder that holds anything else
            part.folder.mkdir(exist_ok=True)
            OmegaConf.save(OmegaConf.create(dict(part.config)), part.folder / "config.yaml")
            seed = part.config["seed"]
            assert [run.seed for run in part.runs] == (seed if isinstance(seed, list) else [seed])
        return [[(part.folder.name, part.config["seed"]) for part in parts] for parts in found]

    return place


def test_added_seeds_and_methods_move_no_job(place):
    """Would catch jobs that are trained again, or refused, since their numbers have changed."""
    assert place(("a", 0), ("b", 0)) == [[("0_a", 0)], [("1_b", 0)]]
    assert place(("a", 0), ("a", 1), ("c", 0), ("b", 0), ("b", 1)) == [
        *([("0_a", 0)], [("1_a", 1)], [("2_c", 0)]),
        *([("1_b", 0)], [("4_b", 1)]),
    ]
    assert place(("a", 2), ("a", 1), ("a", 0)) == [[("3_a", 2)], [("1_a", 1)], [("0_a", 0)]]
    assert place(("b", 0)) == [[("1_b", 0)]]


def test_of_a_list_of_seeds_the_new_ones_become_a_job(place):
    """Would catch a seed that is trained, and counted, twice."""
    assert place(("a", [0, 1])) == [[("0_a", [0, 1])]]
    more = [[("0_a", [0, 1]), ("1_a", [2])]]
    assert place(("a", [0, 2, 1])) == more
    assert place(("a", [0, 1, 2])) == more
    with pytest.raises(pl.SettingError, match=r"^seed=\[0, 2\]: must have all seeds of .*/0_a, or"):
        place(("a", [0, 2]))


def test_another_sweep_in_the_same_folder_is_refused(place):
    """Would catch runs of two studies in one table under the same names."""
    place(("a", 0), ("b", 0))
    refused = "must hold no other run; has one with intervention.a.rate=1.0"
    with pytest.raises(pl.SettingError, match=re.escape(refused)):
        place(("a", 0), ("b", 0), rate=2.0)


def test_equal_jobs_keep_a_folder_each(place):
    twice = [[("0_a", 0)], [("1_a", 0)]]
    assert place(("a", 0), ("a", 0)) == twice
    assert place(("a", 0), ("a", 0)) == twice


def test_jobs_that_are_made_longer_stay_where_they_are(place, tmp_path):
    """Would catch a sweep stopped while its jobs are made longer, whose others begin anew."""
    place(("a", 0), ("b", 0))
    with pytest.raises(pl.SettingError, match=r"^schedule\.rounds=3: must be 2, as in .*/0_a"):
        place(("a", 0), ("b", 0), rounds=3)
    for name in ("0_a", "1_b"):
        (tmp_path / name / "checkpoints/6").mkdir(parents=True)
    assert place(("a", 0), rounds=3) == [[("0_a", 0)]]  # and stopped
    grown = [[("0_a", 0)], [("2_a", 1)], [("1_b", 0)]]
    assert place(("a", 0), ("a", 1), ("b", 0), rounds=3)[::2] == grown[::2]
