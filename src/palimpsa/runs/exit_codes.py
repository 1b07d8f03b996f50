"""The exit code of a command, and the one line that says why it is not 0."""

from __future__ import annotations

from collections.abc import Callable

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
