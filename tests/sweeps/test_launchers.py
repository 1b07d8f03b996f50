"""The launchers of configs/: what they are set to, and what is refused before the first run."""

import multiprocessing
import os
import subprocess
import sys
import tomllib
import warnings

import pytest
from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from palimpsa.config.compose import CONFIG_DIR, composition
from palimpsa.config.errors import ConfigError
from palimpsa.sweeps import launchers
from palimpsa.sweeps.launchers import PACKAGES, check_launcher, runs_on_other_machines, worker_ends_with_sweep
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.training.gpus import check_device

ROOT = CONFIG_DIR.parent
LAUNCHERS = sorted(path.stem for path in (CONFIG_DIR / "hydra/launcher").glob("*.yaml"))


def compose_sweep(*overrides: str, multirun: bool = True) -> DictConfig:
    with warnings.catch_warnings(), composition(overrides):
        # As palimpsa.sweeps.launchers has it outside of tests.
        warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher")
        cfg = compose("train", list(overrides), return_hydra_config=True)
    if multirun:
        cfg.hydra.mode = RunMode.MULTIRUN
    return cfg


@pytest.fixture
def on_a_cluster(tmp_path, monkeypatch):
    """A PATH with an sbatch that has nothing against any job, and every package there is."""
    for program in ("sbatch", "srun"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("palimpsa.sweeps.launchers._is_installed", lambda module: True)


def test_the_launchers_of_the_design_are_there():
    assert LAUNCHERS == ["joblib", "ray", "submitit_slurm"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_is_composed_checked_and_takes_overrides(name, on_a_cluster):
    check_launcher(compose_sweep(f"hydra/launcher={name}"))
    override, key, value = {
        "joblib": ("hydra.launcher.n_jobs=2", "n_jobs", 2),
        "submitit_slurm": ("hydra.launcher.partition=long", "partition", "long"),
        "ray": ("hydra.launcher.ray.remote.num_cpus=2", "ray.remote.num_cpus", 2),
    }[name]
    cfg = compose_sweep(f"hydra/launcher={name}", override)
    check_launcher(cfg)
    assert OmegaConf.select(cfg.hydra.launcher, key) == value


@pytest.mark.parametrize("name", ["joblib", "submitit_slurm"])
def test_every_key_of_a_launcher_is_one_of_its_plugins(name):
    compose_sweep()
    schema = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
    ours = OmegaConf.load(CONFIG_DIR / f"hydra/launcher/{name}.yaml")
    assert set(ours) <= set(schema)
    assert ours._target_ == schema._target_


def test_slurm_jobs_keep_their_files_below_the_sweep_and_may_be_requeued():
    launcher = compose_sweep("hydra/launcher=submitit_slurm", "results_dir=elsewhere").hydra.launcher
    assert launcher.submitit_folder == "elsewhere/runs/.submitit/%j"
    assert launcher.additional_parameters.requeue is True
    assert launcher.max_num_timeout > 0


def test_extras_install_what_a_launcher_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, (needed, extra) in PACKAGES.items():
        if extra is not None:
            names = {line.partition("==")[0] for line in extras[extra]}
            assert names == {package.removeprefix("hydra_plugins.").replace("_", "-"), needed}


@pytest.mark.parametrize(
    ("name", "module", "advice"),
    [
        ("ray", "hydra_plugins.hydra_ray_launcher", '.[ray]"'),
        ("ray", "ray", '.[ray]"'),
        ("submitit_slurm", "hydra_plugins.hydra_submitit_launcher", '.[slurm]"'),
        ("submitit_slurm", "submitit", '.[slurm]"'),
        ("joblib", "hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher"),
    ],
)
def test_a_launcher_whose_package_is_missing_is_named_with_its_extra(name, module, advice, on_a_cluster, monkeypatch):
    monkeypatch.setattr("palimpsa.sweeps.launchers._is_installed", lambda wanted: wanted != module)
    with pytest.raises(ConfigError) as caught:
        check_launcher(compose_sweep(f"hydra/launcher={name}"))
    message = str(caught.value)
    assert message.startswith(f"hydra/launcher: got {name}, which needs a package that is not installed; pip install")
    assert message.endswith(advice)
    assert "\n" not in message


def test_packages_are_looked_for_without_importing_them():
    program = (
        "import sys; from palimpsa.sweeps.launchers import _is_installed as there\n"
        "assert there('submitit') and there('hydra_plugins.hydra_submitit_launcher')\n"
        "assert not there('no_such_package') and not there('no_such_package.inside') and not there('json.inside')\n"
        "assert 'submitit' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("hydra/launcher=joblib hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs: got 0, expected runs at a time"),
        ("hydra/launcher=joblib hydra.launcher.batch_size=0", "hydra.launcher.batch_size: got 0, expected 1 or more"),
        (
            "hydra/launcher=joblib hydra.launcher.pre_dispatch=0",
            "hydra.launcher.pre_dispatch: got 0, expected 1 or more",
        ),
        ("hydra/launcher=joblib hydra.launcher.pre_dispatch=2/0", "hydra.launcher.pre_dispatch: got 2/0, expected 1"),
        ("hydra/launcher=joblib hydra.launcher.max_nbytes=foo", "hydra.launcher: joblib refuses it: "),
        ("hydra/launcher=joblib hydra.launcher.pre_dispatch=foo", "hydra.launcher.pre_dispatch: got foo, expected all"),
        (
            "hydra/launcher=joblib hydra.launcher.timeout=-1",
            "hydra.launcher.timeout: got -1",
        ),
        (
            "hydra/launcher=submitit_slurm hydra.launcher.timeout_min=0",
            "hydra.launcher.timeout_min: got 0, expected >=",
        ),
        ("hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=0", "hydra.launcher.cpus_per_task: got 0"),
        ("hydra/launcher=submitit_slurm hydra.launcher.array_parallelism=0", "hydra.launcher.array_parallelism: got 0"),
        ("hydra/launcher=submitit_slurm hydra.launcher.max_num_timeout=-1", "hydra.launcher.max_num_timeout: got -1"),
        (
            "hydra/launcher=submitit_slurm hydra.launcher.timeout_min=2",
            "hydra.launcher.signal_delay_s: got 120, expected less than the 2 minutes of hydra.launcher.timeout_min",
        ),
        (
            "hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node=2",
            "hydra.launcher.tasks_per_node: got 2, expected 1: a run is one process",
        ),
        (
            "hydra/launcher=submitit_slurm trainer=gpu",
            "hydra.launcher.gres: got null, expected a GPU for every job with trainer=gpu; add",
        ),
        ("hydra/launcher=ray trainer=gpu", "hydra.launcher.ray.remote.num_gpus: got 0, expected > 0 with trainer=gpu"),
        (
            "hydra/launcher=ray trainer=gpu hydra.launcher.ray.remote.num_gpus=1 trainer.gpus=[0,1]",
            "trainer.gpus: got [0, 1], expected null with hydra/launcher=ray, which gives every run its GPU",
        ),
        (
            "hydra/launcher=submitit_slurm trainer=gpu hydra.launcher.gres=gpu:1 trainer.gpus=[1]",
            "trainer.gpus: got [1], expected null with hydra/launcher=submitit_slurm",
        ),
        (
            "hydra/launcher=ray hydra.launcher.ray.init.address=auto",
            "results_dir: got results, expected an absolute path on a Ray cluster",
        ),
    ],
)
def test_jobs_that_could_not_do_their_work_are_refused(overrides, message, on_a_cluster):
    with pytest.raises(ConfigError) as caught:
        check_launcher(compose_sweep(*overrides.split()))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "hydra/launcher=basic",
        "hydra/launcher=submitit_slurm trainer=gpu hydra.launcher.gres=gpu:1",
        "hydra/launcher=submitit_slurm trainer=gpu hydra.launcher.gpus_per_node=1",
        "hydra/launcher=submitit_slurm trainer=gpu +hydra.launcher.additional_parameters.gpus=1",
        "hydra/launcher=ray trainer=gpu hydra.launcher.ray.remote.num_gpus=0.5",
    ],
)
def test_jobs_that_get_what_they_need_are_fine(overrides, on_a_cluster):
    check_launcher(compose_sweep(*overrides.split()))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_for_a_single_run_is_refused(name, on_a_cluster):
    with pytest.raises(ConfigError, match=rf"^hydra/launcher: got {name} for a single run, .* add -m"):
        check_launcher(compose_sweep(f"hydra/launcher={name}", multirun=False))


def test_slurm_without_its_programs_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"^hydra/launcher: got submitit_slurm, .* has no sbatch and no srun on its PATH"
    ):
        check_launcher(compose_sweep("hydra/launcher=submitit_slurm"))


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        ("sbatch: error: invalid partition specified: x", 1, "got partition=x, and Slurm says: sbatch: error: invalid"),
        ("sbatch: fatal: Unable to process configuration file", 1, "Slurm says: sbatch: fatal: Unable to process"),
        # A node that is down: the job would wait.
        ("allocation failure: Requested node configuration is not available", 1, None),
        ("sbatch: Job 1 to start at 2030-01-01T00:00:00", 0, None),
    ],
)
def test_what_sbatch_says_for_good_is_passed_on(told, code, message, on_a_cluster, tmp_path):
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho '{told}' >&2\nexit {code}\n")
    cfg = compose_sweep("hydra/launcher=submitit_slurm", "hydra.launcher.partition=x")
    if message is None:
        check_launcher(cfg)
        return
    with pytest.raises(ConfigError) as caught:
        check_launcher(cfg)
    assert message in str(caught.value)


def test_jobs_elsewhere_check_their_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    slurm = ("hydra/launcher=submitit_slurm", "hydra.launcher.gres=gpu:1", "trainer=gpu", "scale=h200")
    cluster = ("hydra/launcher=ray", "hydra.launcher.ray.init.address=auto", "trainer=gpu")
    for elsewhere in (slurm, cluster):
        assert runs_on_other_machines(compose_sweep(*elsewhere))
        check_device(compose_sweep(*elsewhere), elsewhere=True)
    for here in (("hydra/launcher=joblib", "trainer=gpu"), ("hydra/launcher=ray", "trainer=gpu")):
        assert not runs_on_other_machines(compose_sweep(*here))
        with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
            check_device(compose_sweep(*here))
    # A scale that needs a GPU with a trainer on the CPU is wrong wherever it runs.
    with pytest.raises(ConfigError, match="trainer: got cpu, expected one on the GPU"):
        check_device(compose_sweep(*slurm, "trainer=cpu"), elsewhere=True)


# As palimpsa.sweeps.launchers has it outside of tests.
@pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher")
def test_a_launcher_is_checked_before_a_sweep_writes_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("palimpsa.sweeps.launchers._is_installed", lambda module: module != "ray")
    for name, multirun in (("ray", True), ("joblib", False)):
        with pytest.raises(ConfigError, match=f"^hydra/launcher: got {name}"):
            plan_command_line([f"hydra/launcher={name}", f"results_dir={tmp_path}/results"], multirun=multirun)
    assert not (tmp_path / "results").exists()


def test_hydras_word_on_our_launchers_stays_unsaid(tmp_path):
    # The checks of a run, the model's among them, import for seconds.
    program = (
        "import sys; from palimpsa.sweeps import command, plan; plan._check_run = lambda cfg, elsewhere: None\n"
        "plan.plan_command_line(sys.argv[1:], multirun=True)"
    )
    overrides = ["hydra/launcher=joblib", "seed=1,2", f"results_dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", program, *overrides], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(("name", "ends"), [("LokyProcess-1", True), ("MainProcess", False)])
def test_a_worker_that_is_interrupted_ends(monkeypatch, name, ends):
    class Ended(Exception):
        pass

    def leave(code):
        raise Ended(code)

    monkeypatch.setenv(launchers.LAUNCHER_VARIABLE, str(os.getppid()))
    monkeypatch.setattr(multiprocessing.current_process(), "name", name)
    monkeypatch.setattr(launchers, "_watch_launcher", lambda launcher: None)
    monkeypatch.setattr(launchers.os, "_exit", leave)
    with pytest.raises(Ended if ends else KeyboardInterrupt), worker_ends_with_sweep():
        raise KeyboardInterrupt
    assert launchers._num_active_runs == 0
