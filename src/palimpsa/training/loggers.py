"""Where curves go beside a run's own history.csv: Weights & Biases, or nowhere."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from palimpsa.config.errors import ConfigError
from palimpsa.config.process import plain_console
from palimpsa.config.schema import LoggerConfig, TrainConfig, plain
from palimpsa.runs.identity import config_hash

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

NETWORK_TIMEOUT_S = 3.0
INIT_TIMEOUT_S = 30.0
# What W&B's server takes of a name, and no part of an address may hold; offline nobody says so before the upload.
MAX_CHARACTERS = 128
ADDRESS_CHARACTERS = "/\\#?%:"
SECRETS = ("KEY", "TOKEN", "PASSWORD")


def run_name(config: TrainConfig) -> str:
    """As progress and loggers call a run."""
    return f"{config.model.name}{config.variant} lr {config.optimizer.lr:g} seed {config.seed}"


def check_logger(config: TrainConfig) -> None:
    """Finds before a run what W&B would refuse when it starts, or when what it recorded is uploaded.

    Raises:
        ConfigError: in one line, naming the key or the environment variable; where wandb is not installed, too.
    """
    logger = config.logger
    if logger.name != "wandb" or logger.mode == "disabled":
        return
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logger: wandb is not installed; pip install wandb, or use logger=csv") from error

    def settings(environment: Mapping[str, str], **given: str | None) -> Any:
        # As wandb.init makes them: from the environment, and then from its arguments.
        made = wandb.Settings()
        made.update_from_env_vars(dict(environment))
        made.update_from_settings(wandb.Settings.model_validate({k: v for k, v in given.items() if v is not None}))
        return made

    refused = (wandb.Error, ValueError, TypeError)
    for name, value in os.environ.items():
        if name.startswith("WANDB_"):
            with _one_line_error(name, value, refused):
                settings({name: value})
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if path and not os.path.isfile(path):
        raise ConfigError(f"WANDB_SWEEP_PARAM_PATH: got {path!r}, expected a file")
    with _one_line_error("logger.project", logger.project, refused):
        settings({}, project=logger.project)
    with _one_line_error("logger", "these settings together with WANDB_* of the environment", refused):
        together = settings(
            os.environ,
            project=logger.project,
            entity=logger.entity,
            run_group=logger.group,
            run_id=config_hash(plain(config)),
            mode=logger.mode,
            resume="allow",
        )
    for name, value in (
        ("logger.project", together.project),
        ("logger.entity", together.entity),
        ("logger.group", together.run_group),
        ("the name of a run (model.name, variant)", run_name(config)),
    ):
        if value is not None and not 0 < len(value) <= MAX_CHARACTERS:
            raise ConfigError(f"{name}: got {value!r}, expected 1 to {MAX_CHARACTERS} characters, as W&B takes them")
    if wrong := sorted(set(ADDRESS_CHARACTERS) & set(together.entity or "")):
        raise ConfigError(f"logger.entity: got {together.entity!r}, expected a name without {' '.join(wrong)}")


@contextlib.contextmanager
def _one_line_error(name: str, value: Any, refused: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except refused as error:
        got = "a secret" if any(word in name for word in SECRETS) else repr(value)
        # Of pydantic's several lines this is the one that says what is wrong.
        errors: Any = getattr(error, "errors", list)()
        reason = " ".join(str(errors[0]["msg"] if errors else error).split())
        raise ConfigError(f"{name}: got {got}, which W&B does not take ({reason})") from error


def make_loggers(
    config: LoggerConfig, *, run_dir: Path, name: str, run_id: str, run_config: dict[str, Any]
) -> list[Logger]:
    """The trainer's loggers for a logger config that `check_logger` has passed.

    Args:
        config: the `logger` group.
        run_dir: offline runs are stored below it.
        name, run_id: of the run; a resumed run keeps both.
        run_config: the resolved config, stored with the run.
    """
    if config.name == "csv" or config.mode == "disabled":
        return []
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            name=name,
            dir=str(run_dir),
            id=run_id,
            project=config.project,
            entity=config.entity,
            group=config.group,
            mode=mode,
            config=run_config,
            # A resumed run goes on in the same W&B run; offline it makes a second folder with the same id.
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=INIT_TIMEOUT_S),
        )

    if config.mode == "online":
        reason = _why_not_online()
        if reason is None:
            try:
                return [WandbLogger(experiment=start("online"))]
            except wandb.Error as error:
                # Its background service holds the run's id, and would refuse it to the offline run.
                wandb.teardown()
                reason = f"W&B did not start the run within {INIT_TIMEOUT_S:.0f} s ({error})"
        plain_console(stderr=True).print(
            f"logger.mode=online: {reason}; this run is recorded offline instead, upload it later with `wandb sync`",
            style="yellow",
            soft_wrap=True,
        )
    return [WandbLogger(experiment=start("offline"))]


def close_loggers(loggers: list[Logger]) -> None:
    """Ends the W&B run, so that the next run of this process starts its own."""
    if loggers:
        import wandb

        wandb.finish()


def _why_not_online() -> str | None:
    """What keeps a run from W&B's server, found out in seconds; None where nothing does."""
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = url.hostname or ""
    if not _has_api_key(host):
        return "no W&B API key is set (run `wandb login`, or set WANDB_API_KEY)"
    if not _reachable(host, url.port or (443 if url.scheme == "https" else 80)):
        return f"{host} cannot be reached within {NETWORK_TIMEOUT_S:.0f} s"
    return None


def _has_api_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reachable(host: str, port: int) -> bool:
    """Whether a connection opens in time; in a thread, since a name look-up knows no time limit of its own."""
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=NETWORK_TIMEOUT_S).close()
            opened.set()
        except OSError:
            return

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT_S)
    return opened.is_set()
