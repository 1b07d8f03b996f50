"""What the command lines have in common: where configs/ is, how a sweep's configs are composed, what a mistake is."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.config.keys import schema_keys
from palimpsa.config.moved import unknown_key
from palimpsa.config.schema import plain, register_schema, typed

CONFIG_DIR = Path(__file__).resolve().parents[3] / "configs"


def compose_config(overrides: Sequence[str], config_name: str = "train") -> DictConfig:
    """configs/CONFIG_NAME.yaml with overrides, as Hydra composes it."""
    register_schema()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(config_name, list(overrides))


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Hydra's reading of a command line without flags; needs Hydra to be initialised."""
    # The loader lets the parser expand glob(*).
    return OverridesParser.create(_loader()).parse_overrides(overrides)


class Composer:
    """Composes the configs of a sweep's runs as Hydra does, in a tenth of its time.

    Hydra composes once for each choice of config groups. Where two runs differ in plain values of keys that the config
    has (`seed=1`, `optimizer.lr=1e-3`), Hydra's own function sets them in the config of that choice; it does so in the
    order of the command line after the groups, so that the config is the one that Hydra would compose.

    Args:
        config_name: the primary config, "train".
    """

    def __init__(self, config_name: str) -> None:
        self._config_name = config_name
        self._bases: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[DictConfig, DictConfig]] = {}
        self._parsed: dict[str, Override] = {}

    def compose(self, overrides: list[str]) -> tuple[DictConfig, dict[str, Any]]:
        """The config of one run, and what `config.plain` makes of it.

        The former is good until the next call, which may change it; Hydra's own part in it is that of the first run of
        the same groups, and names that run's overrides.
        """
        new = [text for text in overrides if text not in self._parsed]
        self._parsed.update(zip(new, parse_overrides(new), strict=True))
        parsed = [self._parsed[text] for text in overrides]
        is_value = [_sets_a_value(override) and not _overlaps(override, parsed) for override in parsed]
        values = [override for override, is_one in zip(parsed, is_value, strict=True) if is_one]
        others = tuple(text for text, is_one in zip(overrides, is_value, strict=True) if not is_one)
        # Every run of one key sets the same keys: none keeps a value of the run before.
        key = (others, tuple(override.key_or_group for override in values))
        if key not in self._bases:
            cfg = compose(self._config_name, overrides, return_hydra_config=True)
            if not all(_is_leaf(cfg, override.key_or_group) for override in values):
                return cfg, plain(typed(cfg))
            # A copy with the schema's types, which turn the text of an override into what Hydra makes of it.
            own = copy.deepcopy(cfg)
            OmegaConf.set_struct(own, False)
            own.pop("hydra")
            self._bases[key] = cfg, own
        cfg, own = self._bases[key]
        for one in (cfg, own):
            ConfigLoaderImpl._apply_overrides_to_config(values, one)
        return cfg, plain(typed(own))


def _sets_a_value(override: Override) -> bool:
    """Whether an override is `key=value` with a plain value, of a key that is no config group."""
    return (
        not (override.is_add() or override.is_force_add() or override.is_delete() or override.is_hydra_override())
        and override.package is None
        and isinstance(override.value(), str | int | float | None)
        and not _loader().repository.group_exists(override.key_or_group)
    )


def _overlaps(override: Override, others: list[Override]) -> bool:
    """Whether another override sets the same key, or one above or below it: then their order matters."""
    path = _path(override)
    paths = [_path(other) for other in others if other is not override]
    return any(path[: len(other)] == other[: len(path)] for other in paths)


def _path(override: Override) -> list[str]:
    return re.split(r"[./\[\]]+", override.key_or_group)


def _is_leaf(cfg: DictConfig, key: str) -> bool:
    """Whether a config has a plain value at a key. A group of a folder that the command line adds has none."""
    missing = object()
    value = OmegaConf.select(cfg, key, default=missing)
    return value is not missing and not OmegaConf.is_config(value)


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


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
        scales, _ = _group_options("scale")
        if group.endswith("_budget") and name in scales:
            return f"scale: got {name!r}, expected configs/{group}/{name}.yaml with it (there are {', '.join(choices)})"
        if group.endswith("_budget"):
            group, choices, below = "scale", scales, {}
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
    return f"{where}{unknown_key(full_key, siblings)}"


def _group_options(group: str) -> tuple[list[str], dict[str, list[str]]]:
    """The configs of a group, and by folder those below it."""
    loader = GlobalHydra.instance().config_loader()
    folders = (path for path in sorted((CONFIG_DIR / group).glob("*/")) if any(path.glob("*.yaml")))
    # A budget is no option: a task takes that of its scale.
    names = [path.name for path in folders if not path.name.endswith("_budget")]
    below = {name: loader.get_group_options(f"{group}/{name}") for name in names}
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
