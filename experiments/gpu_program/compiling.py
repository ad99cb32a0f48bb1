"""Compiles the programs of a run for an NVIDIA H100, on a machine without one.

Only XLA's CUDA plugin and NVIDIA's compiler are needed, which the `cuda` extra installs: no driver.
The GPU is described in the format of XLA's own `xla/backends/gpu/target_config/specs`. As nothing
can be run, nothing is tuned: matrix products have default tiles, and libraries their default
algorithms.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from plasticity.networks import attention
from plasticity.training import Run, loop
from plasticity.training.placement import Placement
from plasticity.training.run import stack

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Without the versions XLA assumes a CUDA whose graphs cannot hold what is in the programs.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "13.0.0"
  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_CAPABILITY, _CUDNN = 9.0, 91000
_OPTIONS = {"xla_gpu_autotune_level": 0}  # the autotuner would have to run kernels
# It would also replace a kernel that Triton does not compile with the default tiles.
_CUBLAS = {"xla_gpu_enable_triton_gemm": False}


class Program(NamedTuple):
    """A program of stacked runs, not compiled yet.

    Attributes:
      name: the function of `plasticity.training.loop`.
      function: that function over the stack.
      arguments: the shapes of its arguments, on the device.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def compile(self) -> str:
        """Compiles the program. Returns its scheduled HLO.

        All matrix products are cuBLAS's if Triton does not compile one with its default tiles.
        """
        lowered = self.function.trace(*self.arguments).lower()  # type: ignore[attr-defined]
        try:
            compiled = lowered.compile(compiler_options=_OPTIONS)
        except jax.errors.JaxRuntimeError:
            compiled = lowered.compile(compiler_options=_OPTIONS | _CUBLAS)
        return str(compiled.as_text())


def has_compiler() -> bool:
    """Returns whether the `cuda` extra is installed."""
    return any(find_spec(name) for name in _PLUGINS)


def h100() -> jax.Device:
    """Returns a device to compile for. Nothing can be run on it.

    Call it before JAX computes: this process then computes on the CPU, without a look for a driver.
    """
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    _offer_cudnn()
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=_H100
    )
    return topology.devices[0]


def _offer_cudnn() -> None:
    """Has attention compiled by cuDNN where a GPU would, though there is none to ask.

    JAX asks the driver for cuDNN's version, and for the kind of GPU; the network for the platform.
    """
    vars(fused_attention_stablehlo).update(
        check_cudnn_version=lambda: _CUDNN,
        check_compute_capability=lambda capability: float(capability) <= _CAPABILITY,
        is_cuda_compute_capability_equal=lambda capability: float(capability) == _CAPABILITY,
    )
    vars(attention).update(attention_path=partial(attention.attention_path, platform="gpu"))


def programs(run: Run, agents: int, device: jax.Device) -> Iterator[Program]:
    """Yields the programs that `JaxTrainer` runs, for so many agents in a JAX environment.

    They are those of initialization, boundary, training, evaluation and probes.
    """
    map_runs = Placement((device,), "batch").map_runs
    runs = stack([run.replace(seed=seed) for seed in range(agents)])

    def shapes(function: Callable[..., Any], *args: Any) -> Any:
        return jax.eval_shape(jax.vmap(function), *args)

    state = shapes(loop.init, runs)
    evaluation = shapes(loop.start_evaluation, runs, state)
    past = shapes(
        lambda run, state: loop.start_past_evaluation(run, state, state.task, 0), runs, state
    )
    batch = shapes(loop.probe_batch, runs, state)
    number = jax.ShapeDtypeStruct((), jnp.int32, weak_type=True)
    calls: tuple[tuple[Callable[..., Any], tuple[Any, ...], dict[str, int]], ...] = (
        (loop.init, (), {}),
        (loop.start_round, (state,), {"donate": 1}),
        (loop.train_updates, (state, number), {"shared": 1, "donate": 1}),
        (loop.start_evaluation, (state,), {}),
        (loop.continue_evaluation, (state, evaluation, number), {"shared": 1, "donate": 2}),
        (loop.start_past_evaluation, (state, state.task, number), {"shared": 1}),
        (
            loop.continue_past_evaluation,
            (state, state.task, past, number, number),
            {"shared": 2, "donate": 3},
        ),
        (loop.probe_batch, (state,), {}),
        (loop.run_probes, (state, batch), {}),
    )
    for function, arguments, options in calls:
        placed = jax.tree.map(lambda x: _on(device, x), (runs, *arguments))
        yield Program(function.__name__, map_runs(function, **options), placed)


def _on(device: jax.Device, array: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array, on a device."""
    return jax.ShapeDtypeStruct(
        array.shape,
        array.dtype,
        sharding=SingleDeviceSharding(device),
        weak_type=getattr(array, "weak_type", False),
    )
