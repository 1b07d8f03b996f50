"""Text in Markdown files that `make figures` writes between markers, so that no number is copied by hand.

<!-- begin NAME (written by make figures) -->

what `blocks[NAME]` says now

<!-- end NAME -->
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from palimpsa.runs.files import read_regular

_MARKER = re.compile(r"<!-- (?:begin (?P<begin>[a-z0-9_]+) \(written by make figures\)|end (?P<end>[a-z0-9_]+)) -->")
_ALMOST_A_MARKER = re.compile(r"<!--\s*(?:begin|end)\b")


class MarkerError(ValueError):
    """A marker that is unknown, malformed, doubled, or without its other half."""


def replace_marked(text: str, blocks: Mapping[str, Callable[[], str]], file: str = "text") -> str:
    """`text` with the blocks between markers replaced; what stands outside of them stays. Twice is once.

    Args:
        blocks: name -> what to call for its text; only those that have a marker are called.
        file: the name of the file in errors.

    Raises MarkerError, which names the file and the line: an unknown name, a name twice, a marker that is not closed,
    not opened or within another one, or one that is not spelled as above.
    """
    lines: list[str] = []
    opened: tuple[str, int] | None = None
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{file}:{number}"
        marker = _MARKER.fullmatch(line)
        if marker is None:
            if _ALMOST_A_MARKER.match(line.strip()):
                expected = "<!-- begin NAME (written by make figures) --> or <!-- end NAME --> on a line of its own"
                raise MarkerError(f"{place}: {line.strip()!r} is no marker, expected {expected}")
            if opened is None:
                lines.append(line)
            continue
        name = marker["begin"]
        if name is None:
            _check_end(marker["end"], opened, place)
            opened = None
            lines += ["", line]
            continue
        if opened is not None:
            raise MarkerError(f"{place}: begin {name} within {opened[0]}, which line {opened[1]} begins and none ends")
        if name in seen:
            raise MarkerError(f"{place}: begin {name} for the second time, expected each name once a file")
        if name not in blocks:
            raise MarkerError(f"{place}: begin {name} is unknown, expected one of {', '.join(sorted(blocks))}")
        opened = name, number
        seen.add(name)
        lines += [line, "", *blocks[name]().strip("\n").split("\n")]
    if opened is not None:
        raise MarkerError(f"{file}:{opened[1]}: begin {opened[0]} without <!-- end {opened[0]} -->")
    return "\n".join(lines)


def _check_end(name: str, opened: tuple[str, int] | None, place: str) -> None:
    if opened is None:
        raise MarkerError(f"{place}: end {name} without its begin")
    if opened[0] != name:
        raise MarkerError(f"{place}: end {name}, expected the end of {opened[0]}, which line {opened[1]} begins")


def out_of_date(files: Iterable[Path], blocks: Mapping[str, Callable[[], str]]) -> dict[Path, str]:
    """The files whose marked text is not what `blocks` says now, and the content that they should have.

    Raises MarkerError (see `replace_marked`), and OSError for a file that cannot be read.
    """
    stale = {}
    for file in files:
        text = read_regular(file).decode()
        new = replace_marked(text, blocks, str(file))
        if new != text:
            stale[file] = new
    return stale
