"""requirements.lock, pyproject.toml and environment.yml describe one environment."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCKED_EXTRAS = ("dev", "experiments", "slurm", "text", "workspaces")


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    """Map each canonical name of requirements.lock to its version."""
    return dict(line.split(" ; ")[0].split("==") for line in lock_lines())


def direct_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in LOCKED_EXTRAS for line in extras[extra])]
    return [Requirement(line) for line in lines]


def test_every_lock_line_is_an_exact_pin_without_build_suffix_or_url():
    pattern = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][a-z0-9.]*( ; sys_platform == \"linux\")?")
    bad = [line for line in lock_lines() if not pattern.fullmatch(line)]
    assert bad == []


def test_lock_is_sorted_and_names_each_package_once():
    names = [line.split("==")[0] for line in lock_lines()]
    assert names == [canonicalize_name(name) for name in names]
    assert lock_lines() == sorted(lock_lines())
    assert len(names) == len(set(names))


def test_lock_leaves_cuda_libraries_to_torch():
    assert [name for name in pins() if name.startswith(("nvidia-", "cuda-"))] == []


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda r: r.name)
def test_ranges_of_pyproject_admit_the_pin(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is not in requirements.lock"
    assert requirement.specifier.contains(pin), f"{requirement} does not admit {pin}"


@pytest.mark.parametrize("extra", ["slurm", "ray"])
def test_launcher_extras_are_exact(extra):
    for line in PROJECT["optional-dependencies"][extra]:
        (specifier,) = Requirement(line).specifier
        assert specifier.operator == "=="


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_lock_holds_everything_that_its_packages_need(python):
    """Nothing is left for pip to choose, whatever the machine's Python."""
    locked = pins()
    requested = {canonicalize_name(r.name): r.extras for r in direct_requirements()}
    missing, checked = [], 0
    for name, pin in locked.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        # `2.13.0+cpu` is the pin's version too; any other version says nothing about the pin.
        if Version(distribution.version).public != pin:
            continue
        checked += 1
        for text in distribution.requires or ():
            need = Requirement(text)
            target = canonicalize_name(need.name)
            if name == "torch" and target.startswith(("nvidia-", "cuda-")):
                continue
            environments = [
                {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
                for extra in ("", *requested.get(name, ()))
            ]
            if need.marker and not any(need.marker.evaluate(env) for env in environments):
                continue
            if target not in locked or not need.specifier.contains(locked[target]):
                missing.append(f"{name} needs {text}")
    if checked == 0:
        pytest.skip("none of the pinned versions is installed here")
    assert missing == []


def test_conda_lines_are_valid_and_agree_with_the_pins():
    rattler = pytest.importorskip("rattler")
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    conda_lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    specs = {line: rattler.MatchSpec(line, strict=True) for line in conda_lines}
    names = [spec.name.normalized for spec in specs.values()]
    assert {"python", "pip"} <= set(names)
    for line, spec in specs.items():
        locked = pins().get(spec.name.normalized)
        assert locked is None or line == f"{spec.name.normalized}={locked}"
    (python,) = (line for line, spec in specs.items() if spec.name.normalized == "python")
    version = python.removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    assert version == PYPROJECT["tool"]["pyright"]["pythonVersion"]


def test_pip_lines_of_the_conda_file_are_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (block,) = (line for line in environment["dependencies"] if isinstance(line, dict))
    assert list(block) == ["pip"]
    versions = {}
    for line in block["pip"]:
        if line == "-e .":
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        name = canonicalize_name(requirement.name)
        assert pins()[name] == specifier.version
        versions[name] = specifier.version
    assert versions == pins()


@pytest.mark.parametrize("name", ["requirements.lock", "environment.yml", "Makefile"])
def test_no_package_host_is_written_down(name):
    """Where packages come from is the user's pip configuration, not ours."""
    assert "://" not in (ROOT / name).read_text()


def test_pre_commit_hooks_need_no_network():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
