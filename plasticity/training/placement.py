"""Device placement and batching of stacked runs. Does not affect results."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "runs"
_SPLIT, _WHOLE = PartitionSpec(_AXIS), PartitionSpec()


class Placement(NamedTuple):
    """The devices that stacked runs are computed on, and how each of them computes its share.

    A stack is cut into shares of equal size, one for each device. A device computes its share as
    one batch (`vmap`), or one run after another (`lax.map`). On a GPU a batch costs hardly more
    than one run. On a CPU a loop is faster: a run's parameters stay in the cache for a whole
    interval of updates, and with a device for each core no core waits for another.

    Attributes:
      devices: the devices.
      mode: how each of them computes its share.
    """

    devices: tuple[jax.Device, ...]
    mode: Literal["batch", "loop"]

    @classmethod
    def of(cls, num_runs: int) -> "Placement":
        """Returns the placement that was measured to be fastest for so many runs."""
        devices = jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        return cls(tuple(devices[:num_runs]), "loop" if on_cpu else "batch")

    def put(self, tree: Any) -> Any:
        """Puts the arrays of a stack, [S, ...], on the devices.

        The last run is repeated until the number of devices divides S.
        """
        shares = len(self.devices)

        def pad(array: Any) -> Any:
            missing = -len(array) % shares
            return array if not missing else jnp.concatenate([array, *[array[-1:]] * missing])

        where = NamedSharding(self._mesh(), _SPLIT) if shares > 1 else self.devices[0]
        return jax.device_put(jax.tree.map(pad, tree), where)

    def map_runs(
        self, function: Callable[..., Any], shared: int = 0, donate: int | None = None
    ) -> Callable[..., Any]:
        """Compiles `function` over the leading axis of all arguments but the last `shared`.

        Args:
          function: a function of one run, and of what belongs to it.
          shared: how many of the last arguments are the same for all runs.
          donate: the argument whose memory is reused for the result.

        Returns:
          A function of stacks that `put` has placed.
        """
        return _compiled(self, function, shared, donate)

    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (_AXIS,))


@functools.cache
def _compiled(
    placement: Placement, function: Callable[..., Any], shared: int, donate: int | None
) -> Callable[..., Any]:
    def map_share(stacked: tuple[Any, ...], common: tuple[Any, ...]) -> Any:
        def call_one(args: tuple[Any, ...]) -> Any:
            return function(*args, *common)

        if placement.mode == "batch":
            return jax.vmap(call_one)(stacked)
        return jax.lax.map(call_one, stacked)

    def map_shares(stacked: tuple[Any, ...], common: tuple[Any, ...]) -> Any:
        if len(placement.devices) == 1:
            return map_share(stacked, common)
        # Each device runs the program of its share by itself: nothing is communicated.
        sharded = jax.shard_map(
            map_share,
            mesh=placement._mesh(),
            in_specs=(_SPLIT, _WHOLE),
            out_specs=_SPLIT,
            check_vma=False,
        )
        return sharded(stacked, common)

    def map_stack(*args: Any) -> Any:
        # Networks have a precision of their own. JAX's default depends on the platform.
        with jax.default_matmul_precision("float32"):
            return map_shares(args[: len(args) - shared], args[len(args) - shared :])

    return jax.jit(map_stack, donate_argnums=donate)
