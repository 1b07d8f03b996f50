"""The folder is a package: `kernels` by itself and palimpsa.kernels, without Triton, beside who looks for its name."""

from pathlib import Path

SOURCES = str(Path(__file__).resolve().parents[2] / "src")
# Of what the folder needs where it is used alone, nothing is here.
WITHOUT_LIBRARIES = """
import sys
sys.modules["triton"] = sys.modules["fla"] = None
import torch
x = torch.ones(1, 1, 1, 1)
def recall(package):
    return package.palimpsa(x, x, x, x, x[..., 0] * 0, x.flatten()).o.item()
"""


def test_the_kernels_folder_is_a_package_of_its_own_that_needs_no_triton(run_python):
    code = """
import kernels
assert not any(name.startswith("palimpsa") for name in sys.modules)
print(*kernels.__all__, recall(kernels))
"""
    found = run_python(WITHOUT_LIBRARIES + code, PYTHONPATH="", PALIMPSA_PATH="").split()
    assert "palimpsa_step" in found
    assert found[-1] == "0.5"


def test_both_copies_of_the_kernels_work_beside_each_other_without_triton(run_python):
    code = """
import kernels, palimpsa.kernels
# Their operators have names of their own.
import kernels.convolution, kernels.fla.gla_chunks, palimpsa.kernels.convolution, palimpsa.kernels.fla.gla_chunks
print(*map(recall, (kernels, palimpsa.kernels, kernels)))
"""
    found = run_python(WITHOUT_LIBRARIES + code, PYTHONPATH=SOURCES, PALIMPSA_PATH="")
    assert found.split() == ["0.5"] * 3


def test_importing_the_project_does_not_import_torch(run_python):
    run_python("import sys, palimpsa; assert 'torch' not in sys.modules", PYTHONPATH=SOURCES)


def test_transformers_imports_beside_a_folder_named_kernels(run_python):
    # transformers looks for a package named `kernels`, and from the root of the repository it finds ours.
    code = "import transformers; from transformers import LlamaForCausalLM; print(LlamaForCausalLM.__name__)"
    assert run_python(code, PYTHONPATH="").strip().endswith("LlamaForCausalLM")
