"""Following a sweep: the pages' data are written again and again, and an open page takes them in."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from palimpsa.analysis.dashboard.build import Built, Dashboard

INTERVAL_S = 3.0


def follow(
    dashboard: Dashboard,
    tell: Callable[[], None] = lambda: None,
    interval: float = INTERVAL_S,
    wait: Callable[[float], None] = time.sleep,
) -> Built:
    """Builds until it is interrupted, and a last time then, so that an open page knows that nobody follows any more.

    Args:
        dashboard: whose page looks for new data.
        tell: says where the page is, once; whoever hears it may interrupt at once.
        interval: seconds between the end of a build and the next.
        wait: for so many seconds; raises KeyboardInterrupt to end.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        tell()
        while True:
            dashboard.build()
            wait(interval)
    except KeyboardInterrupt:
        print("no longer following", file=sys.stderr)
    dashboard.watched = False
    return dashboard.build()
