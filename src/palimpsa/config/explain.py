"""What is wrong with a command line or a file of configs/, in one line, from whatever Hydra and OmegaConf raise."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from palimpsa.config.errors import nearest
from palimpsa.config.moved import unknown_key
from palimpsa.config.schema import CONFIG_DIR


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One line about a composition error: the key, what is wrong with it, and the nearest known key or option."""
    # Hydra wraps, or replaces, the error of OmegaConf's that names the key; the innermost one is the most exact.
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    unread = next((link for link in chain if isinstance(link, OverrideParseException)), None)
    if unread is not None:
        return _explain_override(unread.override)
    found = re.search(r"^In '([\w/]+)': ", str(error))
    file = f"configs/{found.group(1)}.yaml: " if found else ""
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file is not None:
            return _explain_choice(link.missing_cfg_file, file)
    exact = next((link for link in reversed(chain) if getattr(link, "full_key", None)), None)
    if not isinstance(exact, OmegaConfBaseException):
        return f"{file or ' '.join(overrides) + ': '}{str(error).splitlines()[0].strip()}"
    full_key = re.sub(r"\[(\d+)\]", r".\1", str(exact.full_key))
    key = full_key.rpartition(".")[2]
    parent = exact.parent_node
    siblings = [str(name) for name in parent if name != "hydra"] if isinstance(parent, DictConfig) else []
    if key in siblings or not siblings:
        return f"{file}{full_key}: {str(exact).splitlines()[0].strip()}"
    return f"{file}{unknown_key(full_key, siblings)}"


def _explain_override(text: str) -> str:
    """About an override that Hydra's grammar does not have."""
    key, sign, value = text.partition("=")
    if not sign:
        return f"{text}: expected KEY=VALUE"
    escaped = value.strip("'\"").replace("\\", "\\\\").replace("'", "\\'")
    return f"{text}: cannot be read; a text like this needs quotes, in the shell's too: \"{key}='{escaped}'\""


def _explain_choice(path: str, file: str) -> str:
    """About a config that its group does not have.

    Args:
        path: of the config, "model/palimpsa".
        file: that asks for it, "configs/train.yaml: ".
    """
    group, _, name = path.rpartition("/")
    options = GlobalHydra.instance().config_loader().get_group_options
    if not group:
        known = options("", ObjectType.CONFIG)
        where = f"{file or '--config-name: '}got {name!r}"
        return f"{where}, expected one of {', '.join(known)}, or of --config-dir{nearest(name, known)}"
    if group.endswith("_budget"):
        # A task takes the budget of its scale.
        if name in options("scale"):
            there = ", ".join(options(group))
            return f"scale: got {name!r}, expected configs/{group}/{name}.yaml with it (there are {there})"
        group, file = "scale", ""
    folders = [folder.name for folder in sorted((CONFIG_DIR / group).glob("*/")) if any(folder.glob("*.yaml"))]
    folders = [folder for folder in folders if not folder.endswith("_budget")]
    below = [f"{folder}/{choice}" for folder in folders for choice in options(f"{group}/{folder}")]
    listed = ", ".join([*options(group), *(f"{folder}/NAME" for folder in folders)])
    # The choices of the command line are told as the primary config's.
    where = file if "/" in file.removeprefix("configs/") else ""
    return f"{where}{group}: got {name!r}, expected one of {listed}{nearest(name, [*options(group), *below])}"
