"""A run that starts from weights of another run or of a folder: what it takes, who it is, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import plain
from palimpsa.model.build import build_model
from palimpsa.runs.identity import config_hash, identity

ROOT = Path(__file__).resolve().parents[2]


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def run(config):
    from palimpsa.training.run import run as run_it

    return run_it(config)


def read(path):
    from palimpsa.training.storage.trained import read_source

    return read_source(Path(path))


@pytest.fixture
def source(tiny_config, tmp_path):
    """The directory of a finished run of 19 steps: `source("mamba2")`."""

    def make(model: str = "palimpsa_d") -> Path:
        config = tiny_config(f"model={model}", f"results_dir={tmp_path}/source", "trainer.keep_final=true")
        run(config)
        return Path(config.run_dir)

    return make


@pytest.fixture
def folder(tiny_config, tmp_path):
    """A folder as scripts/convert.py writes one, of random weights: `folder("palimpsa_d", dtype=torch.bfloat16)`."""

    def make(model: str = "palimpsa_d", dtype: torch.dtype = torch.float32, **changes) -> Path:
        config = tiny_config(f"model={model}")
        weights = {
            f"model.{name}": value.to(dtype) for name, value in build_model(config.model, 5).state_dict().items()
        }
        path = tmp_path / "folder"
        path.mkdir()
        save_file(
            {k: v.contiguous() for k, v in (weights | changes).items() if v is not None}, path / "model.safetensors"
        )
        (path / "config.json").write_text(json.dumps({"model_type": "palimpsa"}))
        return path

    return make


def first_weights(config) -> dict[str, torch.Tensor]:
    """What a run of this config trains from."""
    from palimpsa.training.storage.start import fill_from_start, with_start_digest

    model = build_model(config.model, config.seed)
    fill_from_start(model, with_start_digest(config).start)
    return model.state_dict()


@pytest.mark.parametrize("model", ["palimpsa_d", "mamba2", "gated_deltanet"])
def test_a_run_starts_where_another_ended(source, tiny_config, model):
    directory = source(model)
    ended = read(directory)
    assert ended.step == 19
    config = tiny_config(f"model={model}", f"start.weights={directory}", "seed=7")
    started = first_weights(config)
    assert started.keys() == ended.weights.keys()
    assert all(torch.equal(weight, ended.weights[name]) for name, weight in started.items())
    # And it trains from there: its first losses are not those of fresh weights.
    result, fresh = run(config), tiny_config(f"model={model}", "seed=7", "variant=_fresh")
    run(fresh)
    losses = [pd.read_csv(Path(one.run_dir) / "history.csv")["loss"].iloc[0] for one in (config, fresh)]
    assert losses[0] != losses[1]
    assert len(result["config"]["start"]["digest"]) == 64


def test_a_folder_of_half_precision_is_taken_into_fp32_weights(folder, tiny_config):
    path = folder(dtype=torch.bfloat16)
    config = tiny_config(f"start.weights={path}")
    started, stored = first_weights(config), read(path).weights
    assert {weight.dtype for weight in started.values()} == {torch.float32}
    assert all(torch.equal(weight, stored[name].float()) for name, weight in started.items())


def test_the_weights_are_of_the_identity_and_their_path_is_not(source, folder, tiny_config, tmp_path):
    from palimpsa.training.storage.start import with_start_digest

    directory = source()
    without = plain(tiny_config())
    assert not [name for name in identity(without) if name.startswith("start")]
    config = with_start_digest(tiny_config(f"start.weights={directory}"))
    assert config_hash(plain(config)) != config_hash(without)
    moved = shutil.copytree(directory, tmp_path / "elsewhere")
    for same in (moved, directory / "checkpoints/last.ckpt"):
        again = with_start_digest(tiny_config(f"start.weights={same}"))
        assert config_hash(plain(again)) == config_hash(plain(config))
    other = with_start_digest(tiny_config(f"start.weights={folder()}"))
    assert config_hash(plain(other)) != config_hash(plain(config))
    # So a finished run is not taken for that of other weights, and its own is not repeated.
    result = run(tiny_config(f"start.weights={directory}"))
    assert run(tiny_config(f"start.weights={moved}")) == result
    with pytest.raises(RunDirectoryError, match=r"start\.digest: stored '[0-9a-f]{64}', now"):
        run(tiny_config(f"start.weights={tmp_path / 'folder'}"))


def test_the_keys_leave_the_identity_of_earlier_runs(tiny_config):
    """The hash of a config before there were `start`, the new rates, freezing and keep_final."""
    stored = plain(tiny_config())
    older = {name: value for name, value in stored.items() if name != "start"}
    older["optimizer"] = {
        k: v for k, v in stored["optimizer"].items() if k not in ("new_lr", "new_eps", "new_warmup_steps", "freeze")
    }
    older["trainer"] = {k: v for k, v in stored["trainer"].items() if k != "keep_final"}
    assert config_hash(older) == config_hash(stored)


def test_a_killed_run_goes_on_from_its_own_checkpoint_and_needs_the_start_no_more(
    source, tiny_config, tiny_overrides, tmp_path
):
    directory = source("palimpsa_d")
    longer = (
        "task.stages=[{seq_len:16,num_pairs:4,max_steps:120}]",
        "trainer.checkpoint_every=10",
        f"start.weights={directory}",
        *("optimizer.new_lr=2e-2", "optimizer.new_warmup_steps=30", "optimizer.freeze=[embedding.*]"),
    )
    undisturbed = tiny_config(*longer)
    expected = run(undisturbed)
    command = [sys.executable, ROOT / "scripts/train.py", *tiny_overrides, *longer, f"results_dir={tmp_path}/killed"]
    killed = tmp_path / "killed" / Path(undisturbed.run_dir).relative_to(tmp_path)
    checkpoint = killed / "checkpoints/last.ckpt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not checkpoint.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    shutil.rmtree(directory)
    again = run(tiny_config(*longer, f"results_dir={tmp_path}/killed"))
    assert again["stages"] == expected["stages"]
    assert again["config_hash"] == expected["config_hash"]
    curves = [
        pd.read_csv(one / "history.csv").drop(columns="tokens_per_s") for one in (Path(undisturbed.run_dir), killed)
    ]
    pd.testing.assert_frame_equal(*curves)
    # A run that has not begun does need it.
    with pytest.raises(ConfigError, match=r"^start\.weights: .* not there, expected a run's directory"):
        run(tiny_config(*longer, f"results_dir={tmp_path}/new"))


def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(source, folder, tiny_config, tmp_path):
    directory = source("mamba2")
    config = tiny_config("model=palimpsa_m", f"start.weights={directory}", f"results_dir={tmp_path}/new")
    with pytest.raises(ConfigError, match=r"blocks\.0\.mixer\.plasticity\.scale, .* and 3 more missing$"):
        run(config)
    assert not Path(config.run_dir).exists()
    path = folder(
        **{"model.other": torch.ones(2), "model.embedding.weight": torch.ones(3, 16), "model.norm.bias": None}
    )
    with pytest.raises(ConfigError) as caught:
        run(tiny_config(f"start.weights={path}"))
    for words in ("norm.bias missing", "other unexpected", "embedding.weight [3, 16] for [32, 16] of another shape"):
        assert words in str(caught.value)


def test_a_run_that_did_not_keep_its_last_weights_is_no_start(tiny_config, tmp_path):
    config = tiny_config(f"results_dir={tmp_path}/source")
    run(config)
    with pytest.raises(
        RunDirectoryError, match=r"newest checkpoint is of step 16, and the run ended at 19.*keep_final"
    ):
        run(tiny_config(f"start.weights={config.run_dir}"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "not there, expected a run's directory"),
        (lambda path: path.mkdir(), "got no checkpoint in it"),
        (lambda path: path.write_bytes(b"no checkpoint"), "cannot be read"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text('{"model_type": "mamba2"}')), "type 'mamba2'"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text('{"model_type": "palimpsa"}')), "no model.safe"),
    ],
    ids=["gone", "empty", "damaged", "another-architecture", "no-weights"],
)
def test_what_is_no_start_is_one_clear_error(make, words, tiny_config, tmp_path):
    make(tmp_path / "start")
    with pytest.raises((ConfigError, RunDirectoryError), match=rf"^start\.weights: .*{words}") as caught:
        run(tiny_config(f"start.weights={tmp_path}/start"))
    assert "\n" not in str(caught.value)


def test_a_digest_is_held_to(folder, tiny_config):
    path = folder()
    with pytest.raises(ConfigError, match=r"start\.digest: got abc, expected [0-9a-f]{64}"):
        run(tiny_config(f"start.weights={path}", "start.digest=abc"))
    with pytest.raises(ConfigError, match=r"start\.digest: got abc with start\.weights=null"):
        run(tiny_config("start.digest=abc"))
