"""flash-linear-attention's candidates for a kernel, compiled side by side before the first of them is timed.

The library chooses among up to 48 configurations of a kernel by running them, and compiles each when its turn comes: of
simple GLA alone that takes one core 150 s on a machine that has not done so before, while its GPU waits.
"""

import contextvars
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any


@functools.cache
def compile_candidates_side_by_side() -> None:
    """Makes every autotuner of the library do so from now on; those of other libraries stay as they are.

    What is chosen is not touched: candidates are timed one after the other, as before.
    """
    from triton.runtime.autotuner import Autotuner

    bench = Autotuner._bench

    def bench_compiled(self: Any, *args: Any, config: Any, **options: Any) -> Any:
        if self.base_fn.__module__.startswith("fla."):
            candidates = self.prune_configs(options)
            if config is candidates[0]:
                # A context of its own: Triton refuses one within another, and this one ends whatever happens.
                contextvars.Context().run(_compile, self, args, candidates, options)
        return bench(self, *args, config=config, **options)

    Autotuner._bench = bench_compiled


def _compile(autotuner: Any, args: tuple[Any, ...], candidates: list[Any], options: dict[str, Any]) -> None:
    import triton

    # One that cannot be compiled is told from the others where it is timed.
    with ThreadPoolExecutor() as executor, triton.AsyncCompileMode(executor, ignore_errors=True):
        for config in candidates:
            autotuner.fn.run(*args, **{**options, **config.all_kwargs(), "warmup": True})
