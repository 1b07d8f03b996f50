"""The continuum at fixed weights: its ends are the twin without importances and the model as trained."""

import json

import pandas as pd
import pytest
import torch

from palimpsa.config.errors import ConfigError
from palimpsa.model.build import build_model
from palimpsa.tasks.build import build_task


# Imported late: what trains imports Triton, for which the tests of the kernels choose its interpreter first.
def vary(*arguments: object) -> int:
    from palimpsa.finetuning.strengths_command import vary_strength_main

    return vary_strength_main([str(one) for one in arguments])


@pytest.fixture
def measured(tiny_config):
    """Rows of a model at strengths, and the model: `measured("palimpsa_d", [0, 1])`."""
    import contextlib

    def measure(name: str, strengths: list[float]):
        from palimpsa.finetuning.strengths import measure_strengths

        config = tiny_config(f"model={name}")
        model, reports = build_model(config.model, 2), []
        rows = measure_strengths(
            model.eval(),
            build_task(config.task, 1),
            strengths,
            num_contexts=4,
            forward_context=contextlib.nullcontext,
            report=lambda *told: reports.append(told),
        )
        assert [strength for strength, _ in reports] == strengths
        return pd.DataFrame(rows), model

    return measure


@pytest.mark.parametrize(("name", "twin"), [("palimpsa_d", "palimpsa_d_nometa"), ("palimpsa_m_scalar", "mamba2")])
def test_the_ends_are_the_twin_and_the_model_itself(name, twin, measured, tiny_config):
    rows, model = measured(name, [0.0, 0.5, 1.0])
    task = build_task(tiny_config().task, 1)
    stage = task.stages[-1]
    without = build_model(tiny_config(f"model={twin}").model, 9).eval()
    own = model.state_dict()
    without.load_state_dict({key: own[key] for key in without.state_dict()})
    for strength, network in ((0.0, without), (1.0, model)):
        with torch.no_grad():
            expected = task.evaluate(network, "test", stage, torch.device("cpu"))
        found = rows.loc[(rows["strength"] == strength) & (rows["metric"] != "variance")]
        assert dict(zip(found["metric"], found["value"], strict=True)) == pytest.approx(expected, rel=1e-5)
    # A stage that is not tested is none of the figure's.
    assert set(rows["at"]) == {"L 16"}


def test_variance_is_that_of_the_prior_without_importances_and_falls_with_them(measured, tiny_config):
    from palimpsa.finetuning.strengths import mean_variance

    rows, model = measured("palimpsa_d", [0.0, 0.1, 1.0])
    variance = rows.loc[rows["metric"] == "variance"].set_index("strength")["value"]
    # I_prior = 1, and q is normalised: scale^2 sum_k q_k^2 = 1 / K.
    assert variance[0.0] == pytest.approx(1 / 4, rel=1e-4)
    assert variance[0.0] > variance[0.1] > variance[1.0] > 0
    # As the operator says, layer by layer.
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x, means = model.embedding(tokens), []
        for block in model.blocks:
            operands = block.mixer._operands(block.mixer_norm(x), None, None)
            means.append(block.mixer._attend(operands, output_variance=True).variance.mean().item())
            x = block(x)
    assert mean_variance(model, tokens) == pytest.approx(sum(means) / len(means), rel=1e-6)


def test_a_run_is_measured_on_its_own_task_and_drawn(trained, tmp_path, capsys):
    directory = trained("palimpsa_m")
    assert vary(directory, f"results_dir={tmp_path}", "--strengths", "1,0", "--name", "tiny") == 0
    folder = tmp_path / "finetuning/demonstration"
    rows = pd.read_csv(folder / "strength.csv")
    assert set(rows["name"]) == {"tiny"}
    assert sorted(set(rows["strength"])) == [0, 1]
    assert {"accuracy", "loss", "variance"} <= set(rows["metric"])
    assert (folder / "strength.png").stat().st_size > 10_000
    assert "strength 0: accuracy" in capsys.readouterr().out
    # Another model is added; the same one takes the place of its rows.
    before = len(rows)
    assert vary(directory, f"results_dir={tmp_path}", "--strengths", "0", "--name", "other") == 0
    assert vary(directory, f"results_dir={tmp_path}", "--strengths", "0,1", "--name", "tiny") == 0
    rows = pd.read_csv(folder / "strength.csv")
    assert len(rows) == before * 3 // 2


def test_a_run_of_another_scale_is_a_result_and_no_demonstration(trained, tmp_path):
    directory = trained("palimpsa_d")
    config = json.loads((directory / "config.json").read_text())
    config["scale"]["name"] = "h200"
    (directory / "config.json").write_text(json.dumps(config))
    assert vary(directory, f"results_dir={tmp_path}", "--strengths", "0,1") == 0
    assert (tmp_path / "finetuning/strength.csv").is_file()


def test_it_is_measured_on_the_gpu_that_there_is_unless_told_otherwise():
    from palimpsa.finetuning.strengths_command import where_to_measure

    run = {"trainer": {"precision": "32-true"}}
    assert where_to_measure(run, ["seed=2"], has_gpu=True) == ["trainer=gpu", "trainer.precision=32-true"]
    assert where_to_measure(None, [], has_gpu=True) == ["trainer=gpu"]
    assert where_to_measure(run, [], has_gpu=False) == []
    assert where_to_measure(run, ["trainer=cpu"], has_gpu=True) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strengths", "0,much"), "--strengths: got '0,much', expected numbers in [0, 1]"),
        (("--strengths", "0,2"), "--strengths: got '0,2'"),
        (("--strengths", "0,0"), "each once"),
        (("--name", "a/b"), "--name: got 'a/b'"),
        (("--strenths", "0"), "--strenths: got an option that there is not"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, words, trained, tmp_path, capsys):
    directory = trained("palimpsa_d")
    capsys.readouterr()
    assert vary(directory, f"results_dir={tmp_path}", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "finetuning").exists()


def test_a_model_without_importances_has_no_strength(trained, tmp_path, capsys):
    assert vary(trained("mamba2"), f"results_dir={tmp_path}") == 2
    assert "expected a metaplastic model: this one has no importances" in capsys.readouterr().err
    assert vary(tmp_path / "nowhere", f"results_dir={tmp_path}") == 2
    assert "SOURCE: got" in capsys.readouterr().err


def test_a_strength_out_of_its_range_is_refused(measured):
    with pytest.raises(ConfigError, match=r"strength: got 1\.5"):
        measured("palimpsa_d", [1.5])
