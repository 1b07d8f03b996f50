"""What is read off a mixer: its boxes, and what leads from one to another."""

import pytest
import torch

from palimpsa.mixers import PalimpsaD, PalimpsaM
from palimpsa.model.data_flow import data_flow

SIZES = {"d_model": 32, "num_heads": 2, "head_k_dim": 4, "head_v_dim": 8}


def flow(mixer):
    """Boxes by name, and for each the names that its inputs come from."""
    boxes = {box["name"]: box for box in data_flow(mixer)}
    return boxes, {name: [one["from"] for one in box["inputs"]] for name, box in boxes.items()}


def operands(mixer):
    boxes, _ = flow(mixer)
    return {one["as"]: one["from"] for one in boxes["palimpsa"]["inputs"]}


def test_the_flow_of_palimpsa_d():
    boxes, sources = flow(PalimpsaD(**SIZES))
    named = operands(PalimpsaD(**SIZES))
    assert set(named) == {"q", "k", "v", "beta", "g"}
    assert boxes[named["q"]]["label"] == boxes[named["k"]]["label"] == "L2 norm"
    assert sources[named["q"]] == ["q_conv"]
    assert sources[named["k"]] == ["k_conv"]
    # One gate for what is written and how firmly.
    assert sources[named["v"]] == ["sigmoid", "v_conv"]
    assert sources[named["beta"]] == ["x", "sigmoid"]
    assert named["g"] == "decay"
    assert sources["o_norm"] == ["add", "gate_proj"]
    assert [boxes[name]["width"] for name in ("x", "q_proj", "v_conv", "y")] == [32, 8, 16, 32]
    assert boxes["o_norm"]["label"] == "RMSNorm, gate"


def test_the_flow_of_palimpsa_m():
    boxes, sources = flow(PalimpsaM(**SIZES))
    named = operands(PalimpsaM(**SIZES))
    assert named["q"] == named["k"] == "conv"
    # The step size that forgets also gates the input.
    assert sources[named["v"]] == ["decay", "conv"]
    assert sources[named["beta"]] == ["x", "decay"]
    assert boxes[named["beta"]]["label"] == "plasticity, rank 2"
    assert sources["conv"] == sources["decay"] == ["in_proj"]
    assert boxes["o_norm"]["label"] == "gate, RMSNorm"


@pytest.mark.parametrize("mixer", [PalimpsaD, PalimpsaM])
@pytest.mark.parametrize(
    ("plasticity", "num_precisions", "width"), [("vector", None, 16), ("grouped", 4, 8), ("scalar", None, 2)]
)
def test_the_plasticity_makes_as_many_precisions_as_a_token_has(mixer, plasticity, num_precisions, width):
    made = mixer(**SIZES, plasticity=plasticity, num_precisions=num_precisions)
    boxes, _ = flow(made)
    assert boxes[operands(made)["beta"]]["width"] == width


@pytest.mark.parametrize("mixer", [PalimpsaD, PalimpsaM])
def test_without_metaplasticity_nothing_reaches_beta(mixer):
    assert set(operands(mixer(**SIZES, metaplastic=False))) == {"q", "k", "v", "g"}


@pytest.mark.parametrize("mixer", [PalimpsaD, PalimpsaM])
def test_every_box_follows_its_inputs_and_leads_to_the_output(mixer):
    boxes, sources = flow(mixer(**SIZES))
    names = list(boxes)
    assert names[0] == "x"
    assert names[-1] == "y"
    used = set()
    for place, name in enumerate(names):
        assert all(names.index(source) < place for source in sources[name])
        used.update(sources[name])
    assert used == set(names) - {"y"}


def test_weights_are_left_as_they_are():
    mixer = PalimpsaD(**SIZES)
    before = {name: x.clone() for name, x in mixer.state_dict().items()}
    data_flow(mixer)
    for name, x in mixer.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0, equal_nan=True)
