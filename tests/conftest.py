"""What several test modules share: composed configs, and runs of a second or two."""

from __future__ import annotations

import gc
import os
import pickle
import re
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from palimpsa.config.compose import compose_config as compose_train_config
from palimpsa.config.schema import TrainConfig, typed
from palimpsa.text.manifest import TokenizerFacts
from palimpsa.text.shards import ShardWriter, TokenShards

from .forker import Forker, Script

# No test may wait for a network or ask for an account.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

TINY = (
    "scale.d_model=16",
    "scale.num_heads=2",
    "scale.head_k_dim=4",
    "scale.head_v_dim=4",
    "task.vocab_size=32",
    "task.tokens_per_step=64",
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:7,in_figure:false},{seq_len:16,num_pairs:4,max_steps:12}]",
    "task.validation_every=5",
    "task.num_validation=8",
    "task.num_test=16",
    "trainer.log_every=3",
    "trainer.probe_every=4",
    "trainer.checkpoint_every=4",
    "trainer.progress_bar=false",
    "logger=csv",
)

TINY_BENCHMARK = (
    "device=cpu",
    "sizes=cpu",
    "warmup_ms=0.1",
    "repeat_ms=0.1",
    "presets.cpu.copy_mib=1",
    "presets.cpu.table=[{name:tiny,B:2,T:20,H:2,K:4,V:6}]",
    "presets.cpu.decode={name:tiny,B:2,T:1,H:2,K:4,V:6}",
    "presets.cpu.against_length={H:2,K:4,V:6,tokens_per_call:32,lengths:[16,32],decode_batch:2,decode_steps:2}",
)


# What `make test-fast` leaves out, so that the rest takes a minute on two cores: what trains in processes of its own,
# runs Triton's interpreter or a scheduler, draws many figures, or takes more than two seconds. Folders, files and
# FILE::TEST (with all its parameters) below tests/. `make test` runs everything.
SLOW = (
    "analysis/calibration",
    "analysis/dashboard/test_build.py::test_500_runs_take_at_most_15_mb_and_a_small_index",
    "analysis/dashboard/test_build.py::test_committed_results_have_a_page",
    "analysis/dashboard/test_inspection_page.py",
    "analysis/dashboard/test_page.py",
    "analysis/draw",
    "analysis/memory",
    "analysis/statistics/test_selection.py",
    "analysis/test_build.py",
    "analysis/test_committed.py",
    "analysis/test_hostile_text.py",
    "analysis/test_large_counts.py",
    "benchmark/pretraining/test_plan.py",
    "benchmark/pretraining/test_rows.py",
    "benchmark/test_config.py",
    "benchmark/test_isolated.py",
    "benchmark/test_run.py",
    "benchmark/test_steps.py",
    "benchmark/test_training_config.py",
    "benchmark/test_training_runs.py",
    "config/test_compose.py",
    "config/test_process.py",
    "config/test_shipped.py",
    "conversion",
    "evaluation/calibration/test_calibrate.py",
    "evaluation/memory/test_command.py",
    "evaluation/memory/test_views.py",
    "evaluation/test_evaluate.py",
    "evaluation/test_harness.py",
    "evaluation/test_interruption.py",
    "evaluation/test_kinds_of_models.py",
    "evaluation/test_lengths.py",
    "evaluation/test_pretraining.py",
    "evaluation/test_scoring.py",
    "finetuning",
    "kernels/fla",
    "kernels/gpu",
    "kernels/test_chunked.py::test_gradcheck",
    "kernels/test_library.py",
    "kernels/test_package.py",
    "mixers/test_parity.py",
    "mixers/test_projected.py",
    "model/hf",
    "model/test_checkpoint_blocks.py",
    "model/test_table.py",
    "runs/test_identity.py",
    "runs/test_protocol.py",
    "runs/test_provenance.py",
    "sweeps/test_child_process.py",
    "sweeps/test_command.py",
    "sweeps/test_estimate.py",
    "sweeps/test_hydra_keys.py",
    "sweeps/test_launchers.py",
    "sweeps/test_plan.py",
    "sweeps/test_slurm.py",
    "sweeps/test_sweep.py",
    "sweeps/test_terminals.py",
    "test_architecture.py::test_every_script_prepares_its_process_before_it_imports_matplotlib",
    "test_makefile.py",
    "test_packaging.py",
    "test_readme.py",
    "test_scripts.py",
    "test_slurm_script.py",
    "text/test_prepare.py",
    "training/recording",
    "training/storage/test_frozen.py",
    "training/storage/test_resume.py",
    "training/test_accumulation.py",
    "training/test_checkpoint.py",
    "training/test_checkpoint_blocks.py",
    "training/test_commonsense_run.py",
    "training/test_crash.py",
    "training/test_distributed.py",
    "training/test_graphed_step.py",
    "training/test_loggers.py",
    "training/test_own_task.py",
    "training/test_parameter_groups.py",
    "training/test_recall_recipe.py",
    "training/test_run.py",
    "training/test_stability.py",
    "training/test_start.py",
    "training/watch/test_step_bar.py",
    "training/watch/test_stop_signal.py",
)


# What takes longest, longest first: two processes that take a file at a time end together if the last ones are short.
# `make test` has pytest-xdist keep this order; its own begins with the files of the most tests.
LONGEST = (
    "kernels/gpu/test_compilation.py",
    "test_readme.py",
    "training/test_crash.py",
    "config/test_shipped.py",
    "sweeps/test_slurm.py",
    "analysis/dashboard/test_page.py",
    "test_scripts.py",
    "training/test_commonsense_run.py",
    "test_slurm_script.py",
    "training/test_stability.py",
    "training/test_run.py",
    "training/test_distributed.py",
    "sweeps/test_plan.py",
    "sweeps/test_command.py",
    "sweeps/test_terminals.py",
    "analysis/test_committed.py",
    "training/storage/test_resume.py",
    "training/watch/test_stop_signal.py",
    "kernels/gpu/test_forward_backward.py",
    "model/test_table.py",
    "analysis/test_hostile_text.py",
    "evaluation/test_interruption.py",
    "evaluation/calibration/test_calibrate.py",
    "finetuning/test_demonstration.py",
    "kernels/test_library.py",
    "analysis/test_large_counts.py",
    "training/test_loggers.py",
    "analysis/dashboard/test_build.py",
    "kernels/gpu/test_grouped.py",
)


def is_slow(nodeid: str) -> bool:
    """Whether a test is among `SLOW`: `is_slow("tests/model/test_table.py::test_published_sizes[...]")`."""
    name = nodeid.removeprefix("tests/")
    return any(name == entry or name.startswith((f"{entry}/", f"{entry}::", f"{entry}[")) for entry in SLOW)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Has the garbage collector look at none of the million objects that are imported and collected, and which stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, puts the longest files first, and skips what is marked gpu where there is none."""
    ranks = {f"tests/{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))
    for item in items:
        if is_slow(item.nodeid):
            item.add_marker("slow")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# By overrides, pickled: to compose takes Hydra a tenth of a second, and hundreds of tests ask for the same.
_composed: dict[tuple[str, ...], bytes] = {}


def _compose(*overrides: str) -> DictConfig:
    # Each test has a place of its own for its results, which is set in the config of the others. The last one counts.
    places = [text for text in overrides if text.startswith("results_dir=")]
    is_plain = bool(places) and re.fullmatch(r"results_dir=/[\w./-]+", places[-1]) is not None
    others = tuple(text for text in overrides if not (is_plain and text in places))
    if others not in _composed:
        _composed[others] = pickle.dumps(compose_train_config(others))
    config = pickle.loads(_composed[others])
    if is_plain:
        config.results_dir = places[-1].partition("=")[2]
    return config


@pytest.fixture
def compose_config():
    """configs/train.yaml with overrides: `compose_config("model=gla")`."""
    return _compose


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """The command line of a run of 19 steps."""
    return TINY


@pytest.fixture
def tiny_benchmark() -> tuple[str, ...]:
    """The command line of a benchmark of a few seconds, on the CPU."""
    return TINY_BENCHMARK


@pytest.fixture
def tiny_config(tmp_path: Path):
    """Composes a run of 19 steps below tmp_path: `tiny_config("model=gla", ...)`."""

    def make(*overrides: str) -> TrainConfig:
        return typed(_compose(*TINY, f"results_dir={tmp_path}", *overrides))

    return make


@pytest.fixture
def slow_entries() -> tuple[str, ...]:
    """What `make test-fast` leaves out."""
    return SLOW


@pytest.fixture
def longest_files() -> tuple[str, ...]:
    """What is run first."""
    return LONGEST


def _write_shards(
    directory: Path, documents: Sequence[Sequence[int]], *, vocab_size: int = 32, tokenizer: str = "0" * 64
) -> TokenShards:
    """Documents of token ids below vocab_size - 1, which ends each, in shards of 100 tokens; 2 bytes a token."""
    facts = TokenizerFacts("test", "bytes", tokenizer, vocab_size, vocab_size - 1)
    writer = ShardWriter(directory, tokenizer=facts, tokens_per_shard=100)
    for document in documents:
        writer.add(document, 2 * len(document))
    return writer.finish()


def _write_text(directory: Path, *, num_documents: int = 40, vocab_size: int = 32, seed: int = 0) -> Path:
    """A folder with train/ and validation/: documents of 0 to 60 tokens that count up by steps of their own."""
    generator = np.random.default_rng(seed)

    def documents(number: int) -> list[list[int]]:
        shapes = generator.integers((0, 0, 1), (61, vocab_size - 1, 3), (number, 3)).tolist()
        return [[(first + step * i) % (vocab_size - 1) for i in range(length)] for length, first, step in shapes]

    _write_shards(directory / "train", documents(num_documents), vocab_size=vocab_size)
    _write_shards(directory / "validation", documents(num_documents // 2), vocab_size=vocab_size)
    return directory


@pytest.fixture(scope="session")
def write_shards():
    """Writes token shards of documents: `write_shards(tmp_path / "train", [[1, 2], [3]], vocab_size=5)`."""
    return _write_shards


@pytest.fixture(scope="session")
def write_text():
    """Writes a folder for the task `commonsense`: `write_text(tmp_path, num_documents=40)`."""
    return _write_text


@pytest.fixture(scope="session")
def forker(tmp_path_factory) -> Iterator[Forker]:
    forker = Forker(tmp_path_factory.mktemp("forker"))
    yield forker
    forker.close()


@pytest.fixture(scope="session")
def start_script(forker):
    """Starts a script in a process of its own: `start_script("train.py", "seed=2", WANDB_MODE="offline").wait()`."""
    return forker.start


@pytest.fixture(scope="session")
def start_ranks(forker):
    """The processes of one run, as torchrun starts them, by rank: `start_ranks(2, "train.py", "seed=2")`."""

    def start(number: int, name: str, *arguments: str) -> list[Script]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {
            **{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "GROUP_RANK": 0},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        }
        shared = {key: str(value) for key, value in variables.items()}
        return [
            forker.start(name, *arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(number)
        ]

    return start


@pytest.fixture(scope="session")
def run_ranks(start_ranks):
    """The same, once all have ended with 0; where one has not, none waits for it."""

    def run_to_end(number: int, name: str, *arguments: str) -> list[Script]:
        ranks = start_ranks(number, name, *arguments)
        deadline = time.monotonic() + 300
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.005)
        for rank in ranks:
            rank.kill()
        assert codes == [0] * number, "\n".join(rank.err for rank in ranks)
        return ranks

    return run_to_end
