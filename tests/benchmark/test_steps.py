"""A run timed from within: its windows, the pauses in them, and what a profiler sees."""

from types import SimpleNamespace

import pytest

from palimpsa.benchmark.training_config import Windows


def test_the_timer_counts_its_steps_and_takes_the_pauses_out(tmp_path, tiny_run, monkeypatch):
    from lightning.pytorch.callbacks import ModelCheckpoint

    from palimpsa.benchmark import steps
    from palimpsa.runs.progress import JobProgress
    from palimpsa.training.curriculum import Curriculum
    from palimpsa.training.memory_probe import MemoryProbe

    run = tiny_run("models=[transformer]", "lengths=[16]", "num_warmup_steps=4", "num_steps=12")
    done: dict[str, list[int]] = {"step": [], "probe": [], "validation": [], "checkpoint": []}

    # By a clock of the test's own, on which a step takes 1 ms: this machine may be busy.
    now = [0.0]
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def spy(kind, owner, name, seconds=0.0):
        whole = getattr(owner, name)

        def spied(self, trainer, *arguments, **others):
            done[kind].append(trainer.global_step)
            now[0] += seconds
            return whole(self, trainer, *arguments, **others)

        monkeypatch.setattr(owner, name, spied)

    spy("step", Curriculum, "on_train_batch_end", 0.001)
    spy("probe", MemoryProbe, "_probe", 0.05)
    spy("validation", Curriculum, "_validate", 0.1)
    spy("checkpoint", ModelCheckpoint, "_save_last_checkpoint")
    clock = []
    monkeypatch.setattr(steps, "_now", lambda device: clock.append(done["step"][-1]) or now[0])
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
    assert cells["ms_per_step"] == pytest.approx((12 + 3 * 50 + 4 * 100) / 12)
    # The pause of a validation has its step's own millisecond in it.
    assert cells["loop_ms_per_step"] == pytest.approx((12 - 4) / 12)
    assert cells["steps_per_s"] == pytest.approx(1e3 / cells["ms_per_step"])
    assert cells["tokens_per_s"] == pytest.approx(64 * cells["steps_per_s"])
    assert (cells["batch_size"], cells["tokens_per_step"]) == (4, 64)
    assert 0 < cells["first_step_s"] < cells["warmup_s"]
    assert cells["peak_memory_mib"] is None
    assert "busy_share" not in cells


def test_a_second_window_is_profiled_and_its_kernels_give_the_busy_share(tmp_path, tiny_run, monkeypatch):
    from palimpsa.benchmark import steps
    from palimpsa.runs.progress import JobProgress
    from palimpsa.training.curriculum import Curriculum

    run = tiny_run("models=[transformer]", "lengths=[16]", "num_warmup_steps=3", "num_steps=6")
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


def test_a_run_that_ends_before_its_windows_is_no_measurement():
    from palimpsa.benchmark.steps import StepTimer

    with pytest.raises(RuntimeError, match="ended before"):
        StepTimer(Windows(1, 2), profile=False).cells(64)
