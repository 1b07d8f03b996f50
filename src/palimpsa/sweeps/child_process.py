"""A run in a process of its own, for a process whose GPU is lost."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import subprocess
import sys
import threading

from omegaconf import DictConfig, OmegaConf

PROGRAM = "from palimpsa.sweeps.child_process import serve; serve()"


def run_in_own_process(cfg: DictConfig) -> None:
    """`training.run` in a new process, which ends with this one.

    Raises:
        ChildProcessError: it ended without a word, killed for its memory, say.
        Exception: what the run raised.
    """
    cfg = copy.deepcopy(cfg)
    # The new process knows no resolvers of Hydra's.
    OmegaConf.resolve(cfg)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # Its input stays open for as long as it has a parent.
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(cfg, process.stdin)
                process.stdin.flush()
            error: Exception | None = pickle.load(process.stdout)
        except EOFError:
            error = ChildProcessError(f"the run's process ended with exit code {process.wait()}")
        except BaseException:
            process.kill()
            raise
    if error is not None:
        raise error


def serve() -> None:
    """The new process: reads a config, runs it, and writes the error that it ended with, or None."""
    # What the run prints is not for the parent to read.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    error: Exception | None = None
    try:
        cfg = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        from palimpsa.config.schema import typed
        from palimpsa.training.run import run

        run(typed(cfg))
    except Exception as raised:
        # For the parent to raise.
        error = raised
    except KeyboardInterrupt:
        os._exit(130)
    _told.set()
    with answer:
        answer.write(_pickled(error))


def _pickled(error: Exception | None) -> bytes:
    try:
        told = pickle.dumps(error)
        pickle.loads(told)
    except Exception:
        # Classes decide themselves what pickling them raises; the words are sent at least.
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return told


_told = threading.Event()


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock would be held when Python ends.
    while os.read(0, 1):
        pass
    if not _told.is_set():
        os._exit(1)
