"""Dashboards of made-up results, read back as a browser reads them."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from palimpsa.analysis.dashboard.build import Dashboard
from palimpsa.analysis.dashboard.headless import find_browser, open_browser
from palimpsa.analysis.dashboard.privacy import Scrubber

PageData = Callable[..., dict[str, Any]]


def read_data(path: Path) -> Any:
    """The value that a data file hands to the page."""
    found = re.fullmatch(r'Dashboard\.receive\(("[^"]*"), (.*)\);\n', path.read_text(encoding="ascii"), re.DOTALL)
    assert found is not None, path
    return json.loads(found[2])


class Built:
    """A built dashboard: its folder, its index, and the runs of its table by label, rate and seed."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.dashboard = dashboard
        self.out = dashboard.out
        self.result = dashboard.build()
        self.index = read_data(self.out / "data/index.js")
        columns = self.index["runs"]["columns"]
        self.runs = [dict(zip(columns, row, strict=True)) for row in self.index["runs"]["rows"]]

    def page_of(self, run: dict[str, Any]) -> dict[str, Any]:
        return read_data(self.out / f"data/runs/{run['id']}.js")

    def config_of(self, run: dict[str, Any]) -> dict[str, str]:
        """As the page puts it together: the shared one, and what differs."""
        page = self.page_of(run)
        config = dict(read_data(self.out / f"data/configs/{page['config_group']}.js"))
        for key, value in page["config"]:
            if value is None:
                del config[key]
            else:
                config[key] = value
        return config

    def problems(self) -> str:
        return "\n".join(" ".join(row) for row in self.index["problems"])

    def text(self) -> str:
        """All that any page may show, data files and pages of inspections."""
        files = [path for path in self.out.rglob("*") if path.suffix in (".js", ".html") and "plotly" not in path.name]
        return "\n".join(path.read_text(encoding="utf-8") for path in files)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; a test that asks for it is skipped, with the reason, where there is none."""
    try:
        import playwright.sync_api  # noqa: F401 - an extra, which a machine may lack

        find_browser()
    except (ImportError, OSError) as error:
        pytest.skip(f"no browser to open the page in: {error}")
    with open_browser() as found:
        yield found


@pytest.fixture(scope="session")
def build() -> Callable[..., Built]:
    """build(results): a dashboard of the results below a folder, and of the run directories in its runs/."""

    def make(results: Path, **options: Any) -> Built:
        roots = options.pop("run_roots", [results / "runs"])
        offline = options.pop("offline_roots", [results / "wandb", *roots])
        scrubber = options.pop("scrubber", None) or Scrubber()
        return Built(Dashboard(results, results / "dashboard", roots, offline, scrubber=scrubber, **options))

    return make


@pytest.fixture(scope="session")
def write_offline_run() -> Callable[..., Path]:
    """write_offline_run(folder, run_id, steps=..., losses=...): a .wandb file in wandb's format; returns its path."""
    from wandb.proto import wandb_internal_pb2

    new_record: Any = vars(wandb_internal_pb2)["Record"]

    def write(
        folder: Path,
        run_id: str,
        *,
        steps: Sequence[int] = (0, 10, 20),
        losses: Sequence[float] = (3.0, 2.0, 1.0),
        name: str = "a run",
        group: str = "g",
        host: str = "",
        ended: bool = True,
    ) -> Path:
        first = new_record()
        first.run.run_id, first.run.display_name, first.run.run_group, first.run.project = (
            run_id,
            name,
            group,
            "palimpsa",
        )
        first.run.host = host
        records = [first]
        for step, loss in zip(steps, losses, strict=True):
            record = new_record()
            for key, value in (("loss", loss), ("window_mean", 100.0 + step), ("_step", step)):
                item = record.history.item.add()
                item.nested_key.append(key)
                item.value_json = json.dumps(value)
            records.append(record)
        if ended:
            last = new_record()
            last.exit.exit_code = 0
            records.append(last)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"run-{run_id}.wandb"
        path.write_bytes(log_file([record.SerializeToString() for record in records]))
        return path

    return write


def log_file(records: Sequence[bytes]) -> bytes:
    """Records as wandb's log has them: pieces that never cross a block of 32 KiB."""
    content = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for record in records:
        rest, is_first = record, True
        while True:
            left = 32768 - len(content) % 32768
            if left < 7:
                content += bytes(left)
                left = 32768
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if not rest else 2) if is_first else (4 if not rest else 3)
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
            is_first = False
            if not rest:
                break
    return content
