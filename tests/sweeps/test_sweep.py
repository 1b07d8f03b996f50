"""A sweep in one phase or two: what is launched when, which learning rate is chosen, and what is left alone.

Nothing is trained: a launcher of these tests writes the results.
"""

import functools
import json
import shutil

import pytest

from palimpsa.analysis.collect.result_files import collect
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates, one_experiment
from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.identity import config_hash
from palimpsa.runs.result import checksum
from palimpsa.runs.schema import CHECKSUM, DIVERGED, FAILED, FINISHED, RESULT_FORMAT
from palimpsa.sweeps import command
from palimpsa.sweeps.ledger import MISSING, RUNNING, Job
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.sweeps.sweep import Sweep

RATES = "1e-3,5e-3,2e-2"
# By model and learning rate: validation accuracies of seeds 1 and 2. The first seed alone would choose another rate.
ACCURACIES = {
    ("gla", 1e-3): (0.5, 0.1),
    ("gla", 5e-3): (0.4, 0.4),
    ("gla", 2e-2): (0.1, 0.6),
    ("mamba2", 1e-3): (0.2, 0.2),
    ("mamba2", 5e-3): (0.2, 0.1),
    ("mamba2", 2e-2): (0.3, 0.7),
}


NO_NUMBER = "FloatingPointError: the loss is nan"


def write_result(job: Job, accuracy: float | None, error: str = NO_NUMBER) -> None:
    """What a run leaves behind: finished with this validation accuracy, diverged or failed without one."""
    config, provenance = job.config, {"git_revision": None, "git_dirty": None, "versions": {}, "device": "cpu"}
    stage = {"stage": 0, "seq_len": 16, "num_pairs": 4, "steps": 9, "ended_by": "cap", "plateau_exit_step": None}
    stage |= {"validation_accuracy": accuracy, "test_accuracy": 0.5, "test_accuracy_by_age": [0.5], "test_loss": 1.0}
    run = {"task": config["task"]["name"], "scale": config["scale"]["name"], "model": job.model, "label": job.label}
    result = {
        "format": RESULT_FORMAT,
        "status": FINISHED if accuracy is not None else DIVERGED if error == NO_NUMBER else FAILED,
        "error": error if accuracy is None else None,
        "run": run | {"lr": job.lr, "seed": job.seed, "state_size": 8, "num_parameters": 9},
        "stages": [] if accuracy is None else [stage],
        "metrics": {},
        "config": config,
        "config_hash": config_hash(config),
        "provenance": provenance | {"started": "2026-01-01T00:00:00+00:00", "wall_time_s": 1.0, "command": "train.py"},
    }
    job.directory.mkdir(parents=True, exist_ok=True)
    (job.directory / "config.json").write_text(json.dumps(config))
    (job.directory / "result.json").write_text(json.dumps(result | {CHECKSUM: checksum(result)}))


def accuracy(job: Job) -> float | None:
    return ACCURACIES[job.config["model"]["name"], job.lr][job.seed - 1] if job.seed < 3 else 0.9 - job.lr


class Launcher:
    """Ends its runs with the accuracy that `outcome` has for them; raises the errors that it returns."""

    def __init__(self, outcome=accuracy) -> None:
        self.outcome = outcome
        self.launches: list[list[tuple[str, float, int]]] = []

    def __call__(self, jobs) -> list[str | None]:
        self.launches.append([(job.model, job.lr, job.seed) for job in jobs])
        reasons = []
        for job in jobs:
            outcome = self.outcome(job)
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, str):
                if outcome.startswith("OSError"):
                    write_result(job, None, outcome)
                reasons.append(outcome)
                continue
            write_result(job, outcome)
            reasons.append(None if outcome is not None else NO_NUMBER)
        return reasons


@functools.cache
def planned(overrides: tuple[str, ...]) -> Sweep:
    words = ["+sweep=mqar_figure2", f"optimizer.lr={RATES}", "model=gla,mamba2", "seed=1,2,3,4", "results_dir=PLACE"]
    sweep = plan_command_line([*words, *overrides], multirun=True)
    assert isinstance(sweep, Sweep)
    return sweep


@pytest.fixture
def plan(tmp_path):
    """Makes the sweep anew, as the same command does: `plan("seed=1,2")`."""

    def make(*overrides: str) -> Sweep:
        sweep = planned(overrides)
        places = [job.config["run_dir"].replace("PLACE", str(tmp_path)) for job in sweep.jobs]
        moved = [job.config | {"run_dir": place} for job, place in zip(sweep.jobs, places, strict=True)]
        jobs = [Job(job.overrides, config) for job, config in zip(sweep.jobs, moved, strict=True)]
        return Sweep(tmp_path / "runs", jobs, sweep.selection_seeds)

    return make


FIRST = [(model, lr, seed) for model in ("gla", "mamba2") for lr in (1e-3, 5e-3, 2e-2) for seed in (1, 2)]
SECOND = [("gla", 5e-3, 3), ("gla", 5e-3, 4), ("mamba2", 2e-2, 3), ("mamba2", 2e-2, 4)]
ANNOUNCED = [
    "GLA: learning rate 0.005 of 3 rates, 40.0% validation accuracy on 2 seeds",
    "Mamba-2 (M w/o Meta): learning rate 0.02 of 3 rates, 50.0% validation accuracy on 2 seeds",
]


def test_all_seeds_follow_at_the_rate_that_did_best_on_the_selection_seeds(plan, tmp_path):
    sweep, launcher, printed = plan(), Launcher(), []
    ledger = sweep.survey()
    assert (len(ledger.entries), ledger.num_runs, set(ledger.num_waiting.values())) == (12, 16, {2})
    sweep.run(launcher, printed.extend)
    assert launcher.launches == [FIRST, SECOND]
    assert printed == ANNOUNCED
    assert sweep.survey().complete
    assert sweep.survey().num_runs == 16
    # The figures, which see all seeds, choose the same.
    rows = one_experiment(collect([tmp_path / "runs"], tmp_path / "out").runs, "mqar_curriculum", "laptop")
    chosen = choose_learning_rates(rows)
    assert dict(zip(chosen["model"], chosen["lr"], strict=True)) == {"gla": 5e-3, "mamba2": 2e-2}


def test_a_rerun_launches_nothing_and_chooses_the_same(plan):
    plan().run(Launcher(), lambda _: None)
    sweep, launcher = plan(), Launcher()
    assert sweep.survey().complete
    assert sweep.new_choices() == ANNOUNCED
    assert sweep.new_choices() == []
    sweep.run(launcher, lambda _: None)
    assert launcher.launches == []


@pytest.mark.parametrize("num_lost", [1, 2, 3])
def test_a_rerun_does_only_what_is_missing(plan, num_lost):
    sweep = plan()
    sweep.run(Launcher(), lambda _: None)
    lost = [job for job in sweep.jobs if (job.model, job.lr, job.seed) in (SECOND[0], FIRST[3], FIRST[-1])][:num_lost]
    for job in lost:
        shutil.rmtree(job.directory)
    sweep, launcher = plan(), Launcher()
    sweep.run(launcher, lambda _: None)
    assert sorted(run for launch in launcher.launches for run in launch) == sorted(
        (job.model, job.lr, job.seed) for job in lost
    )
    assert sweep.survey().complete


def test_a_model_that_is_decided_does_not_wait_for_the_others(plan):
    sweep = plan()
    for job in sweep.jobs:
        if job.model == "gla" and job.seed < 3:
            write_result(job, accuracy(job))
    launcher = Launcher()
    sweep.run(launcher, lambda _: None)
    assert launcher.launches == [[*SECOND[:2], *FIRST[6:]], SECOND[2:]]


def test_runs_that_are_not_of_this_sweep_choose_nothing(plan):
    others = plan("optimizer.lr=1e-2,2e-2", "seed=1,2,3,4,5,6", "hydra.sweeper.selection_seeds='1'")
    for job in others.jobs:
        if job.lr == 1e-2 or job.seed > 2:
            write_result(job, 1.0)
    sweep, printed = plan(), []
    sweep.run(Launcher(), printed.extend)
    assert printed == ANNOUNCED


def test_a_diverged_run_counts_nothing_and_is_not_tried_again(plan):
    def diverges(job: Job) -> float | None:
        return None if (job.model, job.lr, job.seed) == ("gla", 5e-3, 1) else accuracy(job)

    sweep, launcher, printed = plan(), Launcher(diverges), []
    sweep.run(launcher, printed.extend)
    # 0.35 of the largest rate against (0 + 0.4) / 2.
    assert printed[0] == "GLA: learning rate 0.02 of 3 rates, 35.0% validation accuracy on 2 seeds"
    assert launcher.launches[1][:2] == [("gla", 2e-2, 3), ("gla", 2e-2, 4)]
    ledger = sweep.survey()
    assert ledger.complete
    assert ledger.detail_lines() == [f"diverged: gla lr 0.005 seed 1: {NO_NUMBER}"]

    again = Launcher()
    plan().run(again, printed.extend)
    assert again.launches == []


def test_a_model_of_which_nothing_finished_has_no_second_phase(plan):
    sweep, launcher, printed = plan(), Launcher(lambda job: None if job.model == "gla" else accuracy(job)), []
    sweep.run(launcher, printed.extend)
    assert launcher.launches == [FIRST, SECOND[2:]]
    assert printed[0] == "GLA: none of its selection runs finished: no learning rate chosen, no second phase"
    ledger = sweep.survey()
    assert not ledger.complete
    assert ledger.num_runs == 16
    assert sweep.undecided_models() == []


@pytest.mark.parametrize("reason", ["it is damaged", "OSError: no space"], ids=["damaged", "full"])
def test_a_selection_run_that_did_not_fail_by_itself_decides_nothing_and_is_tried_again(plan, reason):
    """A damaged checkpoint writes no result, a full disk one; repairing either may change the choice."""

    def fails(job: Job) -> float | str | None:
        return reason if (job.model, job.lr, job.seed) == ("gla", 5e-3, 1) else accuracy(job)

    sweep, launcher, printed = plan(), Launcher(fails), []
    sweep.run(launcher, printed.extend)
    assert launcher.launches == [FIRST, SECOND[2:]]
    assert printed == ANNOUNCED[1:]
    assert not sweep.survey().complete
    assert sweep.undecided_models() == [
        "GLA: 1 of 6 selection runs have neither finished nor diverged: no learning rate chosen yet, no second phase"
    ]
    assert sweep.survey().detail_lines() == [f"failed: gla lr 0.005 seed 1: {reason}"]

    sweep, launcher, printed = plan(), Launcher(), []
    sweep.run(launcher, printed.extend)
    assert launcher.launches == [[("gla", 5e-3, 1)], SECOND[:2]]
    assert sorted(printed) == ANNOUNCED
    assert sweep.survey().complete


def test_runs_at_work_elsewhere_are_left_alone_and_waited_for(plan):
    sweep, launcher = plan(), Launcher()
    (elsewhere,) = [job for job in sweep.jobs if (job.model, job.lr, job.seed) == FIRST[0]]
    with RunDirectory(elsewhere.directory).locked():
        sweep.run(launcher, lambda _: None)
        ledger = sweep.survey()
    assert launcher.launches == [FIRST[1:], SECOND[2:]]
    assert [entry.job for entry in ledger.with_status(RUNNING)] == [elsewhere]
    assert len(sweep.undecided_models()) == 1
    assert not ledger.complete


def test_a_launcher_that_stops_half_way_leaves_the_decided_models_their_second_phase(plan):
    lost = []

    def dies(job: Job) -> float | Exception | None:
        if job.model == "mamba2" and not lost:
            lost.append(job)
            return RuntimeError("a worker died")
        return accuracy(job)

    sweep, launcher = plan(), Launcher(dies)
    sweep.run(launcher, lambda _: None)
    assert launcher.launches == [FIRST, SECOND[:2]]
    assert str(sweep.launcher_error) == "a worker died"
    assert len(sweep.survey().with_status(MISSING)) == 6
    sweep.record_failures(["mamba2 lr 0.001 seed 1: OSError: [Errno 28] No space left"])
    assert sweep.survey().detail_lines() == ["failed: mamba2 lr 0.001 seed 1: OSError: [Errno 28] No space left"]


def test_a_launcher_that_does_not_start_is_not_asked_again(plan, capsys):
    sweep, launcher = plan(), Launcher(lambda job: RuntimeError("no such queue"))
    sweep.run(launcher, lambda _: None)
    assert launcher.launches == [FIRST]
    assert str(sweep.launcher_error) == "no such queue"
    assert "Traceback" in capsys.readouterr().err


def test_one_phase_runs_everything_at_once(plan):
    sweep, launcher = plan("hydra.sweeper.selection_seeds=null"), Launcher()
    sweep.run(launcher, lambda _: None)
    (launch,) = launcher.launches
    assert len(launch) == len(set(launch)) == 24
    assert sweep.new_choices() == []
    assert sweep.undecided_models() == []
    assert sweep.survey().complete


def test_variants_choose_for_themselves_and_lengths_of_one_protocol_together(plan):
    overrides = ("model=gla", "variant='',_b", "task=mqar_scratch", "task.seq_len=16,32", "optimizer.lr=1e-3,5e-3")

    def outcome(job: Job) -> float:
        # The longer task decides: it gains more from the larger rate than the shorter one loses.
        gain = {16: -0.1, 32: 0.2}[job.config["task"]["seq_len"]] * (job.lr == 5e-3)
        return 0.5 + (gain if job.model == "gla" else -gain)

    sweep, printed = plan(*overrides), []
    sweep.run(Launcher(outcome), printed.extend)
    assert printed == [
        "GLA: learning rate 0.005 of 2 rates, 55.0% validation accuracy on 2 seeds",
        "GLA b: learning rate 0.001 of 2 rates, 50.0% validation accuracy on 2 seeds",
    ]
    later = [entry.job for entry in sweep.survey().entries if entry.job.seed > 2]
    assert {(job.model, job.lr) for job in later} == {("gla", 5e-3), ("gla_b", 1e-3)}
    assert len(later) == 2 * 2 * 2


def test_two_sweeps_in_one_directory_are_one_too_many(plan, capsys):
    first, second = plan(), plan()
    started = []
    with first.locked(), pytest.raises(RunDirectoryError) as caught:
        command.run_sweep(second, lambda: started.append(1))
    message = str(caught.value)
    assert message.startswith(f"results_dir: {first.directory} is swept by another process (process ")
    assert "\n" not in message
    assert "mamba2         0        0       0        6        2     8" in capsys.readouterr().out
    assert not started
    with second.locked():
        pass


def test_a_directory_of_another_config_is_found_before_anything_starts(plan):
    """Also one of the second phase, and in any combination of the swept values."""
    other = plan("optimizer.weight_decay=0.2").jobs[-1]
    write_result(other, 0.5)
    started = []
    with pytest.raises(RunDirectoryError, match=r"seed_4 holds a run of another config \(optimizer.weight_decay: stor"):
        command.run_sweep(plan(), lambda: started.append(1))
    assert not started


def test_a_finished_sweep_starts_nothing(plan, capsys):
    plan().run(Launcher(), lambda _: None)
    started = []
    command.run_sweep(plan(), lambda: started.append(1))
    assert not started
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["all", "16", "0", "0", "0", "16"] in shown
    assert ["Learning", "rates:"] in [words[:2] for words in shown], "the table of the rates comes last"
