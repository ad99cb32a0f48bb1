"""What is counted in a program of a GPU, by hand. Nothing here needs the `cuda` extra."""

import inspect
import re

import jax
import pytest

from experiments.gpu_program import __main__ as gpu_program
from experiments.gpu_program.cases import all_cases
from experiments.gpu_program.compiling import programs
from experiments.gpu_program.counting import BYTES_PER_SECOND, LAUNCH_SECONDS, count, size_of
from plasticity.training import trainer

# Four steps, each of which reads a row of 1,000 numbers, writes another, and multiplies matrices.
HLO = """HloModule jit_train, is_scheduled=true

%fused_rows (param_0: f32[4,1000], param_1: f32[4,1000], param_2: s32[]) -> f32[4,1000] {
  %param_0 = f32[4,1000]{1,0} parameter(0)
  %param_1 = f32[4,1000]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1000]{1,0} dynamic-slice(%param_1, %param_2, %zero), dynamic_slice_sizes={1,1000}
  %sine = f32[1,1000]{1,0} sine(%row)
  ROOT %written = f32[4,1000]{1,0} dynamic-update-slice(%param_0, %sine, %param_2, %zero)
}

%body (carry: (s32[], f32[4,1000], f32[4,1000], f32[8,8])) -> (s32[], f32[4,1000]) {
  %carry = (s32[], f32[4,1000]{1,0}, f32[4,1000]{1,0}, /*index=3*/f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %old = f32[4,1000]{1,0} get-tuple-element(%carry), index=1
  %rows = f32[4,1000]{1,0} get-tuple-element(%carry), index=2
  %matrix = f32[8,8]{1,0} get-tuple-element(%carry), index=3
  %new = f32[4,1000]{1,0} fusion(%old, %rows, %i), kind=kLoop, calls=%fused_rows
  %product = (f32[8,8]{1,0}, s8[4096]{0}) custom-call(%matrix, %matrix), target="__cublas$gemm"
  ROOT %out = (s32[], f32[4,1000]{1,0}) tuple(%i, %new)
}

%condition (carry.1: (s32[], f32[4,1000])) -> pred[] {
  %carry.1 = (s32[], f32[4,1000]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  %last = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %last), direction=LT
}

ENTRY %main (x: f32[4,1000]) -> f32[4,1000] {
  %x = f32[4,1000]{1,0} parameter(0)
  %copy = f32[4,1000]{1,0} copy(%x)
  %init = (s32[], f32[4,1000]{1,0}) tuple(%copy)
  %while = (s32[], f32[4,1000]{1,0}) while(%init), condition=%condition, body=%body, TRIPS
  ROOT %result = f32[4,1000]{1,0} get-tuple-element(%while), index=1
}
"""
TRIPS = 'backend_config={"known_trip_count":{"n":"4"}}'
ROW, SCALAR, MATRIX = 4_000, 4, 4 * 64
TRIP = (2 * ROW + SCALAR) + 3 * MATRIX  # of the step, and in place; without cuBLAS's workspace
COPY = 2 * 4 * ROW


def test_count_of_a_loop():
    """Would catch a loop counted once, or a row of an array counted as the whole array."""
    root = count(HLO.replace("TRIPS", TRIPS))
    (loop,) = root.loops
    assert (loop.trips, loop.trip.kernels, loop.trip.bytes) == (4, 2, TRIP)
    assert (root.trip.kernels, root.trip.bytes) == (1 + 4 * 2, COPY + 4 * TRIP)
    assert root.trip.seconds == pytest.approx(9 * LAUNCH_SECONDS)  # all of them are small


def test_count_of_a_loop_of_unknown_length():
    """Would catch one without trips, and a condition that nobody evaluates."""
    root = count(HLO.replace("TRIPS", ""))
    assert root.loops[0].trips is None
    assert (root.trip.kernels, root.trip.bytes) == (1 + 1 + 2, COPY + (4 + 4 + 1) + TRIP)


def test_model_of_a_large_kernel():
    """Would catch a kernel that takes no longer than its launch, however much it moves."""
    columns = 100_000_000
    text = HLO.replace("TRIPS", TRIPS).replace("[4,1000]", f"[4,{columns}]")
    seconds = 2 * 4 * 4 * columns / BYTES_PER_SECOND + 8 * LAUNCH_SECONDS
    assert count(text).trip.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[64,256]{1,0}", 4 * 64 * 256),
        ("(s32[], pred[3]{0}, /*index=2*/bf16[2,2]{1,0})", 4 + 3 + 8),
        ("f8e4m3fn[10]", 10),
        ("u4[10]{0:E(4)}", 5),
    ],
)
def test_size_of(shape, size):
    assert size_of(shape) == size


def test_programs_are_those_of_the_trainer(tiny_run):
    """Would catch a program that nobody compiles, or arguments that it does not take.

    The device is one of this process: what is compiled for another is traced alike.
    """
    names = []
    for program in programs(tiny_run(), 2, jax.local_devices()[0]):
        program.function.trace(*program.arguments)
        names.append(program.name)
    source = inspect.getsource(trainer.JaxTrainer)
    assert {*names} == {*re.findall(r"self\._compiled\(loop\.(\w+)", source)}


def test_all_cases_can_be_run():
    """Would catch a method whose run cannot be made for want of a setting it needs."""
    labels = [case.label for case in all_cases()]
    assert len(labels) == len({*labels})
    by_label = {case.label: case for case in all_cases()}
    assert by_label["intervention/redo"].run("paper").intervention.name == "redo"
    for label in (
        *("shift/dynamics", "shift/permute_blocks", "shift/permute_features"),
        *("network/impala", "network/mosaic", "agent/continuous", "probes/token_rank"),
    ):
        by_label[label].run("paper")


def test_without_the_extra(monkeypatch, capsys):
    """Would catch an ImportError of JAX's own, or a look at a driver."""
    monkeypatch.setattr(gpu_program, "has_compiler", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_program"])
    with pytest.raises(SystemExit, match="2"):
        gpu_program.main()
    assert capsys.readouterr().err == "error: needs the extra: make gpu-program installs it\n"


def test_a_program_that_does_not_compile_is_named(monkeypatch, capsys):
    """Would catch a check that passes whatever fails, or ends at the first failure."""
    monkeypatch.setattr(gpu_program, "has_compiler", lambda: True)
    monkeypatch.setattr(gpu_program, "h100", lambda: jax.local_devices()[0])

    class Failing:
        name = "train_updates"

        def compile(self):
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_program, "programs", lambda *_: [Failing()])
    monkeypatch.setattr("sys.argv", ["gpu_program", "--methods", "--only", "redo", "crelu"])
    with pytest.raises(SystemExit, match="1"):
        gpu_program.main()
    told = capsys.readouterr().err
    assert "error: intervention/redo: train_updates: no such kernel" in told
    assert told.splitlines()[-1].endswith(
        "intervention/crelu: train_updates, intervention/redo: train_updates"
    )
