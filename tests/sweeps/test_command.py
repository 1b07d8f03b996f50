"""scripts/train.py: what it prints and ends with, and that sweeps skip, go on after failures, and are repaired."""

import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from palimpsa.config.compose import CONFIG_DIR

ROOT = CONFIG_DIR.parent
SCRIPT = [sys.executable, str(ROOT / "scripts/train.py")]


def test_a_mistake_exits_with_2_and_one_line(tmp_path):
    command = [*SCRIPT, "model.num_layer=3", f"results_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: model.num_layer: unknown key")


def test_a_sweep_has_no_one_config_to_show(train):
    done = train("-m", "seed=1,2", "--cfg", "job")
    assert done.code == 2
    assert done.err.splitlines() == ["error: --cfg: got -m with it, expected one run, whose config it shows"]


INTERRUPTED = "interrupted; the same command goes on where it stopped\n"


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    start, stub_run, begin_every_process_with, tiny_overrides, tmp_path
):
    endless = """
import time
from pathlib import Path
def run(config):
    Path(config.results_dir, "started").touch()
    while True:
        time.sleep(0.01)
"""
    begin_every_process_with(stub_run(endless))
    command = [*SCRIPT, "-m", "seed=1,2", *tiny_overrides, f"results_dir={tmp_path}"]
    process = start(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "started").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, printed = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, printed) == (130, INTERRUPTED)


def test_so_does_a_single_run(train, tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsa.training.run.run", interrupted)
    done = train(f"results_dir={tmp_path}")
    assert (done.code, done.err) == (130, INTERRUPTED)


def test_a_run_that_is_interrupted_as_it_trains_goes_on_from_its_checkpoint(
    train, tiny_overrides, tmp_path, monkeypatch
):
    """Lightning has an answer of its own to Ctrl-C."""
    from palimpsa.training.checkpoint import AtomicCheckpointIO

    def save_and_interrupt(*arguments, **keywords):
        save(*arguments, **keywords)
        signal.raise_signal(signal.SIGINT)

    save = AtomicCheckpointIO.save_checkpoint
    sweep = ["-m", "seed=1,2", "model=mamba2", *tiny_overrides, f"results_dir={tmp_path}"]
    # In the background of a shell it is ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_interrupt)
            first = train(*sweep)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert first.code == 130
    assert first.err.endswith(INTERRUPTED)
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    assert not list(tmp_path.rglob("result.json"))

    second = train(*sweep)
    assert second.code == 0, second.err
    assert second.err.startswith("to be continued: mamba2 lr 0.00464 seed 1: from step 4\n")


def test_a_diverged_run_is_an_end_and_is_not_tried_again(train, tiny_overrides, tmp_path):
    wild = ["optimizer.lr=1e-3,1e30", "optimizer.gradient_clip=1e30", "optimizer.warmup_steps=8"]
    sweep = ["-m", *tiny_overrides, f"results_dir={tmp_path}", "model=mamba2", "seed=1", *wild]
    last = "1 of 2 runs diverged: they count as 0%, and are not tried again\n"
    first = train(*sweep)
    assert first.code == 0, first.err
    assert first.err.endswith(last)
    assert "mamba2 lr 1e+30 seed 1: diverged, FloatingPointError: " in first.out
    second = train(*sweep)
    assert second.code == 0
    assert second.err.startswith("diverged: mamba2 lr 1e+30 seed 1: FloatingPointError: ")
    assert second.err.endswith(last)
    tables = [line.split() for line in second.out.splitlines() if line.startswith(("model ", "mamba2 "))]
    assert tables == [["model", "finished", "running", "failed", "diverged", "missing", "runs"], ["mamba2", *"100102"]]
    assert not [line for line in second.out.splitlines() if line.startswith("[")]


def test_the_script_may_be_imported_by_workers():
    """As theirs does what started them: a sweep in each would be the end of it."""
    runpy.run_path(str(ROOT / "scripts/train.py"), run_name="__mp_main__")


def test_a_sweep_goes_on_after_a_failure_and_a_second_one_repairs_only_that(train, tiny_overrides, tmp_path):
    sweep = ["-m", *tiny_overrides, f"results_dir={tmp_path}", "model=mamba2", "seed=1,2,3"]
    runs = tmp_path / "runs/mqar_curriculum/laptop/mamba2/lr_0.00464"
    # A run that can write no result: what it fails of is told by the sweep alone.
    broken = runs / "seed_2" / "checkpoints" / "last.ckpt"
    broken.mkdir(parents=True)

    first = train(*sweep)
    assert first.code == 1, first.err
    assert "1 of 3 runs failed" in first.err
    assert f"{broken}: cannot be read (Not a regular file)" in first.err
    results = {seed: runs / f"seed_{seed}/result.json" for seed in (1, 2, 3)}
    assert [seed for seed in results if results[seed].exists()] == [1, 3]
    finished = [results[seed].stat().st_mtime_ns for seed in (1, 3)]

    broken.rmdir()
    second = train(*sweep)
    assert second.code == 0, second.err
    (line,) = [line for line in second.out.splitlines() if line.startswith("[")]
    assert line.startswith("[1/1] mamba2 lr 0.00464 seed 2: finished")
    tables = [line.split() for line in second.out.splitlines() if line.startswith("mamba2 ")]
    assert tables == [["mamba2", "2", "0", "0", "1", "3"], ["mamba2", "3", "0", "0", "0", "3"]]
    assert json.loads(results[2].read_text())["status"] == "finished"
    assert finished == [results[seed].stat().st_mtime_ns for seed in (1, 3)]


def test_so_does_one_with_workers(train, finished_stub, begin_every_process_with, tiny_overrides, tmp_path):
    """What they train is as good as here: see tests/training/test_crash.py."""
    sweep = ["-m", *tiny_overrides, f"results_dir={tmp_path}", "model=mamba2", "seed=1,2,3"]
    sweep += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    fails = """
finish = stub.run
def run(config):
    if config.seed == 2 and not list(Path(config.results_dir).glob("repaired")):
        raise RunDirectoryError("seed 2 is broken")
    finish(config)
"""
    begin_every_process_with(
        "from pathlib import Path\nfrom palimpsa.config.errors import RunDirectoryError\n"
        f"{finished_stub}{fails}stub.run = run\n"
    )
    first = train(*sweep)
    assert first.code == 1, first.err
    assert "1 of 3 runs failed:\n  failed: mamba2 lr 0.00464 seed 2: RunDirectoryError: seed 2 is broken\n" in first.err
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert [path.parent.name for path in sorted(finished)] == ["seed_1", "seed_3"]

    (tmp_path / "repaired").touch()
    second = train(*sweep)
    assert second.code == 0, second.err
    assert len(list(tmp_path.rglob("result.json"))) == 3
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


def test_a_sweep_in_two_phases(train, tiny_overrides, tmp_path):
    """The whole way, trained: through Hydra, its launcher in this process, and the results."""
    words = ["+sweep=mqar_figure2", "model=mamba2", "optimizer.lr=1e-3,5e-3", "seed=1,2"]
    words += ["hydra.sweeper.selection_seeds=1", "hydra.sweeper.max_batch_size=1"]
    done = train("-m", *words, *tiny_overrides, f"results_dir={tmp_path}")
    assert done.code == 0, done.err
    printed = done.out.splitlines()
    rows = [line.split() for line in printed if line.startswith("mamba2 ")]
    assert rows == [["mamba2", "0", "0", "0", "2", "1", "3"], ["mamba2", "3", "0", "0", "0", "3"]]
    (chosen,) = [line for line in printed if line.startswith("Mamba-2 (M w/o Meta): learning rate ")]
    assert len(list(tmp_path.rglob("result.json"))) == 3
    lines = [line.split(":")[0] for line in printed if line.startswith("[")]
    rate = chosen.partition("learning rate ")[2].split()[0]
    assert lines == ["[1/3] mamba2 lr 0.001 seed 1", "[2/3] mamba2 lr 0.005 seed 1", f"[3/3] mamba2 lr {rate} seed 2"]
    assert printed.index(chosen) == printed.index(next(line for line in printed if line.startswith("[3/3]"))) - 1


def whole_tree(folder: Path) -> dict[str, tuple]:
    """All there is below a folder, with its times."""
    places = [folder, *folder.rglob("*")]
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.read_bytes() if path.is_file() else None)
        for path in places
    }


# What follows "-m" is a sweep, of one finished run and, with seed=1,2, of one that is not there.
REPEATED = {
    "a run": ["seed=1"],
    "a sweep": ["-m", "seed=1"],
    "a sweep with workers": ["-m", "seed=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
}


@pytest.mark.parametrize("command", REPEATED)
def test_a_finished_run_stays_as_it_is_to_the_last_time(command, train, finished_run, tiny_overrides, tmp_path):
    """Hydra wrote .hydra/config.yaml anew before the run was asked: it was that of another command then."""
    results = tmp_path / "results"
    shutil.copytree(finished_run.parents[5], results)
    words = [*REPEATED[command], "model=mamba2", *tiny_overrides, f"results_dir={results}"]
    before = whole_tree(results)
    done = train(*words)
    assert done.code == 0, done.err
    assert whole_tree(results) == before
    refused = train(*words, "optimizer.weight_decay=0.3")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("error: run_dir: ")
    assert "optimizer.weight_decay: stored 0.1, now 0.3" in refused.err
    assert whole_tree(results) == before


@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["here", "workers"]
)
def test_so_does_one_beside_a_run_that_is_refused_or_launched(
    launcher,
    train,
    finished_run,
    finished_stub,
    begin_every_process_with,
    tiny_overrides,
    tmp_path,
    monkeypatch,
):
    results = tmp_path / "results"
    shutil.copytree(finished_run.parents[5], results)
    begin_every_process_with(finished_stub)
    if not launcher:
        monkeypatch.setitem(sys.modules, "palimpsa.training.run", types.ModuleType("stub"))
        exec(finished_stub, {})
    words = ["-m", "seed=1,2", "model=mamba2", *tiny_overrides, f"results_dir={results}", *launcher]
    whole = whole_tree(results)
    assert train(*words, "optimizer.weight_decay=0.3").code == 2
    assert whole_tree(results) == whole
    (finished,) = [path.parent for path in results.rglob("result.json")]
    before = whole_tree(finished)
    done = train(*words)
    assert done.code == 0, done.err
    assert whole_tree(finished) == before
    assert len(list(results.rglob("result.json"))) == 2
    assert not list(results.rglob(".hydra"))


def test_a_single_run_that_diverges_says_so_in_one_line(train, tiny_overrides, tmp_path):
    wild = ["optimizer.lr=1e30", "optimizer.gradient_clip=1e30", "optimizer.warmup_steps=8"]
    done = train("model=mamba2", *tiny_overrides, f"results_dir={tmp_path}", *wild)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("mamba2 lr 1e+30 seed 1: diverged, FloatingPointError: ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_single_run_whose_disk_fails_names_the_file_in_one_line(number, train, tiny_overrides, tmp_path, monkeypatch):
    fsync = os.fsync

    def fail(descriptor):
        if ".ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail)
    done = train("model=mamba2", *tiny_overrides, f"results_dir={tmp_path}")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("mamba2 lr 0.00464 seed 1: failed, ")
    assert f"{os.strerror(number)}: '{tmp_path}/runs/" in line
    assert line.endswith("/seed_1/checkpoints/last.ckpt'")


@pytest.mark.parametrize("words", [["seed=1"], ["-m", "seed=1"]], ids=["run", "sweep"])
def test_a_disk_without_room_for_the_first_file_is_no_wrong_command(
    words, train, tiny_overrides, tmp_path, monkeypatch
):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    done = train(*words, "model=mamba2", *tiny_overrides, f"results_dir={tmp_path}")
    assert done.code == 1
    line = done.err.splitlines()[-1]
    assert re.match(rf"error: results_dir: cannot write (to )?{tmp_path}/runs", line)
    assert line.endswith("No space left on device")


def test_a_mistake_of_the_program_keeps_its_traceback(train, tiny_overrides, tmp_path, monkeypatch):
    def mistaken(config):
        raise AttributeError("a mistake")

    monkeypatch.setattr("palimpsa.training.run.run", mistaken)
    with pytest.raises(AttributeError, match="a mistake"):
        train(*tiny_overrides, f"results_dir={tmp_path}")
