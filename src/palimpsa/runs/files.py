"""Writing result files so that a reader never sees half of one."""

import os
from collections.abc import Mapping
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8, line ends as they are) to `path` by way of a temporary file
    and os.replace.

    Parent folders are made. Returns `path`. Raises OSError when the place cannot be written; `path`
    is then what it was before.
    """
    (written,) = write_all_atomic({path: content})
    return written


def write_all_atomic(contents: Mapping[Path, str | bytes]) -> list[Path]:
    """Write several files that belong together, as `write_atomic`; returns their paths.

    All are written beside their places before the first takes its own: where the disk is too full for one of them,
    each is what it was before, and OSError is raised.
    """
    # The process id: two processes that write the same file must not share a temporary one.
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content.encode() if isinstance(content, str) else content)
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
    return list(contents)
