"""The dashboard's folder: what each view is told, whatever the results are like."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from palimpsa.analysis.collect.evaluation_files import add_evaluation
from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.analysis.dashboard.build import size_of
from palimpsa.analysis.dashboard.files import PAGE, plain_data
from palimpsa.analysis.dashboard.memory_page import write_page
from palimpsa.analysis.dashboard.privacy import Scrubber
from palimpsa.analysis.finetuning.pairs import add_pairs
from palimpsa.analysis.finetuning.strength import add_strengths
from palimpsa.runs.read import read_runs_csv

ROOT = Path(__file__).resolve().parents[3]


def read_only_copy(example_results: Path, tmp_path: Path) -> Path:
    shutil.copytree(example_results, tmp_path / "mqar")
    return tmp_path


def test_without_any_result_the_page_is_built_and_says_what_makes_some(tmp_path, build):
    built = build(tmp_path / "absent")
    assert built.result.page.is_file()
    assert built.runs == []
    for command in ("make mqar", "make bench", "make pretrain && make evaluate", "scripts/demonstrate.py"):
        assert command in built.problems()


def test_every_file_of_the_page_is_there_and_names_no_address_of_the_network(tmp_path, build):
    built = build(tmp_path)
    for file in PAGE.iterdir():
        text = (built.out / file.name).read_text(encoding="utf-8")
        assert "https://" not in text
        # A namespace, which nobody asks for.
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text
    assert (built.out / "plotly.min.js").stat().st_size > 1e6
    html = (built.out / "index.html").read_text(encoding="utf-8")
    for name in [file.name for file in PAGE.iterdir() if file.name.endswith((".js", ".css"))]:
        assert f'"{name}"' in html


def test_behind_every_dot_is_its_run_with_config_commit_and_curves(example_results, tmp_path, build):
    built = build(read_only_copy(example_results, tmp_path))
    rows = read_runs_csv(example_results / "runs.csv")
    assert len(built.runs) == 12
    (experiment,) = built.index["experiments"]
    assert experiment["title"] == "MQAR (associative recall), curriculum protocol"
    assert experiment["stages"] == [[32, 8], [64, 16]]
    by_id = {run["id"]: run for run in built.runs}
    # 2 models at 2 lengths, 3 seeds, of which one failed.
    assert len(experiment["dots"]) == 10
    for model, stage, accuracy, seed, run_id in experiment["dots"]:
        run = by_id[run_id]
        own = rows.loc[
            (rows["model"] == run["model"])
            & (rows["lr"] == run["lr"])
            & (rows["seed"] == run["seed"])
            & (rows["seq_len"] == experiment["stages"][stage][0])
        ]
        assert own["test_accuracy"].tolist() == [pytest.approx(accuracy, abs=1e-5)]
        assert (run["seed"], run["model"], run["lr"]) == (seed, experiment["models"][model]["model"], 1e-2)
        page = built.page_of(run)
        assert ["git revision", "f00dfeed"] in page["facts"]
        assert page["command"] == "train.py -m +sweep=mqar_figure2"
        assert len(page["curve"]["loss"][0]) > 10
        assert page["curve"]["heads"]["names"][0] == "window/layer0/head0"
        assert built.config_of(run)["optimizer.lr"] == "0.01"
    # The bar counts the seed that failed.
    assert sorted(bar[5:] for bar in experiment["bars"]) == [[2, 1], [2, 1], [3, 0], [3, 0]]


def test_a_field_of_the_map_has_every_seed_also_those_that_failed(example_results, tmp_path, build):
    (experiment,) = build(read_only_copy(example_results, tmp_path)).index["experiments"]
    assert len(experiment["cells"]) == 2 * 2 * 2
    failed = [run for cell in experiment["cells"] for run in cell[3] if run[2] is None]
    assert [run[0] for run in failed] == [3, 3]
    assert all(len(cell[3]) == 3 for cell in experiment["cells"])


def test_dynamics_are_those_of_figure_3_by_model_and_head(example_results, tmp_path, build):
    built = build(read_only_copy(example_results, tmp_path))
    text = (built.out / "data/dynamics/0.js").read_text(encoding="ascii")
    models = json.loads(text[text.index("[") : text.rindex("]") + 1])
    assert [one["num_seeds"] for one in models] == [3, 2]
    palimpsa, gla = models
    assert len(palimpsa["heads"]) == 8
    assert len(gla["heads"]) == 4
    assert "metaplasticity_mean" not in gla
    steps, means, low, high = palimpsa["window_mean"]
    assert steps == sorted(steps)
    assert all(a <= b <= c for a, b, c in zip(low, means, high, strict=True) if a is not None)


def test_runs_that_have_a_loss_and_no_accuracy_are_compared_by_it(add_run, tmp_path, build):
    for lr, loss in ((1e-3, 3.5), (1e-2, 3.0)):
        folder = add_run(task="commonsense", lr=lr)
        result = json.loads((folder / "result.json").read_text())
        stage = {"stage": 0, "steps": 8, "ended_by": "cap", "validation_loss": loss, "validation_perplexity": 20.0}
        (folder / "result.json").write_text(json.dumps(result | {"stages": [stage]}))
    built = build(tmp_path)
    (experiment,) = built.index["experiments"]
    assert experiment["losses"] == [{"label": "Palimpsa-D", "rates": [[0.001, 3.5, 1], [0.01, 3, 1]]}]
    assert (experiment["stages"], experiment["bars"], experiment["dots"]) == ([], [], [])
    # They are finished.
    assert experiment["notes"] == []
    assert [(run["loss"], run["accuracy"]) for run in built.runs] == [(3.5, None), (3, None)]


def test_language_models_and_fine_tuning_are_told_where_they_are_measured(tmp_path, build):
    model = {"name": "gla_44m", "label": "GLA <44M>", "scale": "h200", "seed": 1, "lr": 1e-3, "steps": 8, "tokens": 1e9}
    model |= {"num_parameters": 44_000_000, "max_length": 4096, "dtype": "bf16", "lm_eval": "0.4.13", "stderr": 0.01}
    scores = [
        {**model, "measure": "piqa", "at": "all", "metric": "acc", "value": 0.6},
        *({**model, "measure": "rare_bigrams", "at": at, "metric": "nats", "value": 2.5} for at in ("1to8", "9to64")),
    ]
    add_evaluation(tmp_path / "commonsense", scores)
    pair = {"demonstration": "recall", "scale": "laptop", "model": "gla", "label": "GLA", "steps": 8}
    pair |= {"measure": "accuracy", "at": "64"}
    arms = [(seed, arm) for seed in (1, 2) for arm in ("source", "continued", "converted")]
    add_pairs(
        tmp_path / "finetuning",
        [{**pair, "seed": seed, "arm": arm, "value": 0.1 * seed + 0.1 * len(arm)} for seed, arm in arms],
    )
    strength = {"name": "gla", "label": "GLA", "task": "recall", "at": "64", "metric": "accuracy"}
    add_strengths(tmp_path / "finetuning", [{**strength, "strength": s, "value": s / 2} for s in (0.0, 1.0)])
    built = build(tmp_path)
    assert not {"language", "finetuning"} & {view for view, _, _ in built.index["problems"]}
    table = built.index["language"]["table"]
    ours = dict(zip(table["columns"], table["rows"][0], strict=True))
    assert (ours["model"], ours["PIQA"]) == ("GLA <44M>", "60.0 ± 1.0")
    assert [row[0] for row in table["rows"][1:]]
    (chart,) = built.index["language"]["charts"]
    assert (chart["lines"][0]["x"], chart["lines"][0]["y"]) == (["1 to 8", "9 to 64"], [2.5, 2.5])
    ((_, _, measure, at, num_pairs, *numbers),) = built.index["finetuning"]["table"]["rows"]
    assert (measure, at, num_pairs) == ("accuracy, %, by tokens", "64", 2)
    assert numbers[:4] == [75, 105, 105, 0]
    (chart,) = built.index["finetuning"]["charts"]
    assert (chart["lines"][0]["x"], chart["lines"][0]["y"]) == ([0, 1], [0, 0.5])


def test_a_run_that_is_in_runs_csv_and_on_the_disk_is_one_run_with_its_whole_config(add_run, tmp_path, build):
    add_run(seed=1)
    write_collected(collect([tmp_path / "runs"], tmp_path / "mqar"), tmp_path / "mqar")
    add_run(seed=2)
    built = build(tmp_path)
    assert [(run["source"], run["seed"]) for run in built.runs] == [("mqar", 1), ("run directories", 2)]
    for run in built.runs:
        assert built.config_of(run)["optimizer.beta1"] == "0.9"
        assert built.page_of(run)["whole_config"]
        assert len(built.page_of(run)["curve"]["loss"][0]) > 10
    assert [one["source"] for one in built.index["experiments"]] == ["mqar", "run directories"]


def test_configs_are_told_by_their_difference_and_come_back_whole(add_run, tmp_path, build):
    for seed in (1, 2):
        folder = add_run(seed=seed)
        result = json.loads((folder / "result.json").read_text())
        result["config"] |= {"only": "here"} if seed == 1 else {}
        (folder / "result.json").write_text(json.dumps(result))
    one, other = (built := build(tmp_path)).runs
    assert built.page_of(one)["config"] == []
    assert built.config_of(one)["only"] == "here"
    assert "only" not in built.config_of(other)
    assert built.config_of(other)["seed"] == "2"


def test_runs_that_have_not_ended_are_there_with_their_curves_from_wandb(add_run, tmp_path, build, write_offline_run):
    folder = add_run(seed=1)
    config = json.loads((folder / "result.json").read_text())["config"]
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("result.json", "history.csv"):
        (folder / name).unlink()
    (run,) = build(tmp_path).runs
    assert (run["status"], run["label"], run["curve"]) == ("unfinished", "Palimpsa-D", False)
    write_offline_run(folder / "wandb/offline-run-20261130_000000-x", "x", ended=False)
    built = build(tmp_path)
    assert built.page_of(built.runs[0])["curve"]["loss"] == [[0, 10, 20], [3, 2, 1]]
    ((_, name, project, group, num_files, num_rows, ended, line),) = built.index["wandb"]
    assert (name, project, group, num_files, num_rows, ended) == ("a run", "palimpsa", "g", 1, 3, False)
    assert line.startswith("wandb sync ")
    assert line.endswith("offline-run-20261130_000000-x")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("result.json", '{"format": 1, "status"', "not JSON"),
        ("result.json", "", "not JSON"),
        ("history.csv", "step,stage,loss\n1,0,0.5\n2,0", "no line end"),
        ("history.csv", "nothing,known\n1,2\n", "column step is missing"),
    ],
)
def test_a_half_written_run_is_named_and_the_others_are_there(name, content, words, add_run, tmp_path, build):
    damaged = add_run(seed=1)
    add_run(seed=2)
    (damaged / name).write_text(content)
    built = build(tmp_path)
    assert words in built.problems()
    assert len(built.runs) == 2
    assert sorted(run["status"] for run in built.runs) == (
        ["finished", "unreadable"] if name == "result.json" else ["finished", "finished"]
    )


@pytest.mark.parametrize("value", [[1], {"a": 1}, "long"])
@pytest.mark.parametrize("key", ["seq_len", "vocab_size"])
def test_a_config_that_is_none_is_named_and_the_others_are_there(key, value, add_run, tmp_path, build):
    damaged = add_run(seed=1)
    add_run(seed=2)
    config = json.loads((damaged / "result.json").read_text())["config"]
    (damaged / "result.json").unlink()
    config["task"][key] = value
    (damaged / "config.json").write_text(json.dumps(config))
    built = build(tmp_path)
    assert "got no run's config" in built.problems()
    assert sorted(run["status"] for run in built.runs) == ["finished", "unfinished"]


@pytest.fixture
def forbid(monkeypatch):
    """forbid(folder): nobody may list it, nor look at what is below. root may, so that modes would say nothing."""

    def make(folder: Path) -> None:
        def refusing(function, *, below_only):
            def refuse(path=".", *arguments, **options):
                place = Path(path) if isinstance(path, str | Path) else None
                if place is not None and (folder in place.parents or (place == folder and not below_only)):
                    raise PermissionError(errno.EACCES, "Permission denied", str(place))
                return function(path, *arguments, **options)

            return refuse

        access = os.access
        monkeypatch.setattr(os, "stat", refusing(os.stat, below_only=True))
        monkeypatch.setattr(os, "open", refusing(os.open, below_only=True))
        monkeypatch.setattr(os, "scandir", refusing(os.scandir, below_only=False))
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))

    return make


def test_a_run_that_nobody_may_read_is_named_and_the_others_are_there(add_run, tmp_path, build, forbid):
    forbidden = add_run(seed=1)
    add_run(seed=2)
    forbid(forbidden)
    built = build(tmp_path)
    assert f"{forbidden}: cannot be listed (Permission denied)" in built.problems()
    assert [run["seed"] for run in built.runs] == [2]


@pytest.mark.parametrize("name", ["mqar", "memory", "illustrations", "runs"])
def test_a_folder_that_nobody_may_read_is_named_and_the_page_is_built(name, add_run, tmp_path, build, forbid):
    add_run(seed=2)
    (tmp_path / name).mkdir(exist_ok=True)
    forbid(tmp_path / name)
    built = build(tmp_path)
    assert f"{tmp_path / name}: cannot be listed (Permission denied)" in built.problems()
    assert len(built.runs) == (0 if name == "runs" else 1)


@pytest.mark.parametrize("name", ["runs.csv", "curves.csv"])
def test_a_csv_of_an_older_version_is_named_and_the_rest_is_there(name, example_results, tmp_path, build):
    results = read_only_copy(example_results, tmp_path)
    shutil.copytree(example_results, tmp_path / "pilot")
    path = results / "mqar" / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["old" + lines[0], *lines[1:]]) + "\n")
    built = build(results)
    assert "column task is missing" in built.problems()
    assert {run["source"] for run in built.runs} == ({"pilot"} if name == "runs.csv" else {"mqar", "pilot"})


def test_finished_runs_of_two_protocols_are_told_and_drawn_apart(add_run, tmp_path, build):
    add_run(seed=1)
    add_run(seed=2, stop_accuracy=0.5)
    built = build(tmp_path)
    assert "different protocols" in built.problems()
    first, second = built.index["experiments"]
    assert (first["num_runs"], second["num_runs"]) == (1, 1)
    assert {dot[3] for dot in first["dots"]} != {dot[3] for dot in second["dots"]}
    assert first["id"] != second["id"]
    assert all(re.fullmatch(r".*, protocol [0-9a-f]{16}", one["subtitle"]) for one in (first, second))
    assert len(built.runs) == 2


def test_runs_that_begin_with_weights_of_others_are_one_experiment(add_run, tmp_path, build):
    for seed in (1, 2):
        folder = add_run(seed=seed)
        result = json.loads((folder / "result.json").read_text())
        result["config"]["start"] = {"weights": f"run {seed}", "digest": f"{seed}" * 64}
        (folder / "result.json").write_text(json.dumps(result))
    built = build(tmp_path)
    (experiment,) = built.index["experiments"]
    assert {dot[3] for dot in experiment["dots"]} == {1, 2}
    assert "protocol" not in built.problems()


def test_labels_are_text_to_the_data_files(add_run, tmp_path, build):
    hostile = "</script><img src=x onerror=alert(1)> $\\frac{$ \u2028 =1+1"
    folder = add_run()
    result = json.loads((folder / "result.json").read_text())
    result["run"]["label"] = result["config"]["model"]["label"] = hostile
    (folder / "result.json").write_text(json.dumps(result))
    built = build(tmp_path)
    # White space in a label becomes a space, where runs.csv is made.
    assert built.runs[0]["label"] == hostile.replace("\u2028", " ").replace("   ", " ")
    for path in (built.out / "data").rglob("*.js"):
        assert "<" not in path.read_text(encoding="ascii"), path


def test_runs_that_are_gone_leave_no_files_and_what_is_the_same_is_not_written_again(add_run, tmp_path, build):
    add_run(seed=1)
    gone = add_run(seed=2)
    built = build(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in built.out.rglob("*.js")}
    mine = built.out / "data/runs/mine.txt"
    mine.write_text("not the dashboard's")
    shutil.rmtree(gone)
    again = type(built)(built.dashboard)
    assert len(again.runs) == 1
    assert len(list((again.out / "data/runs").glob("*.js"))) == 1
    assert mine.exists()
    changed = {path.name for path, stamp in stamps.items() if path.exists() and path.stat().st_mtime_ns != stamp}
    assert changed <= {"index.js", "version.js", "0.js"}


def test_a_run_that_is_uploaded_has_no_line_and_a_line_that_names_somebody_is_told(tmp_path, build, write_offline_run):
    for number, name in ((1, "done"), (2, "jane")):
        write_offline_run(tmp_path / f"{name}/wandb/offline-run-20261130_00000{number}-{name}", name, name=name)
    (tmp_path / "done/wandb/offline-run-20261130_000001-done/run-done.wandb.synced").touch()
    built = build(tmp_path, offline_roots=[tmp_path], scrubber=Scrubber(["jane"]))
    (_, *_, done), (_, *_, other) = built.index["wandb"]
    assert done == ""
    assert other.startswith("wandb sync ")
    told = [row for row in built.index["problems"] if row[0] == "wandb"]
    assert len(told) == 1
    assert "the line that uploads it is not whole here" in told[0][1]
    assert told[0][2] == "python scripts/create_workspace.py --offline"


def test_inspections_of_memories_are_listed(tmp_path, build):
    folder = tmp_path / "memory/mqar_seed_1"
    folder.mkdir(parents=True)
    (folder / "inspection.json").write_text("{}")
    shutil.copy(ROOT / "results/illustrations/capacity.png", folder / "inspection.png")
    (entry,) = build(tmp_path).index["memory"]
    assert entry["name"] == "mqar_seed_1"
    assert (tmp_path / "dashboard" / entry["picture"]).is_file()


def test_an_inspections_page_is_written_once(tmp_path, build, monkeypatch):
    shutil.copytree(ROOT / "results/memory/demonstration", tmp_path / "memory/a")
    (tmp_path / "memory/b").mkdir()
    (tmp_path / "memory/b/inspection.json").write_text("{}")
    calls = []

    def counted(folder: Path, *arguments) -> Path:
        calls.append(folder.name)
        return write_page(folder, *arguments)

    monkeypatch.setattr("palimpsa.analysis.dashboard.build.write_page", counted)
    built = build(tmp_path)
    first, second = built.index["memory"]
    page = (built.out / first["page"]).read_text()
    assert '<script src="../plotly.min.js"></script>' in page
    assert '<a href="../index.html#memory">All results</a>' in page
    assert second["page"] is None
    assert "memory/b/inspection.json" in built.problems()
    # Neither has changed; the one that could not be read is tried again.
    built.dashboard.build()
    assert calls == ["a", "b", "b"]


def test_the_script_ends_with_the_address_and_tells_what_is_missing(add_run, tmp_path, run_script):
    add_run()
    code, out, err = run_script("dashboard.py", "--results", ".", "--out", "pages here")
    assert code == 0
    assert out == f"{(tmp_path / 'pages here/index.html').as_uri()}\n"
    assert "1 runs, " in err
    assert "make bench" in err
    assert (tmp_path / "pages here/data/index.js").is_file()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, run_script):
    (tmp_path / "taken").write_text("a file")
    code, out, err = run_script("dashboard.py", "--results", ".", "--out", "taken")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"error: --out: taken\S* cannot be written \(Not a directory\), expected a folder", err.splitlines()[-1]
    )


def test_a_folder_that_is_asked_for_and_is_not_there_is_named(tmp_path, run_script):
    code, out, err = run_script("dashboard.py", "--results", ".", "--runs", "nowhere", "--wandb", "elsewhere")
    assert (code, out) == (0, f"{(tmp_path / 'dashboard/index.html').as_uri()}\n")
    assert "note: --runs: got nowhere, where no folder is (yet)\n" in err
    assert "note: --wandb: got elsewhere, where no folder is (yet)\n" in err


def test_numbers_of_any_kind_become_json():
    found = plain_data({"a": [float("nan"), float("inf"), 1.5, None, True], "b": ("x\x00",)})
    assert found == {"a": [None, None, 1.5, None, True], "b": ["x\N{REPLACEMENT CHARACTER}"]}


@pytest.fixture(scope="module")
def many_runs(run_writer, tmp_path_factory) -> Path:
    """500 run directories with curves of 16 heads."""
    root = tmp_path_factory.mktemp("many")
    add_run = run_writer(root)
    for model in ("palimpsa_d", "palimpsa_m", "gla", "mamba2", "palimpsa_d_nometa"):
        for lr in (1e-3, 2e-3, 3e-3, 4e-3):
            for seed in range(25):
                add_run(model=model, lr=lr, seed=seed, num_heads=8)
    return root


def test_500_runs_take_at_most_15_mb_and_a_small_index(many_runs, build):
    built = build(many_runs)
    assert len(built.runs) == 500
    assert all(run["curve"] for run in built.runs)
    assert size_of(built.out) <= 15e6
    # What is read before the first figure.
    assert (built.out / "data/index.js").stat().st_size < 1e6


def test_committed_results_have_a_page(build, tmp_path):
    from palimpsa.analysis.dashboard.build import Dashboard

    dashboard = Dashboard(ROOT / "results", tmp_path / "out", [], [])
    built = dashboard.build()
    assert {view for view, _, _ in built.problems} <= {"language", "finetuning", "memory"}
    assert size_of(tmp_path / "out") <= 15e6
    assert built.num_runs >= 390


def test_dark_is_the_same_by_the_system_and_by_the_button():
    style = (PAGE / "dashboard.css").read_text(encoding="utf-8")
    by_system, by_button = (
        re.search(rf"{re.escape(selector)} {{(.*?)}}", style, re.DOTALL)
        for selector in (':root:not([data-theme="light"])', ':root[data-theme="dark"]')
    )
    assert by_system is not None
    assert by_button is not None
    assert by_system[1].split() == by_button[1].split()
