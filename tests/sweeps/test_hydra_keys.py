"""Hydra's own keys and flags: what moves or changes a run is honoured by checks, ledger and runs alike, or refused.

What a user lost: with `hydra.job.chdir=true` results lay nested below themselves, and a finished sweep was unfinished.
"""

import pytest
from omegaconf import OmegaConf

from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import TrainConfig
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.sweeps.sweep import Sweep

REFUSED = {
    "hydra.job.chdir=true": "hydra.job.chdir: got True, expected False",
    "hydra.job.name=mine": "hydra.job.name: got 'mine'",
    "+hydra.job.env_set.A=1": "hydra.job.env_set.A: got '1', expected nothing",
    "hydra.job.env_copy=[HOME]": "hydra.job.env_",
    "hydra.job.config.override_dirname.item_sep=_": "hydra.job.config.override_dirname.item_sep: got '_'",
    "hydra.job.config_name=mine": "hydra.job.config_name=mine: got a key that Hydra fills in itself",
    "hydra.run.dir=elsewhere": "hydra.run.dir: got 'elsewhere', expected '${run_dir}'",
    "hydra.sweep.dir=elsewhere": "hydra.sweep.dir: got 'elsewhere', expected '${results_dir}/runs'",
    "hydra.sweep.subdir=${seed}": "hydra.sweep.subdir: got '${seed}', expected '.'",
    "hydra.output_subdir=.hydra": "hydra.output_subdir: got '.hydra', expected None",
    "+hydra.callbacks.mine._target_=mine.Callback": "hydra.callbacks.mine._target_: got 'mine.Callback'",
    "hydra.verbose=true": "hydra.verbose: got True, expected False",
    "hydra/job_logging=default": "hydra.job_logging.",
    "hydra/hydra_logging=default": "hydra.hydra_logging.",
    "hydra.runtime.output_dir=elsewhere": "hydra.runtime.output_dir=elsewhere: got a key that Hydra fills in itself",
    "hydra.overrides.task=[]": "hydra.overrides.task=[]: got a key that Hydra fills in itself",
    "hydra/sweeper=basic": "hydra/sweeper: got 'basic', expected phased",
    "+hydra.sweeper.mine=1": "hydra.sweeper.mine: got 1, expected nothing",
    "hydra.searchpath=[file:///no/such]": "hydra.searchpath: got '/no/such', expected a folder of configs",
    "hydra.searchpath=[foo://x]": "hydra.searchpath=[foo://x]",
    "hydra.launcher=null": "hydra.launcher: got None, expected the keys of a launcher",
    "+hydra.launcher.foo=1": "hydra.launcher.foo: unknown key, expected one of _target_",
    "hydra.sweeper.params=3": "hydra.sweeper.params: got 3, expected keys with their values",
    "hydra.mode=SWEEP": "hydra.mode: Invalid value 'SWEEP'",
}


@pytest.mark.parametrize("multirun", [False, True], ids=["run", "sweep"])
@pytest.mark.parametrize("override", REFUSED)
def test_a_key_of_hydras_that_would_move_or_change_a_run_is_refused(override, multirun, tmp_path):
    with pytest.raises(ConfigError) as caught:
        plan_command_line([override, f"results_dir={tmp_path}/results"], multirun=multirun)
    assert str(caught.value).startswith(REFUSED[override])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_what_is_ours_may_be_said(tmp_path):
    own = ["hydra.job.chdir=false", "hydra.output_subdir=null", "hydra.mode=RUN", f"results_dir={tmp_path}"]
    assert isinstance(plan_command_line(own, multirun=False), TrainConfig)
    with pytest.raises(ConfigError, match=r"^hydra\.mode: got RUN with --multirun, expected one of them$"):
        plan_command_line(own, multirun=True)


def test_the_shipped_config_leaves_hydra_no_place_to_write():
    shipped = OmegaConf.load(CONFIG_DIR / "train.yaml").hydra
    assert (shipped.output_subdir, shipped.job.chdir, shipped.sweep.subdir) == (None, False, ".")


@pytest.fixture
def write(tmp_path):
    """Writes a config into a folder of the user's: `write("mine", "seed: 7")`; returns the folder."""

    def file(name: str, text: str, header: str = "defaults: [train, _self_]") -> str:
        path = tmp_path / "a user's configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{header}\n{text}\n")
        return str(path.parent)

    return file


def test_a_primary_config_of_ones_own_is_that_of_the_checks_and_of_the_ledger(write, tmp_path):
    folder = write("mine", f"results_dir: {tmp_path}/mine\nseed: 7\nhydra: {{sweeper: {{params: {{seed: '3,4'}}}}}}")
    config = plan_command_line([], multirun=False, config_dir=folder, config_name="mine")
    assert isinstance(config, TrainConfig)
    assert (config.seed, config.results_dir) == (7, f"{tmp_path}/mine")
    sweep = plan_command_line(["model=gla"], multirun=True, config_dir=folder, config_name="mine")
    assert isinstance(sweep, Sweep)
    assert (sweep.directory, [job.seed for job in sweep.jobs]) == (tmp_path / "mine/runs", [3, 4])


WRONG_FILES = {
    "optimizer: {learning_rate: 1}": "configs/mine.yaml: optimizer.learning_rate: unknown key",
    "sede: 3": "configs/mine.yaml: sede: unknown key",
    "seed: [": "configs: got a file that is not YAML",
    "hydra: {job: {chdir: true}}": "hydra.job.chdir: got True",
    "hydra: {callbacks: {mine: {_target_: a.B}}}": "hydra.callbacks.mine._target_: got 'a.B'",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_mistake_in_it_is_one_line(text, write):
    with pytest.raises(ConfigError) as caught:
        plan_command_line([], multirun=False, config_dir=write("mine", text), config_name="mine")
    assert str(caught.value).startswith(WRONG_FILES[text])
    assert "\n" not in str(caught.value)


def test_one_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(ConfigError, match=r"^--config-name: got 'trains', expected one of .*did you mean 'train'\?$"):
        plan_command_line([], multirun=False, config_name="trains")


def test_a_key_of_hydras_that_only_the_second_run_of_a_sweep_sets_is_found_too(write, tmp_path):
    """Its config is of a group: the first run's is as it should be."""
    text = (CONFIG_DIR / "trainer/cpu.yaml").read_text().replace("name: cpu", "name: own")
    indented = "\n".join(f"  {line}" for line in text.splitlines())
    folder = write("trainer/own", f"trainer:\n{indented}\nhydra: {{verbose: true}}", "# @package _global_")
    with pytest.raises(ConfigError, match=r"^hydra\.verbose: got True"):
        plan_command_line(
            ["trainer=cpu,own", "seed=1", f"results_dir={tmp_path}"],
            multirun=True,
            config_dir=folder.removesuffix("/trainer"),
        )


FLAGS = {
    "--config-path elsewhere": "--config-path: got 'elsewhere', expected none",
    "-cp elsewhere --cfg job": "--config-path: got 'elsewhere', expected none",
    "--experimental-rerun config.pickle": "--experimental-rerun: got 'config.pickle', expected none",
    "--package seed": "--package: got 'seed', expected --cfg with it",
    "--resolve": "--resolve: got no --cfg with it",
    "--run -m": "--run: got --multirun with it, expected one of them",
    "--info all --cfg job": "--cfg: got --info with it, expected one of them",
    "--shell-completion": "--shell-completion: Expecting one subcommand",
    "--config-dir elsewhere": "--config-dir: got 'elsewhere', expected a folder of configs",
    "--help model=glaa": "model: got 'glaa'",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_flag_that_is_not_honoured_is_refused_in_one_line(flags, train):
    done = train(*flags.split())
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {FLAGS[flags]}")


def test_flags_may_stand_between_overrides(train, tmp_path):
    """As `make` puts them behind its own."""
    done = train("seed=5", "--cfg", "job", f"results_dir={tmp_path}", "--package", "seed")
    assert (done.code, done.out, done.err) == (0, "5\n", "")


def test_run_asks_for_one_run_of_what_would_be_a_sweep(train, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("palimpsa.sweeps.command.train", seen.append)
    assert train("--run", "+sweep=learning_rate", "model=gla", f"results_dir={tmp_path}").code == 0
    assert [config.model.name for config in seen] == ["gla"]
