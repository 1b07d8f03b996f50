"""The panels that W&B shows of these runs, as a workspace: the dashboards' quantities, laid out once for everybody."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from palimpsa.config.errors import ConfigError

# Runs of one model and rate are a group, whose members are its seeds.
GROUPED_BY = ("model.name", "variant", "optimizer.lr")


@dataclass(frozen=True)
class Panel:
    """A plot of history: its title, and its metrics by name, or all whose names match `regex`."""

    title: str
    metrics: tuple[str, ...] = ()
    regex: str | None = None
    log_y: bool = False


def sections(num_layers: int) -> dict[str, list[Panel]]:
    """The panels by section, in their order.

    Args:
        num_layers: of the models, >= 1: windows and ratios have a panel a layer.
    """
    windows, ratios = (
        [Panel(f"layer {i + 1}, each head", regex=rf"{name}/layer{i}/head\d+", log_y=True) for i in range(num_layers)]
        for name in ("window", "metaplasticity")
    )
    return {
        "Recall": [
            Panel("validation accuracy", ("validation_accuracy",)),
            Panel("validation accuracy by the age of a pair", regex=r"validation_accuracy/age\d+"),
            Panel("test accuracy of each stage", regex=r"test_accuracy/.*"),
        ],
        "Language": [
            Panel("validation perplexity", ("validation_perplexity",), log_y=True),
            Panel("validation loss, nats", ("validation_loss",)),
            Panel("validation perplexity a byte", ("validation_perplexity_per_byte",), log_y=True),
        ],
        "Training": [
            Panel("loss, nats", ("loss",)),
            Panel("tokens a second", ("tokens_per_s",)),
            Panel("learning rate", ("learning_rate",)),
            Panel("norm of the gradient", ("gradient_norm",), log_y=True),
            Panel("share of the device's peak", ("mfu",)),
        ],
        "Memory window N_t, tokens": [
            Panel("mean over layers and heads", ("window_mean",), log_y=True),
            *windows,
        ],
        "Metaplasticity ratio": [
            Panel("mean over layers and heads", ("metaplasticity_mean",), log_y=True),
            *ratios,
        ],
    }


def build_workspace(entity: str, project: str, name: str, num_layers: int) -> Any:
    """The workspace, which is not online before its `save`; building it asks no network.

    Raises:
        ConfigError: wandb-workspaces is not installed, or num_layers is below 1.
    """
    if num_layers < 1:
        raise ConfigError(f"--layers: got {num_layers}, expected >= 1")
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            "wandb-workspaces is not installed, which lays panels out; pip install 'palimpsa[workspaces]'"
        ) from error

    def plot(panel: Panel) -> Any:
        named: dict[str, Any] = {"metric_regex": panel.regex} if panel.regex else {"y": list(panel.metrics)}
        return reports.LinePlot(title=panel.title, x="Step", log_y=panel.log_y, **named)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            workspaces.Section(name=title, panels=[plot(panel) for panel in panels], is_open=True)
            for title, panels in sections(num_layers).items()
        ],
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Config(key) for key in GROUPED_BY]),
    )


def workspace_spec(workspace: Any) -> dict[str, Any]:
    """What would be sent to W&B, as JSON has it."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
