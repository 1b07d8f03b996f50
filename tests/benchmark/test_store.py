"""The CSV files of one device."""

from palimpsa.benchmark.store import device_slug


def test_a_slug_is_a_part_of_a_file_name():
    assert device_slug("NVIDIA GeForce RTX 3090 (Ti)") == "nvidia-geforce-rtx-3090-ti"
