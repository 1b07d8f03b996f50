"""One benchmark from end to end, on tiny shapes: its rows, that it goes on, and that a wrong operator gets no time."""

import csv
import sys
from collections import Counter

import pytest
import torch

from palimpsa.analysis.collect.benchmark_columns import OPERATOR_COLUMNS
from palimpsa.benchmark import cases, operators
from palimpsa.kernels import PalimpsaOutput, palimpsa
from palimpsa.runs.provenance import provenance


def test_every_row_has_its_error_and_its_origin(bench, read_rows, capsys):
    assert bench(figures=True) == 0
    rows = read_rows("operators")
    assert Counter(row["case"] for row in rows) == {"copy": 1, "table": 2, "decode": 2, "lengths": 6}
    assert Counter(row["case"] for row in read_rows("throughput")) == {"prefill": 4, "decode": 2}
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


def test_units_follow_from_the_times(bench, read_rows):
    assert bench("cases=[table,decode,throughput]") == 0
    by_case = {(row["case"], row["operator"]): row for row in read_rows("operators")}
    table = by_case["table", "palimpsa"]
    elements = 2 * 20 * 2 * 4 * 6
    assert float(table["forward_ps_per_element"]) == pytest.approx(
        float(table["forward_ms"]) * 1e9 / elements, rel=1e-4
    )
    decode, copy = by_case["decode", "palimpsa"], by_case["copy", "copy"]
    # Mean and importance, float32, read and written.
    assert int(decode["bytes_moved"]) == 2 * 2 * 4 * 2 * 2 * 4 * 6
    gb_s = int(decode["bytes_moved"]) / float(decode["forward_ms"]) / 1e6
    assert float(decode["bandwidth_gb_s"]) == pytest.approx(gb_s, rel=1e-4)
    assert float(decode["bandwidth_share"]) == pytest.approx(gb_s / float(copy["bandwidth_gb_s"]), rel=1e-4)
    for row in read_rows("throughput"):
        tokens = int(row["B"]) * int(row["T"])
        assert float(row["thousand_tokens_per_s"]) == pytest.approx(tokens / float(row["ms"]), rel=1e-4)


def test_a_second_run_measures_only_what_is_missing(bench, read_rows, tmp_path, capsys):
    assert bench("cases=[table]", "operators=[palimpsa]") == 0
    first = read_rows("operators")
    assert bench("cases=[table]") == 0
    assert "2 of 3 rows are there already" in capsys.readouterr().out
    second = read_rows("operators")
    assert second[: len(first)] == first
    assert len(second) == len(first) + 1
    assert bench("cases=[table]", "fresh=true") == 0
    third = read_rows("operators")
    assert len(third) == 3
    assert third[:2] != first


def test_an_interrupted_run_keeps_its_rows_and_the_next_goes_on(bench, read_rows, monkeypatch, capsys):
    whole = cases.Bench.row

    def interrupted(self, job):
        if job.case == "decode":
            raise KeyboardInterrupt
        return whole(self, job)

    monkeypatch.setattr(cases.Bench, "row", interrupted)
    assert bench("cases=[table,decode]") == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    kept = read_rows("operators")
    assert [row["case"] for row in kept] == ["copy", "table", "table"]
    monkeypatch.setattr(cases.Bench, "row", whole)
    assert bench("cases=[table,decode]") == 0
    assert read_rows("operators")[:3] == kept
    assert len(read_rows("operators")) == 5


@pytest.mark.parametrize("column", ["device", "git_revision", "git_dirty", "versions", "sizes", "warmup_ms"])
def test_rows_of_another_origin_are_never_added_to(bench, read_rows, tmp_path, capsys, column):
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
    told = capsys.readouterr().err
    assert column in told
    assert "fresh=true" in told
    assert path.read_bytes() == before
    assert bench("cases=[decode]", "fresh=true") == 0
    assert read_rows("operators")[0][column] != "another"


def test_a_file_of_other_columns_is_refused(bench, tmp_path, capsys):
    (tmp_path / "throughput_cpu.csv").write_text("case,ms\nprefill,1\n")
    assert bench("cases=[table]") == 2
    assert "columns" in capsys.readouterr().err


def wrong_palimpsa(missing: str):
    """Palimpsa token by token, with one term left out."""

    def call(q, k, v, beta, g, importance_prior, *, output_final_state=False):
        dtype = q.dtype
        q, k, v, beta = (x.float() for x in (q, k, v, beta))
        prior = importance_prior[:, None, None]
        importance, scaled = prior.expand(q.shape[0], *q.shape[2:], v.shape[-1]), 0.0
        outputs = []
        for t in range(q.shape[1]):
            alpha = g[:, t].exp()[..., None, None]
            importance = alpha * importance
            if missing != "prior":
                importance = importance + (1 - alpha) * prior
            if missing != "beta":
                earned = k[:, t] if missing == "square" else k[:, t].square()
                importance = importance + earned.abs()[..., :, None] * beta[:, t][..., None, :]
            scaled = (1 if missing == "decay" else alpha) * scaled + k[:, t][..., :, None] * v[:, t][..., None, :]
            outputs.append((q[:, t][..., None, :] @ (scaled / importance)).squeeze(-2))
        scale = 1.0 if missing == "scale" else q.shape[-1] ** -0.5
        return PalimpsaOutput((scale * torch.stack(outputs, dim=1)).to(dtype), None, None)

    return call


def detached(name: str):
    """Palimpsa, right but for one gradient that is missing."""

    def call(q, k, v, beta, g, importance_prior, **arguments):
        given = {"q": q, "k": k, "v": v, "beta": beta, "g": g, "importance_prior": importance_prior}
        given[name] = given[name].detach()
        return palimpsa(*given.values(), **arguments)

    return call


WRONG = {
    **{f"{term} left out": wrong_palimpsa(term) for term in ("prior", "beta", "square", "decay", "scale")},
    **{f"gradient of {name} missing": detached(name) for name in ("q", "beta", "g", "importance_prior")},
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_operator_is_refused_and_gets_no_time(bench, read_rows, monkeypatch, capsys, fault, dtype):
    monkeypatch.setattr(operators, "palimpsa", WRONG[fault])
    assert bench("cases=[table]", "operators=[palimpsa]", f"presets.cpu.dtype={dtype}") == 1
    told = capsys.readouterr().err
    assert told.startswith("error: table palimpsa")
    assert "float64" in told
    assert told.count("\n") == 1
    assert [row["case"] for row in read_rows("operators")] == ["copy"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stand_in_for_a_wrong_operator_is_right_when_nothing_is_missing(bench, read_rows, monkeypatch, dtype):
    monkeypatch.setattr(operators, "palimpsa", wrong_palimpsa("nothing"))
    assert bench("cases=[table]", "operators=[palimpsa]", f"presets.cpu.dtype={dtype}") == 0
    assert len(read_rows("operators")) == 2


def test_a_wrong_step_is_refused(bench, read_rows, monkeypatch):
    right = operators.palimpsa_step
    monkeypatch.setattr(
        operators, "palimpsa_step", lambda q, k, v, beta, g, prior, state: right(q, k, v, beta, 0 * g, prior, state)
    )
    assert bench("cases=[decode]", "operators=[palimpsa]") == 1
    assert [row["case"] for row in read_rows("operators")] == ["copy"]


def test_a_row_of_the_batch_that_depends_on_its_place_is_refused(bench, read_rows, monkeypatch, capsys):
    def misplaced(q, *others):
        out = palimpsa(q, *others)
        # As an index does that overflows: right in the small check, wrong in a large call.
        return out._replace(o=torch.cat([out.o[:2], 2 * out.o[2:]]))

    monkeypatch.setattr(operators, "palimpsa", misplaced)
    assert bench("cases=[table]", "operators=[palimpsa]", "presets.cpu.table.0.B=4") == 1
    assert "half of the batch alone" in capsys.readouterr().err


def test_an_operator_that_fails_leaves_the_others_their_rows(bench, read_rows, monkeypatch, capsys):
    def refuses(*_, **__):
        raise RuntimeError("this device\nwill not do")

    monkeypatch.setattr(operators, "palimpsa_reference", refuses)
    assert bench("cases=[lengths]", "lengths=[32]") == 1
    told = capsys.readouterr().err
    assert "2 of 4 rows failed" in told
    assert "RuntimeError: this device\n" in told
    assert [row["operator"] for row in read_rows("operators")] == ["copy", "softmax_attention"]


def test_help_is_printed_and_nothing_is_run(bench, tmp_path, capsys):
    assert bench("--help") == 0
    assert "usage" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_revision_told_by_the_environment_comes_first(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])
    monkeypatch.setenv("PALIMPSA_REVISION", "abc")
    for git in (lambda *_: None, lambda *_: "older"):
        monkeypatch.setattr("palimpsa.runs.provenance._git", git)
        found = provenance("cpu")
        assert (found["git_revision"], found["git_dirty"]) == ("abc", None)
    monkeypatch.setenv("PALIMPSA_REVISION", "")
    assert provenance("cpu")["git_revision"] == "older"
    monkeypatch.setattr("palimpsa.runs.provenance._git", lambda *_: None)
    assert provenance("cpu")["git_revision"] is None
