"""How long a sweep will take, told before it starts: the committed times of its steps, or nothing where none are."""

import pytest

from palimpsa.sweeps.estimate import SECONDS_A_RUN, SECONDS_OF_COMPILING, describe_time, longest_time, read_step_times
from palimpsa.sweeps.plan import plan_command_line


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The runs of a command line: `jobs("+experiment=recipe_f")`."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def plan(*overrides: str):
        return plan_command_line([*overrides, f"results_dir={tmp_path}"], multirun=True).jobs

    return plan


def test_a_run_takes_its_steps_at_the_committed_times(jobs):
    times = read_step_times()
    one, other = jobs("+experiment=recipe_d", "model=palimpsa_d,palimpsa_d_nometa", "seed=1")
    # 1,563 steps of 64 sequences go through 100,000.
    for job in (one, other):
        milliseconds = times["h200", job.model, 1_024, 65_536]
        assert longest_time(job, times) == pytest.approx(SECONDS_A_RUN + 20 * 1_563 * milliseconds / 1_000)
    (curriculum,) = jobs("+experiment=recipe_e", "model=palimpsa_d", "seed=1")
    caps = {128: 4_000, 256: 3_000, 512: 3_000, 1_024: 4_000}
    expected = sum(steps * times["h200", "palimpsa_d", length, 65_536] for length, steps in caps.items()) / 1_000
    assert longest_time(curriculum, times) == pytest.approx(SECONDS_A_RUN + expected)


def test_the_line_adds_up_runs_and_those_that_wait(jobs):
    found = jobs("+experiment=recipe_d")
    seconds = sum(longest_time(job, read_step_times()) for job in found)
    compiling = 2 * SECONDS_OF_COMPILING
    assert describe_time(found).startswith(f"at most {(seconds + compiling) / 60:.0f} minutes on one NVIDIA H200")
    assert describe_time(found, len(found)).startswith(f"at most {(2 * seconds + compiling) / 60:.0f} minutes")
    assert "not fused" not in describe_time(found)
    assert "not fused" in describe_time(jobs("+experiment=recipe_e"))


def test_a_model_that_was_not_timed_takes_as_long_as_the_slowest(jobs):
    times = {("h200", "slow", 512, 65_536): 9.0, ("h200", "fast", 512, 65_536): 1.0}
    (job,) = jobs("+experiment=recipe_a", "model=palimpsa_d", "seed=1", "optimizer.lr=1e-2", "task.num_epochs=1",
                  "hydra.sweeper.selection_seeds=null")  # fmt: skip
    assert longest_time(job, times) == pytest.approx(SECONDS_A_RUN + 782 * 9 / 1_000)


def test_nothing_is_told_of_what_was_not_timed(jobs):
    assert describe_time([]) is None
    assert describe_time(jobs("+experiment=recipe_e", "scale=laptop", "trainer=cpu", "seed=1")) is None
    assert describe_time(jobs("+experiment=recipe_e", "task.tokens_per_step=32_768", "seed=1")) is None


def test_a_sweep_says_so_before_it_starts(jobs, tmp_path, capsys):
    from palimpsa.sweeps.command import run_sweep
    from palimpsa.sweeps.sweep import Sweep

    told = []

    def launch(batch):
        told.append(capsys.readouterr().out)
        return [None] * len(batch)

    run_sweep(Sweep(tmp_path / "runs", jobs("+experiment=recipe_e", "seed=1"), launch=launch), launch)
    assert "at most" in told[0]
