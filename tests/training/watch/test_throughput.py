"""What a row says of a step's costs."""

import time

import pytest
import torch

from palimpsa.training.watch.throughput import PEAK_BF16_FLOPS, StepCosts, peak_flops


def test_of_names_that_fit_the_longest_counts():
    assert peak_flops("NVIDIA H100 PCIe") == PEAK_BF16_FLOPS["H100 PCIe"]
    assert peak_flops("NVIDIA H100 80GB HBM3") == PEAK_BF16_FLOPS["H100"]
    assert peak_flops("NVIDIA GH200 480GB") == PEAK_BF16_FLOPS["GH200"]
    assert peak_flops("NVIDIA L40S") == PEAK_BF16_FLOPS["L40S"]
    assert peak_flops("NVIDIA A100-SXM4-80GB") == PEAK_BF16_FLOPS["A100"]


def test_a_device_of_a_longer_name_is_not_taken_for_another():
    assert peak_flops("NVIDIA L4") == PEAK_BF16_FLOPS["L4"]
    assert peak_flops("NVIDIA L40") is None
    assert peak_flops("NVIDIA RTX A1000") is None


def test_the_share_of_the_peak_is_that_of_all_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    costs = StepCosts(torch.device("cuda", 0), flops_per_token=10**9, num_ranks=2)
    # Half of what two of them could do.
    metrics = costs.take(tokens_per_s=989e12 / 1e9, elapsed_s=2.0)
    assert metrics == pytest.approx({"data_wait": 0.0, "mfu": 0.5, "peak_memory_gib": 3.0})


def test_waiting_for_data_is_a_share_of_the_time_since_the_last_row():
    costs = StepCosts(torch.device("cpu"), flops_per_token=1, num_ranks=1)
    with costs.waiting_for_data():
        time.sleep(0.02)
    assert 0.01 <= costs.take(1.0, 2.0)["data_wait"] < 0.5
    assert costs.take(1.0, 2.0) == {"data_wait": 0.0}
