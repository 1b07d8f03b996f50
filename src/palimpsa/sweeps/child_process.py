"""A run in a process of its own, for a process whose GPU is unusable."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading

from palimpsa.config.process import prepare_process
from palimpsa.config.schema import TrainConfig

PROGRAM = "from palimpsa.sweeps.child_process import child_main; child_main()"


def run_in_child_process(config: TrainConfig) -> None:
    """`training.run` in a new process, which ends with this one.

    Raises:
        ChildProcessError: it ended without an answer, killed for its memory, say.
        Exception: what the run raised.
    """
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # Its input stays open for as long as it has a parent.
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(config, process.stdin)
                process.stdin.flush()
            error: Exception | None = pickle.load(process.stdout)
        except EOFError:
            error = ChildProcessError(f"the run's process ended with exit code {process.wait()}")
        except BaseException:
            process.kill()
            raise
    if error is not None:
        raise error


def child_main() -> None:
    """The new process: reads a config, runs it, and answers with the error that it ended with, or None."""
    # What the run prints is not for the parent to read.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    prepare_process()
    error: Exception | None = None
    try:
        config = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        from palimpsa.training.run import run

        run(config)
    except Exception as raised:
        # For the parent to raise.
        error = raised
    except KeyboardInterrupt:
        os._exit(130)
    _answering.set()
    with answer:
        answer.write(_pickle_error(error))


def _pickle_error(error: Exception | None) -> bytes:
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        # Classes decide themselves what pickling them raises; the words are sent at least.
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return pickled


_answering = threading.Event()


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock would be held when Python ends.
    while os.read(0, 1):
        pass
    if not _answering.is_set():
        os._exit(1)
