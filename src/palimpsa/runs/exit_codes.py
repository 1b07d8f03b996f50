"""The exit code of a command, and the one line that says why it is not 0."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.process import print_failure
from palimpsa.runs.schema import ResultError


def exit_code(work: Callable[[], int | None], *, interrupted: str) -> int:
    """Does what a command is for.

    Args:
        work: returns an exit code; None is 0.
        interrupted: what an interrupt leaves, and what the same command does then.

    Returns:
        that of `work`; after a line on stderr 2 where the command line, a config, a run's directory or the data are
        wrong, 1 where a file cannot be written or holds something else, 130 where it was interrupted.
    """
    try:
        return work() or 0
    except (ConfigError, RunDirectoryError) as error:
        print_failure(f"error: {error}")
        return 2
    except (ResultError, OSError) as error:
        print_failure(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        print_failure(f"interrupted; {interrupted}")
        return 130


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Has SIGTERM end what goes on as Ctrl-C does, which removes what is half written; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
