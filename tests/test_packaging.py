"""The wheel holds the package, palimpsa.kernels included, once; importing it is cheap."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "palimpsa"


def run_python(*args: str, cwd: Path) -> str:
    """Run this interpreter as a user without our settings would; return its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "COV"))}
    result = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def source_modules() -> set[str]:
    """Every module under src/palimpsa, as the wheel should name it, through the symlink."""
    found = set()
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        relative = Path(folder).relative_to(PACKAGE.parent)
        found |= {(relative / name).as_posix() for name in files if name.endswith(".py")}
    return found


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory) -> Path:
    """A copy of what a build reads: setuptools leaves build/ and egg-info where it works."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "kernels"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(source_copy) -> Path:
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run_python("-m", "pip", "wheel", *flags, "--wheel-dir", "dist", ".", cwd=source_copy)
    (path,) = (source_copy / "dist").glob("palimpsa-*.whl")
    return path


def test_kernels_folder_is_linked_into_the_package_by_a_relative_path():
    assert os.readlink(PACKAGE / "kernels") == "../../kernels"


def test_wheel_holds_every_module_exactly_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = [name for name in names if name.endswith(".py")]
    assert set(modules) == source_modules()
    assert max(Counter(names).values()) == 1
    basenames = Counter(name for name in modules if name.endswith("/ops.py"))
    assert basenames == {"palimpsa/kernels/ops.py": 1}


def test_wheel_holds_real_files_and_nothing_beside_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
    assert {info.filename.split("/")[0].split("-")[0] for info in infos} == {"palimpsa"}
    assert not [i.filename for i in infos if stat.S_ISLNK(i.external_attr >> 16)]
    assert not [i.filename for i in infos if "__pycache__" in i.filename]
    assert any(i.filename.endswith("licenses/LICENSE") for i in infos)
    # What source=sample reads, with its licence beside it.
    sample = {i.filename for i in infos if i.filename.startswith("palimpsa/text/sample/")}
    assert {name.rpartition("/")[2] for name in sample} == {"README.md", "persuasion.txt"}
    page = {i.filename for i in infos if i.filename.startswith("palimpsa/analysis/dashboard/page/")}
    assert {Path(name).name for name in page} == {one.name for one in (PACKAGE / "analysis/dashboard/page").iterdir()}


def test_wheel_metadata_names_licence_and_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(name).decode())
    assert fields["License-Expression"] == "MIT"
    assert set(fields["Requires-Python"].split(",")) == {">=3.11", "<3.13"}
    assert set(fields.get_all("Provides-Extra")) == {"dev", "experiments", "slurm", "ray", "text", "workspaces"}
    # What a folder of transformers is loaded with.
    needed = [line for line in fields.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.split(r"[^a-z-]", line)[0] for line in needed} == {"torch", "transformers", "triton", "fla-core"}


def test_source_distribution_holds_the_kernels_as_files(source_copy, tmp_path):
    pytest.importorskip("build")
    out = str(tmp_path / "sdist")
    run_python("-m", "build", "--no-isolation", "--sdist", "--outdir", out, cwd=source_copy)
    (path,) = Path(out).glob("palimpsa-*.tar.gz")
    with tarfile.open(path) as archive:
        members = {m.name.split("/", 1)[-1]: m for m in archive.getmembers()}
    assert {f"src/{name}" for name in source_modules()} <= set(members)
    assert not [name for name, member in members.items() if member.issym()]


def test_kernels_import_from_the_unpacked_wheel_without_the_rest(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import palimpsa.kernels
print(palimpsa.kernels.__file__)
print(palimpsa.kernels.palimpsa.__module__)
print(sorted({{"hydra", "lightning", "transformers", "wandb"}} & set(sys.modules)))
"""
    file, module, unwanted = run_python("-c", code, cwd=tmp_path).splitlines()
    assert file == str(site / "palimpsa" / "kernels" / "__init__.py")
    assert module.startswith("palimpsa.kernels")
    assert unwanted == "[]"


def test_importing_palimpsa_alone_imports_no_heavy_package(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
import palimpsa
heavy = {{"torch", "hydra", "lightning", "numpy", "pandas", "transformers", "triton", "wandb"}}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_python("-c", code, cwd=tmp_path).strip() == "[]"
