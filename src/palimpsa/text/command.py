"""The command line of scripts/prepare_text.py: a bar or lines while it works, one line where something is wrong."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from palimpsa.config.errors import ConfigError
from palimpsa.config.process import plain_console, print_failure, refuse_options
from palimpsa.text.prepare import Standing, prepare
from palimpsa.text.schema import load
from palimpsa.text.shards import TokenShards

USAGE = """usage: prepare_text.py [KEY=VALUE ...], for instance

  prepare_text.py                                        FineWeb-Edu, sample-10BT, from the hub, to data/hub
  prepare_text.py source.subset=sample-100BT directory=data/100BT max_tokens=15_000_000_000
  prepare_text.py source=files source.files=[a.jsonl.xz] tokenizer=tokenizer.model directory=data/mine
  prepare_text.py source=sample tokenizer=bytes          the novel that the repository ships: offline, in seconds

The same command again goes on where it stopped. The keys are in configs/prepare_text.yaml and configs/source/."""


def prepare_text_main(arguments: list[str]) -> int:
    """Makes the token shards that a command line asks for.

    Returns:
        0; 1 where a file cannot be written or a process was killed; 2 where the command line, the source or what is in
        the directory is wrong; 130 where it was interrupted. Shards that are full stay.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        refuse_options(arguments)
        config = load(arguments)
        command = shlex.join(["scripts/prepare_text.py", *arguments])
        started = time.perf_counter()
        with _Reporter() as reporter:
            shards, was_there = prepare(config, command, reporter.report)
        _print_result(shards, reporter.standing, was_there, time.perf_counter() - started)
    except ConfigError as error:
        return _fail(f"error: {error}", 2)
    except (OSError, RuntimeError) as error:
        return _fail(f"error: {error}; shards that are full stay, and the same command goes on", 1)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on behind the last full shard", 130)
    return 0


class _Reporter:
    """A bar on a terminal; elsewhere a line for each shard."""

    def __init__(self) -> None:
        self.standing = Standing()
        self._console = plain_console(soft_wrap=True)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        more = (TimeElapsedColumn(), TextColumn("{task.fields[counts]}", markup=False))
        self._progress = Progress(*columns, *more, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("tokens", total=None, counts="")
        self._started = time.perf_counter()
        self._num_shards = 0

    def __enter__(self) -> _Reporter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, standing: Standing) -> None:
        """Shows how far it is."""
        self.standing = standing
        new = standing.num_tokens - standing.resumed_tokens
        rate = new / (time.perf_counter() - self._started)
        counts = f"{standing.num_tokens:,} tokens, {standing.num_documents:,} documents, {rate / 1e6:.2f}M tokens/s"
        total = None if standing.fraction is None else 1.0
        self._progress.update(self._task, completed=standing.fraction or 0, total=total, counts=counts)
        if standing.num_shards > self._num_shards:
            self._num_shards = standing.num_shards
            if not self._console.is_terminal:
                self._console.print(f"shard {standing.num_shards}: {counts}")


def _print_result(shards: dict[str, TokenShards], standing: Standing, was_there: bool, seconds: float) -> None:
    console = plain_console(soft_wrap=True)
    for name, one in shards.items():
        counts = f"{one.num_tokens:,} tokens of {one.num_documents:,} documents"
        console.print(f"{Path(one.directory)}: {'already there, ' if was_there else ''}{name}, {counts}")
    new = standing.num_tokens - standing.resumed_tokens
    if not was_there:
        resumed = f", after {standing.resumed_tokens:,} that were there" if standing.resumed_tokens else ""
        console.print(f"{new:,} tokens in {seconds:.1f} s: {new / seconds / 1e6:.2f}M a second{resumed}")


def _fail(line: str, code: int) -> int:
    print_failure(line)
    return code
