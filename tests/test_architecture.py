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


# Which rooms a room may import; an arrow of the design is an entry here. `kernels` is src/palimpsa/kernels too.
ARROWS: dict[str, set[str]] = {
    "kernels": set(),
    "config": set(),
    "mixers": {"kernels"},
    "theory": {"kernels"},
    "model": {"kernels", "mixers", "config"},
    "runs": {"config"},
    "text": {"config", "runs"},
    "tasks": {"kernels", "mixers", "config", "text"},
    "analysis": {"config", "runs"},
    "training": {"kernels", "mixers", "model", "tasks", "config", "runs", "text"},
    "conversion": {"kernels", "mixers", "model", "tasks", "training", "config", "runs", "text"},
    "evaluation": {
        "conversion",
        *("kernels", "mixers", "model", "tasks", "training", "config", "runs", "text", "analysis"),
    },
    "sweeps": {"kernels", "mixers", "model", "tasks", "training", "config", "runs", "analysis"},
    "benchmark": {
        *("kernels", "mixers", "model", "tasks", "training", "config", "runs", "text", "analysis", "sweeps", "theory"),
        "evaluation",
    },
    "finetuning": {
        *("kernels", "mixers", "model", "tasks", "training", "conversion", "evaluation", "sweeps"),
        *("config", "runs", "text", "analysis"),
    },
    "scripts": {
        *("kernels", "model", "tasks", "theory", "training", "config", "runs", "text", "analysis", "sweeps"),
        *("benchmark", "evaluation", "conversion", "finetuning"),
    },
}
# Packages that a room never imports, at the top of a file or late; and those that it imports late at most.
NEVER = {
    "kernels": {"hydra", "omegaconf", "lightning", "wandb", "pandas", "matplotlib", "rich"},
    "mixers": {"hydra", "omegaconf", "lightning", "wandb", "pandas", "fla"},
    "theory": {"hydra", "lightning", "wandb", "triton"},
    "model": {"lightning", "wandb", "hydra"},
    "tasks": {"lightning", "wandb", "hydra"},
    "config": {"lightning", "wandb", "torch"},
    "runs": {"lightning", "wandb", "hydra"},
    "text": {"torch", "lightning", "wandb", "pandas", "transformers"},
    "analysis": {"torch", "lightning", "triton", "wandb", "hydra", "fla"},
    "sweeps": {"wandb", "fla"},
    "benchmark": {"wandb"},
    "evaluation": {"wandb", "hydra"},
    "conversion": {"wandb", "hydra", "pandas"},
    "finetuning": {"wandb", "hydra", "lightning", "fla", "pandas"},
    "training": {"fla"},
    "scripts": {"wandb", "fla"},
}
# What one file may import against its room's rule, late: the messages that a .wandb file consists of.
EXCEPTIONS = {"wandb_files.py": {"wandb"}}
LATE = {
    "runs": {"torch"},
    "text": {"hydra", "datasets", "pyarrow", "huggingface_hub", "sentencepiece", "tokenizers"},
    "sweeps": {"torch", "lightning", "pandas"},
    "kernels": {"fla"},
    "tasks": {"triton"},
    "model": {"triton"},
    "mixers": {"triton"},
}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[2] if parts[0] == "src" else parts[0]


def imported(source: str, *, early: bool = False) -> set[str]:
    """Dotted names of what a file imports, `from x import y` as x and x.y; early: not inside functions.

    Relative imports keep their leading dots.
    """
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            stem = base if base.endswith(".") else f"{base}."
            names.update([base, *(f"{stem}{alias.name}" for alias in node.names)])
        if not (early and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))
    return names


def packages(source: str, *, early: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imported(source, early=early) if not name.startswith(".")}


def wrong_imports(room: str, source: str) -> set[str]:
    """What a file of a room imports against the rules: rooms without an arrow to it, packages that it must not know."""
    rooms = {name.split(".")[1] for name in imported(source) if name.startswith("palimpsa.")} & set(ARROWS)
    wrong = {f"palimpsa.{name}" for name in rooms - ARROWS[room] - {room}}
    wrong |= packages(source) & NEVER.get(room, set())
    return wrong | (packages(source, early=True) & LATE.get(room, set()))


def test_every_room_has_its_arrows():
    assert {room_of(path) for path in PYTHON_FILES} - {"__init__.py"} == set(ARROWS)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_what_its_arrows_allow(path):
    if room_of(path) != "__init__.py":
        allowed = EXCEPTIONS.get(path.name, set())
        assert wrong_imports(room_of(path), path.read_text()) == allowed
        assert not packages(path.read_text(), early=True) & allowed


@pytest.mark.parametrize("room", ARROWS)
def test_a_planted_import_is_seen_in_every_room(room):
    """In each file of the room, at the top and inside a function, from every room without an arrow to it."""
    path = next(path for path in PYTHON_FILES if room_of(path) == room and path.name != "__init__.py")
    forbidden = sorted(set(ARROWS) - ARROWS[room] - {room, "scripts"}) or ["mixers"]
    for other in forbidden:
        if other in ARROWS[room]:
            continue
        for planted in (
            f"import palimpsa.{other}.something",
            f"from palimpsa import {other}",
            f"def late():\n    from palimpsa.{other} import something",
        ):
            assert wrong_imports(room, f"{path.read_text()}\n{planted}\n") == {f"palimpsa.{other}"}
    for package in NEVER.get(room, set()):
        assert wrong_imports(room, f"{path.read_text()}\ndef late():\n    import {package}\n") >= {package}


def test_the_arrows_go_one_way():
    """Following them never leads back."""
    for room in ARROWS:
        reached, pending = set(), [room]
        while pending:
            following = ARROWS[pending.pop()] - reached
            reached |= following
            pending += following
        assert room not in reached


def test_of_what_trains_only_sweeps_ask_analysis():
    assert {room for room in ARROWS if "analysis" in ARROWS[room]} == {
        *("evaluation", "finetuning", "sweeps", "benchmark", "scripts")
    }


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_need_torch_and_triton_alone(path):
    source = path.read_text()
    # Triton is published for Linux only: what is imported with `palimpsa.kernels` must not need it.
    triton = {"triton"} if path.parent.name == "gpu" else set()
    # The library brings Triton, and is imported where it is called.
    fla = {"fla", "triton"} if path.parent.name == "fla" else set()
    allowed = set(sys.stdlib_module_names) | {"torch"} | triton
    assert packages(source, early=True) <= allowed
    assert packages(source) <= allowed | fla
    depth = len(path.relative_to(ROOT / "kernels").parts)
    beyond = [name for name in imported(source) if len(name) - len(name.lstrip(".")) > depth]
    assert not beyond, "kernels must work without the rest"


def test_wandb_is_imported_by_what_records_runs_and_the_reader_of_its_files_alone():
    found = {path for path in PYTHON_FILES if "wandb" in packages(path.read_text())}
    assert {path.name for path in found} == {"loggers.py", "artifacts.py", "wandb_files.py"}
    (reader,) = (path for path in found if path.name == "wandb_files.py")
    names = {name for name in imported(reader.read_text()) if name.startswith("wandb")}
    assert names == {"wandb.proto", "wandb.proto.wandb_internal_pb2"}
    found = {path for path in PYTHON_FILES if "wandb_workspaces" in packages(path.read_text())}
    assert {path.name for path in found} == {"workspace.py"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The calls of a file, each with the last part of what it calls."""
    found = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func).split(".")[-1], node) for node in found]


def lacks_an_encoding(name: str, call: ast.Call) -> bool:
    """Whether a call opens text in whatever encoding the environment says."""
    options = {option.arg: option.value for option in call.keywords}
    words = [node.value for node in [*call.args, *options.values()] if isinstance(node, ast.Constant)]
    if name in ("open", "fdopen", "read_text", "write_text"):
        is_binary = any(isinstance(word, str) and re.fullmatch("[rwxa]b[+]?", word) for word in words)
        is_no_text = ast.unparse(call.func) in ("os.open", "TokenShards.open", "Image.open")
        return not (is_binary or "encoding" in options or is_no_text)
    return ("text" in options or "universal_newlines" in options) and "encoding" not in options


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_and_pipe_has_its_encoding_stated(path):
    """Under LANG=C a config with an umlaut in it could not be read."""
    assert [call.lineno for name, call in calls(path) if lacks_an_encoding(name, call)] == []


def test_a_missing_encoding_is_seen():
    for line in ("p.open()", "open(p, 'w')", "p.read_text()", "os.fdopen(1, 'r+')", "run(x, text=True)"):
        assert lacks_an_encoding(re.split(r"[.(]", line)[-2], ast.parse(line, mode="eval").body), line
    for line in ("p.open('rb')", "open(p, 'w', encoding='utf-8')", "os.open(p, 0)", "run(x, encoding='utf-8')"):
        assert not lacks_an_encoding(re.split(r"[.(]", line)[-2], ast.parse(line, mode="eval").body), line


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_every_script_prepares_its_process_before_it_imports_matplotlib(path):
    names = [name for name, _ in calls(path)]
    assert "run_script" in names
    program = f"import runpy, sys; runpy.run_path({str(path)!r}); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_printed_is_no_markup(path):
    """A run's label in brackets ended a sweep, or was printed without them."""
    found = [(name, {option.arg for option in call.keywords}) for name, call in calls(path)]
    assert path.name == "process.py" or not [name for name, _ in found if name == "Console"]
    assert all("markup" in options for name, options in found if name == "TextColumn")


def test_nothing_outside_the_tasks_names_one():
    """MQAR is a task: of the other rooms only analysis, which draws its figures, and the config's schema know."""
    for path in PYTHON_FILES:
        if room_of(path) not in ("tasks", "analysis", "kernels", "scripts") and path.name != "schema.py":
            assert "mqar" not in path.read_text().lower(), path


def test_every_room_says_what_is_in_it_and_who_may_import_it():
    for folder in [ROOT / "kernels", *(ROOT / "src/palimpsa").iterdir()]:
        if folder.is_dir() and not folder.is_symlink() and folder.name != "__pycache__":
            docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
            assert "import" in docstring.lower(), folder
            assert len(list(folder.glob("*.py"))) <= 15, folder


def test_files_outside_kernels_have_at_most_300_lines():
    for path in PYTHON_FILES:
        if "kernels" not in path.parts:
            assert len(path.read_text().splitlines()) <= 300, path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_yamls_stem_is_its_name_and_it_holds_no_arithmetic(path):
    text = path.read_text()
    # Hydra hands what a sweeper's or a launcher's config holds to its class.
    # What is composed into other files has no name of its own.
    parts = ("configs", "sweep", "experiment", "size", "sweeper", "launcher")
    if path.parent.name not in parts and not path.parent.name.endswith("_budget"):
        assert re.search(rf"^name: {path.stem}$", text, re.MULTILINE)
    assert not re.search(r"\$\{[^}]*[*+/][^}]*\}", text)


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
