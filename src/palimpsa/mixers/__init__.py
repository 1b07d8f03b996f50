"""Sequence mixers: x [B, T, D] -> y [B, T, D], each with `state_size`, `memory` and `step`."""

from palimpsa.mixers.base import Mixer
from palimpsa.mixers.baselines import GLA
from palimpsa.mixers.layers import MemoryTrace, MixerCache
from palimpsa.mixers.palimpsa import PalimpsaD, PalimpsaM

__all__ = ["GLA", "MemoryTrace", "Mixer", "MixerCache", "PalimpsaD", "PalimpsaM"]
