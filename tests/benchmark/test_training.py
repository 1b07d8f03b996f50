"""benchmark=training: the real loop timed, on models of a few numbers and lengths of a few tokens."""

from __future__ import annotations

import csv
import multiprocessing
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from palimpsa.analysis.collect.step_columns import COLUMNS, IDENTITY
from palimpsa.analysis.draw.kernel_figures import draw_all
from palimpsa.analysis.draw.training_figures import draw_training, step_times
from palimpsa.benchmark import training
from palimpsa.benchmark.apart import RunFailedError, measure_apart
from palimpsa.benchmark.busy import UnseenError, busy_ns, union
from palimpsa.benchmark.config import load
from palimpsa.benchmark.run import benchmark_main
from palimpsa.benchmark.training_config import Windows, plan
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.runs.schema import ResultError

ROOT = CONFIG_DIR.parent
CURRICULUM = (
    "[{seq_len:8,num_pairs:2,max_steps:7,in_figure:false},{seq_len:16,num_pairs:4,max_steps:7},"
    "{seq_len:32,num_pairs:8,max_steps:7}]"
)
SIZES = {
    **{"scale.d_model": 16, "scale.num_heads": 2, "scale.head_k_dim": 4, "scale.head_v_dim": 4},
    **{"scale.log_every": 2, "scale.probe_every": 5, "scale.checkpoint_every": 4},
    **{"task.vocab_size": 64, "task.tokens_per_step": 64, "task.num_validation": 8, "task.validation_every": 3},
    "task.stages": CURRICULUM,
}
OVERRIDES = f"overrides={{{','.join(f'{key}:{value}' for key, value in SIZES.items())}}}"
TINY = ("benchmark=training", "scale=laptop", "trainer=cpu", OVERRIDES)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch):
    """Runs a tiny training benchmark into tmp_path: `bench("models=[gla]")`; returns its exit code."""
    monkeypatch.setenv("PALIMPSA_REVISION", "0" * 40)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "benchmark=training"])
    return lambda *overrides: benchmark_main([*TINY, f"results_dir={tmp_path}", *overrides])


@pytest.fixture
def stand_in(monkeypatch):
    """Lets the loop over runs measure nothing: a step takes as many ms as it has tokens. Returns the runs asked for."""
    asked = []

    def measure(run, on_step):
        asked.append(str(run))
        return {"ms_per_step": float(run.seq_len), "steps_per_s": 1e3 / run.seq_len, "tokens_per_step": 64}

    monkeypatch.setattr(training, "measure_apart", measure)
    return asked


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "steps_cpu.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tiny_runs(tmp_path: Path, *overrides: str):
    return plan(load([*TINY, f"results_dir={tmp_path}", *overrides]))


# The command line.

MISTAKES = {
    "models=[palimpsa]": ("models: got 'palimpsa'", "did you mean 'palimpsa_m'"),
    "models=[]": ("models: got []",),
    "models=[gla,gla]": ("models: got [gla, gla]", "each once"),
    "models=[lm/gla_170m]": ("models: got 'lm/gla_170m'",),
    "lengths=[24]": ("lengths: got 24", "scale=laptop: [8, 16, 32, 64]"),
    "lengths=[]": ("lengths: got []",),
    "lengths=[16,16]": ("lengths: got [16, 16]",),
    "scale=h200": ("scale=h200: needs an NVIDIA GPU",),
    "scale=h100": ("scale: got 'h100'", "did you mean 'h200'"),
    "scale=laptop,h200": ("scale=laptop,h200: got several values",),
    "+scale=h200": ("scale",),
    "trainer=gpu": ("trainer=gpu: needs an NVIDIA GPU",),
    "trainer=tpu": ("trainer: got 'tpu', expected one of auto, cpu, gpu",),
    "num_steps=0": ("num_steps: got 0, expected >= 1",),
    "num_steps=-5": ("num_steps: got -5",),
    "num_steps=1.5": ("num_steps",),
    "num_warmup_steps=0": ("num_warmup_steps: got 0",),
    "lr=0": ("lr: got 0.0, expected > 0",),
    "seed=-1": ("seed: got -1",),
    "seed=4294967296": ("seed: got 4294967296",),
    "lenghts=[16]": ("lenghts: unknown key", "did you mean 'lengths'"),
    "cases=[table]": ("cases: unknown key", "num_steps"),
    "+foo=1": ("foo: unknown key",),
    "name=operators": ("name: got 'operators', expected training",),
    "overrides=3": ("overrides: got 3",),
    "overrides={trainer.comple:true}": ("trainer.comple: unknown key", "did you mean 'compile'"),
    "overrides={trainer.log_every:0}": ("trainer.log_every: got 0, expected > 0",),
    "+overrides.trainer.log_every=x": ("trainer.log_every", "Integer"),
    "overrides={model.mixer.conv:3}": ("model.mixer.conv: unknown key", "did you mean 'conv_width'"),
    "overrides={task.stages:3}": ("task.stages: got 3, expected a list",),
    "overrides={logger.mode:online}": ("overrides: got logger.mode",),
    "fresh=maybe": ("fresh", "'maybe'"),
    "results_dir=''": ("results_dir: got an empty string",),
    "benchmark=trainin": ("benchmark: got 'trainin'", "did you mean 'training'"),
    "benchmark=": ("benchmark: got ''",),
    "benchmark=[training]": ("benchmark: got ['training'], expected one of operators, training",),
    "benchmark.models=3": ("benchmark: unknown key",),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_key_before_anything_starts(mistake, tmp_path, stand_in, capsys):
    assert benchmark_main(["benchmark=training", "models=[gla]", f"results_dir={tmp_path}", mistake]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    for part in MISTAKES[mistake]:
        assert part in told.err
    assert not told.out
    assert not stand_in
    assert not list(tmp_path.iterdir())


def test_by_default_every_model_is_measured_at_every_length_of_the_figure(tmp_path):
    config = load(["benchmark=training", f"results_dir={tmp_path}"])
    runs = plan(config)
    models = {path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")}
    assert {(run.model, run.seq_len) for run in runs} == {(name, length) for name in models for length in (16, 32, 64)}
    assert (config.scale, config.trainer) == ("laptop", "cpu")
    # Logs every 10 steps, validations every 25, checkpoints every 100.
    assert {run.windows for run in runs} == {Windows(25, 100)}
    for run in runs:
        (stage,) = run.cfg.task.stages
        assert stage.seq_len == run.seq_len
        assert stage.num_pairs == run.seq_len // 4
        # It ends neither by its cap nor by its accuracy.
        assert stage.max_steps > run.windows.profiled_end
        assert run.cfg.task.stop_accuracy > 1
        assert run.cfg.logger.name == "csv"


def test_with_a_gpu_the_scale_is_the_papers_and_each_length_is_its_stage_of_the_figure(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    config = load(["benchmark=training", f"results_dir={tmp_path}", "models=[gla]"])
    runs = plan(config)
    assert (config.scale, config.trainer, config.lengths) == ("h200", "gpu", [128, 256, 512, 1024])
    assert [run.cfg.task.stages[0].num_pairs for run in runs] == [32, 64, 128, 256]
    assert runs[0].windows == Windows(100, 500)
    config = load(["benchmark=training", f"results_dir={tmp_path}", "models=[gla]", "trainer=cpu"])
    assert plan(config)[0].cfg.scale.name == "laptop"


# The windows.


def test_the_union_counts_what_overlaps_once():
    assert union([]) == 0
    assert union([(3, 3)]) == 0
    # A copy on another stream within a kernel, and one that outlasts it.
    assert union([(0, 10), (2, 4), (8, 13)]) == 13
    # One after the other, without a gap and with one.
    assert union([(0, 2), (2, 3), (5, 6)]) == 4
    generator = random.Random(0)
    for _ in range(200):
        intervals = [(a, a + generator.randrange(8)) for a in generator.choices(range(40), k=generator.randrange(12))]
        assert union(intervals) == len({t for start, end in intervals for t in range(start, end)}), intervals


def test_a_profile_that_saw_nothing_or_ends_early_tells_no_share():
    second = 10**9
    kernels = [(t * second // 10, t * second // 10 + second // 20) for t in range(100)]
    assert busy_ns(kernels, 10 * second) == 100 * second // 20
    with pytest.raises(UnseenError, match="no work"):
        busy_ns([], second)
    with pytest.raises(UnseenError, match="fewer num_steps"):
        busy_ns(kernels[:80], 10 * second)
    # The host's work after the last kernel of a short window is no loss.
    assert busy_ns([(0, second // 100)], second // 20) == second // 100


def test_a_window_holds_what_is_due_after_its_start_up_to_its_end():
    for num_warmup, num_steps, every in [(1, 1, 1), (3, 12, 4), (5, 12, 5), (25, 100, 40), (100, 500, 250)]:
        windows = Windows(num_warmup, num_steps)
        steps = range(num_warmup + 1, windows.end + 1)
        assert windows.num_due(every) == sum(step % every == 0 for step in steps)
        # What comes after the clock: that of the warm-up's last step is in, that of the window's last step is not.
        assert windows.num_due(every, late=True) == sum(step % every == 0 for step in range(num_warmup, windows.end))


def test_the_timer_counts_its_steps_and_takes_the_pauses_out(tmp_path, monkeypatch):
    from lightning.pytorch.callbacks import ModelCheckpoint

    from palimpsa.benchmark import steps
    from palimpsa.runs.progress import JobProgress
    from palimpsa.training.curriculum import Curriculum
    from palimpsa.training.memory_probe import MemoryProbe

    (run,) = tiny_runs(tmp_path, "models=[transformer]", "lengths=[16]", "num_warmup_steps=4", "num_steps=12")
    done: dict[str, list[int]] = {"step": [], "probe": [], "validation": [], "checkpoint": []}

    def spy(kind, owner, name, seconds=0.0):
        whole = getattr(owner, name)

        def spied(self, trainer, *arguments, **others):
            done[kind].append(trainer.global_step)
            time.sleep(seconds)
            return whole(self, trainer, *arguments, **others)

        monkeypatch.setattr(owner, name, spied)

    spy("step", Curriculum, "on_train_batch_end")
    spy("probe", MemoryProbe, "_probe", 0.05)
    spy("validation", Curriculum, "_validate", 0.1)
    spy("checkpoint", ModelCheckpoint, "_save_last_checkpoint")
    clock = []
    monkeypatch.setattr(steps, "_now", lambda device: clock.append(done["step"][-1]) or time.perf_counter())
    cells = steps.measure_steps(run.cfg, run.windows, tmp_path / "run", JobProgress(str(tmp_path), "run", 17))
    # The first step's end, the warm-up's, the window's; and there it stops.
    assert clock == [1, 4, 16]
    assert done["step"] == list(range(1, 17))
    within = {kind: [step for step in found if 4 < step <= 16] for kind, found in done.items()}
    assert within["probe"] == [5, 10, 15]
    assert within["validation"] == [6, 9, 12, 15]
    assert (cells["num_probes"], cells["num_validations"]) == (3, 4)
    # Written after the clock is read: those of steps 4, 8 and 12.
    assert cells["num_checkpoints"] == 3
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    slept = 1e3 * (3 * 0.05 + 4 * 0.1) / 12
    assert cells["ms_per_step"] - cells["loop_ms_per_step"] >= slept
    assert cells["loop_ms_per_step"] < slept
    assert cells["steps_per_s"] == pytest.approx(1e3 / cells["ms_per_step"])
    assert cells["tokens_per_s"] == pytest.approx(64 * cells["steps_per_s"])
    assert (cells["batch_size"], cells["tokens_per_step"]) == (4, 64)
    assert 0 < cells["first_step_s"] < cells["warmup_s"]
    assert cells["peak_memory_mib"] is None
    assert "busy_share" not in cells


def test_a_second_window_is_profiled_and_its_kernels_give_the_busy_share(tmp_path, monkeypatch):
    from palimpsa.benchmark import steps
    from palimpsa.runs.progress import JobProgress
    from palimpsa.training.curriculum import Curriculum

    (run,) = tiny_runs(tmp_path, "models=[transformer]", "lengths=[16]", "num_warmup_steps=3", "num_steps=6")
    step, told = [0], []
    whole = Curriculum.on_train_batch_end

    def count(self, trainer, *arguments):
        step[0] = trainer.global_step
        return whole(self, trainer, *arguments)

    def event(device, start, end, annotation=False):
        return SimpleNamespace(
            device_type=lambda: SimpleNamespace(name=device),
            start_ns=lambda: start,
            end_ns=lambda: end,
            is_user_annotation=lambda: annotation,
        )

    second = 10**9
    # A kernel, a copy beside it, a launch on the host, and a range of the host's that the profiler draws on the GPU.
    events = [event("CUDA", 0, 3 * second), event("CUDA", second, 4 * second)]
    events += [event("CPU", 0, 6 * second), event("CUDA", 0, 6 * second, annotation=True)]

    class Profiler:
        profiler = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events))

        def __init__(self, activities):
            assert [activity.name for activity in activities] == ["CUDA"]

        def start(self):
            told.append(("start", step[0]))

        def stop(self):
            told.append(("stop", step[0]))

    monkeypatch.setattr(Curriculum, "on_train_batch_end", count)
    monkeypatch.setattr("torch.profiler.profile", Profiler)
    # A step takes a second of the first window, and of the second, slowed down by the profiler, as long as the events.
    monkeypatch.setattr(steps, "_now", lambda device: float(step[0]) if step[0] <= 9 else 9 + 4.0)
    timer = steps.StepTimer
    monkeypatch.setattr(steps, "StepTimer", lambda windows, profile: timer(windows, profile=True))
    cells = steps.measure_steps(run.cfg, run.windows, tmp_path / "run", JobProgress(str(tmp_path), "run", 17))
    assert told == [("start", 9), ("stop", 15)]
    assert step == [15]
    assert cells["ms_per_step"] == 1e3
    assert cells["busy_ms_per_step"] == pytest.approx(4e3 / 6)
    assert cells["profiled_ms_per_step"] == pytest.approx(4e3 / 6)
    assert cells["busy_share"] == pytest.approx(4 / 6)
    assert "note" not in cells


def test_what_runs_are_forked_from_has_touched_no_gpu():
    program = (
        "import torch\n"
        "def touched(*_): raise AssertionError('CUDA')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = touched\n"
        "import palimpsa.benchmark.steps\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "src")
    assert done.returncode == 0, done.stderr


def test_a_run_that_ends_before_its_windows_is_no_measurement():
    from palimpsa.benchmark.steps import StepTimer

    with pytest.raises(RuntimeError, match="ended before"):
        StepTimer(Windows(1, 2), profile=False).cells(64)


# From end to end.


def test_a_benchmark_writes_a_row_a_run_with_its_origin_goes_on_and_draws(bench, tmp_path, capsys):
    window = ("num_warmup_steps=1", "num_steps=12")
    assert bench("models=[mamba2]", "lengths=[16]", *window) == 0
    first = read(tmp_path)
    assert bench("models=[mamba2,transformer]", "lengths=[8,16]", *window) == 0
    told = capsys.readouterr().out
    assert "1 of 4 rows are there already" in told
    assert "12 measured" in told
    table = told[told.index("Training at scale") :]
    assert [line for line in table.splitlines() if "Mamba-2" in line or "Transformer" in line]
    rows = read(tmp_path)
    assert rows[:1] == first
    assert {(row["model"], row["seq_len"]) for row in rows} == {
        (model, length) for model in ("mamba2", "transformer") for length in ("8", "16")
    }
    for row in rows:
        assert list(row) == list(COLUMNS["steps"])
        assert float(row["steps_per_s"]) == pytest.approx(1e3 / float(row["ms_per_step"]), rel=1e-4)
        assert float(row["tokens_per_s"]) == pytest.approx(64 * float(row["steps_per_s"]), rel=1e-4)
        assert 0 < float(row["loop_ms_per_step"]) < float(row["ms_per_step"])
        assert float(row["first_step_s"]) > 0
        assert row["busy_share"] == row["peak_memory_mib"] == row["note"] == ""
        assert row["device"].endswith("threads a run: 1")
        assert (row["git_revision"], row["scale"], row["trainer"], row["lr"]) == ("0" * 40, "laptop", "cpu", "0.00464")
        assert "torch " in row["versions"]
        assert "lightning " in row["versions"]
        assert "scale.d_model=16" in row["overrides"]
        assert row["command"] == "benchmark.py benchmark=training"
        assert row["date"].endswith("+00:00")
    assert (rows[0]["num_warmup_steps"], rows[0]["num_steps"]) == ("1", "12")
    # The figures again, from the CSV alone.
    drawn = {path: path.read_bytes() for path in (tmp_path / "steps_cpu.png", tmp_path / "steps_cpu.svg")}
    for path in drawn:
        path.unlink()
    script = [sys.executable, "-X", "importtime", str(ROOT / "scripts/plot_benchmark.py"), "--results", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(path) for path in drawn]
    assert "| torch\n" not in done.stderr
    assert {path: path.read_bytes() for path in drawn} == drawn


def test_a_run_that_diverges_dies_or_is_interrupted(bench, tmp_path, capsys):
    assert bench("models=[mamba2]", "lengths=[16]", "lr=1e30") == 1
    told = capsys.readouterr()
    assert re.search(r"mamba2 L 16: \w+Error: \S+", told.err)
    assert not (tmp_path / "steps_cpu.csv").exists()
    (endless,) = tiny_runs(tmp_path, "models=[mamba2]", "lengths=[16]", "num_steps=1000000")

    def kill(step):
        (process,) = multiprocessing.active_children()
        process.kill()

    with pytest.raises(RunFailedError, match="exit code -9"):
        measure_apart(endless, kill)

    def interrupt(step):
        if step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_apart(endless, interrupt)
    assert not multiprocessing.active_children()


def test_a_failed_run_leaves_the_others_their_rows_and_is_tried_again(bench, tmp_path, stand_in, monkeypatch, capsys):
    measure = training.measure_apart

    def fails_once(run, on_step):
        if run.model == "gla":
            raise RunFailedError("OutOfMemoryError: CUDA out of memory")
        return measure(run, on_step)

    monkeypatch.setattr(training, "measure_apart", fails_once)
    command = ("models=[gla,mamba2]", "lengths=[16,32]")
    assert bench(*command) == 1
    told = capsys.readouterr()
    assert "2 of 4 runs failed" in told.err
    assert told.err.count("CUDA out of memory") == 2
    assert [row["model"] for row in read(tmp_path)] == ["mamba2", "mamba2"]
    assert (tmp_path / "steps_cpu.png").exists()
    monkeypatch.setattr(training, "measure_apart", measure)
    assert bench(*command) == 0
    assert stand_in == ["mamba2 L 16", "mamba2 L 32", "gla L 16", "gla L 32"]
    assert bench(*command) == 0
    assert len(stand_in) == 4
    assert bench(*command, "fresh=true") == 0
    assert len(stand_in) == 8


@pytest.mark.parametrize(
    ("setting", "column"),
    [
        ("num_steps=24", "num_steps"),
        ("num_warmup_steps=2", "num_warmup_steps"),
        ("lr=1e-3", "lr"),
        ("seed=2", "seed"),
        (OVERRIDES.replace("d_model:16", "d_model:32"), "overrides"),
    ],
)
def test_rows_of_other_settings_are_never_added_to(bench, tmp_path, stand_in, capsys, setting, column):
    assert bench("models=[gla]", "lengths=[16]") == 0
    before = (tmp_path / "steps_cpu.csv").read_bytes()
    capsys.readouterr()
    assert bench("models=[mamba2]", "lengths=[16]", setting) == 2
    told = capsys.readouterr().err
    assert f"{column} is" in told
    assert "fresh=true" in told
    assert told.count("\n") == 1
    assert (tmp_path / "steps_cpu.csv").read_bytes() == before
    assert bench("models=[mamba2]", "lengths=[16]", setting, "fresh=true") == 0
    assert [row["model"] for row in read(tmp_path)] == ["mamba2"]


# The figure.


def write(folder: Path, busy: bool, slug: str = "nvidia-h200") -> None:
    shared = dict.fromkeys(IDENTITY, "1") | {"device": "NVIDIA H200", "scale": "h200", "precision": "bf16-mixed"}
    shared |= {"num_steps": 500, "tokens_per_step": 65536, "date": "2026-11-26T00:00:00+00:00", "command": "bench"}
    with (folder / f"steps_{slug}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS["steps"], restval="", lineterminator="\n")
        writer.writeheader()
        for place, model in enumerate(("palimpsa_d", "gla")):
            for length in (128, 256):
                cells = {"model": model, "label": model.upper(), "seq_len": length, "ms_per_step": 4.0 + place}
                writer.writerow(shared | cells | ({"busy_share": 0.9} if busy else {}))


def drawn_figure(folder: Path):
    import pandas as pd

    return step_times(pd.read_csv(folder / "steps_nvidia-h200.csv"))


def test_the_figure_has_a_line_a_model_and_the_busy_share_where_it_was_measured(tmp_path):
    write(tmp_path, busy=True)
    times, share = drawn_figure(tmp_path).axes
    assert [line.get_label() for line in times.lines] == ["palimpsa_d", "gla"]
    assert [list(line.get_xdata()) for line in times.lines] == [[128, 256]] * 2
    assert [list(line.get_ydata()) for line in times.lines] == [[4, 4], [5, 5]]
    assert [list(line.get_ydata()) for line in share.lines] == [[0.9, 0.9]] * 2
    assert "NVIDIA H200 · bf16-mixed · 2026-11-26" in drawn_figure(tmp_path).get_suptitle()
    write(tmp_path, busy=False)
    assert len(drawn_figure(tmp_path).axes) == 1


def test_a_damaged_file_is_one_error_that_names_it(tmp_path):
    write(tmp_path, busy=False)
    path = tmp_path / "steps_nvidia-h200.csv"
    for damaged in (path.read_text().replace("seq_len", "length"), path.read_text().replace(",4.0,", ",fast,")):
        path.write_text(damaged)
        with pytest.raises(ResultError, match=r"steps_nvidia-h200\.csv"):
            draw_training(tmp_path, "nvidia-h200")
        write(tmp_path, busy=False)
    path.write_text(",".join(COLUMNS["steps"]) + "\n")
    with pytest.raises(ResultError, match="holds no row"):
        draw_training(tmp_path, "nvidia-h200")
    with pytest.raises(ResultError, match="operators_"):
        draw_all(tmp_path)


def test_committed_figures_follow_from_the_committed_csv(tmp_path):
    files = list((ROOT / "results/training").glob("steps_nvidia-*.csv"))
    assert files
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        for drawn in draw_training(tmp_path, path.stem.partition("_")[2]):
            assert drawn.read_bytes() == (ROOT / "results/training" / drawn.name).read_bytes(), drawn.name


def test_the_readmes_step_times_are_the_committed_csv():
    rows = {}
    for device in ("nvidia-h200", "nvidia-h100-80gb-hbm3"):
        with (ROOT / f"results/training/steps_{device}.csv").open(newline="") as file:
            rows[device] = list(csv.DictReader(file))
        assert {row["model"] for row in rows[device]} == {path.stem for path in (ROOT / "configs/model").glob("*.yaml")}
        assert {row["tokens_per_step"] for row in rows[device]} == {"65536"}
    h200, h100 = rows.values()
    palimpsa = [row for row in h200 if row["model"] == "palimpsa_d"]
    assert {row["seq_len"] for row in palimpsa} == {"128", "256", "512", "1024"}
    spans = []
    for own in (palimpsa, h200, h100):
        times = [float(row["ms_per_step"]) for row in own]
        spans.append(f"{min(times):.1f} to {max(times):.1f} ms")
    busy = min(float(row["busy_share"]) for row in h200)
    readme = " ".join((ROOT / "README.md").read_text().split())
    text = (
        "a step of 65,536 tokens of Palimpsa-D takes {} at lengths from 128 to 1,024, of all models {}, and the GPU is "
    )
    assert text.format(*spans[:2]) + f"busy {100 * busy:.0f}% of the time or more" in readme
    assert f"on an H100 they take {spans[2]}" in readme


@pytest.mark.parametrize("device", ["nvidia-h200", "nvidia-h100-80gb-hbm3"])
def test_the_logs_step_times_are_the_committed_csv(device):
    with (ROOT / f"results/training/steps_{device}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    log = (ROOT / "docs/LOG.md").read_text()
    for label in {row["label"] for row in rows}:
        own = [row for row in rows if row["label"] == label]
        assert len({row["git_revision"] for row in own}) == 1
        assert f"at commit {own[0]['git_revision'][:7]}" in log
        cells = [f"{float(row['ms_per_step']):.2f} ({float(row['loop_ms_per_step']):.2f})" for row in own]
        busy = [round(100 * float(row["busy_share"])) for row in own]
        assert f"| {' | '.join(cells)} | {min(busy)}-{max(busy)}% |" in log, label


def test_the_logs_comparison_of_the_cards_follows_from_their_csv():
    times = {}
    for device in ("nvidia-h200", "nvidia-h100-80gb-hbm3"):
        with (ROOT / f"results/training/steps_{device}.csv").open(newline="") as file:
            times[device] = {(row["model"], row["seq_len"]): float(row["ms_per_step"]) for row in csv.DictReader(file)}
    h200, h100 = times.values()
    log = " ".join((ROOT / "docs/LOG.md").read_text().split())
    ratios = [h100[key] / h200[key] for key in h200]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times as long as the H200's {len(ratios)} rows" in log
    others = [ms for (model, _), ms in h100.items() if model in ("simple_gla", "deltanet", "transformer")]
    assert f"these three take an H100 {min(others):.2f} to {max(others):.2f} ms" in log


@pytest.mark.gpu
def test_a_gpu_tells_its_busy_share_and_memory(tmp_path):
    # As it is shipped, compiled and replayed, and at laptop scale.
    sizes = ("scale=laptop", "trainer=gpu", "models=[transformer]", "lengths=[16]")
    (run,) = plan(load(["benchmark=training", f"results_dir={tmp_path}", *sizes]))
    cells = measure_apart(run, lambda step: None)
    assert "note" not in cells
    assert 0 < cells["busy_share"] < 1.2
    assert cells["peak_memory_mib"] > 0
    assert cells["loop_ms_per_step"] < cells["ms_per_step"]
