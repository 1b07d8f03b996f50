"""Property 12: a folder loads and writes without a network, and without what trains."""

import os
import subprocess
import sys
from pathlib import Path

import torch

SOURCE = Path(__file__).resolve().parents[3] / "src"
PROGRAM = """
import socket, sys

# What is not installed.
sys.modules.update(dict.fromkeys({blocked!r}))
sys.path.insert(0, {source!r})

def refuse(*_, **__):
    raise OSError("no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from transformers import AutoModelForCausalLM
import palimpsa.model.hf
model = AutoModelForCausalLM.from_pretrained({folder!r})
print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False).tolist())
"""
# What the extra `experiments` installs, by the names of imports; numpy comes with transformers.
BLOCKED = (
    *("hydra", "hydra_plugins", "omegaconf", "lightning", "pytorch_lightning", "wandb", "datasets", "matplotlib"),
    *("pandas", "rich", "joblib", "accelerate", "lm_eval", "sentencepiece"),
)


def test_a_folder_loads_and_generates_with_sockets_and_experiments_blocked(make_model, tmp_path):
    model = make_model("palimpsa_d")
    model.save_pretrained(tmp_path)
    expected = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False).tolist()
    program = PROGRAM.format(blocked=BLOCKED, source=str(SOURCE), folder=str(tmp_path))
    # As somebody's who has not told transformers to stay offline.
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str(expected)
