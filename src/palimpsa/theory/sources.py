"""Which source files a module's numbers follow from, so that a file of them can tell when it is out of date."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_ROOMS = ("palimpsa.theory.", "palimpsa.kernels.")


def source_digests(module: str) -> dict[str, str]:
    """A digest of each source file that a module of palimpsa.theory computes with.

    Those are its own, the modules of `palimpsa.theory` and `palimpsa.kernels` that it imports, at the top or late, and
    what those of `palimpsa.theory` import in turn. Kernels are not followed: what a reference imports checks arguments.

    Args:
        module: its dotted name.

    Returns:
        16 hexadecimal digits by the file's name below `palimpsa`, sorted.
    """
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _source_file(name)
        file = path.relative_to(PACKAGE).as_posix()
        if file not in found:
            # The line ends of a checkout make no difference.
            text = path.read_text(encoding="utf-8")
            found[file] = hashlib.sha256(text.encode()).hexdigest()[:16]
            pending += _imported_modules(name, text) if name.startswith(_ROOMS[0]) else []
    return dict(sorted(found.items()))


def _source_file(module: str) -> Path:
    # By its place, since looking a module up imports what it lies in.
    return PACKAGE.parent / f"{module.replace('.', '/')}.py"


def _imported_modules(module: str, text: str) -> list[str]:
    """The modules of the two rooms that a file imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Of a relative import, what stands left of its dots.
            base = module.split(".")[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names += [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith(_ROOMS) and _source_file(name).exists()]
