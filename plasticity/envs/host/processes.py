"""Gymnasium environments that are stepped in processes of their own.

Workers are forked from a server process that holds no more than Gymnasium: JAX, whose threads a
fork would break, is in none of them, nor are the trainer's signal handlers.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.utils import CloudpickleWrapper

from plasticity.struct import SettingError

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]

_START_METHOD = "forkserver"
_LOST = (EOFError, OSError)  # what a pipe raises whose other end is gone


def check_picklable(make_env: MakeEnv, id: str) -> None:
    """Raises `SettingError` if what makes an environment cannot be sent to another process."""
    try:
        pickle.dumps(CloudpickleWrapper(make_env))
    except Exception as error:  # whatever an object raises when it is pickled
        raise SettingError(
            "env.vectorization", "async", f"must be sync: {id} cannot be pickled ({error!r})"
        ) from error


class ProcessVectorEnv(AsyncVectorEnv):
    """Gymnasium's `AsyncVectorEnv`, with its autoreset off, of workers that can always be ended.

    Workers ignore the signals by which a trainer is stopped, since schedulers and terminals send
    them to all of its processes; they end when the trainer closes them, or is gone.

    Args:
      make_envs: what makes each environment, in its process and once in this one.
      name: the environment's name, for errors.

    Raises:
      RuntimeError: in any call: a worker process has died.
    """

    def __init__(self, make_envs: Sequence[MakeEnv], name: str) -> None:
        self._name = name
        # Without effect if this process has a server already.
        multiprocessing.get_context(_START_METHOD).set_forkserver_preload(["gymnasium.vector"])
        with self._ending_workers_on_error(), _hidden_main():
            super().__init__(
                [_for_worker(make_env) for make_env in make_envs],
                context=_START_METHOD,
                autoreset_mode=AutoresetMode.DISABLED,
            )
        # Runs before the exit handler of `multiprocessing`, which would wait for the workers.
        atexit.register(self.kill)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        with self._ending_workers_on_error():
            return super().reset(**kwargs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        with self._ending_workers_on_error():
            return super().step(actions)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:  # type: ignore[override]
        atexit.unregister(self.kill)
        if terminate:
            self.kill()
        else:
            super().close_extras(timeout)

    def kill(self) -> None:
        """Ends the workers, whatever they are doing."""
        self.closed = True
        atexit.unregister(self.kill)
        for process in (processes := getattr(self, "processes", [])):
            if process.pid is not None:  # it was started
                process.kill()
        for process in processes:
            if process.pid is not None:
                process.join()
        for pipe in getattr(self, "parent_pipes", []):
            if pipe is not None:
                pipe.close()

    @contextlib.contextmanager
    def _ending_workers_on_error(self) -> Iterator[None]:
        try:
            yield
        except _LOST as error:
            ends = self._ends()
            self.kill()
            if not ends:
                raise
            raise RuntimeError(f"{self._name}: a worker process died, {ends[0]}") from error
        except BaseException:
            self.kill()
            raise

    def _ends(self) -> list[str]:
        """Returns how processes ended that did so without reporting an error."""
        processes = [process for process in getattr(self, "processes", []) if process.pid]
        multiprocessing.connection.wait([process.sentinel for process in processes], timeout=1)
        codes = [process.exitcode for process in processes if process.exitcode]
        return [
            f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
            for code in codes
        ]


def _for_worker(make_env: MakeEnv) -> MakeEnv:
    """Returns what makes an environment in a worker process.

    It names nothing of this package, which the worker would import, and JAX with it.
    """
    trainer, ignored = os.getpid(), (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def raising_picklable_errors(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                try:  # what is done with it on its way to the trainer
                    type(error)(pickle.loads(pickle.dumps(error)))
                except Exception:
                    raise RuntimeError(f"{type(error).__name__}: {error}") from error
                raise

        return call

    def make() -> gymnasium.Env[Any, Any]:
        env: Any = make_env()
        if os.getpid() != trainer:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            env.reset = raising_picklable_errors(env.reset)
            env.step = raising_picklable_errors(env.step)
        return env

    return make


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keeps new processes from importing the main module.

    Which costs seconds, and trains once more in each of them if it is a script without a guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
