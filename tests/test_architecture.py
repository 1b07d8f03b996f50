"""The rules of the tree that a reader relies on, held true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
PYTHON_FILES = [
    path for folder in ("kernels", "src/palimpsa", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
]


def imports(path: Path) -> set[str]:
    """Names of all modules that a file imports, late imports included; relative ones with their leading dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return names


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path) if not name.startswith(".")}


def early_roots(path: Path) -> set[str]:
    """Names of the packages that are imported as soon as a file is: not those inside a function."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return names


# Triton is published for Linux only: what else is imported with `palimpsa.kernels` must not need it.
TRITON_FILES = {"primitives.py", "forward.py", "backward.py", "step.py", "convolve.py"}
# beta = None on a GPU: flash-linear-attention, imported when it is called.
FLA_FILE = "linear.py"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_need_torch_and_triton_alone(path):
    allowed = set(sys.stdlib_module_names) | {"torch"} | ({"triton"} if path.name in TRITON_FILES else set())
    assert early_roots(path) <= allowed
    assert roots(path) <= allowed | ({"fla"} if path.name == FLA_FILE else set())
    assert not any(name.startswith("..") for name in imports(path)), "kernels must work without the rest"


def test_flash_linear_attention_is_imported_late_and_in_few_places():
    assert {path.name for path in PYTHON_FILES if "fla" in roots(path)} == {FLA_FILE, "recurrences.py", "gla_chunks.py"}
    assert not any("fla" in early_roots(path) for path in PYTHON_FILES)


def test_analysis_imports_no_torch_and_no_training():
    allowed = set(sys.stdlib_module_names) | {"numpy", "pandas", "matplotlib", "rich", "palimpsa"}
    for path in (ROOT / "src/palimpsa/analysis").glob("*.py"):
        assert roots(path) <= allowed, path
        assert all(not n.startswith("palimpsa") or n.startswith("palimpsa.analysis") for n in imports(path)), path


def test_wandb_is_imported_by_the_logger_alone():
    importers = {path.name for path in PYTHON_FILES if "wandb" in roots(path)}
    assert importers == {"loggers.py"}


def test_layers_import_downwards_only():
    order = ["kernels", "mixers", "model", "training", "cli"]
    for position, layer in enumerate(order[1:], start=1):
        higher = tuple(f"palimpsa.{name}" for name in order[position + 1 :])
        paths = [p for p in PYTHON_FILES if p.stem == layer or (p.parent.name == layer and layer != "kernels")]
        assert paths
        for path in paths:
            assert not any(name.startswith(higher) for name in imports(path)), path


def test_files_outside_kernels_have_at_most_300_lines():
    for path in PYTHON_FILES:
        if "kernels" not in path.parts:
            assert len(path.read_text().splitlines()) <= 300, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_yamls_stem_is_its_name_and_it_holds_no_arithmetic(path):
    text = path.read_text()
    # Hydra hands what a sweeper's or a launcher's config holds to its class.
    if path.parent.name not in ("configs", "sweep", "size", "sweeper", "launcher"):
        assert re.search(rf"^name: {path.stem}$", text, re.MULTILINE)
    assert not re.search(r"\$\{[^}]*[*+/][^}]*\}", text)


def test_transformers_imports_from_a_root_that_has_a_folder_named_kernels():
    program = "import transformers; from transformers import LlamaForCausalLM; import palimpsa.kernels"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_no_file_names_a_machine_path_or_a_package_registry():
    # Put together here, so that this file does not name them either.
    forbidden = re.compile(
        "|".join(("/ro" + "ot/", "/wo" + "rk/", "py" + "pi", "python" + "hosted", "download.py" + "torch"))
    )
    for name in filter(None, TRACKED):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png",):
            match = forbidden.search(path.read_text(errors="ignore"))
            assert match is None, f"{name}: {match}"
