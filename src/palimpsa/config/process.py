"""What a process finds around it, made harmless: a terminal's encoding, a closed pipe, settings of matplotlib.

Every script starts by `run_script`, and every process that is started for a run by `prepare_process`.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import importlib.util
import io
import locale
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from palimpsa.config.errors import ConfigError
from palimpsa.config.private import hide_secrets

if TYPE_CHECKING:
    from rich.console import Console

# What a terminal without these characters shows; of all others their number.
_SPELLED_OUT = {"±": "+-", "·": "-", "×": "x", "–": "-", "—": "-", "…": "...", "≥": ">=", "≤": "<=", "→": "->"}
# The first is glibc's, the last macOS's.
_UTF8_LOCALES = ("C.UTF-8", "en_US.UTF-8", "UTF-8")
_FILE_WIDTH = 80
_SPELL_OUT = "palimpsa.spell_out"


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Prepares the process and ends it with the exit code that `main` returns.

    `main` itself imports what may import matplotlib.
    """
    prepare_process()
    sys.exit(main())


def prepare_process() -> None:
    """Makes printing and reading end no process, whatever the environment says, and no import of matplotlib.

    What stdout's encoding lacks is spelled out ("+-"). What nobody reads any more, after `| head` say, is dropped. Of
    another error, a full disk's say, stderr tells once. Files are read as UTF-8 in any locale. matplotlib reads the
    settings that it brought with it alone: no figure here needs others, and a notebook's MPLBACKEND may name a package
    that is not installed. Twice is once.
    """
    codecs.register_error(_SPELL_OUT, _spell_out)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by whoever started this process: nobody reads it.
            # No `with` (SIM115): it stays open for as long as the process lives.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    sys.stdout = _lasting(sys.stdout, sys.__stdout__)
    sys.stderr = _lasting(sys.stderr, sys.__stderr__)
    _read_files_as_utf8()
    _shield_matplotlib()


def plain_console(*, stderr: bool = False, **options: Any) -> Console:
    """A rich console that prints text as it is: "[ours]" is no markup, ":x:" no picture, and no number has a colour.

    Its tables are cut to a terminal's width alone: in a file they have 80 columns at least, whatever COLUMNS says.

    Args:
        options: more of rich's Console.
    """
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
    if console.width < (1 if console.is_terminal else _FILE_WIDTH):
        console.width = _FILE_WIDTH
    return console


def refuse_options(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a word such as --limit, of a program whose keys are `KEY=VALUE`."""
    options = [word for word in arguments if word.startswith("-")]
    if options:
        raise ConfigError(f"{options[0]}: got an option, expected KEY=VALUE; -h shows examples")


def print_failure(line: str) -> None:
    """Prints what went wrong to the error stream, which may be a log: in red on a terminal, on one line, no secret."""
    plain_console(stderr=True).print(hide_secrets(line), style="red", soft_wrap=True)


@functools.cache
def print_once(line: str) -> None:
    """Prints a line to stderr, each once a process."""
    plain_console(stderr=True).print(line, soft_wrap=True)


class _LastingOutput(io.FileIO):
    """A standard stream's file, which takes all that is written: what it cannot take is dropped."""

    _has_told = False

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                written = super().write(rest)
                if written is None:
                    # Somebody made the terminal non-blocking, and it is busy.
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except BrokenPipeError:
            pass
        except OSError as error:
            if not self._has_told and self.fileno() != 2:
                self._has_told = True
                print(f"stdout: {error.strerror}; what is printed is lost", file=sys.stderr)
        return size


def _lasting(stream: TextIO | Any, original: TextIO | None) -> Any:
    """The stream with an output that lasts; one that somebody has put in its place keeps its own."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream is not original or isinstance(stream.buffer, _LastingOutput):
        stream.reconfigure(errors=_SPELL_OUT)
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = _LastingOutput(stream.fileno())
    return io.TextIOWrapper(
        # Without a buffer where Python was told so (-u).
        raw if stream.write_through else io.BufferedWriter(raw),  # pyright: ignore[reportArgumentType]
        encoding=stream.encoding,
        errors=_SPELL_OUT,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SPELLED_OUT.get(one) or ascii(one)[1:-1] for one in text), error.end


def _read_files_as_utf8() -> None:
    """Also those that other packages read without a word about their encoding, torch its own sources in UTF-8 say."""
    if sys.flags.utf8_mode or codecs.lookup(locale.getencoding()).name == "utf-8":
        return
    for name in _UTF8_LOCALES:
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            return


def _leave_out_styles() -> None:
    """Sends matplotlib past a folder of somebody's styles, which it reads whole, and of which one may be no text."""
    home = Path(os.environ.get("HOME") or os.sep)
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib"
    own = os.environ.get("MPLCONFIGDIR")
    if (Path(own) if own else config).joinpath("stylelib").exists() or home.joinpath(".matplotlib/stylelib").exists():
        # Where it keeps its list of fonts without that variable.
        cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "matplotlib"
        os.environ["MPLCONFIGDIR"] = str(cache)


def _shield_matplotlib() -> None:
    os.environ["MPLBACKEND"] = "agg"
    _leave_out_styles()
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        return
    settings = Path(found.origin).parent / "mpl-data" / "matplotlibrc"
    os.environ["MATPLOTLIBRC"] = str(settings)
    if "matplotlib" in sys.modules or not os.path.exists("matplotlibrc"):
        return
    # A file of the working directory comes before all others, and one that is not text ends the import.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(settings.parent)
        importlib.import_module("matplotlib")
    finally:
        os.fchdir(here)
        os.close(here)
