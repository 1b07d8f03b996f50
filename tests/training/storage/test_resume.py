"""A run whose processes share the weights, killed, and gone on with by another number of them: nothing is another.

Property 1 of distributed checkpoints: saved on 2 ranks, loaded on 1 and 4, weights, moments and next tokens are equal.
"""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from palimpsa.runs.directory import RunDirectory
from palimpsa.training.checkpoint import read_checkpoint
from palimpsa.training.module import TrainingModule
from palimpsa.training.run import run
from palimpsa.training.storage.strategy import ShardedStrategy

# Its parameters are not in the order of the optimiser's groups; of another shape each, and there are a few alike.
OVERRIDES = ("model=palimpsa_d", "seed=2", "trainer.checkpoint_every=4")
FSDP = "trainer.strategy=fsdp"


@pytest.fixture(scope="module")
def train(run_ranks, tiny_overrides):
    """Trains the run by several processes to its end: `train(2, f"results_dir={tmp_path}", FSDP)`."""
    return lambda number, *arguments: run_ranks(number, "train.py", *tiny_overrides, *OVERRIDES, *arguments)


def curves(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").drop(columns="tokens_per_s")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_overrides) -> Path:
    """The directory of a run of one process."""
    return directory_of(tmp_path_factory.mktemp("undisturbed"), tiny_overrides, start=True)


def directory_of(results: Path, tiny_overrides, *, start: bool = False) -> Path:
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed

    config = typed(compose_config([*tiny_overrides, *OVERRIDES, f"results_dir={results}"]))
    if start:
        run(config)
    return Path(config.run_dir)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, train, tiny_overrides) -> Path:
    """The directory of a run of two processes that share the weights, as a kill after step 16 of 19 leaves it."""
    results = tmp_path_factory.mktemp("two")
    train(2, f"results_dir={results}", FSDP)
    directory = directory_of(results, tiny_overrides)
    for name in ("result.json", "history.csv"):
        (directory / name).unlink()
    return directory


def test_the_folder_of_two_processes_has_a_shard_of_each(two_ranks):
    (folder,) = RunDirectory(two_ranks).checkpoints.newest_first()
    assert folder.name == "step_16"
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.distcp"))]
    assert len(sizes) == 2
    assert min(sizes) > 0.3 * sum(sizes)


def copy_of(directory: Path, results: Path, tiny_overrides) -> Path:
    copy = directory_of(results, tiny_overrides)
    shutil.copytree(directory, copy)
    return copy


def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


class Loaded(Exception):
    """What has been loaded was looked at."""


@pytest.fixture
def loaded(monkeypatch, tiny_config, two_ranks, tmp_path, tiny_overrides):
    """Weights and moments by the parameters' names, with which a run in this process is about to go on."""
    found = {}

    def look(module):
        optimizer = module.optimizers(use_pl_optimizer=False)
        found["step"] = module.trainer.global_step
        # A forward pass has left the weights of no block together.
        getattr(module.model, "reshard", lambda: None)()
        for name, parameter in module.named_parameters():
            moments = {key: full(value) for key, value in optimizer.state[parameter].items()}
            found[name] = full(parameter.detach()), moments
        raise Loaded

    monkeypatch.setattr(TrainingModule, "on_train_start", look)

    def load(*overrides):
        copy_of(two_ranks, tmp_path, tiny_overrides)
        with pytest.raises(Loaded):
            run(tiny_config(*OVERRIDES, *overrides))
        return found

    return load


def check_loaded(found, two_ranks, tmp_path):
    (folder,) = RunDirectory(two_ranks).checkpoints.newest_first()
    # By torch's own tool, which knows nothing of numbers.
    dcp_to_torch_save(folder, tmp_path / "whole.pt")
    stored = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert found.pop("step") == 16
    moments_of = stored["optimizer_0"]["state"]
    assert found.keys() == moments_of.keys()
    for name, (weight, moments) in found.items():
        assert torch.equal(weight, stored["state_dict"][name])
        assert moments.keys() == moments_of[name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(moments_of[name][key], value) for key, value in moments.items())


def test_one_process_loads_what_two_have_saved(loaded, two_ranks, tmp_path):
    check_loaded(loaded(), two_ranks, tmp_path)


def test_one_that_shards_loads_what_two_have_saved(loaded, two_ranks, one_rank, tmp_path):
    check_loaded(loaded(FSDP), two_ranks, tmp_path)


@pytest.mark.parametrize(("number", "strategy"), [(2, "ddp"), (2, "fsdp"), (4, "fsdp")])
def test_several_go_on_where_two_were(train, two_ranks, undisturbed, tmp_path, tiny_overrides, number, strategy):
    copy = copy_of(two_ranks, tmp_path, tiny_overrides)
    train(number, f"results_dir={tmp_path}", f"trainer.strategy={strategy}")
    pd.testing.assert_frame_equal(curves(copy), curves(undisturbed), rtol=1e-5, atol=0)


def test_one_goes_on_where_two_were(two_ranks, undisturbed, tiny_config, tmp_path, tiny_overrides):
    copy = copy_of(two_ranks, tmp_path, tiny_overrides)
    result = run(tiny_config(*OVERRIDES))
    assert "notes" not in result["provenance"]
    pd.testing.assert_frame_equal(curves(copy), curves(undisturbed), rtol=1e-5, atol=0)


@pytest.fixture
def killed_at_12(tiny_config, monkeypatch, one_rank):
    """A run that shards over one process, ended by its checkpoint at step 12: its config, and its directory."""
    saved = []
    save = ShardedStrategy.save_checkpoint

    def save_and_end(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(1)
        if len(saved) == 3:
            raise Loaded

    config = tiny_config(*OVERRIDES, FSDP)
    with monkeypatch.context() as patched:
        patched.setattr(ShardedStrategy, "save_checkpoint", save_and_end)
        with pytest.raises(Loaded):
            run(config)
    directory = RunDirectory(config.run_dir)
    directory.result_file.unlink()
    assert [path.name for path in directory.checkpoints.newest_first()] == ["step_12", "step_8"]
    return config, directory


DAMAGES = {
    "shard": ("__0_0.distcp", "the checksum of __0_0.distcp in it is another one"),
    "rest": ("meta.pt", "the checksum of meta.pt in it is another one"),
    "missing shard": ("__0_0.distcp", "__0_0.distcp of it is missing"),
    "missing folder": (None, "the folder is missing, and step_12 is what `latest` names"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_one_is_kept_apart_and_the_run_goes_on_from_the_one_before(killed_at_12, undisturbed, what):
    config, directory = killed_at_12
    folder, (name, told) = directory.checkpoints.newest_first()[0], DAMAGES[what]
    if name is None:
        shutil.rmtree(folder)
    elif what.startswith("missing"):
        (folder / name).unlink()
    else:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)
    (note,) = run(config)["provenance"]["notes"]
    assert note == f"{folder} is no readable checkpoint ({told}): the run goes on from step_8"
    pd.testing.assert_frame_equal(curves(directory.path), curves(undisturbed), rtol=1e-5, atol=0)
    assert Path(f"{folder}.damaged").exists() == (name is not None)
    # A finished run keeps its last.
    assert [path.name for path in directory.checkpoints.newest_first()] == ["step_16"]


def test_another_runs_folder_is_not_taken_up(killed_at_12, tiny_config):
    from palimpsa.config.errors import RunDirectoryError

    _, directory = killed_at_12
    for change, told in (
        ("optimizer.lr=1e-3", r"step_12 is a checkpoint of another run, whose config_hash is"),
        ("scale.head_k_dim=8", r"model: .*step_12 is a checkpoint of another model, expected one of this run's"),
    ):
        other = tiny_config(*OVERRIDES, FSDP, change, f"results_dir={directory.path}/other")
        shutil.copytree(directory.checkpoints.path, RunDirectory(other.run_dir).checkpoints.path)
        with pytest.raises(RunDirectoryError, match=told):
            run(other)


def test_processes_that_share_go_on_where_one_was(train, undisturbed, tmp_path, tiny_overrides):
    """From a file: the parameters' numbers in it are those of the optimiser's groups, not of the model's order."""
    copy = copy_of(undisturbed, tmp_path, tiny_overrides)
    assert RunDirectory(copy).checkpoint_step() == 16
    for name in ("result.json", "history.csv"):
        (copy / name).unlink()
    train(2, f"results_dir={tmp_path}", FSDP)
    pd.testing.assert_frame_equal(curves(copy), curves(undisturbed), rtol=1e-5, atol=0)


def test_a_trained_model_is_read_from_its_shards(two_ranks):
    from palimpsa.evaluation.trained import load_trained

    (folder,) = RunDirectory(two_ranks).checkpoints.newest_first()
    trained = load_trained(two_ranks)
    assert trained.step == 16
    weights: dict[str, Tensor] = read_checkpoint(folder, [])["state_dict"]
    assert all(torch.equal(weights[f"model.{name}"], x) for name, x in trained.model.state_dict().items())


def test_a_folder_of_shards_becomes_one_of_transformers(two_ranks, tmp_path):
    from safetensors.torch import load_file

    from palimpsa.conversion.command import convert_main

    assert convert_main(["export", str(two_ranks), str(tmp_path / "model")]) == 0
    (folder,) = RunDirectory(two_ranks).checkpoints.newest_first()
    weights: dict[str, Tensor] = read_checkpoint(folder, [])["state_dict"]
    exported = load_file(tmp_path / "model/model.safetensors")
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in weights)
