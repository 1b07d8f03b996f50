"""Writing result files so that a reader never sees half of one."""

import os
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8, line ends as they are) to `path` by way of a temporary file
    and os.replace.

    Parent folders are made. Returns `path`. Raises OSError when the place cannot be written; `path`
    is then what it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id: two processes that write the same file must not share a temporary one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
