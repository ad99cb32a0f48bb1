"""The callback of sweeps that compare interventions in several networks."""

from pathlib import Path

from plasticity import results
from plasticity.cli.callbacks import SweepCallback
from plasticity.cli.report import figures_dir, report
from plasticity.storage.run_dir import read_meta
from plasticity.storage.table import META

_METRICS = ("train_return", "effective_rank", "weight_norm", "attention_entropy", "token_rank")


class NetworkComparison(SweepCallback):
    """Reports on each network, and draws them beside each other.

    The sweep's folder has a folder for each network, with its jobs.
    """

    def conclude(self, folder: Path) -> None:
        networks = sorted({path.parent.parent for path in folder.glob(f"*/*/{META}")}, key=_began)
        for network in networks:
            print(f"network={network.name}")
            report([network], draw=self._draw)
        if self._draw:
            frames = {network.name: results.load(network) for network in networks}
            known = set(results.concat(frames.values())["metric"])
            figure = results.side_by_side(frames, [name for name in _METRICS if name in known])
            for path in results.save(figure, figures_dir(folder) / "networks"):
                print(f"figure in {path}")


def _began(network: Path) -> str:
    """Returns when the first job of a network began."""
    sessions = [read_meta(path.parent)["sessions"] for path in network.glob(f"*/{META}")]
    return min(str(first["began"]) for first, *_ in sessions)
