"""What a command line asks for: every mistake is one line that names its key, and sweeps are checked as a whole."""

import shutil

import pytest

from palimpsa.config.compose import CONFIG_DIR, compose_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import plain, typed
from palimpsa.runs.identity import config_hash, protocol_hash
from palimpsa.sweeps.plan import plan_command_line
from palimpsa.sweeps.sweep import Sweep

MODELS = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
# Each command line, and what the message must say: the key, and the nearest known one or what was expected.
MISTAKES = {
    "model=palimpsa_x": (
        "model: got 'palimpsa_x'",
        "gla, mamba2, mamba2_wide, palimpsa_d",
        "lm/NAME",
        "did you mean 'palimpsa_",
    ),
    "model=palimpsa_d_170m": ("model: got 'palimpsa_d_170m'", "did you mean 'lm/palimpsa_d_170m'"),
    "model=lm/palimpsa_170m": ("model/lm: got 'palimpsa_170m'", "palimpsa_d_170m, palimpsa_d_340m"),
    "scale=laptopp": ("scale: got 'laptopp'", "did you mean 'laptop'"),
    "task=mqar": (
        "task: got 'mqar', expected one of commonsense, mqar_ablation, mqar_calibration, mqar_curriculum, "
        "mqar_interference, mqar_scratch;",
    ),
    "task.kind=mqa": ("task.kind: got 'mqa', expected one of mqar, commonsense; did you mean 'mqar'?",),
    "logger=wandbb": ("logger: got 'wandbb'", "did you mean 'wandb'"),
    "+sweep=mqar_figure3": ("sweep: got 'mqar_figure3'", "did you mean 'mqar_figure2'"),
    "model.num_layer=3": ("model.num_layer: unknown key", "did you mean 'num_layers'"),
    "sede=3": ("sede: unknown key", "did you mean 'seed'"),
    "+model.num_layer=3": ("model.num_layer: unknown key", "did you mean 'num_layers'"),
    "model.mixer.num_head=2": ("model.mixer.num_head: unknown key", "did you mean 'num_heads'"),
    "+model.mixer.num_head=2": ("model.mixer.num_head", "did you mean 'num_heads'"),
    "optimizer.learning_rate=1": ("optimizer.learning_rate: unknown key", "lr, weight_decay"),
    "model.num_layers=three": ("model.num_layers", "'three'", "Integer"),
    "model.mixer.head_k_dim=wide": ("model.mixer.head_k_dim: got 'wide', expected int",),
    "model.mixer.metaplastic=3": ("model.mixer.metaplastic: got 3, expected bool",),
    "model.mixer._target_=palimpsa.mixers.Palimpsa": ("model.mixer._target_", "palimpsa.mixers.Palimpsa"),
    "model.mixer._target_=palimpsa.mixers.GatedDeltanet": ("did you mean 'palimpsa.mixers.GatedDeltaNet'",),
    "model.mixer.num_heads=3": ("model.mixer.num_heads: got 3, expected a divisor of d_model = 32",),
    "model=lm/gla_170m model.mixer.num_heads=7": ("model.mixer.num_heads: got 7", "d_model = 768"),
    "model=mamba2 +model.mixer.num_groups=3": ("model.mixer.num_groups: got 3, expected a divisor of num_heads = 2",),
    "model=mamba2 +model.mixer.num_norm_groups=5": ("model.mixer.num_norm_groups: got 5", "the width 32"),
    "model=mamba2 +model.mixer.step_size_limit=[1,0]": ("model.mixer.step_size_limit: got [1, 0]", "low <= high"),
    "model=mamba2 +model.mixer.step_size_limit=[1]": ("model.mixer.step_size_limit: got [1]", "tuple[float, float]"),
    "+model.mixer.initial_plasticity=[0,1]": ("model.mixer.initial_plasticity: got [0, 1]", "0 < low"),
    "+model.mixer.initial_plasticity=small": ("model.mixer.initial_plasticity: got 'small'",),
    "model.mixer.num_heads=0": ("model.mixer.num_heads: got 0, expected >= 1",),
    "model.mixer.importance_prior=-1": ("model.mixer.importance_prior: got -1, expected > 0 and finite",),
    "model.mixer.forgetting=tiny": ("model.mixer.forgetting: got 'tiny'", "small, normal"),
    "model=gated_deltanet model.mixer.forgetting=tiny": ("model.mixer.forgetting: got 'tiny'", "small, normal"),
    "model=deltanet +model.mixer.forgetting=small": ("model.mixer.forgetting", "no such argument"),
    "model=transformer scale.head_k_dim=5": ("model.mixer.head_k_dim: got 5, expected an even number",),
    "model.norm=batchnorm": ("model.norm: got 'batchnorm'", "layernorm, rmsnorm"),
    "model.channel_mixer=mlp": ("model.channel_mixer: got 'mlp'", "none, swiglu"),
    "model.channel_mixer=swiglu": ("model.channel_width: got None",),
    "model.channel_width=8": ("model.channel_width: got 8, expected null with channel_mixer=none",),
    "model=palimpsa_d_nometa_wide model.mixer.key_expansion=0": ("model.mixer.key_expansion: got 0, expected >= 1",),
    "~model.mixer.num_heads": ("model.mixer.num_heads: missing, palimpsa.mixers.PalimpsaD needs it",),
    "~model.mixer._target_": ("model.mixer._target_: got 'None'",),
    "model.mixer.head_k_dim=1000000000000000000000": ("model: got sizes that make no tensor",),
    "+model.mixer.norm_eps=-1": ("model.mixer.norm_eps: got -1, expected > 0 and finite",),
    "model=deltanet +model.mixer.norm_eps=inf": ("model.mixer.norm_eps: got inf",),
    "model=null": ("model: got null, expected one of deltanet, ",),
    "seed=-1": ("seed: got -1",),
    "optimizer.lr=0": ("optimizer.lr: got 0.0, expected > 0",),
    "optimizer.lr=nan": ("optimizer.lr: got nan, expected > 0",),
    "task.schedule=cosin": ("task.schedule: got 'cosin'", "did you mean 'cosine'"),
    "trainer.accelerator=tpu": ("trainer.accelerator: got 'tpu'",),
    "trainer.precision=16": ("trainer.precision: got '16'", "32-true"),
    "trainer.num_threads=0": ("trainer.num_threads: got 0",),
    "logger.mode=on": ("logger.mode: got 'on'", "offline, online, disabled"),
    "task.vocab_size=64": ("task.vocab_size: got 64, expected more than seq_len = 64",),
    "task.tokens_per_step=32": ("task.tokens_per_step: got 32",),
    "task.stages=[{seq_len:16,num_pairs:5,max_steps:1}]": ("task.stages[0].num_pairs: got 5", "seq_len / 4 = 4"),
    "task.stages=[{seq_len:16,num_pair:4,max_steps:1}]": ("task.stages[0]", "did you mean 'num_pairs'"),
    "task.stages=[{seq_len:16,num_pairs:4}]": ("task.stages[0]", "max_steps"),
    "task.stages=[]": ("task.stages: got an empty list",),
    "task.stages=3": ("task.stages: got 3",),
    "task.seq_len=32": ("task.seq_len: got 32 beside task.stages",),
    "task=mqar_scratch task.num_epochs=0": ("task.num_epochs: got 0",),
    "task=mqar_scratch task.seq_len=128": ("task.vocab_size: got 96",),
    "task.stages.0.max_step=5": ("task.stages.0.max_step", "did you mean 'max_steps'"),
    "+task.num_epoch=3": ("task.num_epoch", "did you mean 'num_epochs'"),
    "+task.stages.0.max_step=5": ("task.stages[0].max_step: unknown key", "did you mean 'max_steps'"),
    "task.stages=[{seq_len:16,num_pairs:4,max_steps:0}]": ("task.stages[0].max_steps: got 0, expected >= 1",),
    "scale.curriculum.0.max_steps=5": ("scale.curriculum: unknown key, it is task.stages now",),
    "+scale.scratch.num_epochs=3": ("scale.scratch: unknown key",),
    "scale.wide_head_k_dim=16": ("scale.wide_head_k_dim: unknown key, it is model.mixer.key_expansion now",),
    "hydra/launcher=jobli": ("hydra/launcher: got 'jobli'", "did you mean 'joblib'"),
    "model.mixer._target_=collections.OrderedDict": ("expected a subclass of palimpsa.mixers.Mixer",),
    "logger.name=wandbb": ("logger.name: got 'wandbb'", "did you mean 'wandb'"),
    "optimizer.beta1=2": ("optimizer.beta1: got 2.0, expected >= 0 and < 1",),
    "model.init_std=-1": ("model.init_std: got -1.0, expected > 0",),
    "model.mixer.importance_prior=inf": ("model.mixer.importance_prior: got inf",),
    "seed=12345678901234567890123": ("seed: got 12345678901234567890123, expected at most",),
    "task.tokens_per_step=1000000000000000000000": (
        "task.tokens_per_step: got 1000000000000000000000, expected at most",
    ),
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:1000000000000000000000}]": (
        "task.stages[0].max_steps: got 1000000000000000000000, expected at most 9223372036854775807",
    ),
    "task.stages=[{seq_len:8,num_pairs:2,max_steps:9223372036854775807},{seq_len:16,num_pairs:2,max_steps:1}]": (
        "task: got 9223372036854775808 optimiser steps in all, expected at most 9223372036854775807",
    ),
    "variant=_a/b": ("variant: got '_a/b'",),
    f"variant={'a' * 120}": ("variant: got 'aaa", "120 bytes at most"),
    # What becomes a part of a directory leads to no other one.
    "model.name=../../x": ("model.name: got '../../x', expected a name for files",),
    "task.name=a/b": ("task.name: got 'a/b'",),
    "task.directory=../../up": ("task.directory: got '../../up'",),
    "scale.name=..": ("scale.name: got '..'",),
    "scale.name=.hidden": ("scale.name: got '.hidden'",),
    f"task.directory={'a' * 300}": ("task.directory: got 'aaa",),
    "model.name=''": ("model.name: got ''",),
    "scale.name='a\0b'": ("scale.name: got 'a\\x00b'",),
    "seed=1,2": ("seed=1,2: got several values", "-m"),
    "model=[": ("model=[: cannot be read", "needs quotes"),
    "variant=ü": ("variant=ü: cannot be read", "\"variant='ü'\""),
    "logger.group=a;b": ("\"logger.group='a;b'\"",),
    "logger.group=it's": (r"logger.group='it\'s'",),
    "scale=h200 trainer=gpu": ("scale=h200: needs an NVIDIA GPU",),
    "scale=paper": ("scale=paper: needs an NVIDIA GPU",),
    "trainer=gpu": ("trainer=gpu: needs an NVIDIA GPU",),
    "trainer.accelerator=gpu": ("trainer.accelerator=gpu: needs an NVIDIA GPU",),
}


@pytest.mark.parametrize("command_line", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_key(command_line, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        plan_command_line([*command_line.split(), f"results_dir={tmp_path}/results"], multirun=False)
    message = str(caught.value)
    assert "\n" not in message
    for part in MISTAKES[command_line]:
        assert part in message
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.parametrize("key", ["results_dir", "run_dir"])
@pytest.mark.parametrize("kind", ["NUL", "long", "long path", "file", "dangling link"])
def test_a_directory_that_cannot_be_is_one_line(tmp_path, key, kind):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    path = (
        tmp_path
        / {
            "NUL": "a\0b",
            "long": f"new/{'a' * 300}/b",
            "long path": "/".join(["ab"] * 1_500),
            "file": "file/below",
            "dangling link": "link/below",
        }[kind]
    )
    with pytest.raises(ConfigError, match=r"^(results_dir|run_dir): got .*expected a directory") as caught:
        plan_command_line([f"results_dir={tmp_path}", f"{key}='{path}'"], multirun=False)
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "link"]


def test_a_directory_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"^results_dir: got .*expected a directory that can be written .*Permission"):
        plan_command_line([f"results_dir={tmp_path}/new"], multirun=False)


def test_a_path_of_any_language_is_taken_in_quotes(tmp_path):
    config = plan_command_line([f"results_dir='{tmp_path}/a ü, 日本'"], multirun=False)
    assert config.results_dir == f"{tmp_path}/a ü, 日本"


def test_a_sweep_over_nothing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model=glob\(lm/\*\).*: the sweep has no run"):
        plan_command_line(["model=glob(lm/*)", f"results_dir={tmp_path}"], multirun=True)


def test_an_unknown_mixer_is_told_in_one_line_alone(tmp_path, capfd):
    with pytest.raises(ConfigError, match=r"model\.mixer\._target_: got 'palimpsa\.mixers\.Mamba3'"):
        plan_command_line(["model.mixer._target_=palimpsa.mixers.Mamba3", f"results_dir={tmp_path}"], multirun=False)
    assert capfd.readouterr().err == ""


def test_a_mistake_in_any_value_of_a_sweep_is_found_before_the_first_run(tmp_path):
    for sweep in ("model=palimpsa_d,palimpsa_x", "seed=1,2,x", "task.vocab_size=96,64"):
        with pytest.raises(ConfigError, match=sweep.partition("=")[0]):
            plan_command_line([sweep, f"results_dir={tmp_path}"], multirun=True)


USER_FILES = {
    "model/own": (
        "palimpsa_d",
        "dropout: 0.1",
        ("configs/model/own.yaml", "model.dropout: unknown key", "channel_mixer"),
    ),
    "model/typo": ("palimpsa_d", "norm_epz: 1e-5", ("model.norm_epz: unknown key", "did you mean 'norm_eps'")),
    "model/word": ("palimpsa_d", "num_layers: two", ("model.num_layers: Value 'two'", "Integer")),
    "task/own": ("mqar_curriculum", "vocab: 3", ("task.vocab: unknown key", "did you mean 'vocab_size'")),
    "scale/own": ("laptop", "head_dim: 3", ("scale.head_dim: unknown key", "head_k_dim")),
    "trainer/own": ("cpu", "log_evry: 3", ("trainer.log_evry: unknown key", "did you mean 'log_every'")),
    "logger/own": ("csv", "projekt: x", ("logger.projekt: unknown key", "did you mean 'project'")),
    "model/broken": ("palimpsa_d", "mixer: [", ("not YAML",)),
}


@pytest.mark.parametrize("file", USER_FILES)
def test_a_mistake_in_a_users_yaml_is_named(file, tmp_path):
    base, line, expected = USER_FILES[file]
    group, stem = file.split("/")
    (tmp_path / group).mkdir()
    text = (CONFIG_DIR / group / f"{base}.yaml").read_text().replace(f"name: {base}", f"name: {stem}")
    key = line.partition(":")[0]
    kept = [row for row in text.splitlines() if not row.startswith(f"{key}:")]
    (tmp_path / f"{file}.yaml").write_text("\n".join([*kept, line]))
    # A scale of one's own needs a budget of the task's.
    (tmp_path / "task/mqar_budget").mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIG_DIR / "task/mqar_budget/laptop.yaml", tmp_path / "task/mqar_budget/own.yaml")
    with pytest.raises(ConfigError) as caught:
        plan_command_line([f"{group}={stem}", f"results_dir={tmp_path}"], multirun=False, config_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    for part in expected:
        assert part in str(caught.value)


def test_values_that_stand_there_twice_are_named_alone(tmp_path):
    with pytest.raises(ConfigError, match=r"^optimizer.lr=0.01,0.02,0.01: a value of the sweep stands there twice$"):
        plan_command_line(["optimizer.lr=0.01,0.02,0.01", "seed=1,2", f"results_dir={tmp_path}"], multirun=True)


def test_a_sweep_has_one_results_directory(tmp_path):
    with pytest.raises(ConfigError, match=r"^results_dir: got .*/a, .*/b, expected one for the whole sweep"):
        plan_command_line([f"results_dir={tmp_path}/a,{tmp_path}/b", "seed=1"], multirun=True)


def test_a_folder_of_configs_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"^--config-dir: got '/no/such', expected a folder of configs$"):
        plan_command_line([], multirun=False, config_dir="/no/such")


# As text, as another type, or in another spelling than the config's own.
@pytest.mark.parametrize(
    "override", ["variant=7", "seed=01", "seed='1'", "seed=1_0", "optimizer.lr=1", "results_dir=5"]
)
def test_a_value_of_a_sweep_is_what_hydra_makes_of_it(override):
    sweep = plan_command_line([override], multirun=True)
    assert isinstance(sweep, Sweep)
    (job,) = sweep.jobs
    config = plain(typed(compose_config([override])))
    assert job.config == config
    assert [type(job.config[key]) for key in config] == [type(value) for value in config.values()]
    assert type(job.lr) is float


def test_one_value_in_two_spellings_is_one_run(tmp_path):
    with pytest.raises(ConfigError, match=r"share the directory .*seed_1;"):
        plan_command_line(["seed=1,01", f"results_dir={tmp_path}"], multirun=True)


def test_runs_of_a_sweep_that_would_share_a_directory_are_refused(tmp_path):
    for sweep in ("seed=1,1", "optimizer.weight_decay=0,0.1", "optimizer.lr=1e-3,0.001"):
        with pytest.raises(ConfigError, match=r"share the directory|stands there twice"):
            plan_command_line([sweep, f"results_dir={tmp_path}"], multirun=True)
    with pytest.raises(ConfigError, match="share the directory"):
        plan_command_line(["seed=1,2", f"run_dir={tmp_path}/one"], multirun=True)


def test_a_results_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"results_dir: got '.*file/results', expected a directory that can be"):
        plan_command_line([f"results_dir={tmp_path}/file/results"], multirun=False)


@pytest.mark.parametrize(
    ("overrides", "num_runs", "num_first"),
    [
        (["+sweep=mqar_figure2"], 7 * (2 * 2 + 1), 7 * 2 * 2),
        (["+sweep=mqar_figure2", "seed=2,1", "model=gla"], 4, 4),
        (["+sweep=mqar_figure2", "model=gla", "task.sweep.selection_seeds=3", "optimizer.lr=1e-3"], 3, 1),
        (["+sweep=mqar_figure2", "model=gla,mamba2", "hydra.sweeper.selection_seeds=[2]", "seed=range(1,9)"], 18, 4),
        (["+sweep=mqar_figure2", "model=gla", "hydra.sweeper.selection_seeds='range(1,3)'"], 5, 4),
        (["+sweep=mqar_figure2", "model=gla,mamba2", "hydra.sweeper.selection_seeds=null"], 2 * 2 * 3, 2 * 2 * 3),
        (["+sweep=mqar_figure2_grid", "model=gla,mamba2"], 2 * 2 * 3, 2 * 2 * 3),
        (["+sweep=mqar_figure2_grid", "seed=1", "model=gla"], 2, 2),
        (["+sweep=learning_rate", "model=mamba2"], 2, 2),
        (["+sweep=mqar_ablation"], 2 * 8, 2 * 8),
        (["+sweep=mqar_long", "task.vocab_size=8192", "task.tokens_per_step=65536"], 2 * 7, 2 * 7),
        (["+sweep=smoke"], len(MODELS), len(MODELS)),
    ],
)
def test_sweeps_count_their_runs_and_the_command_line_overrides_them(overrides, num_runs, num_first, tmp_path):
    sweep = plan_command_line([*overrides, f"results_dir={tmp_path}"], multirun=True)
    assert isinstance(sweep, Sweep)
    ledger = sweep.survey()
    assert (ledger.num_runs, len(ledger.jobs_to_launch())) == (num_runs, num_first)
    assert sweep.directory == tmp_path / "runs"
    if "+sweep=smoke" in overrides:
        # It asks for glob(*).
        assert [job.model for job in sweep.jobs] == MODELS


SWEEP_MISTAKES = {
    "FIGURE2 seed=1": (
        "hydra.sweeper.selection_seeds: got 1,2, expected some of the values of seed (1), or null for one phase"
    ),
    "FIGURE2 hydra.sweeper.selection_seeds='1,x'": "got 1,x, expected some of the values of seed (1,2,3)",
    "FIGURE2 hydra.sweeper.selection_seeds=''": "got , expected some of the values of seed (1,2,3)",
    "FIGURE2 hydra.sweeper.selection_seeds=1,2": (
        "hydra.sweeper.selection_seeds: got 1,2, expected one value of Hydra's own keys; in quotes: \"'1,2'\""
    ),
    "seed=1,2 hydra.sweeper.selection_seeds=1": (
        "hydra.sweeper.selection_seeds: got 1, expected null where optimizer.lr is not swept"
    ),
    "optimizer.lr=1,2 hydra.sweeper.selection_seeds=1": "expected null where seed is not swept",
    "FIGURE2 hydra.sweeper.max_batch_size=0": "hydra.sweeper.max_batch_size: got 0, expected > 0",
    "FIGURE2 hydra.sweeper.selection_seed=1": "hydra.sweeper.selection_seed",
    "+sweep=learning_rate hydra/sweeper=basic": "hydra/sweeper: got 'basic', expected phased",
}


@pytest.mark.parametrize("command_line", SWEEP_MISTAKES)
def test_a_mistake_in_the_phases_is_one_line(command_line, tmp_path):
    words = command_line.replace("FIGURE2", "+sweep=mqar_figure2 model=gla").split()
    with pytest.raises(ConfigError) as caught:
        plan_command_line([*words, f"results_dir={tmp_path}"], multirun=True)
    assert SWEEP_MISTAKES[command_line] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_two_runs_of_a_sweep_are_held_against_each_other(tmp_path):
    """Each value alone has a directory of its own: only the combinations meet."""
    sweep = ["variant=_a,_ab", f"run_dir={tmp_path}/${{model.name}}${{variant}}${{seed}}", "model=gla", "seed=1,2"]
    planned = plan_command_line([*sweep, "results_dir=x"], multirun=True)
    assert isinstance(planned, Sweep)
    assert len(planned.jobs) == 4
    sweep[0], sweep[3] = "variant=_1,_11", "seed=1,11"
    with pytest.raises(
        ConfigError, match=r"variant=_11, seed=1: this run and another .* share the directory .*gla_111;"
    ):
        plan_command_line([*sweep, "results_dir=x"], multirun=True)


SCALES = sorted(path.stem for path in (CONFIG_DIR / "scale").glob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
def test_every_scales_figure_has_models_that_there_are_and_none_twice(scale):
    models = compose_config([f"scale={scale}"]).task.sweep.models.split(",")
    assert len(set(models)) == len(models)
    assert set(models) <= set(MODELS)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_selects_on_some_of_its_seeds_which_changes_no_run(scale):
    cfg, other = (compose_config([f"scale={scale}", f"task.sweep.selection_seeds={seed}"]) for seed in ("1", "2"))
    selection, seeds = compose_config([f"scale={scale}"]).task.sweep.selection_seeds, cfg.task.sweep.seeds
    assert set(selection.split(",")) < set(seeds.split(","))
    assert config_hash(plain(typed(cfg))) == config_hash(plain(typed(other)))
    assert protocol_hash(plain(typed(cfg))) == protocol_hash(plain(typed(other)))


def test_several_experiments_are_not_one_sweep(tmp_path):
    with pytest.raises(ConfigError, match=r"^\+experiment=figure2,mqar_scratch: got several values, expected one"):
        plan_command_line(["+experiment=figure2,mqar_scratch", f"results_dir={tmp_path}"], multirun=True)
