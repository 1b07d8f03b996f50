"""One benchmark from end to end, on tiny shapes: its rows, their origin, and that it goes on where it stopped."""

import csv
from collections import Counter

import pytest

from palimpsa.analysis.collect.benchmark_columns import OPERATOR_COLUMNS, OPERATORS_OF_CASE
from palimpsa.benchmark import cases, operators, schema
from palimpsa.benchmark.run import benchmark_main
from palimpsa.config.compose import CONFIG_DIR

ROOT = CONFIG_DIR.parent


def test_every_row_has_its_error_and_its_origin(bench, read_rows, capsys):
    assert bench() == 0
    rows = read_rows("operators")
    assert Counter(row["case"] for row in rows) == {"copy": 1, "table": 4, "decode": 4, "lengths": 8}
    assert Counter(row["case"] for row in read_rows("throughput")) == {"prefill": 6, "decode": 3}
    for row in rows + read_rows("throughput"):
        assert row["device"]
        assert row["git_revision"]
        assert "torch " in row["versions"]
        assert "flash-linear-attention " in row["versions"]
        assert row["date"].endswith("+00:00")
        assert row["command"] == "benchmark.py"
        if row["case"] != "copy":
            assert 0 <= float(row["error_forward"]) <= float(row["tolerance"]) == 1e-4
            assert float(row.get("forward_ms") or row.get("ms")) > 0
    for row in rows:
        trained = row["case"] in ("table", "lengths")
        assert bool(row["error_backward"]) == bool(row["forward_backward_ms"]) == trained
        assert bool(row["forward_ps_per_element"]) == (row["case"] == "table")
        assert row["peak_memory_mib"] == row["limit_ps_per_element"] == ""
        assert bool(row["bandwidth_share"]) == (row["case"] in ("copy", "decode"))
    attention = [row for row in rows if row["operator"] == "softmax_attention"]
    assert {(row["K"], row["V"]) for row in attention} == {("6", "6")}
    out = capsys.readouterr().out
    assert "left out: simple_gla, gla, gated_deltanet" in out
    assert "figure5_cpu.png" in out


def test_a_second_run_measures_only_what_is_missing(bench, no_figures, read_rows, tmp_path, capsys):
    assert bench("cases=[table]", "operators=[palimpsa]") == 0
    first = read_rows("operators")
    assert bench("cases=[table]") == 0
    assert "2 of 5 rows are there already" in capsys.readouterr().out
    second = read_rows("operators")
    assert second[: len(first)] == first
    assert len(second) == len(first) + 3
    assert bench("cases=[table]", "fresh=true") == 0
    third = read_rows("operators")
    assert len(third) == 5
    assert third[:2] != first


def test_an_interrupted_run_keeps_its_rows_and_the_next_goes_on(bench, no_figures, read_rows, monkeypatch, capsys):
    whole = cases.OperatorsBenchmark.measure

    def interrupted(self, row, on_step):
        if row.case == "decode":
            raise KeyboardInterrupt
        return whole(self, row, on_step)

    monkeypatch.setattr(cases.OperatorsBenchmark, "measure", interrupted)
    assert bench("cases=[table,decode]") == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    kept = read_rows("operators")
    assert [row["case"] for row in kept] == ["copy", "table", "table", "table", "table"]
    monkeypatch.setattr(cases.OperatorsBenchmark, "measure", whole)
    assert bench("cases=[table,decode]") == 0
    assert read_rows("operators")[:5] == kept
    assert len(read_rows("operators")) == 9


@pytest.mark.parametrize("column", ["device", "git_revision", "git_dirty", "versions", "sizes", "warmup_ms"])
def test_rows_of_another_origin_are_never_added_to(bench, no_figures, read_rows, tmp_path, capsys, column):
    assert bench("cases=[decode]") == 0
    path = tmp_path / "operators_cpu.csv"
    rows = read_rows("operators")
    for row in rows:
        row[column] = "another"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, OPERATOR_COLUMNS["operators"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    before = path.read_bytes()
    capsys.readouterr()
    assert bench("cases=[table]") == 2
    error = capsys.readouterr().err
    assert column in error
    assert "fresh=true" in error
    assert path.read_bytes() == before
    assert bench("cases=[decode]", "fresh=true") == 0
    assert read_rows("operators")[0][column] != "another"


def committed(name):
    """Its rows, by the commit that they were measured at."""
    rows = list(csv.DictReader((ROOT / f"results/{name}_nvidia-h200.csv").read_text().splitlines()))
    return {one["git_revision"]: [row for row in rows if row["git_revision"] == one["git_revision"]] for one in rows}


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("kernels/operators", ["cases=[table,decode,lengths]"]),
        ("kernels/throughput", ["cases=[throughput]"]),
        ("training/steps", ["benchmark=training", "num_steps=250"]),
    ],
)
def test_committed_rows_are_recognised(no_figures, name, command, tmp_path, monkeypatch, capsys):
    """The command that measured them finds nothing left to do on the same device, with the same commit and versions."""
    copy = next(row for rows in committed("kernels/operators").values() for row in rows if row["case"] == "copy")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for revision, rows in committed(name).items():
        folder = tmp_path / revision
        folder.mkdir()
        written = write_rows(folder / f"{name.partition('/')[2]}_nvidia-h200.csv", rows)
        row, words = rows[0], list(command)
        if "steps" in name:
            # Each model that has been measured, at every length.
            words.append(f"models=[{','.join(dict.fromkeys(row['model'] for row in rows))}]")
        else:
            # Each operator that has been measured in a case, at every shape.
            measured = {case: {} for case in OPERATORS_OF_CASE}
            for one in rows:
                measured.setdefault("throughput" if "ms" in one else one["case"], {})[one["operator"]] = None
            monkeypatch.setattr(schema, "OPERATORS_OF_CASE", {case: list(names) for case, names in measured.items()})
        if "throughput" in name:
            # Every run measures the copy first.
            write_rows(folder / "operators_nvidia-h200.csv", [copy | {"git_revision": revision}])
        versions = dict(version.split(" ") for version in row["versions"].split(", "))
        found = {"device": row["device"], "git_revision": revision, "git_dirty": None, "versions": versions}
        monkeypatch.setattr(
            "palimpsa.benchmark.base.provenance", lambda accelerator, found=found: found | {"command": "benchmark.py"}
        )
        assert benchmark_main([*words, f"results_dir={folder}"]) == 0
        num_rows = len(rows) + ("throughput" in name)
        assert f"{num_rows} of {num_rows} rows are there already" in capsys.readouterr().out
        assert (folder / f"{name.partition('/')[2]}_nvidia-h200.csv").read_bytes() == written


def test_a_file_of_other_columns_is_refused(bench, no_figures, tmp_path, capsys):
    (tmp_path / "throughput_cpu.csv").write_text("case,ms\nprefill,1\n")
    assert bench("cases=[table]") == 2
    assert "columns" in capsys.readouterr().err


def test_an_operator_that_fails_leaves_the_others_their_rows(bench, no_figures, read_rows, monkeypatch, capsys):
    def refuses(*_, **__):
        raise RuntimeError("this device\nwill not do")

    monkeypatch.setattr(operators, "palimpsa_reference", refuses)
    assert bench("cases=[lengths]", "lengths=[32]") == 1
    error = capsys.readouterr().err
    assert "3 of 5 rows failed" in error
    assert "RuntimeError: this device\n" in error
    assert [row["operator"] for row in read_rows("operators")] == ["copy", "softmax_attention"]


def test_help_is_printed_and_nothing_is_run(bench, no_figures, tmp_path, capsys):
    assert bench("--help") == 0
    assert "usage" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
