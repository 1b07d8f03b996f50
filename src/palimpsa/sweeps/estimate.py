"""How long the runs of a sweep take at most, from committed times of training steps; told before they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from palimpsa.config.schema import CONFIG_DIR, typed
from palimpsa.sweeps.ledger import Job

TIMES = CONFIG_DIR.parent / "results" / "training"
DEVICE = "nvidia-h200"
# What a run takes beside its steps in a process that has compiled its kernels, and what compiling them takes: medians
# of the committed runs that had a GPU to themselves.
SECONDS_A_RUN = 4
SECONDS_OF_COMPILING = 120

# Milliseconds a step by scale, model, context and tokens a step.
StepTimes = Mapping[tuple[str, str, int, int], float]


def describe_time(jobs: Sequence[Job], num_waiting: int = 0) -> str | None:
    """A line that says how long the runs of a sweep take at most on one GPU, one after the other.

    Args:
        jobs: to launch.
        num_waiting: more runs, whose learning rate is yet to be chosen: as long as these on average.

    Returns:
        None where there are no committed times of such steps, for runs on a CPU say.
    """
    if not jobs or any(job.config["trainer"]["accelerator"] != "gpu" for job in jobs):
        return None
    times = read_step_times()
    seconds = [longest_time(job, times) for job in jobs]
    known = [one for one in seconds if one is not None]
    if len(known) < len(seconds):
        return None
    models = len({job.model for job in jobs})
    total = sum(known) * (1 + num_waiting / len(jobs)) + models * SECONDS_OF_COMPILING
    is_fused = all(job.config["optimizer"]["dtype"] == "float32" for job in jobs)
    slower = "" if is_fused else "; of AdamW in bf16, which is not fused, there are no times"
    return (
        f"at most {total / 60:.0f} minutes on one NVIDIA H200, one run after the other, where every stage takes its "
        f"cap (results/training/steps_{DEVICE}.csv){slower}"
    )


def read_step_times() -> StepTimes:
    """The committed times; none where they are not at hand."""
    # Here and not above: pandas.
    from palimpsa.analysis.collect.benchmark_files import read_training_csv

    if not (TIMES / f"steps_{DEVICE}.csv").is_file():
        return {}
    columns = ["scale", "model", "seq_len", "tokens_per_step", "ms_per_step"]
    rows = read_training_csv(TIMES, DEVICE).loc[:, columns].itertuples(index=False, name=None)
    return {(scale, model, int(length), int(tokens)): ms for scale, model, length, tokens, ms in rows}


def longest_time(job: Job, times: StepTimes) -> float | None:
    """Seconds of a run whose stages all take their caps, without compiling; None where a time is not known.

    A model that was not timed takes as long as the slowest at its length.
    """
    # Here and not above: torch.
    from palimpsa.tasks.build import build_task

    config = typed(job.config)
    seconds = float(SECONDS_A_RUN)
    for stage in build_task(config.task, config.seed).stages:
        place = (stage.context, stage.batch_size * stage.context)
        alike = {model: ms for (scale, model, *at), ms in times.items() if (scale, *at) == (config.scale.name, *place)}
        if not alike:
            return None
        seconds += stage.max_steps * alike.get(config.model.name, max(alike.values())) / 1_000
    return seconds
