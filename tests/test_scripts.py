"""The scripts: reproduce.py asks the config where its figures go, and every one names the file of a full disk."""

import errno
import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from palimpsa.analysis.collect.evaluation_files import COLUMNS, add_evaluation
from palimpsa.sweeps.command import train_main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    """A script as a module: `script("plot_figures").main([...])`."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module


@pytest.fixture
def reproduce(script, monkeypatch, capfd):
    """scripts/reproduce.py in this process: its exit code, and what it printed to stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["reproduce.py", *arguments])
        # To be taken back when the test ends.
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        capfd.readouterr()
        code = 0
        try:
            train_main(then=script("reproduce").collect_and_draw)
        except SystemExit as end:
            code = int(str(end.code))
        return code, *capfd.readouterr()

    return run


def committed() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (ROOT / "results/mqar").iterdir()}


@pytest.mark.parametrize("spelling", ["results_dir={}", "++results_dir='{}'", "+results_dir='{}'", "config"])
def test_runs_and_figures_go_where_the_config_sends_them(spelling, reproduce, tiny_overrides, tmp_path):
    """With other spellings than results_dir= a user's committed figures were drawn anew."""
    results = tmp_path / "a user's results"
    words = ["-m", "model=mamba2", "seed=1", *tiny_overrides]
    if spelling == "config":
        (tmp_path / "experiment").mkdir()
        text = f'# @package _global_\nresults_dir: "{results}"\n'
        (tmp_path / "experiment/mine.yaml").write_text(text)
        words += ["--config-dir", str(tmp_path), "+experiment=mine"]
    else:
        quoted = str(results).replace("'", "\\'") if "'" in spelling else '"' + str(results) + '"'
        words.append(spelling.format(quoted))
    before = committed()
    code, out, err = reproduce(*words)
    assert code == (2 if spelling.startswith("+results") else 0), err
    assert committed() == before
    if code == 0:
        assert (results / "mqar/figure2_laptop.png").exists()
        assert out.splitlines()[-1] == f"done; figures and tables are in {results}/mqar"
        assert [line.split()[:2] for line in err.splitlines() if line.startswith("+ ")] == [
            ["+", "scripts/collect_results.py"],
            ["+", "scripts/plot_figures.py"],
        ]


def test_figures_are_drawn_where_a_run_failed_and_the_exit_code_tells(reproduce, tiny_overrides, tmp_path):
    words = ["-m", "model=mamba2", "seed=1,2", *tiny_overrides, f"results_dir={tmp_path}"]
    broken = tmp_path / "runs/mqar_curriculum/laptop/mamba2/lr_0.00464/seed_2/checkpoints"
    broken.parent.mkdir(parents=True)
    # Its checkpoints have no folder to go to.
    broken.write_text("")
    code, _, err = reproduce(*words)
    assert code == 1
    assert "1 of 2 runs failed" in err
    assert err.splitlines()[-1].startswith("some runs are not finished")
    assert (tmp_path / "mqar/figure2_laptop.png").exists()
    broken.unlink()
    assert reproduce(*words)[0] == 0


def test_nothing_is_collected_after_a_wrong_command_line_or_an_interrupt(reproduce, tmp_path, monkeypatch):
    wrong = reproduce("-m", "model=mamba3", f"results_dir={tmp_path}")
    assert (wrong[0], "collect_results" in wrong[2]) == (2, False)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsa.sweeps.command._launch_missing", interrupted)
    stopped = reproduce("-m", "model=mamba2", "seed=1", f"results_dir={tmp_path}")
    assert (stopped[0], "collect_results" in stopped[2]) == (130, False)
    assert not (tmp_path / "mqar").exists()


def test_runs_in_a_place_of_their_own_are_found_and_scales_are_siblings(reproduce, tiny_overrides, tmp_path):
    place = f"run_dir={tmp_path}/own/${{scale.name}}_${{seed}}"
    budgets = ["--config-dir", str(tmp_path), "scale=laptop,small"]
    for group, name in (("scale", "laptop"), ("task/mqar_budget", "laptop")):
        (tmp_path / group).mkdir(parents=True)
        text = (ROOT / f"configs/{group}/{name}.yaml").read_text().replace("name: laptop", "name: small")
        (tmp_path / f"{group}/small.yaml").write_text(text)
    # Somebody else's run beside them is none of this sweep's: read, it would be an error.
    (tmp_path / "own/theirs").mkdir(parents=True)
    (tmp_path / "own/theirs/result.json").write_text("{")
    code, _, err = reproduce(
        "-m", "model=mamba2", "seed=1", *tiny_overrides, f"results_dir={tmp_path}/results", place, *budgets
    )
    assert code == 0, err
    for scale in ("laptop", "small"):
        assert (tmp_path / f"results/mqar/figure2_{scale}.png").exists()


@pytest.fixture
def collected(finished_results, script, tmp_path) -> Path:
    """A folder of runs.csv and curves.csv."""
    assert script("collect_results").main(["--runs", str(finished_results), "--out", str(tmp_path)]) == 0
    return tmp_path


@pytest.fixture(scope="module")
def finished_results(tmp_path_factory, tiny_overrides) -> Path:
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed
    from palimpsa.training.run import run

    results = tmp_path_factory.mktemp("finished")
    run(typed(compose_config([*tiny_overrides, "model=mamba2", f"results_dir={results}"])))
    return results / "runs"


# What each script is told, and the first file that it writes below the folder "OUT".
WRITERS = {
    "collect_results": (["--runs", "RUNS", "--out", "OUT"], "runs.csv"),
    "plot_figures": (["--results", "OUT"], "figure2_laptop.png"),
    "plot_benchmark": (["--results", "OUT"], "against_length_nvidia-h200.png"),
    "plot_evaluation": (["--results", "OUT"], "evaluation.md"),
    "illustrate": (["--results", "OUT"], "architecture.json"),
    "dashboard": (["--results", "OUT", "--out", "OUT"], "data/index.js"),
    "describe_models": (["--out", "OUT/models.md"], "models.md"),
    "write_numbers": (["OUT/README.md", "--results", str(ROOT / "results")], "README.md"),
    "benchmark": (["results_dir=OUT", "cases=[table]", "operators=[palimpsa]"], "operators_cpu.csv"),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fails_is_one_line_with_the_file(
    name, number, script, collected, finished_results, tiny_benchmark, monkeypatch, capsys
):
    words, file = WRITERS[name]
    words = [word.replace("RUNS", str(finished_results)).replace("OUT", str(collected)) for word in words]
    words += tiny_benchmark if name == "benchmark" else []
    if name == "plot_benchmark":
        for table in (ROOT / "results/kernels").glob("*.csv"):
            shutil.copy(table, collected)
    if name == "plot_evaluation":
        cells = {"name": "a", "label": "A", "measure": "lambada_target", "at": "all", "metric": "nats", "value": -3.0}
        add_evaluation(collected, [{column: cells.get(column) for column in COLUMNS}])
    if name == "write_numbers":
        (collected / "README.md").write_text("<!-- numbers:nothing -->")
        stale = {collected / "README.md": "new"}
        monkeypatch.setattr(script(name), "out_of_date", lambda *_: stale)
    if name == "describe_models":
        # Counting every model takes seconds.
        monkeypatch.setattr(script(name), "models_document", lambda: "# Models\n")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    module = script(name)
    monkeypatch.setattr("os.fsync", fail)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    capsys.readouterr()
    code = module.benchmark_main(words) if name == "benchmark" else module.main()
    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert os.strerror(number) in line
    assert str(collected / file) in line


def test_a_disk_that_is_full_for_the_figures_of_a_benchmark_too(script, tiny_benchmark, tmp_path, monkeypatch, capsys):
    fsync = os.fsync

    def fail(descriptor):
        if ".png" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail)
    assert script("benchmark").benchmark_main([f"results_dir={tmp_path}", "operators=[palimpsa]", *tiny_benchmark]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: [Errno 28] No space left on device: '{tmp_path}/against_length_cpu.png'"
