"""Triton's interpreter without what it does again and again to no effect: the same results in a third of the time."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any


def quicken(patch: Any) -> None:
    """Puts quicker parts in the places of Triton's, until `patch`, a pytest.MonkeyPatch, takes them back."""
    import triton.language as tl
    from triton.runtime import interpreter

    compute_no_sum_twice(patch, interpreter)
    prepare_the_language_once_a_launch(patch, interpreter)
    find_dtypes_by_name(patch, interpreter, tl)
    make_shapes_once(patch, tl)


def compute_no_sum_twice(patch: Any, interpreter: ModuleType) -> None:
    """Integers are added and multiplied in 64 bits too, for a comparison that takes place with `debug` alone."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug, "the comparison takes place"
    patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))


def prepare_the_language_once_a_launch(patch: Any, interpreter: ModuleType) -> None:
    """Each function that a kernel calls puts the interpreter's operations in the places of the language's again."""
    tl, prepare = interpreter.tl, interpreter._patch_lang
    prepared: set[str] = set()

    class Launch(interpreter._LangPatchScope):
        def restore(self) -> None:
            super().restore()
            prepared.clear()

    def prepare_once(function: Any) -> Any:
        modules = {m.__name__ for m in function.__globals__.values() if m is tl or m is tl.core}
        if modules and modules <= prepared:
            # What a called function has prepared is not taken back, its launch's is.
            return None
        scope = prepare(function)
        prepared.update(modules)
        return scope

    patch.setattr(interpreter, "_LangPatchScope", Launch)
    patch.setattr(interpreter, "_patch_lang", prepare_once)


def find_dtypes_by_name(patch: Any, interpreter: ModuleType, tl: ModuleType) -> None:
    """NumPy's dtype of each of Triton's is looked up in a table, which is made anew for each number."""
    find = interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def find_once(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = find(dtype)
        return found[name]

    patch.setattr(interpreter, "_get_np_dtype", find_once)


def make_shapes_once(patch: Any, tl: ModuleType) -> None:
    """A shape, which nothing changes, is one for all blocks of it, and not a constant of Triton's for each size."""
    core = tl.core
    make_block = core.block_type.__init__
    blocks: dict[tuple, dict[str, Any]] = {}
    shapes: dict[tuple, tuple[Any, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *core._unwrap_shape(shape))
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key])
        self.element_ty = element_ty

    def tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in shapes:
            shapes[sizes] = core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[sizes]

    patch.setattr(core.block_type, "__init__", block_type)
    patch.setattr(core.tensor, "__init__", tensor)
