"""A small results table whose statistics are known, and folders that hold it."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd

from plasticity import results

NAMES = ("warm_start", "shrink_perturb")
SEEDS = (0, 1, 2)
ROUNDS = (1, 2, 3, 4)
METRICS = ("train_return", "dead_units", "weight_norm", "effective_rank")

LEFT = np.array(
    [
        [0.12573, -0.132105, 0.640423],
        [0.1049, -0.535669, 0.361595],
        [1.304, 0.947081, -0.703735],
        [-1.265421, -0.623274, 0.041326],
        [-2.325031, -0.218792, -1.245911],
        [-0.732267, -0.544259, -0.3163],
    ]
)
IQM = -0.2802178  # what rliable 1.2's `aggregate_iqm(LEFT)` gives


def level(name: str, seed: int, round_: int) -> float:
    """The mean of a round in the table that `fabricate` makes."""
    slope = {"warm_start": 2.0, "shrink_perturb": 0.5}[name]
    return 10.0 + seed - slope * (1 + seed) * (round_ - 1)


def fabricate(
    names: tuple[str, ...] = NAMES,
    seeds: tuple[int, ...] = SEEDS,
    metrics: tuple[str, ...] = METRICS,
) -> pd.DataFrame:
    """A table of two rows a round, 0.25 below `level` and above it, for every metric alike."""
    rows = [
        {
            "run": f"{name}-{seed}",
            "env": "cartpole",
            "shift": "permute",
            "intervention": name,
            "seed": seed,
            "round": round_,
            "update": update,
            "env_steps": 64 * update,
            "metric": metric,
            "layer": "all",
            "value": level(name, seed, round_) + offset,
        }
        for name in names
        for seed in seeds
        for round_ in ROUNDS
        for update, offset in ((10 * round_ - 5, -0.25), (10 * round_, 0.25))
        for metric in metrics
    ]
    return results.validate(pd.DataFrame(rows))


def with_episodes(frame: pd.DataFrame, first: int, second: int) -> pd.DataFrame:
    """The table with so many episodes in the first and second half of each round."""
    returns = frame[frame["metric"] == "train_return"]
    counts = np.where(returns["update"] % 10 == 5, first, second)
    return results.concat([frame, returns.assign(metric="episodes", value=counts)])


def with_past_returns(
    frame: pd.DataFrame, value: Callable[[str, int, int, int], float], every: int = 1
) -> pd.DataFrame:
    """The table with evaluations at the ends of rounds on the task of it and on earlier ones.

    Args:
      frame: the table.
      value: the return of an intervention, seed, round and task.
      every: rounds between two evaluations on earlier tasks.
    """
    ends = frame[(frame["metric"] == "train_return") & (frame["update"] % 10 == 0)]
    more = []
    for _, end in ends.iterrows():
        key = end["intervention"], end["seed"], end["round"]
        present = value(*key, end["round"])
        more.append({**end, "metric": "eval_train_return", "value": present})
        for task in range(1, end["round"]) if end["round"] % every == 0 else ():
            past = {"metric": "eval_past_return", "layer": f"round_{task}"}
            more.append({**end, **past, "value": value(*key, task)})
    return results.concat([frame, results.validate(pd.DataFrame(more))])


def diverge(frame: pd.DataFrame, name: str, seed: int, update: int) -> pd.DataFrame:
    """The table with NaN from that update on for one seed, as training leaves it."""
    run = (frame["intervention"] == name) & (frame["seed"] == seed)
    lost = run & (frame["update"] >= update)
    row = frame[lost].iloc[[0]].assign(metric="diverged", update=update, value=float(update))
    return results.concat([frame.assign(value=frame["value"].mask(lost)), row])


def notes_of(call: FunctionType) -> list[str]:
    """Returns the warnings of a call, each attributed to the line of the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == call.__code__.co_filename for warning in caught)
    assert all(warning.category is UserWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def save_run(folder: Path, frame: pd.DataFrame | None, rate: float | None = None) -> Path:
    """Writes a run's folder as training leaves it; without a table if there is no frame."""
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"status": "running"}))
    agent = {} if rate is None else {"learning_rate": rate, "hidden": [64, 64]}
    (folder / "config.yaml").write_text(json.dumps({"agent": agent}))
    (folder / "figures").mkdir()
    if frame is not None:
        results.write(frame, folder / "metrics.parquet")
    return folder


def save_job(folder: Path, frame: pd.DataFrame, **config: Any) -> Path:
    """Writes a run's folder with such a config."""
    save_run(folder, frame)
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def save_sweep(folder: Path, jobs: Mapping[tuple[str, float], tuple[float, ...]]) -> Path:
    """Writes a sweep: by intervention and learning rate, its values of shrink, or () if none."""
    number = 0
    for (name, rate), shrinks in jobs.items():
        for shrink in shrinks or (None,):
            for seed in (0, 1):
                rows = fabricate(names=(NAMES[shrink is not None],), seeds=(seed,))
                part = {"_target_": name} if shrink is None else {"shrink": shrink, "perturb": 0.5}
                # Lower by as much as a rate and a shrink are, so that each run has its own values.
                lower = 1000 * rate + 10 * (shrink or 0.0)
                save_job(
                    folder / f"{number}_{name}",
                    rows.assign(intervention=name, value=rows["value"] - lower),
                    seed=seed,
                    out=str(number),
                    env={"_target_": "Cartpole", "levels": 10},
                    intervention={name: part},
                    agent={"_target_": "PPO", "learning_rate": rate, "clip": 0.2},
                )
                number += 1
    return folder
