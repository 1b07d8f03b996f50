"""A model config: built as it stands, or refused in one line that names the key."""

import copy
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from palimpsa.config.compose import compose_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import CONFIG_DIR
from palimpsa.mixers import Mixer
from palimpsa.model.build import build_model, check_model


@pytest.fixture(scope="module")
def shipped():
    return compose_config(["model=palimpsa_d"]).model


class SpecialisedMixer(Mixer):
    """Takes an argument that has no default, and another of its own type."""

    def __init__(self, d_model: int, num_slots: int, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share: got {share}, expected > 0 and < 1")
        super().__init__(d_model, 1, num_slots, num_slots, 1)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("d_model", 0, "model.d_model: got 0, expected >= 1"),
        ("norm", "batchnorm", "model.norm: got 'batchnorm'"),
        ("channel_width", 3, "model.channel_width: got 3"),
        ("vocab_size", 10**30, "model: got sizes that make no tensor"),
        ("mixer._target_", "palimpsa.mixers.PalimpsaX", "model.mixer._target_: got 'palimpsa.mixers.PalimpsaX'"),
        ("mixer._target_", "palimpsa.mixers.PalimpsaX", "did you mean 'palimpsa.mixers.Palimpsa"),
        ("mixer._target_", "collections.Counter", "a subclass of palimpsa.mixers.Mixer"),
        ("mixer._target_", None, "model.mixer._target_: got 'None'"),
        ("mixer.num_head", 2, "did you mean 'num_heads'?"),
        ("mixer.num_heads", 3, "model.mixer.num_heads: got 3, expected a divisor of d_model"),
        ("mixer.num_heads", 2.5, "model.mixer.num_heads: got 2.5, expected int"),
        ("mixer.num_heads", True, "model.mixer.num_heads: got True, expected int"),
    ],
)
def test_a_mistake_is_named(shipped, key, value, expected):
    config = OmegaConf.to_container(shipped, resolve=True)
    check_model(config)
    changed = copy.deepcopy(config)
    (changed["mixer"] if key.startswith("mixer.") else changed)[key.removeprefix("mixer.")] = value
    with pytest.raises(ConfigError) as caught:
        check_model(changed)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixer_of_ones_own_is_checked_like_those_that_are_shipped(shipped, monkeypatch):
    monkeypatch.setattr("palimpsa.mixers.SpecialisedMixer", SpecialisedMixer, raising=False)
    config = OmegaConf.to_container(shipped, resolve=True) | {"mixer": {"_target_": "palimpsa.mixers.SpecialisedMixer"}}
    for arguments, expected in (
        ({}, "model.mixer.num_slots: missing, palimpsa.mixers.SpecialisedMixer needs it"),
        ({"num_slots": 2, "share": "half"}, "model.mixer.share: got 'half', expected float"),
        ({"num_slots": 2, "share": 2}, "model.mixer.share: got 2, expected > 0 and < 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            check_model(config | {"mixer": config["mixer"] | arguments})
    check_model(config | {"mixer": config["mixer"] | {"num_slots": 2}})


def test_a_model_without_a_seed_is_left_for_a_checkpoint_to_fill(shipped):
    empty, drawn = build_model(shipped, None), build_model(shipped, 1)
    empty.load_state_dict(drawn.state_dict())
    assert empty.num_parameters == drawn.num_parameters


def test_to_check_models_takes_no_compiler():
    """What PyTorch does on the device "meta" in Python imports it: a second and more of every command."""
    code = (
        "import sys; from omegaconf import OmegaConf; from palimpsa.config.compose import compose_config\n"
        "from palimpsa.model.build import check_model\n"
        f"for name in {[path.stem for path in sorted(CONFIG_DIR.glob('model/*.yaml'))]}:\n"
        "    check_model(OmegaConf.to_container(compose_config([f'model={name}']).model, resolve=True))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["False"]), done.stderr
