"""What W&B is told of a run beside its curves: group, type of job, tags, and files where artifacts are asked for."""

import json
from pathlib import Path

import pytest

from palimpsa.config.checks import check_config
from palimpsa.config.errors import ConfigError
from palimpsa.training.recording.figures import record_results
from palimpsa.training.run import run

from .test_private import records


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """Where wandb keeps what it makes up itself, else below the home directory."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))


def artifacts(found: list) -> dict[str, dict[str, str]]:
    """The files of each artifact, by the artifact's type: where they lie, by their name in it."""
    logged = [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    return {one.type: {entry.path: entry.local_path for entry in one.manifest.contents} for one in logged}


def test_seeds_of_a_model_and_rate_are_a_group_of_tagged_jobs(tiny_config):
    config = tiny_config("logger=wandb", "model=palimpsa_m", "seed=3", "optimizer.lr=2e-3", "variant=_x")
    run(config)
    (told,) = [record.run for record in records(Path(config.results_dir)) if record.HasField("run")]
    assert told.run_group == "mqar_curriculum-laptop-palimpsa_m_x-lr_0.002"
    assert told.job_type == "train"
    assert list(told.tags) == ["mqar_curriculum", "laptop", "palimpsa_m_x", "lr 0.002", "seed 3"]
    assert not [record for record in records(Path(config.results_dir)) if record.HasField("artifact")]


def test_a_fine_tuning_is_another_type_of_job(tiny_config):
    from palimpsa.training.loggers import job_type

    assert job_type(tiny_config("start.weights=anything")) == "finetune"


def test_checkpoint_and_tables_are_artifacts_where_asked_for(tiny_config):
    config = tiny_config("logger=wandb", "logger.artifacts=true")
    run(config)
    found = artifacts(records(Path(config.results_dir)))
    checkpoint = Path(config.run_dir) / "checkpoints/last.ckpt"
    # Uploaded from where it lies, whole: after the last step.
    assert found["model"] == {"last.ckpt": str(checkpoint.absolute())}
    import torch

    assert torch.load(checkpoint, weights_only=True)["global_step"] == 19
    assert set(found["results"]) == {"history.csv", "stages.json"}
    stages = json.loads(Path(found["results"]["stages.json"]).read_text())
    assert stages == json.loads((Path(config.run_dir) / "result.json").read_text())["stages"]
    summary = [record.summary for record in records(Path(config.results_dir)) if record.HasField("summary")]
    assert "stages" in {name for one in summary for item in one.update for name in (item.key, *item.nested_key)}


def test_the_figures_of_a_folder_are_recorded_where_asked_for(tmp_path, tiny_config):
    from matplotlib.figure import Figure

    folder = tmp_path / "mqar"
    folder.mkdir()
    Figure(figsize=(1, 1)).savefig(folder / "figure2.png")
    (folder / "table.md").write_text("| a |\n")
    (folder / "runs.csv").write_text("a\n1\n")
    (folder / "notes.txt").write_text("not shown")
    logger = {"name": "wandb", "project": "p", "mode": "offline", "artifacts": False}
    assert record_results(logger, folder) == []
    assert not (folder / "wandb").exists()
    assert record_results({"name": "csv"}, folder) == []
    assert record_results({**logger, "artifacts": True}, folder) == ["figure2.png", "runs.csv", "table.md"]
    found = artifacts(records(folder))
    assert set(found["figures"]) == {"figure2.png", "runs.csv", "table.md"}


def test_artifacts_without_wandb_are_refused(tiny_config):
    with pytest.raises(ConfigError, match=r"logger\.artifacts: got true, expected false with logger=csv"):
        check_config(tiny_config("logger.artifacts=true"))
