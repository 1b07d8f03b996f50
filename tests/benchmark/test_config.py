"""configs/benchmark.yaml: it composes, and every mistake is one line, told before any work."""

import subprocess
import sys

import pytest

from palimpsa.analysis.collect.benchmark_columns import OPERATORS, OPERATORS_OF_CASE
from palimpsa.benchmark.config import load
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.config.errors import ConfigError

# Each command line, and what the message must say.
MISTAKES = {
    "lenghts=[512]": ("lenghts: unknown key", "did you mean 'lengths'"),
    "+foo=1": ("foo: unknown key", "warmup_ms"),
    "presets.cpu.dtyp=float32": ("presets.cpu.dtyp: unknown key", "did you mean 'dtype'"),
    "presets.cpus.dtype=float32": ("presets.cpus: unknown key", "did you mean 'cpu'"),
    "+presets.cpu.table.0.X=3": ("presets.cpu.table[0].X: unknown key",),
    "presets.cpu.table=[{name:a}]": ("presets.cpu.table[0].B",),
    "presets.cpu.table=[3]": ("presets.cpu.table[0]: got 3",),
    "presets.cpu.table=[]": ("presets.cpu.table: got []",),
    "presets.cpu.table.0.B=0": ("presets.cpu.table[0].B: got 0, expected > 0",),
    "presets.cpu.table.0.B=x": ("presets.cpu.table[0].B", "Integer"),
    "presets.cpu.decode.T=2": ("presets.cpu.decode.T: got 2, expected 1",),
    "presets.cpu.dtype=float16": ("presets.cpu.dtype: got 'float16'", "bfloat16, float32"),
    "presets.cpu.copy_mib=0": ("presets.cpu.copy_mib: got 0",),
    "presets.cpu.against_length.decode_steps=0": ("presets.cpu.against_length.decode_steps: got 0",),
    "operators=[palimpas]": ("operators: got 'palimpas'", "did you mean 'palimpsa'"),
    "operators=[]": ("operators: got []",),
    "operators=[gla]": ("operators: got [gla]", "on the CPU"),
    "operators=[softmax_attention] cases=[table]": ("operators: got [softmax_attention]",),
    "cases=[tables]": ("cases: got 'tables'", "did you mean 'table'"),
    "cases=[]": ("cases: got []",),
    "cases=[table,table]": ("cases: got [table, table]", "each once"),
    "sizes=h100": ("sizes: got 'h100'", "did you mean 'h200'"),
    "lengths=[]": ("lengths: got []",),
    "lengths=[0]": ("lengths: got 0, expected > 0",),
    "lengths=[-512]": ("lengths: got -512, expected > 0",),
    "lengths=[3000]": ("lengths: got 3000", "tokens_per_call = 2048"),
    "lengths=512": ("lengths",),
    "device=tpu": ("device: got 'tpu'", "auto, cuda, cpu"),
    "device=cuda": ("device: got cuda", "no NVIDIA GPU"),
    "warmup_ms=0": ("warmup_ms: got 0.0, expected > 0",),
    "repeat_ms=nan": ("repeat_ms: got nan",),
    "seed=-1": ("seed: got -1",),
    "tolerance.float32=0": ("tolerance.float32: got 0.0",),
    "tolerance.float8=1": ("tolerance.float8: unknown key",),
    "fresh=maybe": ("fresh", "'maybe'"),
    "results_dir=''": ("results_dir: got an empty string",),
    "results_dir=/proc/nowhere": ("results_dir: got '/proc/nowhere'",),
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("command_line", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_key(command_line):
    with pytest.raises(ConfigError) as caught:
        load(command_line.split())
    assert "\n" not in str(caught.value)
    for part in MISTAKES[command_line]:
        assert part in str(caught.value)


@pytest.mark.parametrize("arguments", [["lenghts=[512]"], ["--fresh"], ["device=cuda"]])
def test_a_mistake_ends_with_code_2_and_writes_nothing(bench, arguments, tmp_path, capsys):
    assert bench(*arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_the_default_takes_the_small_sizes_without_a_gpu_and_leaves_what_needs_one():
    config = load([])
    assert (config.device, config.sizes, config.lengths) == ("cpu", "cpu", [128, 256, 512, 1024, 2048])
    assert config.left_out == ["simple_gla", "gla", "gated_deltanet"]
    palimpsa = ["palimpsa", "palimpsa_scalar", "palimpsa_without_metaplasticity"]
    assert config.operators_of("lengths") == [*palimpsa, "softmax_attention"]
    assert set(config.operators) == set(OPERATORS)
    assert set(config.cases) == set(OPERATORS_OF_CASE)


def test_the_default_takes_the_h200_sizes_on_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = load([])
    assert (config.device, config.sizes, config.left_out) == ("cuda", "h200", [])
    assert config.lengths == [512, 1024, 2048, 4096, 8192, 16384, 32768]
    assert load(["lengths=[512,1024]"]).lengths == [512, 1024]
    assert load(["device=cpu"]).sizes == "cpu"


def test_what_is_imported_when():
    """One interpreter: importing takes seconds."""
    program = (
        f"import sys; sys.path.insert(0, {str(CONFIG_DIR.parent / 'src')!r})\n"
        "import palimpsa.benchmark.config, palimpsa.benchmark.run, palimpsa.benchmark.store\n"
        "assert 'torch' not in sys.modules, 'composing needs no torch'\n"
        "palimpsa.benchmark.config.load(['device=cpu'])\n"
        "assert 'fla' not in sys.modules and 'triton' not in sys.modules, 'checking needs no kernels'\n"
        # What runs are forked from.
        "import torch\n"
        "def touched(*_): raise AssertionError('CUDA')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = touched\n"
        "import palimpsa.benchmark.steps\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
