"""What the command lines have in common: where configs/ is, and what a mistake in one looks like."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from palimpsa.checks import schema_keys
from palimpsa.errors import ConfigError, nearest

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


def check_writable(results_dir: str, directory: Path) -> None:
    """Tries to write in `directory`, or in the nearest parent that there is; ConfigError names `results_dir`."""
    folder = directory.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"results_dir: got {results_dir!r}, expected a directory that can be written ({folder}: {error.strerror})"
        ) from error


def explain(error: Exception, overrides: list[str], config_name: str, schema: type) -> str:
    """One line about a composition error: the key, what is wrong with it, and the nearest known key or option."""
    # Hydra wraps the error that names the key; the innermost one is the most exact.
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(map(str, chain))

    option = re.search(r"Could not find '([\w/]+)/([\w.-]+)'", text)
    if option:
        group, name = option.groups()
        choices, below = _group_options(group)
        listed = ", ".join([*choices, *(f"{folder}/NAME" for folder in below)])
        near = nearest(name, [*choices, *(f"{folder}/{choice}" for folder in below for choice in below[folder])])
        return f"{group}: got {name!r}, expected one of {listed}{near}"

    attributes = [getattr(link, "full_key", None) for link in reversed(chain)]
    named = [str(key) for key in attributes if key] or re.findall(r"full_key: (\S+)", text)
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if re.match(r"(Key|Value|Cannot|Missing|Interpolation key) ", line)]
    reason = reasons[-1] if reasons else str(chain[-1]).splitlines()[0].strip()
    file = re.search(r"In '([\w/]+)': .* raised while composing", text)
    where = f"configs/{file.group(1)}.yaml: " if file else ""
    if not named:
        return f"{where or ' '.join(overrides) + ': '}{reason}"
    full_key = re.sub(r"\[(\d+)\]", r".\1", named[0])
    *parents, key = full_key.split(".")
    siblings = _known_keys(parents, config_name, schema)
    if key in siblings or not siblings:
        return f"{where}{full_key}: {reason}"
    return f"{where}{full_key}: unknown key, expected one of {', '.join(siblings)}{nearest(key, siblings)}"


def _group_options(group: str) -> tuple[list[str], dict[str, list[str]]]:
    """The configs of a group, and by folder those below it."""
    loader = GlobalHydra.instance().config_loader()
    folders = (path for path in sorted((CONFIG_DIR / group).glob("*/")) if any(path.glob("*.yaml")))
    below = {path.name: loader.get_group_options(f"{group}/{path.name}") for path in folders}
    return loader.get_group_options(group), below


def _known_keys(parents: list[str], config_name: str, schema: type) -> list[str]:
    """The keys below a path: the schema's, or those of the default config where the schema leaves them open."""
    node: Any = OmegaConf.to_container(compose(config_name), resolve=False)
    for parent in parents:
        if isinstance(node, list) and parent.isdecimal() and int(parent) < len(node):
            node = node[int(parent)]
        else:
            node = node.get(parent) if isinstance(node, dict) else None
    return schema_keys(parents, schema) or ([str(key) for key in node] if isinstance(node, dict) else [])
