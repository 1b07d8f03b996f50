"""The Makefile, tried with a stand-in for Python: nothing is installed and nothing is trained."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")

# Writes its arguments to $STUB_LOG; can create a virtual environment, of itself; fails when its
# arguments hold $STUB_FAIL.
STUB_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c import"*) exit 0;;
  "--version ") echo Python 3.11.9; exit 0;;
esac
echo "$WANDB_MODE: $*" >> "$STUB_LOG"
if [ -n "$STUB_FAIL" ]; then case "$*" in *"$STUB_FAIL"*) exit ${STUB_STATUS:-1};; esac; fi
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin" && : > "$3/pyvenv.cfg" && cp "$0" "$3/bin/python"
fi
"""
GPU_LINE = "GPU {0}: NVIDIA H200 (UUID: GPU-{0})"
TOOLS = [
    "awk",
    "cat",
    "cksum",
    "cp",
    "echo",
    "find",
    "getconf",
    "grep",
    "head",
    "mkdir",
    "mv",
    "nproc",
    "rm",
]


def executable(path: Path, text: str) -> Path:
    assert not path.is_symlink(), "writing would go through to the machine's own program"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Checkout:
    """A checkout with the real Makefile, on a machine with only `self.bin` on its PATH."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.log = root / "checkout", root / "bin", root / "log"
        self.root.mkdir()
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / ".setup-done"

    def add_python(self, name: str = "python3.11") -> None:
        executable(self.bin / name, STUB_PYTHON)

    def add_gpus(self, count: int = 1) -> None:
        lines = [f"echo '{GPU_LINE.format(index)}'\n" for index in range(count)]
        executable(self.bin / "nvidia-smi", "".join(["#!/bin/sh\n", *lines]))

    def make(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run make as from a fresh shell: no variable of an outer make, nor of this test run."""
        env = {"PATH": str(self.bin), "STUB_LOG": str(self.log), **env}
        return subprocess.run([str(MAKE), *args], cwd=self.root, env=env, capture_output=True, text=True, timeout=300)

    def calls(self) -> list[str]:
        """Return the calls of Python since the last time, without the W&B mode before each."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split(": ", 1)[1] for line in lines]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout) -> Checkout:
    """A checkout whose set-up is done."""
    checkout.add_python()
    assert checkout.make("setup").returncode == 0
    checkout.calls()
    return checkout


def torch_pin() -> str:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    (pin,) = (line for line in lines if line.startswith("torch=="))
    return pin


def commands(output: str) -> list[str]:
    """Return the Python commands that `make -n` printed, without set-up's."""
    found = re.findall(r"\.venv/bin/python ((?:scripts/|-m (?:pytest|ruff|pyright))[^)\n]*)", output)
    return [command.strip() for command in found]


def test_help_is_the_default_goal_and_lists_every_public_target(checkout):
    text = (ROOT / "Makefile").read_text()
    public = set(re.findall(r"^([a-z][a-z-]*):.*## ", text, flags=re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)[1].split())
    assert phony - {"check-scale", "check-source"} == public
    assert {
        "help",
        "setup",
        "test",
        "test-fast",
        "lint",
        "mqar",
        "figures",
        "dashboard",
        "sweep",
        "bench",
        "prepare-text",
        "pretrain",
        "evaluate",
        "finetune",
        "clean",
    } <= public
    result = checkout.make("help")
    assert result.returncode == 0
    listed = re.findall(r"^  ([a-z][a-z-]*) +\S", result.stdout, flags=re.MULTILINE)
    assert sorted(listed) == sorted(public)
    assert checkout.make().stdout == result.stdout


def test_the_fast_tests_are_those_that_are_not_slow(checkout):
    (fast,) = commands(checkout.make("-n", "test-fast", "ARGS=-k name").stdout)
    pytest_of_two = "-m pytest -n 2 --dist loadfile --no-loadscope-reorder"
    assert fast == f'{pytest_of_two} -m "not slow and not gpu" --durations 10 -k name'
    lint, every = commands(checkout.make("-n", "test").stdout)
    assert (lint, every) == ("-m ruff check .", pytest_of_two)


def test_what_is_run_first_is_there(longest_files):
    assert len(longest_files) == len(set(longest_files))
    for name in longest_files:
        assert (ROOT / "tests" / name).is_file(), name


def test_whatever_the_fast_tests_leave_out_is_there(slow_entries):
    assert list(slow_entries) == sorted(set(slow_entries))
    for entry in slow_entries:
        path, _, test = entry.partition("::")
        assert (ROOT / "tests" / path).exists(), entry
        assert not test or f"\ndef {test}(" in (ROOT / "tests" / path).read_text(), entry


def test_the_dashboard_is_built_once_or_followed(checkout):
    words = "scripts/dashboard.py --results results"
    assert commands(checkout.make("-n", "dashboard").stdout) == [words]
    assert commands(checkout.make("-n", "dashboard", "WATCH=1", "ARGS=--out x").stdout) == [f"{words} --watch --out x"]


def test_mqar_reproduces_its_sweep_at_laptop_scale_without_a_gpu(checkout):
    result = checkout.make("-n", "mqar", "JOBS=1")
    assert result.returncode == 0, result.stderr
    assert commands(result.stdout) == ["scripts/reproduce.py -m +sweep=mqar_figure2 scale=laptop trainer=cpu"]
    assert "no GPU" in result.stdout


@pytest.mark.parametrize("spelling", ["results_dir=/tmp/else", "++results_dir='/tmp/a b'", "+experiment=mine"])
def test_mqar_leaves_it_to_the_config_where_runs_and_figures_go(checkout, spelling):
    """A user's committed figures were drawn anew from other runs: make guessed the folder from ARGS."""
    result = checkout.make("-n", "mqar", "JOBS=1", f"ARGS=seed=2 {spelling}")
    (command,) = commands(result.stdout)
    assert command.endswith(f"trainer=cpu  seed=2 {spelling}")
    assert "results/" not in result.stdout.replace(spelling, "")


def test_mqar_takes_the_h200_scale_where_there_is_a_gpu(checkout):
    checkout.add_gpus()
    (command,) = commands(checkout.make("-n", "mqar").stdout)
    assert command == "scripts/reproduce.py -m +sweep=mqar_figure2 scale=h200 trainer=gpu"


def test_jobs_choose_the_launcher(checkout):
    several = commands(checkout.make("-n", "mqar", "JOBS=3").stdout)[0]
    assert several.endswith("hydra/launcher=joblib hydra.launcher.n_jobs=3")
    assert "launcher" not in commands(checkout.make("-n", "mqar", "JOBS=1").stdout)[0]


@pytest.mark.parametrize(
    ("gpus", "arguments", "jobs"), [(1, [], 1), (4, [], 4), (4, ["JOBS=8"], 8), (2, ["JOBS=1"], 1)]
)
def test_a_gpu_takes_one_run_unless_more_are_asked_for(checkout, gpus, arguments, jobs):
    checkout.add_gpus(gpus)
    for target in ("mqar", "sweep"):
        train = commands(checkout.make("-n", target, *arguments).stdout)[0]
        assert "scale=h200 trainer=gpu" in train
        assert re.findall(r"n_jobs=(\d+)", train) == ([str(jobs)] if jobs > 1 else [])


def test_laptop_scale_takes_a_run_a_core_beside_gpus_too(checkout):
    checkout.add_gpus(3)
    # It is a link to the machine's own.
    (checkout.bin / "nproc").unlink()
    executable(checkout.bin / "nproc", "#!/bin/sh\necho 5\n")
    train = commands(checkout.make("-n", "mqar", "SCALE=laptop").stdout)[0]
    assert train.endswith("scale=laptop trainer=cpu hydra/launcher=joblib hydra.launcher.n_jobs=5")


@pytest.mark.parametrize("target", ["mqar", "sweep"])
def test_a_launcher_of_ones_own_needs_no_gpu_here_and_gets_no_other_beside_it(checkout, target):
    own = "hydra/launcher=submitit_slurm hydra.launcher.gres=gpu:1"
    result = checkout.make("-n", target, "SCALE=h200", f"ARGS={own}", "JOBS=4")
    assert result.returncode == 0, result.stderr
    train = commands(result.stdout)[0]
    assert [word for word in train.split() if word.startswith("hydra")] == own.split()
    assert "scale=h200 trainer=gpu" in train
    checkout.add_python()
    assert checkout.make("check-scale", "SCALE=h200", f"ARGS={own}").returncode == 0
    assert checkout.make("check-scale", "SCALE=h200").returncode == 2


def test_mqar_takes_another_sweep(checkout):
    train = commands(checkout.make("-n", "mqar", "SWEEP=mqar_figure2_grid", "JOBS=1").stdout)[0]
    assert train == "scripts/reproduce.py -m +sweep=mqar_figure2_grid scale=laptop trainer=cpu"
    assert "+sweep=learning_rate " in checkout.make("-n", "sweep").stdout


def test_sweep_passes_its_name_and_overrides_on(checkout):
    result = checkout.make("-n", "sweep", "SWEEP=smoke", "ARGS=model=gla seed=2", "JOBS=1")
    train = "scripts/train.py -m +sweep=smoke scale=laptop trainer=cpu"
    assert [" ".join(c.split()) for c in commands(result.stdout)] == [f"{train} model=gla seed=2"]


def test_figures_need_no_gpu_and_name_a_scale_only_when_asked(checkout):
    plot = "scripts/plot_figures.py --results results/mqar"
    illustrate = "scripts/illustrate.py --results results/illustrations"
    describe = "scripts/describe_models.py --out docs/models.md"
    others = [illustrate, describe, "scripts/write_numbers.py"]
    assert commands(checkout.make("-n", "figures").stdout) == [plot, *others]
    asked = checkout.make("-n", "figures", "SCALE=h200")
    assert commands(asked.stdout) == [f"{plot} --scale h200", *others]


def test_figures_of_the_benchmark_are_drawn_where_it_was_run(checkout):
    measured = checkout.root / "results" / "kernels" / "operators_nvidia-h200.csv"
    measured.parent.mkdir(parents=True)
    measured.touch()
    evaluated = checkout.root / "results/commonsense/evaluation.csv"
    evaluated.parent.mkdir()
    evaluated.touch()
    # Before the numbers of the README: they are of the same files.
    assert commands(checkout.make("-n", "figures").stdout)[3:] == [
        "scripts/plot_benchmark.py --results results/kernels",
        "scripts/plot_evaluation.py --results results/commonsense",
        "scripts/write_numbers.py",
    ]


def test_pretraining_alone_is_a_tiny_model_on_the_text_that_is_shipped(checkout):
    for gpus in (0, 2):
        if gpus:
            checkout.add_gpus(gpus)
        assert commands(checkout.make("-n", "pretrain", "ARGS=seed=2").stdout) == [
            "scripts/prepare_text.py source=sample tokenizer=bytes validation_every=8 directory=data/sample",
            "scripts/pretrain.py task=commonsense model=lm/palimpsa_d_tiny task.data=data/sample scale=laptop "
            "trainer=cpu seed=2",
        ]


def test_pretraining_on_data_takes_what_the_machine_has(checkout):
    assert commands(checkout.make("-n", "pretrain", "DATA=data/mine").stdout) == [
        "scripts/pretrain.py task=commonsense model=lm/palimpsa_d_tiny task.data=data/mine scale=laptop trainer=cpu"
    ]
    checkout.add_gpus(1)
    assert commands(checkout.make("-n", "pretrain", "DATA=data/web").stdout) == [
        "scripts/pretrain.py task=commonsense model=lm/palimpsa_d_170m task.data=data/web scale=h200 trainer=gpu"
    ]
    result = checkout.make("-n", "pretrain", "DATA=data/web", "MODEL=mamba2_44m", "SCALE=laptop")
    assert commands(result.stdout) == [
        "scripts/pretrain.py task=commonsense model=lm/mamba2_44m task.data=data/web scale=laptop trainer=cpu"
    ]


def test_evaluating_takes_a_checkpoint_data_and_a_limit(checkout):
    assert [" ".join(line.split()) for line in commands(checkout.make("-n", "evaluate").stdout)] == [
        "scripts/evaluate.py"
    ]
    given = ["CHECKPOINT=a/run", "DATA=../tasks", "LIMIT=50", "ARGS=name=mine"]
    (command,) = commands(checkout.make("-n", "evaluate", *given).stdout)
    assert command == (
        "scripts/evaluate.py checkpoint=a/run evaluation.data_dir=../tasks evaluation.limit=50 name=mine"
    )


def test_bench_and_prepare_text_pass_their_overrides_on(checkout):
    assert commands(checkout.make("-n", "prepare-text", "ARGS=source=sample").stdout) == [
        "scripts/prepare_text.py source=sample"
    ]
    result = checkout.make("-n", "bench", "ARGS=cases=[table]")
    assert commands(result.stdout) == ["scripts/benchmark.py cases=[table]"]


@pytest.mark.parametrize("target", ["mqar", "sweep"])
@pytest.mark.parametrize("scale", ["tiny", "", "laptop h200"])
def test_unknown_scale_stops_at_once_and_lists_the_choices(checkout, target, scale):
    checkout.add_python()
    result = checkout.make(target, f"SCALE={scale}")
    assert result.returncode == 2
    assert f"SCALE={scale} is not a scale; choose one of: laptop h200 paper" in result.stderr
    assert checkout.calls() == []


@pytest.mark.parametrize("scale", ["h200", "paper"])
def test_gpu_scale_without_a_gpu_stops_at_once_and_says_what_it_needs(checkout, scale):
    checkout.add_python()
    # The driver's tool may be there without a device.
    executable(checkout.bin / "nvidia-smi", "#!/bin/sh\necho 'No devices found'\nexit 6\n")
    result = checkout.make("mqar", f"SCALE={scale}")
    assert result.returncode == 2
    assert "needs an NVIDIA GPU" in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_setup_installs_torch_alone_then_the_lock_then_the_package(checkout):
    checkout.add_python()
    result = checkout.make("setup")
    assert result.returncode == 0, result.stderr
    assert checkout.calls() == [
        "-m venv .venv",
        f"-m pip install --quiet {torch_pin()}",
        "-m pip install --quiet -r requirements.lock",
        "-m pip install --quiet --no-deps --no-build-isolation -e .",
    ]
    assert "PIP_EXTRA_INDEX_URL" in result.stdout


@pytest.mark.parametrize(
    "target", ["test", "test-fast", "lint", "mqar", "figures", "sweep", "bench", "pretrain", "evaluate"]
)
def test_targets_set_up_by_themselves_and_only_once(checkout, target):
    checkout.add_python()
    assert checkout.make(target).returncode == 0
    first = checkout.calls()
    assert first[0] == "-m venv .venv"
    again = checkout.make(target)
    assert again.returncode == 0
    assert checkout.calls() == first[4:]
    assert "up to date" in again.stdout


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_setup_runs_again_in_the_same_venv_when_a_pin_changes(ready, name):
    with (ready.root / name).open("a") as file:
        file.write("# changed\n")
    assert ready.make("setup").returncode == 0
    calls = ready.calls()
    assert len(calls) == 3
    assert all(call.startswith("-m pip install") for call in calls)


@pytest.mark.parametrize("step", ["-m venv", "torch==", "-r requirements.lock", "-e ."])
def test_setup_that_failed_leaves_no_stamp_and_is_finished_next_time(checkout, step):
    checkout.add_python()
    failed = checkout.make("test", STUB_FAIL=step)
    assert failed.returncode != 0
    assert not checkout.stamp.exists()
    assert not any("pytest" in call for call in checkout.calls())
    assert checkout.make("setup").returncode == 0
    assert checkout.stamp.exists()


def test_setup_that_failed_after_a_change_withdraws_the_old_stamp(ready):
    with (ready.root / "requirements.lock").open("a") as file:
        file.write("# changed\n")
    assert ready.make("setup", STUB_FAIL="-r requirements.lock").returncode != 0
    assert not ready.stamp.exists()


def test_venv_whose_python_vanished_is_built_anew(ready):
    python = ready.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    result = ready.make("setup")
    assert result.returncode == 0, result.stderr
    assert "building it anew" in result.stdout
    assert ready.calls()[0] == "-m venv .venv"


def test_folder_that_is_no_venv_is_never_removed(checkout):
    checkout.add_python()
    keep = checkout.root / ".venv" / "thesis.tex"
    keep.parent.mkdir()
    keep.touch()
    assert checkout.make("setup").returncode != 0
    assert checkout.make("clean").returncode != 0
    assert keep.exists()


def test_setup_without_a_usable_python_gives_one_clear_error(checkout):
    # A pyenv shim: it is there, and it does not run.
    executable(checkout.bin / "python3.11", "#!/bin/sh\nexit 127\n")
    result = checkout.make("setup")
    assert result.returncode != 0
    assert "no Python 3.11 or 3.12" in result.stderr
    assert "PYTHON=" in result.stderr
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("name", ["python3.12", "python3"])
def test_setup_falls_back_to_the_next_python(checkout, name):
    executable(checkout.bin / "python3.11", "#!/bin/sh\nexit 127\n")
    checkout.add_python(name)
    result = checkout.make("setup")
    assert result.returncode == 0, result.stderr
    assert f"with {name} (Python 3.11.9)" in result.stdout


def test_python_can_be_named(checkout):
    checkout.add_python()
    other = executable(checkout.root.parent / "elsewhere" / "mypython", STUB_PYTHON)
    assert f"with {other} " in checkout.make("setup", f"PYTHON={other}").stdout


def test_an_environment_of_ones_own_is_used_as_it_is(checkout):
    checkout.add_python("python")
    assert checkout.make("figures", "PY=python").returncode == 0
    scripts = [
        "scripts/plot_figures.py",
        "scripts/illustrate.py",
        "scripts/describe_models.py",
        "scripts/write_numbers.py",
    ]
    assert [call.split()[0] for call in checkout.calls()] == scripts
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("status", ["1", "2", "130"], ids=["unfinished", "config error", "interrupt"])
def test_mqar_fails_where_its_program_does(ready, status):
    assert ready.make("mqar", STUB_FAIL="reproduce.py", STUB_STATUS=status).returncode != 0
    (call,) = ready.calls()
    assert call.startswith("scripts/reproduce.py")


def test_wandb_is_offline_unless_asked(ready):
    ready.make("figures")
    assert ready.log.read_text().startswith("offline: ")
    ready.calls()
    ready.make("figures", WANDB_MODE="online")
    assert ready.log.read_text().startswith("online: ")


def test_clean_removes_the_venv_and_caches_but_no_results(ready):
    kept = [
        ready.root / "results" / "mqar" / "runs.csv",
        ready.root / "results" / "runs" / "r" / "result.json",
        ready.root / "wandb" / "offline-run" / "run.wandb",
    ]
    cache = ready.root / "src" / "palimpsa" / "__pycache__" / "x.pyc"
    for path in (*kept, cache):
        path.parent.mkdir(parents=True)
        path.touch()
    for name in ("kernels", "scripts", "tests"):
        (ready.root / name).mkdir()
    assert ready.make("clean").returncode == 0
    assert not (ready.root / ".venv").exists()
    assert not cache.parent.exists()
    assert all(path.exists() for path in kept)


def test_make_finetune_asks_for_a_source_and_reads_a_novel_where_nothing_else_is_named(ready):
    missing = ready.make("finetune")
    assert missing.returncode == 2
    assert "SOURCE= is missing" in missing.stderr
    prepare, train = commands(ready.make("-n", "finetune", "SOURCE=data/mamba2", "ARGS=seed=2").stdout)
    assert prepare.startswith("scripts/prepare_text.py source=sample tokenizer=bytes")
    assert shlex.split(train) == ["scripts/finetune.py", "data/mamba2", "scale=laptop", "trainer=cpu", "seed=2"]
    (train,) = commands(ready.make("-n", "finetune", "SOURCE=run", "DATA=data/hub", "SCALE=laptop").stdout)
    assert shlex.split(train)[1:4] == ["run", "task=commonsense", "task.data=data/hub"]
    (train,) = commands(ready.make("-n", "finetune", "SOURCE=run", "TASK=mqar_curriculum").stdout)
    assert shlex.split(train)[1:3] == ["run", "task=mqar_curriculum"]
    ready.add_gpus()
    (train,) = commands(ready.make("-n", "finetune", "SOURCE=run", "DATA=data/hub").stdout)
    assert shlex.split(train)[-2:] == ["scale=h200", "trainer=gpu"]
    (train,) = commands(ready.make("-n", "finetune", 'SOURCE=it\'s "my" model', "DATA=my data").stdout)
    assert shlex.split(train)[1:4] == ['it\'s "my" model', "task=commonsense", "task.data=my data"]
