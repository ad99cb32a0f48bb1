"""Converts a finished run's policy to integers: `python -m plasticity.cli.integer RUN_FOLDER`.

The policy of each seed is calibrated on the probe batch of the last round. Prints how it compares
with the float policy, and writes files to `integer/<bits>_bits` in the run's folder, or elsewhere:

- `integer.parquet`: all that was measured, in the columns of a results table and a few more;
- `integer.png` and `.svg`: the error of each operator, and returns;
- `policy_<seed>.npz`: weights and scales, from which `numpy_reader.py`, beside it, computes actions
  with NumPy alone;
- `policy_<seed>.stablehlo`: the function from one int8 observation to the greedy action.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from plasticity import results
from plasticity.agents.normalization import RunningMeanStd
from plasticity.cli.command import command
from plasticity.config import from_config
from plasticity.integer import BITS, export_stablehlo, numpy_reader, policy_arrays
from plasticity.networks import Params
from plasticity.results.plots import STYLE, finish, new_figure
from plasticity.storage import run_dir, table
from plasticity.storage.table import ResultsError, replacing
from plasticity.struct import Range, SettingError
from plasticity.training import Run, load_obs_stats, load_params
from plasticity.training.integer_evaluation import (
    IntegerEvaluation,
    check_integer_run,
    evaluate_in_integers,
)

_EPISODES = Range(int, ge=2)
_RETURNS = {
    "eval_train_return": "return, training levels",
    "eval_test_return": "return, held-out levels",
}


def integer_report(
    folder: Path, bits: int = 8, out: Path | None = None, num_episodes: int = 200
) -> pd.DataFrame:
    """Converts the policies of a run folder, prints a table and writes all files.

    Nothing is written before everything has been computed.

    Args:
      folder: the folder of a finished run, which may have several seeds.
      bits: of weights and activations, from 2 to 8.
      out: where files go; `integer/<bits>_bits` in `folder` if not given.
      num_episodes: episodes of an evaluation, on training levels and on held-out ones each.

    Returns:
      The table that was written.

    Raises:
      SettingError: an argument cannot be used, or the policy has no integer form.
      ResultsError: the folder holds no finished run with parameters.
    """
    if bits not in BITS:
        raise SettingError("bits", bits, f"must be {BITS}")
    if num_episodes not in _EPISODES:
        raise SettingError("episodes", num_episodes, f"must be {_EPISODES}")
    out = folder / run_dir.INTEGER / f"{bits}_bits" if out is None else out
    _check_out(out)
    runs = load_finished_runs(folder)
    for run, *_ in runs:
        check_integer_run(run)
    pairs = [
        (run, evaluate_in_integers(run, params, bits, num_episodes, obs_stats))
        for run, params, obs_stats in runs
    ]
    name = folder.resolve().name
    frame = results.concat(pd.DataFrame(_rows(name, *pair)) for pair in pairs)
    _print(frame, pairs, bits)
    table.write(frame, out / "integer.parquet")
    paths = [out / "integer.parquet", *results.save(_figure(frame, bits), out / "integer")]
    for run, evaluation in pairs:
        paths += _export(run, evaluation, out)
    shutil.copyfile(str(numpy_reader.__file__), out / "numpy_reader.py")
    for path in (*paths, out / "numpy_reader.py"):
        print(f"written: {path}")
    return frame


def load_finished_runs(folder: Path) -> list[tuple[Run, Params, RunningMeanStd | None]]:
    """Loads the runs of a folder, one for each seed, with their final parameters.

    And with the statistics by which their observations are normalized, if they are.

    Raises:
      ResultsError: the folder holds no finished run with parameters, or no such statistics.
      SettingError: its settings cannot be used.
    """
    run_dir.check_folder(folder)
    if not folder.is_dir():
        raise ResultsError(f"{folder}: is no folder; expected that of a finished run")
    if not (folder / table.CONFIG).is_file():
        raise ResultsError(f"{folder}: holds no {table.CONFIG}; expected the folder of a run")
    status = run_dir.read_meta(folder).get("status")
    if status != "finished":
        raise ResultsError(f"{folder}: its run is {status or 'unknown'}; expected a finished one")
    try:
        config = run_dir.read_config(folder / table.CONFIG)
    except SettingError as error:
        message = f"{folder / table.CONFIG}: cannot be read; expected the settings of a run"
        raise ResultsError(message) from error
    runs = from_config(config)
    try:
        stacked = load_params(folder)
    except (ValueError, OSError) as error:  # ResultsError, or what Orbax raises of damaged files
        reason = str(error).splitlines()[0][:200]
        raise ResultsError(
            reason if isinstance(error, ResultsError) else f"{folder}: {reason}"
        ) from error
    is_normalized = runs[0].agent.normalize_observations
    stats = load_obs_stats(folder) if is_normalized else None
    return [
        (run, *jax.tree.map(lambda x, i=number: np.asarray(x)[i], (stacked, stats)))
        for number, run in enumerate(runs)
    ]


def _check_out(out: Path) -> None:
    """Raises `SettingError` if a folder cannot be written to."""
    run_dir.check_folder(out, "out")
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise SettingError("out", str(out), f"must be a folder, but {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SettingError("out", str(out), f"must be writable, but {place} is not")


def _rows(name: str, run: Run, evaluation: IntegerEvaluation) -> Iterator[dict[str, Any]]:
    """Yields a row for each measurement of a policy."""
    schedule = run.schedule
    update = schedule.rounds * schedule.updates_per_round
    common = {
        "run": name,
        "env": run.env.name,
        "shift": run.shift.name,
        "intervention": run.intervention.name,
        "seed": int(run.seed),
        "round": schedule.rounds,
        "update": update,
        "env_steps": update * run.agent.batch_size,
        "layer": "all",
        "bits": evaluation.conversion.bits,
        "policy": "integer",
        "operator": "",
        "actions": "",
    }
    for metric in ("action_agreement", "action_error", "policy_kl", "value_error", "value_std"):
        if (value := getattr(evaluation, metric)) is not None:
            yield {**common, "metric": metric, "value": value}
    for metric in ("size_bytes", "steps_per_second"):
        for policy, value in getattr(evaluation, metric).items():
            yield {**common, "metric": metric, "policy": policy, "value": float(value)}
    for row in evaluation.operator_errors:
        place = {"layer": row["layer"], "operator": row["operator"]}
        for metric in ("added_error", "total_error"):
            yield {**common, **place, "metric": metric, "value": row[metric]}
    for (metric, actions, policy), episodes in evaluation.returns.items():
        names = {"metric": metric, "actions": actions, "policy": policy}
        mean, low, high = results.t_interval(episodes)
        yield {**common, **names, "value": mean, "low": low, "high": high}


def _print(frame: pd.DataFrame, pairs: Sequence[tuple[Run, IntegerEvaluation]], bits: int) -> None:
    """Prints the comparison, in means over seeds, and the errors of operators."""
    seeds = f"{len(pairs)} seed{'s' if len(pairs) > 1 else ''}"
    compared = Table("measure", "float", f"{bits} bits", box=box.MARKDOWN, title=f"Policy, {seeds}")
    for metric, label, form in (
        ("action_agreement", "greedy actions that agree", "{:.2%}"),
        ("action_error", "error of the mean action (RMS)", "{:.2g}"),
        ("policy_kl", "KL(float || integer), nats", "{:.2g}"),
        ("value_error", "error of the value (RMS)", "{:.3g}"),
        ("value_std", "standard deviation of the float value", "{:.3g}"),
    ):
        values = frame.loc[frame["metric"] == metric, "value"]
        if values.empty:  # of the other kind of actions
            continue
        mean = values.mean()
        cells = ("", form.format(mean))
        compared.add_row(label, *(reversed(cells) if metric == "value_std" else cells))
    within = []
    for metric, actions in dict.fromkeys(
        (metric, actions) for _, evaluation in pairs for metric, actions, _ in evaluation.returns
    ):
        intervals = {
            policy: results.t_interval(
                np.concatenate([e.returns[metric, actions, policy] for _, e in pairs])
            )
            for policy in ("float", "integer")
        }
        low, high = intervals["float"][1:]
        within.append(low <= intervals["integer"].mean <= high)
        compared.add_row(
            f"{_RETURNS[metric]}, {actions}",
            *(f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in intervals.values()),
        )
    for metric, label in (
        ("size_bytes", "size of the parameters, bytes"),
        ("steps_per_second", "greedy actions a second"),
    ):
        means = frame[frame["metric"] == metric].groupby("policy")["value"].mean()
        compared.add_row(label, *(f"{means[policy]:,.0f}" for policy in ("float", "integer")))
    errors = Table(
        "layer", "operator", "added", "total", box=box.MARKDOWN, title="Relative error (RMS)"
    )
    parts = frame[frame["metric"].isin(["added_error", "total_error"])]
    for (layer, operator), part in parts.groupby(["layer", "operator"], sort=False):
        means = part.groupby("metric")["value"].mean()
        numbers = (f"{means[metric]:.2%}" for metric in ("added_error", "total_error"))
        errors.add_row(str(layer), str(operator), *numbers)
    for shown in (compared, errors):
        for column in shown.columns[-2:]:
            column.justify = "right"
        width = max(Console(width=1000).measure(shown).maximum, Console().width)
        Console(width=width).print(shown)
    batch_size = pairs[0][0].schedule.probe_batch_size
    print(
        f"Batches of {batch_size} on {jax.devices()[0].device_kind}. Returns are means over the "
        "episodes of all seeds, with 95 % t-intervals.\n"
        f"The mean of the integer policy is within the float policy's interval in {sum(within)} of "
        f"{len(within)} cases."
    )


def _figure(frame: pd.DataFrame, bits: int) -> Figure:
    """Draws the errors of operators, and the returns of both policies."""
    with plt.rc_context(STYLE):
        parts = frame[frame["metric"].isin(["added_error", "total_error"])]
        keys = ["layer", "operator"]
        errors = parts.pivot_table(index=keys, columns="metric", values="value")
        errors = errors.loc[list(parts[keys].drop_duplicates().itertuples(index=False, name=None))]
        figure = new_figure((10, max(3.6, 0.18 * len(errors))))
        left, right = figure.subplots(1, 2)
        labels = [f"{layer} {operator}" for layer, operator in errors.index]
        for shift, (metric, label) in enumerate(
            (("added_error", "of the operator alone"), ("total_error", "of all so far"))
        ):
            places = np.arange(len(labels)) + 0.4 * (shift - 0.5)
            left.barh(places, errors[metric], 0.4, label=label)
        left.set(yticks=range(len(labels)), yticklabels=labels, xlabel="Relative error (RMS)")
        left.invert_yaxis()
        left.legend()
        returns = frame[frame["metric"].isin(_RETURNS)]
        names = list(dict.fromkeys(zip(returns["metric"], returns["actions"], strict=True)))
        for shift, policy in enumerate(("float", "integer")):
            for place, (metric, actions) in enumerate(names):
                rows = returns[
                    (returns["metric"] == metric)
                    & (returns["actions"] == actions)
                    & (returns["policy"] == policy)
                ]
                right.errorbar(
                    np.full(len(rows), place)
                    + 0.2 * (shift - 0.5)
                    + np.linspace(-0.05, 0.05, len(rows)),
                    rows["value"],
                    yerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]],
                    fmt="o",
                    color=f"C{shift}",
                    label=(policy if policy == "float" else f"{bits} bits") if not place else None,
                )
        ticks = [f"{_RETURNS[metric].split(', ')[1]}\n{actions}" for metric, actions in names]
        right.set(
            xticks=range(len(names)), xticklabels=ticks, ylabel="Return, each seed, 95 % interval"
        )
        right.legend()
        for axes in (left, right):
            finish(axes)
    return figure


def _export(run: Run, evaluation: IntegerEvaluation, out: Path) -> list[Path]:
    """Writes the policy of a seed as a NumPy file and as StableHLO. Returns their paths."""
    shape = run.env.observation_shape
    paths = [out / f"policy_{run.seed}.{suffix}" for suffix in ("npz", "stablehlo")]
    with replacing(paths[0]) as temporary, temporary.open("wb") as file:
        np.savez(file, **policy_arrays(evaluation.conversion, shape))
    with replacing(paths[1]) as temporary:
        exported = export_stablehlo(evaluation.conversion, shape)
        temporary.write_bytes(exported.mlir_module_serialized)
    return paths


def main() -> None:
    """Runs the command line."""
    command(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument("--bits", type=int, default=8, help="of weights and activations, 2 to 8")
    parser.add_argument("--out", type=Path, help="where files go; a folder in the run's by default")
    parser.add_argument(
        "--episodes", type=int, default=200, help="of an evaluation, for each set of levels"
    )
    arguments = parser.parse_args()
    integer_report(arguments.folder, arguments.bits, arguments.out, arguments.episodes)


if __name__ == "__main__":
    main()
