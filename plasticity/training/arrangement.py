"""How a stack of runs is computed: on which devices, and how each goes through its share."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "runs"
_SPLIT, _WHOLE = PartitionSpec(_AXIS), PartitionSpec()


class Arrangement(NamedTuple):
    """Where and how the runs of a stack are computed; what they come to is the same in each.

    A stack is cut into shares of equal size, one for each device. A device computes its share
    as one batch, or one run after the other. Side by side costs a GPU hardly more than one run.
    On a CPU one after the other is faster: a run's parameters stay in the cache for a whole
    stretch of updates, and with a device for each core no core waits for another.

    Attributes:
      devices: those that compute.
      each: how each of them goes through its share.
    """

    devices: tuple[jax.Device, ...]
    each: Literal["batch", "loop"]

    @classmethod
    def of(cls, num_runs: int) -> "Arrangement":
        """The one that measures fastest for so many runs on this machine."""
        devices = jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        return cls(tuple(devices[:num_runs]), "loop" if on_cpu else "batch")

    def place(self, tree: Any) -> Any:
        """The arrays of a stack, [S, ...], on the devices that compute them.

        Where the devices do not divide S, the last run is repeated until they do.
        """
        shares = len(self.devices)

        def fill(array: Any) -> Any:
            missing = -len(array) % shares
            return array if not missing else jnp.concatenate([array, *[array[-1:]] * missing])

        place = NamedSharding(self._mesh(), _SPLIT) if shares > 1 else self.devices[0]
        return jax.device_put(jax.tree.map(fill, tree), place)

    def over_runs(
        self, function: Callable[..., Any], shared: int = 0, donate: int | None = None
    ) -> Callable[..., Any]:
        """`function`, compiled, over the leading axis of all arguments but the last `shared`.

        Args:
          function: of one run, and of what belongs to it.
          shared: how many of the last arguments are the same for all runs.
          donate: the argument whose memory is reused for what is returned.

        Returns:
          A function of stacks that `place` has placed.
        """
        return _compiled(self, function, shared, donate)

    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (_AXIS,))


@functools.cache
def _compiled(
    arrangement: Arrangement, function: Callable[..., Any], shared: int, donate: int | None
) -> Callable[..., Any]:
    def of_share(own: tuple[Any, ...], common: tuple[Any, ...]) -> Any:
        def of_one(one: tuple[Any, ...]) -> Any:
            return function(*one, *common)

        return jax.vmap(of_one)(own) if arrangement.each == "batch" else jax.lax.map(of_one, own)

    def of_stack(*args: Any) -> Any:
        own, common = args[: len(args) - shared], args[len(args) - shared :]
        if len(arrangement.devices) == 1:
            return of_share(own, common)
        # Each device runs the program of its share by itself: nothing passes between them.
        of_shares = jax.shard_map(
            of_share,
            mesh=arrangement._mesh(),
            in_specs=(_SPLIT, _WHOLE),
            out_specs=_SPLIT,
            check_vma=False,
        )
        return of_shares(own, common)

    return jax.jit(of_stack, donate_argnums=donate)
