"""Keys of configs/ that have moved: an old run's config is read by this table, and a mistake names the new place."""

from __future__ import annotations

from collections.abc import Iterable

from palimpsa.config.errors import nearest

# Where a key was, and where it is now.
MOVED_KEYS = {
    "scale.vocab_size": "task.vocab_size",
    "scale.tokens_per_step": "task.tokens_per_step",
    "scale.warmup_steps": "task.warmup_steps",
    "scale.validation_every": "task.validation_every",
    "scale.num_validation": "task.num_validation",
    "scale.num_test": "task.num_test",
    "scale.curriculum": "task.stages",
    "scale.scratch.seq_len": "task.seq_len",
    "scale.scratch.num_train_examples": "task.num_train_examples",
    "scale.scratch.num_epochs": "task.num_epochs",
    "scale.models": "task.sweep.models",
    "scale.learning_rates": "task.sweep.learning_rates",
    "scale.seeds": "task.sweep.seeds",
    "scale.selection_seeds": "task.sweep.selection_seeds",
    "scale.wide_head_k_dim": "model.mixer.key_expansion",
}


def unknown_key(path: str, known: Iterable[str]) -> str:
    """One line about a key that is not in the schema: where it has moved, or which keys there are.

    >>> unknown_key("scale.seeds", ["name"])
    'scale.seeds: unknown key, it is task.sweep.seeds now'
    >>> unknown_key("scale.nam", ["name"])
    "scale.nam: unknown key, expected one of name; did you mean 'name'?"
    """
    for old, new in MOVED_KEYS.items():
        if path == old or path.startswith(f"{old}."):
            return f"{path}: unknown key, it is {new}{path.removeprefix(old)} now"
        if old.startswith(f"{path}."):
            return f"{path}: unknown key, what was below it is below {new.rpartition('.')[0]} now"
    known = [str(name) for name in known]
    return f"{path}: unknown key, expected one of {', '.join(known)}{nearest(path.rpartition('.')[2], known)}"
