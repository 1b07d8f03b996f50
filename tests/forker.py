"""Runs scripts in processes that have imported everything already: they are forked off one that has.

To import what trains takes six seconds of a core, and to train, at the sizes of tests, one. As a program it is that
process: it reads an order a line, as JSON, and answers with the id of a process that carries it out; once that one has
ended, its exit code is in the file ID.code of FOLDER. With --serve it takes orders from tests/warm_python.py instead,
which stands for Python on a command line, and has imported the libraries alone.

python tests/forker.py FOLDER
python tests/forker.py --serve SOCKET
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# What scripts/ import on their way to the last step of a run, whatever its strategy.
IMPORTED = (
    "lightning.pytorch.strategies",
    "palimpsa.sweeps.command",
    "palimpsa.training.run",
)


# What these import of others, for scripts that are to import all that is this repository's themselves.
LIBRARIES = (
    "hydra.main",
    "lightning.pytorch.strategies",
    "pandas",
    "rich.table",
    "torch.distributed.checkpoint",
    "torch.distributed.elastic.agent.server.api",
)


@dataclass
class Script:
    """A process of a script that was started by `start_script`, and what it prints."""

    pid: int
    folder: Path
    printed: dict[str, Path]
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code; -N where signal N has ended it, None while it runs."""
        file = self.folder / f"{self.pid}.code"
        if self.code is None and file.exists():
            self.code = int(file.read_text())
            file.unlink()
        return self.code

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, once it has ended. Raises TimeoutError where it has not by then."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"a script had not ended after {seconds} s: {self.err}")
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """Ends it, and all that it has started, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has printed by now."""
        return self.printed["out"].read_text()

    @property
    def err(self) -> str:
        """What it has printed to the error stream by now."""
        return self.printed["err"].read_text()


class Forker:
    """tests/forker.py, and its processes: the scripts of the repository, without the seconds that they import for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Script] = []
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "tests/forker.py"), str(folder)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, name: str, *arguments: str, largest_file: int | None = None, **environment: str) -> Script:
        """Starts a script of scripts/ at the root of the repository.

        Args:
            largest_file: bytes beyond which the process can write no file, as if the disk were full.
            environment: more of its variables.
        """
        printed = {stream: self._folder / f"{len(self._started)}.{stream}" for stream in ("out", "err")}
        for file in printed.values():
            file.touch()
        order = {
            "words": [str(ROOT / "scripts" / name), *arguments],
            "cwd": str(ROOT),
            "environment": {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **environment},
            **{stream: str(file) for stream, file in printed.items()},
            "largest_file": largest_file,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        pid = self._process.stdout.readline()
        assert pid, "tests/forker.py has ended; what it printed is above"
        self._started.append(Script(int(pid), self._folder, printed))
        return self._started[-1]

    def close(self) -> None:
        for script in self._started:
            script.kill()
        self._process.kill()
        self._process.communicate()


class WarmPython:
    """tests/forker.py of a copy of the repository, and `words`: a command that is to that copy what Python is.

    What the words before a script's name start ends as the script does, and prints what it prints where it does.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        address = folder / "socket"
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(root / "tests/forker.py"), "--serve", str(address)]
        self.words = [sys.executable, "-I", "-S", str(root / "tests/warm_python.py"), str(address)]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "tests/forker.py has ended; what it printed is above"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def opened(order: dict[str, Any]) -> list[int]:
    """The descriptors that a script's standard streams are to be: those that an order has, or those of its files."""
    if "descriptors" in order:
        return order["descriptors"]
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return [os.open(os.devnull, os.O_RDONLY), *(os.open(order[stream], appended) for stream in ("out", "err"))]


def carry_out(order: dict[str, Any]) -> None:
    """Becomes the process of a script; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    # Tests in the background of a shell have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Of a group of its own, which can be killed with all that it starts.
    os.setsid()
    if "descriptors" not in order:
        # By now it can be killed: who was told earlier found no such group, if the system was busy.
        print(os.getpid(), flush=True)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    for descriptor, stream in enumerate(opened(order)):
        os.dup2(stream, descriptor)
    drain = None
    if order.get("largest_file") is not None:
        # Through a process that the limit does not bind.
        drain = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        assert drain.stdin is not None
        for descriptor in (1, 2):
            os.dup2(drain.stdin.fileno(), descriptor)
        drain.stdin.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    sys.argv = order["words"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    code: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # As an interpreter ends, without a second of taking every module apart.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if drain is not None:
        os.closerange(1, 3)
        drain.wait()
    os._exit(code or 0)


def ended() -> Iterator[tuple[int, int]]:
    """The ids and exit codes of processes that have ended and were not told of yet."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def read_orders(folder: Path) -> None:
    def note_ends(*_: Any) -> None:
        for pid, code in ended():
            written = folder / f"{pid}.part"
            written.write_text(str(code))
            written.rename(folder / f"{pid}.code")

    signal.signal(signal.SIGCHLD, note_ends)
    for line in sys.stdin:
        if os.fork() == 0:
            carry_out(json.loads(line))


def serve(address: str) -> None:
    """Until stdin ends."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    waiting: dict[int, socket.socket] = {}

    def tell_ends(*_: Any) -> None:
        for pid, code in ended():
            # Who has asked may be gone.
            with waiting.pop(pid) as connection, contextlib.suppress(BrokenPipeError):
                connection.sendall(f"{code}\n".encode())

    signal.signal(signal.SIGCHLD, tell_ends)
    print("ready", flush=True)
    while listening in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        text, descriptors, *_ = socket.recv_fds(connection, 2**16, 3)
        while not text.endswith(b"\n"):
            text += connection.recv(2**16)
        # No process ends before it is known who waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            carry_out({**json.loads(text), "descriptors": descriptors})
        waiting[pid] = connection
        for descriptor in descriptors:
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


if __name__ == "__main__":
    is_server = sys.argv[1] == "--serve"
    for name in LIBRARIES if is_server else IMPORTED:
        importlib.import_module(name)
    if is_server:
        serve(sys.argv[2])
    else:
        read_orders(Path(sys.argv[1]))
