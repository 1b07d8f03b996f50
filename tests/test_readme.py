"""Every command of the README and of docs/ runs as it stands, in a copy of the repository, on a task of seconds.

What needs a GPU, Slurm or Ray is composed instead: `COMPOSED` says why of each. All commands share one copy and what
was trained in it.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from palimpsa.evaluation.schema import load as load_evaluate
from palimpsa.text.schema import load as load_prepare_text

from .forker import WarmPython

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "LOG.md")]
# `make test` is what CI runs, and cannot run inside itself.
RUN_BY_CI = re.compile(r"make test\b")
# tests/test_makefile.py says which scripts it calls; the tests of `analysis`, `model` and `benchmark` hold what each of
# them writes to what is committed.
RUN_IN_PARTS = ("make figures",)
# Commands that cannot run here, and why.
COMPOSED = {
    "make mqar SCALE=h200 SWEEP=mqar_figure2_grid": "needs a GPU",
    "make prepare-text": "needs the hub",
    "make evaluate": "needs the hub; tests/evaluation/test_evaluate.py evaluates a run on local files",
    "make pretrain MODEL=palimpsa_d_44m DATA=data/hub SCALE=h200": "needs a GPU",
    'make prepare-text ARGS="source.subset=sample-100BT directory=data/fineweb max_tokens=15_000_000_000"': "the hub",
    'make prepare-text ARGS="source.subset=sample-100BT directory=data/fineweb max_tokens=30_000_000_000"': "the hub",
    ".venv/bin/python scripts/pretrain.py +experiment=commonsense_170m trainer.accumulate=16": "needs a GPU",
    ".venv/bin/python scripts/train.py +experiment=figure2": "needs a GPU",
    ".venv/bin/python scripts/train.py +experiment=mqar_ablation": "needs a GPU",
    ".venv/bin/python scripts/train.py +experiment=mqar_long": "needs a GPU",
    ".venv/bin/python scripts/train.py +experiment=mqar_scratch": "needs a GPU",
    'make mqar SCALE=h200 ARGS="hydra/launcher=submitit_slurm hydra.launcher.partition=NAME '
    'hydra.launcher.gres=gpu:1"': "needs Slurm; tests/sweeps/test_slurm.py starts one where it is installed",
    'make mqar SCALE=h200 ARGS="hydra/launcher=ray hydra.launcher.ray.remote.num_gpus=1"': "needs Ray and a GPU",
}
# What stands for a value in a command of the text.
PLACEHOLDERS = {"TASK": "mqar_curriculum", "MODEL": "palimpsa_d", "LR": "4.64e-3", "SEED": "1"}
# The README asks the model that it trains about some of them.
NUM_WORDS = "task.vocab_size=96"
PRETRAINING = (
    *(
        "model.d_model=32",
        "model.num_layers=1",
        "model.channel_width=32",
        "task.context=32",
        "task.tokens_per_step=128",
    ),
    *("task.num_steps=8", "task.validation_every=4", "task.validation_tokens=256", "trainer.progress_bar=false"),
)
FINETUNING = tuple(one for one in PRETRAINING if not one.startswith("model."))
# Figure 2's sweep in two phases, of two models on one seed.
FIGURE_2 = ("model=palimpsa_d,mamba2", "seed=1", "hydra.sweeper.selection_seeds=1")


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def commands() -> list[str]:
    """The lines of all `sh` blocks, each once."""
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks("sh") for line in block.splitlines()]
    return list(dict.fromkeys(filter(None, lines)))


def commands_in_the_text() -> list[str]:
    """The commands outside of blocks that train, but for those of the blocks."""
    texts = [re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES]
    found = [" ".join(code.split()) for text in texts for code in re.findall(r"`([^`]+)`", text)]
    found = [code for code in found if re.match(r"(make (mqar|sweep) |scripts/train\.py )", code)]
    return sorted({code for code in found if code not in commands()})


def runs_here(line: str) -> bool:
    return line not in COMPOSED and line not in RUN_IN_PARTS and not RUN_BY_CI.match(line)


class Checkout:
    """A copy of the tracked files without results, in which each command runs once.

    Python is one that has imported torch and the like already; of the copy each command imports what it needs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._done: dict[str, subprocess.CompletedProcess] = {}
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            source, target = ROOT / name, root / name
            if name.startswith("results/") or not (source.is_symlink() or source.exists()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
        self.python = WarmPython(root, root.parent)

    def run(self, line: str, overrides: tuple[str, ...]) -> subprocess.CompletedProcess:
        """The command with these overrides at its end; the second time what the first gave."""
        if line not in self._done:
            self._done[line] = self._run(line, overrides)
        done = self._done[line]
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def _run(self, line: str, overrides: tuple[str, ...]) -> subprocess.CompletedProcess:
        words = shlex.split(line)
        if words[0] == "make":
            given = [word for word in words if word.startswith("ARGS=")]
            arguments = [*(word.removeprefix("ARGS=") for word in given), *map(shlex.quote, overrides)]
            words = [word for word in words if word not in given]
            words += [f"PY={shlex.join(self.python.words)}", "SCALE=laptop", f"ARGS={' '.join(arguments)}"]
        else:
            assert words[0] == ".venv/bin/python"
            words = [*self.python.words, *words[1:], *overrides]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))}
        environment["PYTHONPATH"] = str(self.root / "src")
        return subprocess.run(words, cwd=self.root, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path_factory.mktemp("readme") / "palimpsa")
    yield checkout
    checkout.python.close()


@pytest.fixture
def run(checkout, tiny_overrides, tiny_benchmark):
    """Runs a command in the copy, at the sizes of tests."""

    def run_line(line: str) -> subprocess.CompletedProcess:
        if line != "make mqar" and ("mqar_figure2" in line or "make mqar" in line):
            # Whatever the order of the tests: these find their runs finished.
            run_line("make mqar")
        if "collect_results" in line:
            run_line("make mqar")
            # As if another machine had made the runs.
            shutil.copytree(checkout.root / "results/runs", checkout.root / "gathered")
            return checkout.run(line, ())
        if line == "make dashboard":
            run_line("make mqar")
            return checkout.run(line, ())
        if "prepare_text" in line:
            return checkout.run(line, ())
        if line == "make pretrain":
            return checkout.run(line, PRETRAINING)
        if "finetune" in line:
            (write,) = (block for block in blocks("python", [ROOT / "README.md"]) if "Mamba2Config" in block)
            subprocess.run([sys.executable, "-c", write], cwd=checkout.root, check=True, capture_output=True)
            return checkout.run(line, FINETUNING)
        if "convert.py export" in line:
            run_line("make pretrain")
            return checkout.run(line, ())
        if "benchmark=training" in line:
            sizes = ("models=[mamba2]", "lengths=[16]", "num_warmup_steps=1", "num_steps=2")
            return checkout.run(line, ("scale=laptop", "trainer=cpu", *sizes))
        if line.startswith("make bench"):
            return checkout.run(line, tiny_benchmark)
        overrides = (*tiny_overrides, NUM_WORDS)
        if "mqar_scratch" in line:
            overrides = tuple(text for text in overrides if not text.startswith("task.stages"))
            overrides += ("task.seq_len=16", "task.num_train_examples=16", "task.num_epochs=2")
        elif line.startswith("make mqar") or "+sweep=mqar_figure2" in line:
            overrides += FIGURE_2
        elif line.startswith("make sweep"):
            # One process after the other: two would both import everything.
            line += " JOBS=1"
        return checkout.run(line, overrides)

    return run_line


def test_every_command_is_run_or_listed_with_a_reason():
    assert {"make mqar", "make test"} <= set(commands())
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert set(COMPOSED) <= set(commands()), "only what the pages say"
    assert set(RUN_IN_PARTS) <= set(commands())


@pytest.mark.slow
@pytest.mark.parametrize("line", list(filter(runs_here, commands())), ids=str)
def test_command_runs(line, run):
    done = run(line)
    if line == "make mqar":
        assert "results/mqar/figure2_laptop.png" in done.stdout
        assert "Palimpsa-D" in done.stdout, "the table is shown on the terminal"
    if line == "make bench":
        assert "results/kernels/figure5_cpu.png" in done.stdout
    if "collect_results" in line:
        assert "results/mqar/runs.csv" in done.stdout
    if line == "make dashboard":
        page = done.stdout.splitlines()[-1]
        assert page.startswith("file:///")
        assert page.endswith("/results/dashboard/index.html")
    if line == "make pretrain":
        assert "a sample: " in done.stdout
    if "finetune" in line:
        assert "converted: results/converted/mamba2_" in done.stdout
        assert "model: results/runs/finetune/laptop/mamba2_metaplastic/lr_0.001/seed_1/export" in done.stdout


@pytest.mark.slow
def test_a_sweep_prints_what_its_page_says(run):
    printed = run('make sweep SWEEP=learning_rate ARGS="model=gla"').stdout
    (shown,) = blocks("text", [ROOT / "docs/sweeps.md"])
    ledger, table = shown.split("\n\n")
    assert ledger in printed
    columns = [line.split() for line in printed.splitlines()]
    header, model, *rates = [line.split() for line in table.splitlines()]
    # Of the lengths the test has one.
    assert [*header[:3], "L", "16"] in columns
    assert model in columns
    assert [rate[0] for rate in rates] == [line[0] for line in columns if line and line[0] in ("0.005", "0.01")]


@pytest.mark.slow
def test_a_second_make_mqar_trains_nothing(run, checkout):
    run("make mqar")
    results = sorted((checkout.root / "results/runs/mqar_curriculum").rglob("result.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    # Two models at two learning rates.
    assert len([path for path in results if "palimpsa_d/" in str(path) or "mamba2/" in str(path)]) == 4
    second = run("make mqar JOBS=2")
    assert before == {path: path.stat().st_mtime_ns for path in results}
    assert "[1/" not in second.stdout
    totals = [line.split() for line in second.stdout.splitlines() if line.startswith("all ")]
    assert totals == [["all", "4", "0", "0", "0", "4"]]


@pytest.mark.parametrize("line", [*COMPOSED, *commands_in_the_text()], ids=str)
def test_command_composes(line, compose_config):
    for place, value in PLACEHOLDERS.items():
        line = re.sub(rf"={place}\b", f"={value}", line)
    text = line
    if line.startswith("make"):
        done = subprocess.run([*shlex.split(line), "-n", "PY=python"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (text,) = re.findall(r"scripts/(?:train|reproduce|pretrain|prepare_text|evaluate)\.py[^)\n]*", done.stdout)
    overrides = [word for word in shlex.split(text.partition(".py ")[2]) if word != "-m"]
    if "evaluate" in text:
        assert load_evaluate(overrides).evaluation.data_dir is None, "it could run here"
        return
    if "prepare_text" in text:
        assert load_prepare_text(overrides).source.kind == "hub", "it could run here"
        return
    config = compose_config(*overrides)
    assert config.scale.requires_gpu or line not in COMPOSED, "it could run here"
    assert config.trainer.accelerator == ("gpu" if config.scale.requires_gpu else "cpu")


@pytest.mark.slow
def test_the_readmes_python_runs_as_printed(run, checkout):
    """The operator, a mixer in a module of one's own, and a trained model in transformers, one after the other."""
    (export,) = (line for line in commands() if "convert.py export" in line)
    run(export)
    examples = blocks("python", [ROOT / "README.md"])
    words = [sys.executable, "-c", "\n".join(f"exec({example!r}, {{}})" for example in examples)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.root / "src")}
    done = subprocess.run(words, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    operator, decoding, in_parts, written = done.stdout.splitlines()
    assert operator == "torch.Size([2, 100, 4, 32]) torch.Size([2, 100, 4, 32]) torch.Size([2, 4, 16, 32])"
    assert decoding == "torch.Size([2, 4, 32])"
    assert in_parts == "True"
    # 8 steps do not teach it to write.
    first, second = ast.literal_eval(written)
    assert first.startswith("She ")
    assert second.startswith("Captain Wentworth ")
    assert len([line for line in examples[2].splitlines() if line]) <= 10
    assert len([line for line in examples[0].splitlines() if line]) <= 10
