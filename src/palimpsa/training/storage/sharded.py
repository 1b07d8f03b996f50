"""A checkpoint as a folder of shards: one file a process, what belongs to none of them, and checksums of all.

    step_N/.metadata, __0_0.distcp, __1_0.distcp...   weights and moments, of torch.distributed.checkpoint
    step_N/meta.pt                                    loops, callbacks, schedules, the config of the model
    step_N/manifest.json                              bytes and SHA-256 of every other file

torch's reader of shards unpickles: checksums find damage, not malice. Read those of people that you trust.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from palimpsa.runs.files import open_regular

# torch's name for what is in which shard, and Lightning's for the rest, by which it knows a folder of shards.
METADATA = ".metadata"
META = "meta.pt"
MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """No whole checkpoint of this program's."""


def file_facts(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its `bytes` and its `sha256`."""
    with open_regular(path) as file:
        # It reads into a buffer, as every open file can.
        digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def check_files(folder: Path) -> None:
    """Compares every file of a folder with its manifest.

    Raises:
        CheckpointError: naming the file that is missing, cut short or another one.
        OSError: for one that cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"the folder is missing, and {folder.name} is what `latest` names")
    try:
        with open_regular(folder / MANIFEST) as file:
            stated = json.loads(file.read())["files"]
        expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in stated.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} of it is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST} of it is no manifest") from error
    for name in sorted({METADATA, META} - expected.keys()):
        raise CheckpointError(f"{MANIFEST} of it does not name {name}")
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"{name} of it is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{name} of it has {path.stat().st_size} bytes, expected {size}")
        if file_facts(path)["sha256"] != digest:
            raise CheckpointError(f"the checksum of {name} in it is another one")


def read_sharded(folder: Path, *, tensors: bool = True) -> dict[str, Any]:
    """The content of a folder of shards, in one process, as a file of one process would hold it.

    Args:
        tensors: False: weights and moments are returned as what has shapes alone, on the device "meta".
    """
    reader = FileSystemReader(folder)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {
        key: torch.empty(stored.size, dtype=stored.properties.dtype, device="cpu" if tensors else "meta")
        if isinstance(stored, TensorStorageMetadata)
        else None
        for key, stored in metadata.state_dict_metadata.items()
    }
    wanted = {key: value for key, value in flat.items() if tensors or value is None}
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with warnings.catch_warnings():
        # That there is one process is what was asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(wanted, storage_reader=reader, planner=planner, no_dist=True)
    nested: dict[str, Any] = {}
    for key, value in (flat | wanted).items():
        set_element(nested, metadata.planner_data[key], value)
    content = torch.load(folder / META, weights_only=True, map_location="cpu")
    content["state_dict"] = nested.pop("state_dict")
    content["optimizer_states"] = [_numbered(nested[f"optimizer_{index}"]) for index in range(len(nested))]
    return content


def _numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state by the parameters' numbers, as an optimiser of one process has it, from one by names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: moments for name, moments in state["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]
        ],
    }
