"""Runs scripts in processes that have imported everything already: they are forked off this one.

To import what trains takes six seconds of a core, and to train, at the sizes of tests, one. Reads an order a line, as
JSON, and answers with the process's id; once that process has ended, its exit code is in the file ID.code of FOLDER.

python tests/forker.py FOLDER
"""

import atexit
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

# What scripts/ import on their way to the last step of a run, whatever its strategy.
IMPORTED = (
    "lightning.pytorch.strategies",
    "palimpsa.sweeps.command",
    "palimpsa.training.run",
)


def carry_out(order: dict[str, Any]) -> None:
    """Becomes the process of a script; does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Tests in the background of a shell have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Of a group of its own, which can be killed with all that it starts.
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["cwd"])
    for descriptor, path in enumerate((os.devnull, order["out"], order["err"])):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if descriptor else os.O_RDONLY
        os.dup2(os.open(path, flags), descriptor)
    drain = None
    if order["largest_file"] is not None:
        # Through a process that the limit does not bind.
        drain = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        assert drain.stdin is not None
        for descriptor in (1, 2):
            os.dup2(drain.stdin.fileno(), descriptor)
        drain.stdin.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    sys.argv = order["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
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


def main(folder: Path) -> None:
    for name in IMPORTED:
        importlib.import_module(name)

    def note_ends(*_: Any) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            written = folder / f"{pid}.part"
            written.write_text(str(os.waitstatus_to_exitcode(status)))
            written.rename(folder / f"{pid}.code")

    signal.signal(signal.SIGCHLD, note_ends)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            carry_out(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
