"""docs/models.md and the configs of language models: what the table says is what the configs build."""

import functools
import math
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from palimpsa.analysis.marked_text import replace_marked
from palimpsa.analysis.plasticity_costs import ROWS_A_GROUP
from palimpsa.analysis.text_blocks import TEXT_BLOCKS
from palimpsa.config.compose import CONFIG_DIR, compose_config
from palimpsa.config.schema import typed
from palimpsa.kernels import palimpsa_reference
from palimpsa.kernels.groups import suits_products
from palimpsa.mixers import GLA, Attention, DeltaNet, GatedDeltaNet, PalimpsaD, SimpleGLA
from palimpsa.model import table
from palimpsa.model.build import build_model
from palimpsa.model.language_model import LanguageModel
from palimpsa.model.table import SIZES
from palimpsa.training.preflight import check_run

ROOT = Path(__file__).resolve().parents[2]
LANGUAGE_MODELS = sorted(path.stem for path in (CONFIG_DIR / "model/lm").glob("*.yaml"))
each_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


# Composed once each: a hundred configs take most of this file's time.
composed = functools.cache(lambda *overrides: compose_config(overrides))


def config(name: str, *overrides: str):
    return composed(f"model={name}", *overrides).model


@pytest.fixture(scope="module")
def document() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "compose_config", lambda overrides: composed(*overrides).copy())
        return table.models_document()


def build_without_memory(own) -> LanguageModel:
    with torch.device("meta"):
        return build_model(own, None)


def test_the_committed_table_is_what_the_configs_build(document):
    blocks = {name: functools.partial(text, ROOT / "results") for name, text in TEXT_BLOCKS.items()}
    assert (ROOT / "docs/models.md").read_text() == replace_marked(document, blocks), "make figures writes it again"


def test_the_table_of_plasticities_is_what_the_models_have():
    """Each row beside the same model with that plasticity, counted; of groups, the smallest that a GPU multiplies."""
    assert suits_products(ROWS_A_GROUP, 1)
    assert not suits_products(ROWS_A_GROUP - 1, 1)
    lines = TEXT_BLOCKS["plasticity_costs"](ROOT / "results").splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    kinds = [
        ("vector", "plasticity=vector"),
        ("grouped", "plasticity=grouped"),
        ("scalar", "plasticity=scalar"),
        ("constant", "plasticity=constant"),
        ("without", "metaplastic=false"),
    ]
    assert [row[0].split()[0].strip(",") for row in rows] == [name for name, _ in kinds]
    for row, (name, override) in zip(rows, kinds, strict=True):
        for column, (model, V) in enumerate((("palimpsa_d_170m", 48), ("palimpsa_m_170m", 96))):
            overrides = [f"model.mixer.{override}"]
            if name == "grouped":
                overrides.append(f"model.mixer.num_precisions={V // 16}")
            if name == "constant":
                overrides.append("model.mixer.initial_plasticity=null")
            built = build_without_memory(config(f"lm/{model}", *overrides))
            mixer = next(built.mixers())
            weights = [x.numel() for key, x in mixer.named_parameters() if key == "plasticity.up.weight"]
            assert row[2 + column] == f"{mixer.state_size:,}"
            assert row[4 + column] == f"{sum(weights):,}"
            assert built.state_size == mixer.state_size


def test_the_table_has_every_model_config(document):
    names = [f"`{path.stem}`" for path in (CONFIG_DIR / "model").glob("*.yaml")]
    names += [f"`ablation/{path.stem}`" for path in (CONFIG_DIR / "model/ablation").glob("*.yaml")]
    # At the paper's sizes and at laptop scale.
    assert all(document.count(f"| {name} |") == 2 for name in names)
    assert all(document.count(f"| `lm/{name}` |") == 1 for name in LANGUAGE_MODELS)


def test_every_model_comes_in_every_size():
    mixers = {path.stem for path in (CONFIG_DIR / "model").glob("*.yaml")}
    assert set(LANGUAGE_MODELS) == {f"{mixer}_{size}" for mixer in mixers for size in SIZES}


@each_language_model
def test_a_language_model_has_the_skeleton_and_size_that_its_name_says(name):
    whole = composed(f"model=lm/{name}")
    check_run(typed(whole))
    own = whole.model
    built = build_without_memory(own)
    assert own.name == name
    size = own.name.rpartition("_")[2]
    assert own.label.endswith(size if size == "tiny" else size.upper())
    num_parameters = 1e6 if size == "tiny" else int(size[:-1]) * 1e6
    assert built.num_parameters == pytest.approx(num_parameters, rel=0.05 if size == "tiny" else 0.04)
    # Of bytes and their end, a multiple of 16.
    assert (own.vocab_size, own.norm, own.norm_eps) == (272 if size == "tiny" else 32_000, "rmsnorm", 1e-6)
    plain = name.startswith(("palimpsa_m", "mamba2"))
    assert own.channel_mixer == ("none" if plain else "swiglu")
    assert own.mixer.num_heads == {"tiny": 4, "44m": 8}.get(size, 16)


@pytest.mark.parametrize(
    ("name", "layers", "width", "keys", "values"),
    [
        # Ours: as many layers and the same heads for everything with a SwiGLU, and for everything without one.
        *((f"{name}_44m", 8, 512, 64, 64) for name in ("palimpsa_d", "palimpsa_d_nometa", "gla", "transformer")),
        *((f"{name}_44m", 13, 512, 64, 128) for name in ("palimpsa_m", "palimpsa_m_scalar", "mamba2")),
        ("palimpsa_d_170m", 19, 768, 48, 48),
        ("palimpsa_d_760m", 19, 1536, 96, 192),
        ("palimpsa_m_170m", 30, 768, 48, 96),
        ("palimpsa_m_760m", 38, 1536, 96, 192),
        ("mamba2_170m", 30, 768, 48, 96),
        ("mamba2_760m", 38, 1536, 96, 192),
    ],
)
def test_published_sizes_and_those_of_44m(name, layers, width, keys, values):
    own = config(f"lm/{name}")
    mixer = next(build_without_memory(own).mixers())
    assert (own.num_layers, own.d_model, mixer.head_k_dim, mixer.head_v_dim) == (layers, width, keys, values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("control", "model"), [("palimpsa_d_nometa_wide", "palimpsa_d"), ("mamba2_wide", "palimpsa_m")]
)
def test_a_wide_control_has_the_state_of_its_model_in_every_layer(size, control, model):
    wide, own = (build_without_memory(config(f"lm/{name}_{size}")) for name in (control, model))
    assert wide.state_size == own.state_size
    assert next(wide.mixers()).head_k_dim == 2 * next(own.mixers()).head_k_dim
    # Without a channel mixer to take the parameters of the keys from, the control of Palimpsa-M has fewer layers.
    share = len(wide.blocks) / len(own.blocks)
    # Few layers divide coarsely.
    assert share == 1 if model == "palimpsa_d" else 0.8 < share < (0.86 if size in ("tiny", "44m") else 0.84)


@each_language_model
def test_a_language_model_decodes_as_it_reads(name):
    """At a hundredth of its width."""
    small = composed(f"model=lm/{name}").copy().model
    small.d_model, small.num_layers, small.vocab_size = 32, 2, 96
    small.mixer.num_heads, small.mixer.head_k_dim = 2, 8
    small.mixer.head_v_dim = 8 if "transformer" in name else 16
    small.channel_width = small.channel_width and 40
    model = build_model(small, 1)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    caches = model.new_caches(2)
    steps = torch.stack([model.step(tokens[:, t], caches) for t in range(12)], dim=1)
    assert steps.std() > 0.01
    torch.testing.assert_close(steps, model(tokens), atol=1e-4, rtol=1e-3)


def test_plasticity_starts_log_uniform_in_language_models_and_at_one_in_mqar():
    model = build_model(config("palimpsa_d"), 1)
    assert all((mixer.plasticity.scale == 1).all() for mixer in model.mixers())
    overrides = ("model.num_layers=40", "model.d_model=32", "model.channel_width=8", "model.vocab_size=96")
    sizes = ("model.mixer.head_k_dim=2", "model.mixer.head_v_dim=2")
    found = build_model(config("lm/palimpsa_d_170m", *overrides, *sizes), 1)
    initial = torch.nn.functional.softplus(torch.stack([mixer.plasticity.scale for mixer in found.mixers()])).log()
    low, high = math.log(0.1), 0.0
    assert ((initial > low) & (initial < high)).all()
    # 640 draws, uniform in the logarithm: mean and standard deviation within four of their standard errors.
    assert initial.mean().item() == pytest.approx((low + high) / 2, abs=4 * (high - low) / (12 * 640) ** 0.5)
    assert initial.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.1)
    again = build_model(config("lm/palimpsa_d_170m", *overrides, *sizes), 1)
    for first, second in zip(found.mixers(), again.mixers(), strict=True):
        assert torch.equal(first.plasticity.scale, second.plasticity.scale)


@pytest.mark.parametrize("name", ["palimpsa_d", "mamba2", "gla", "gated_deltanet"])
def test_matrices_are_counted_as_torch_counts_them(name):
    model = build_model(config(name), 1)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 16, dtype=torch.int64))
    counts = counter.get_flop_counts()["Global"]
    memory = sum(mixer.memory_flops(16) for mixer in model.mixers())
    taps = sum(p.numel() for n, p in model.named_parameters() if n.endswith("conv.weight"))
    assert 16 * (model.flops_per_token(16) - memory - 2 * taps) == counts[torch.ops.aten.mm]


class Operations(TorchFunctionMode):
    """Counts the arithmetic on [..., K, V] tensors: an operation for each number of a result and of what is summed."""

    ELEMENTWISE = ("mul", "add", "sub", "div", "rsub", "neg")

    def __init__(self, K: int, V: int) -> None:
        self.shape, self.count = (K, V), 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_").removeprefix("i")
        if name in self.ELEMENTWISE and out.shape[-2:] == self.shape:
            self.count += out.numel()
        if name == "sum" and args[0].shape[-2:] == self.shape:
            self.count += args[0].numel()
        if name == "einsum" and any(x.shape[-2:] == self.shape for x in args[1:]):
            # einsum: a product and a sum for each number of the memory.
            self.count += 2 * self.shape[0] * self.shape[1]
        return out


def operations(recurrence, K: int, V: int) -> int:
    """Operations that a reference recurrence takes on its memory for one more token of one head."""
    counts = []
    for T in (3, 4):
        with Operations(K, V) as found:
            recurrence(K, V, T)
        counts.append(found.count)
    return counts[1] - counts[0]


def normal(*shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def references():
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    def tensors(K, V, T):
        return normal(1, T, 1, K), normal(1, T, 1, K), normal(1, T, 1, V)

    def palimpsa(K, V, T):
        beta, g = normal(1, T, 1, V).abs(), -normal(1, T, 1).abs()
        palimpsa_reference(*tensors(K, V, T), beta, g, torch.ones(1))

    return {
        "palimpsa": (PalimpsaD, palimpsa),
        "gla": (GLA, lambda K, V, T: naive_recurrent_gla(*tensors(K, V, T), -normal(1, T, 1, K).abs())),
        "simple_gla": (SimpleGLA, lambda K, V, T: naive_recurrent_simple_gla(*tensors(K, V, T), -normal(1, T, 1))),
        "deltanet": (
            DeltaNet,
            lambda K, V, T: delta_rule_recurrence(*(x.transpose(1, 2) for x in tensors(K, V, T)), normal(1, 1, T)),
        ),
        "gated_deltanet": (
            GatedDeltaNet,
            lambda K, V, T: naive_recurrent_gated_delta_rule(*tensors(K, V, T), normal(1, T, 1), -normal(1, T, 1)),
        ),
    }


@pytest.mark.parametrize("name", ["palimpsa", "gla", "simple_gla", "deltanet", "gated_deltanet"])
def test_operations_on_a_memory_are_those_of_its_reference(name):
    mixer_class, recurrence = references()[name]
    K, V = 5, 7
    # The reference of Palimpsa multiplies the prior with 1 - alpha in every entry, though it is one number a head.
    expected = operations(recurrence, K, V) - (K * V if name == "palimpsa" else 0)
    assert mixer_class(8, 1, K, V).memory_flops(4) == expected


def test_attention_sees_half_of_its_context_on_average():
    mixer = Attention(8, 2, 4, 4)
    # Two products of 4 numbers a head with each of 1, 2, .. 9 tokens.
    assert 9 * mixer.memory_flops(9) == sum(2 * 2 * (2 * 4) * seen for seen in range(1, 10))


def test_flops_without_a_channel_mixer_are_those_of_the_written_out_sum():
    d, h, k, v, vocabulary = 8, 2, 4, 4, 11
    model = LanguageModel(vocabulary, d, 1, lambda d_model: SimpleGLA(d_model, h, k, v), generator=None)
    assert PalimpsaD(d, h, k, v, metaplastic=False).memory_flops(100) == next(model.mixers()).memory_flops(100)
    matrices = 2 * d * h * k + 3 * d * h * v + d * h + vocabulary * d
    taps = 4 * (2 * h * k + h * v)
    assert model.flops_per_token(100) == 2 * (matrices + taps) + 5 * h * k * v


def test_training_counts_two_products_of_the_backward_pass_for_each_of_the_forward_pass():
    """Of matrices, as torch counts them."""
    model = build_model(config("mamba2"), 1)
    counts = []
    for differentiate in (False, True):
        with FlopCounterMode(display=False) as counter:
            logits = model(torch.zeros(1, 16, dtype=torch.int64))
            if differentiate:
                logits.sum().backward()
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
    assert counts[1] == 3 * counts[0]
    assert model.training_flops_per_token(16) == 3 * model.flops_per_token(16)
