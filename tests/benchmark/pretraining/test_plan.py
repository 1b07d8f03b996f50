"""What the benchmark of pretraining plans, and what it refuses."""

import pytest

from palimpsa.benchmark.config import load
from palimpsa.benchmark.pretraining.plan import MODELS_ON_CPU, MODELS_ON_GPU, plan_pretraining
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import CONFIG_DIR


def test_a_run_is_the_shipped_loop_of_its_model(plan, tmp_path):
    (run,) = plan("accumulate=2", "checkpoint_blocks=true", "overrides={task.documents:run_on}")
    cfg = run.cfg
    assert (cfg.task.kind, cfg.model.name, cfg.scale.name) == ("commonsense", "palimpsa_d_tiny", "laptop")
    assert (cfg.task.context, cfg.task.tokens_per_step, cfg.task.documents) == (32, 128, "run_on")
    assert (cfg.trainer.accumulate, cfg.trainer.checkpoint_blocks, cfg.trainer.log_every) == (2, True, 2)
    assert (cfg.optimizer.lr, cfg.seed, cfg.logger.name) == (1e-3, 1, "csv")
    # Of random tokens there are all words of the model.
    assert cfg.task.vocab_size == cfg.model.vocab_size == 272
    # Neither a validation nor a checkpoint falls into the run, which is stopped before its end.
    assert run.num_steps == 8
    assert min(cfg.task.num_steps, cfg.task.validation_every, cfg.trainer.checkpoint_every) > run.num_steps
    assert (run.on_cpu, run.is_random) == (True, True)
    assert str(run) == "lm/palimpsa_d_tiny 128 tokens a step in 2, blocks computed again"


def test_alone_it_takes_models_that_there_are():
    for name in [*MODELS_ON_CPU, *MODELS_ON_GPU]:
        assert (CONFIG_DIR / "model" / f"{name}.yaml").exists()
    config = load(["benchmark=pretraining", "trainer=cpu"])
    assert [run.model for run in plan_pretraining(config)] == MODELS_ON_CPU
    assert (config.scale, config.context, config.tokens_per_step) == ("laptop", 256, 2_048)


def test_given_text_is_looked_at_before_a_run(plan, write_text, tmp_path):
    data = write_text(tmp_path / "text")
    (run,) = plan(f"data={data}", "overrides={task.vocab_size:32}")
    assert (run.is_random, run.cfg.task.data) == (False, str(data))
    with pytest.raises(ConfigError, match=r"task\.data: got '.*nowhere', expected a folder"):
        plan(f"data={tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["models=[palimpsa_d]"], r"models: got 'palimpsa_d', expected one of lm/.*"),
        (["models=[]"], r"models: got \[\], expected one or more"),
        (["trainer=gpu2"], r"trainer: got 'gpu2', expected one of auto, cpu, gpu; did you mean 'gpu'\?"),
        (["accumulate=0"], r"accumulate: got 0, expected > 0"),
        (["accumulate=3"], r"tokens_per_step: got 128, expected a multiple of 96"),
        (["num_steps=7"], r"log_every: got 2, expected a divisor of num_warmup_steps = 4 and num_steps = 7"),
        (["lr=0"], r"lr: got 0\.0, expected > 0"),
        (["seed=-1"], r"seed: got -1, expected >= 0"),
        (["overrides={task.context:8}"], r"overrides: got task\.context, .*\(set context\)"),
        (["overrides={logger.name:csv}"], r"overrides: got logger\.name, .*history\.csv"),
        (["overrides=3"], r"overrides: got 3, expected keys and values"),
        (["overrides={task.contxt:8}"], r"overrides: .*contxt"),
    ],
)
def test_a_wrong_key_is_named(overrides, message, plan):
    with pytest.raises(ConfigError, match=message):
        plan(*overrides)
