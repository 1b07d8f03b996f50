"""Where curves go beside a run's own history.csv: Weights & Biases, or nowhere."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from palimpsa.config.errors import ConfigError
from palimpsa.config.private import hide_private, is_secret, without_private
from palimpsa.config.process import plain_console
from palimpsa.config.schema import LoggerConfig, TrainConfig, plain
from palimpsa.runs.files import write_atomic
from palimpsa.runs.identity import config_hash

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

NETWORK_TIMEOUT_S = 3.0
INIT_TIMEOUT_S = 30.0
# What W&B's server takes of a name, and no part of an address may hold; offline nobody says so before the upload.
MAX_CHARACTERS = 128
MAX_TAG = 64
ADDRESS_CHARACTERS = "/\\#?%:"
# What W&B would record beside the curves of who ran them, where and of which folder: result.json has what matters of
# it, versions, device and revision.
PRIVATE: dict[str, Any] = {
    "host": "",
    "username": "",
    "email": "",
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


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
        ("the name of a run (model.name, variant)", run_name(config)),
        ("logger.group", together.run_group),
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
        got = "a secret" if is_secret(name) else repr(value)
        # Of pydantic's several lines this is the one that says what is wrong.
        errors: Any = getattr(error, "errors", list)()
        reason = " ".join(str(errors[0]["msg"] if errors else error).split())
        raise ConfigError(f"{name}: got {got}, which W&B does not take ({reason})") from error


def job_type(config: TrainConfig) -> str:
    """What a run is to W&B: "train", or "finetune" where it starts from trained weights."""
    return "train" if config.start.weights is None else "finetune"


def tags(config: TrainConfig) -> list[str]:
    """By which runs are found on W&B: task, scale, model, rate and seed."""
    model = f"{config.model.name}{config.variant}"
    found = [config.task.name, config.scale.name, model, f"lr {config.optimizer.lr:g}", f"seed {config.seed}"]
    return [tag[:MAX_TAG] for tag in found]


def make_loggers(
    config: LoggerConfig,
    *,
    run_dir: Path,
    name: str,
    run_id: str,
    run_config: dict[str, Any],
    job_type: str = "train",
    tags: Sequence[str] = (),
) -> list[Logger]:
    """The trainer's loggers for a logger config that `check_logger` has passed.

    Args:
        config: the `logger` group.
        run_dir: offline runs are stored below it.
        name, run_id: of the run; a resumed run keeps both.
        run_config: the resolved config, stored with the run; of paths without the home directory.
        job_type, tags: of the run, as W&B shows them.
    """
    if config.name == "csv" or config.mode == "disabled":
        return []
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    private: Any = without_private(run_config)

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            name=name,
            # Its service may have been started in another working directory.
            dir=str(run_dir.absolute()),
            id=run_id,
            project=config.project,
            entity=config.entity,
            group=config.group,
            job_type=job_type,
            tags=list(tags),
            mode=mode,
            config=private,
            # A resumed run goes on in the same W&B run; offline it makes a second folder with the same id.
            resume="allow",
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=True, init_timeout=INIT_TIMEOUT_S, **PRIVATE
            ),
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

        folder = None if wandb.run is None else Path(wandb.run.dir).parent
        wandb.finish()
        if folder is not None:
            _hide_in_logs(folder / "logs")


def _hide_in_logs(folder: Path) -> None:
    """Takes home directories out of wandb's own logs, which tell where they lie."""
    for path in folder.glob("*.log"):
        # What cannot be written any more, on a full disk say, ends no run.
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            if hide_private(text) != text:
                write_atomic(path, hide_private(text))


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
