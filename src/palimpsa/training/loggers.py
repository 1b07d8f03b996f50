"""Where curves go beside a run's own history.csv: Weights & Biases, or nowhere."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger
from rich.console import Console

from palimpsa.config.errors import ConfigError, nearest

WANDB_MODES = ("offline", "online", "disabled")
NETWORK_TIMEOUT_S = 3.0
INIT_TIMEOUT_S = 30.0


def make_loggers(config: Any, *, run_dir: Path, name: str, run_id: str, run_config: dict[str, Any]) -> list[Logger]:
    """The trainer's loggers for a logger config.

    Args:
        config: the `logger` group: name wandb or csv.
        run_dir: offline runs are stored below it.
        name, run_id: of the run; a resumed run keeps both.
        run_config: the resolved config, stored with the run.

    Raises:
        ConfigError: for an unknown logger or mode, or where wandb is asked for and not installed.
    """
    if config.name == "csv":
        return []
    if config.name != "wandb":
        raise ConfigError(
            f"logger.name: got {config.name!r}, expected wandb or csv{nearest(config.name, ['wandb', 'csv'])}"
        )
    if config.mode not in WANDB_MODES:
        raise ConfigError(
            f"logger.mode: got {config.mode!r}, expected one of {', '.join(WANDB_MODES)}"
            f"{nearest(str(config.mode), WANDB_MODES)}"
        )
    if config.mode == "disabled":
        return []
    try:
        import wandb
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise ConfigError("logger: wandb is not installed; pip install wandb, or use logger=csv") from error

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
        Console(stderr=True).print(
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
