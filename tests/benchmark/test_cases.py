"""Rows of the operators' benchmark: their units, and that a wrong operator gets no time."""

import pytest
import torch

from palimpsa.benchmark import operators
from palimpsa.kernels import PalimpsaOutput, palimpsa

pytestmark = pytest.mark.usefixtures("no_figures")


def test_units_follow_from_the_times(bench, read_rows):
    assert bench("cases=[table,decode,throughput]") == 0
    by_case = {(row["case"], row["operator"]): row for row in read_rows("operators")}
    table = by_case["table", "palimpsa"]
    elements = 2 * 20 * 2 * 4 * 6
    assert float(table["forward_ps_per_element"]) == pytest.approx(
        float(table["forward_ms"]) * 1e9 / elements, rel=1e-4
    )
    copy = by_case["copy", "copy"]
    # Importances beside each row of the mean, which has 6 numbers; all of float32, read and written.
    for operator, num_importances in (("palimpsa", 6), ("palimpsa_scalar", 1)):
        decode = by_case["decode", operator]
        assert int(decode["bytes_moved"]) == 2 * 4 * 2 * 2 * 4 * (6 + num_importances)
        gb_s = int(decode["bytes_moved"]) / float(decode["forward_ms"]) / 1e6
        assert float(decode["bandwidth_gb_s"]) == pytest.approx(gb_s, rel=1e-4)
        assert float(decode["bandwidth_share"]) == pytest.approx(gb_s / float(copy["bandwidth_gb_s"]), rel=1e-4)
    for row in read_rows("throughput"):
        tokens = int(row["B"]) * int(row["T"])
        assert float(row["thousand_tokens_per_s"]) == pytest.approx(tokens / float(row["ms"]), rel=1e-4)


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
@pytest.mark.parametrize("operator", ["palimpsa", "palimpsa_scalar"])
def test_a_wrong_operator_is_refused_and_gets_no_time(bench, read_rows, monkeypatch, capsys, fault, dtype, operator):
    monkeypatch.setattr(operators, "palimpsa", WRONG[fault])
    assert bench("cases=[table]", f"operators=[{operator}]", f"presets.cpu.dtype={dtype}") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: table {operator} (")
    assert "float64" in told
    assert told.count("\n") == 1
    assert [row["case"] for row in read_rows("operators")] == ["copy"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stand_in_for_a_wrong_operator_is_right_when_nothing_is_missing(bench, read_rows, monkeypatch, dtype):
    monkeypatch.setattr(operators, "palimpsa", wrong_palimpsa("nothing"))
    assert bench("cases=[table]", "operators=[palimpsa,palimpsa_scalar]", f"presets.cpu.dtype={dtype}") == 0
    assert len(read_rows("operators")) == 3


@pytest.mark.parametrize("operator", ["palimpsa", "palimpsa_scalar"])
def test_a_wrong_step_is_refused(bench, read_rows, monkeypatch, operator):
    right = operators.palimpsa_step
    monkeypatch.setattr(
        operators, "palimpsa_step", lambda q, k, v, beta, g, prior, state: right(q, k, v, beta, 0 * g, prior, state)
    )
    assert bench("cases=[decode]", f"operators=[{operator}]") == 1
    assert [row["case"] for row in read_rows("operators")] == ["copy"]


def test_a_row_of_the_batch_that_depends_on_its_place_is_refused(bench, read_rows, monkeypatch, capsys):
    def misplaced(q, *others):
        out = palimpsa(q, *others)
        # As an index does that overflows: right in the small check, wrong in a large call.
        return out._replace(o=torch.cat([out.o[:2], 2 * out.o[2:]]))

    monkeypatch.setattr(operators, "palimpsa", misplaced)
    assert bench("cases=[table]", "operators=[palimpsa]", "presets.cpu.table.0.B=4") == 1
    assert "half of the batch alone" in capsys.readouterr().err
