"""One process that torchrun would have started, without it."""

import socket

import pytest
import torch


@pytest.fixture
def one_rank(monkeypatch):
    """This process as the only one of a run of several: `trainer.strategy=fsdp` shards over it alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        **{"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0},
        **{"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
