"""Every command of the README runs: the same line, in a copy of the repository, on a task of seconds."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# `make test` is what CI runs, and cannot run inside itself.
RUN_BY_CI = {"make test"}
# Of the sweep in two phases.
ONE_SEED = ("seed=1", "task.sweep.selection_seeds=1")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the tracked files without results, so that no test writes into the repository."""
    copy = tmp_path_factory.mktemp("readme") / "palimpsa"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink() or source.exists():
            shutil.copy2(source, target, follow_symlinks=False)
    return copy


def run(line: str, checkout: Path, overrides: tuple[str, ...]) -> subprocess.CompletedProcess:
    words = shlex.split(line)
    if words[0] == "make":
        given = [word for word in words if word.startswith("ARGS=")]
        arguments = " ".join([*(word.removeprefix("ARGS=") for word in given), *map(shlex.quote, overrides)])
        words = [
            *(word for word in words if word not in given),
            f"PY={sys.executable}",
            "SCALE=laptop",
            f"ARGS={arguments}",
        ]
    else:
        assert words[0] == ".venv/bin/python"
        words = [sys.executable, *words[1:], *overrides]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    environment["PYTHONPATH"] = str(checkout / "src")
    return subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600)


def test_readme_has_commands_and_ci_runs_make_test():
    assert {"make mqar", "make test"} <= set(commands())
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("line", [line for line in commands() if line not in RUN_BY_CI])
def test_command_of_the_readme_runs(line, checkout, tiny_overrides, tiny_benchmark):
    overrides = tiny_benchmark if line.startswith("make bench") else tiny_overrides
    if "benchmark=training" in line:
        overrides = (
            "scale=laptop",
            "trainer=cpu",
            "models=[mamba2]",
            "lengths=[16]",
            "num_warmup_steps=1",
            "num_steps=2",
        )
    if "mqar_scratch" in line:
        overrides = (*(o for o in overrides if not o.startswith("task.stages")), "task.seq_len=16")
        overrides = (*overrides, "task.num_train_examples=16", "task.num_epochs=2")
    if "mqar" in line and "scratch" not in line:
        overrides = (*overrides, *ONE_SEED)
    if line == "make figures" and not (checkout / "results/mqar/runs.csv").exists():
        run("make mqar", checkout, (*overrides, *ONE_SEED))
    done = run(line, checkout, overrides if not line.startswith("make figures") else ())
    assert done.returncode == 0, done.stdout + done.stderr
    if line == "make mqar":
        assert "results/mqar/figure2_laptop.png" in done.stdout
        assert "Palimpsa-D" in done.stdout, "the table is shown on the terminal"
    if line == "make bench":
        assert "results/kernels/figure5_cpu.png" in done.stdout


def test_a_second_make_mqar_trains_nothing(checkout, tiny_overrides):
    overrides = (*tiny_overrides, *ONE_SEED)
    first = run("make mqar", checkout, overrides)
    assert first.returncode == 0, first.stdout + first.stderr
    results = sorted((checkout / "results/runs/mqar_curriculum").rglob("result.json"))
    before = [(path, path.stat().st_mtime_ns) for path in results]
    # Six models at two learning rates.
    assert len(before) >= 12
    second = run("make mqar", checkout, overrides)
    assert second.returncode == 0, second.stdout + second.stderr
    assert before == [(path, path.stat().st_mtime_ns) for path in results]
    assert "[1/" not in second.stdout
    assert [line.split() for line in second.stdout.splitlines() if line.startswith("all ")] == [
        ["all", "12", "0", "0", "0", "12"]
    ]


def test_the_operators_example_runs_as_printed():
    (example,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "torch.Size([2, 100, 4, 32]) torch.Size([2, 100, 4, 32]) torch.Size([2, 4, 16, 32])",
        "torch.Size([2, 4, 32])",
    ]
    assert len([line for line in example.splitlines() if line]) <= 10


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
