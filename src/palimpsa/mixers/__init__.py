"""Sequence mixers, Palimpsa's and its rivals': x [B, T, D] -> y [B, T, D], each with `state_size`, `memory` and `step`.

Imports kernels alone. Imported by the models, the tasks, training and the benchmark.
"""

from palimpsa.mixers.attention import Attention
from palimpsa.mixers.base import MemoryTrace, Mixer, MixerCache
from palimpsa.mixers.delta import DeltaNet, GatedDeltaNet
from palimpsa.mixers.gla import GLA, SimpleGLA
from palimpsa.mixers.palimpsa_d import PalimpsaD
from palimpsa.mixers.palimpsa_m import PalimpsaM

__all__ = [
    "GLA",
    "Attention",
    "DeltaNet",
    "GatedDeltaNet",
    "MemoryTrace",
    "Mixer",
    "MixerCache",
    "PalimpsaD",
    "PalimpsaM",
    "SimpleGLA",
]
