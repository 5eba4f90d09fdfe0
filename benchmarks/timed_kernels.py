"""A kernel backend that knows how long each of its operations took.

Owns: which operation counts as what. A recorded step becomes one program for each operation, so
that what runs between two looks at the clock is what the real step runs, and nothing of Python.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tsugiki_kernels.interface import KernelBackend, Program

CATEGORIES = {
    "linear": "linears",
    "apply": "variants",
    "reconstruct": "variants",
    "paged_attention": "attention",
    "write_kv": "attention",
}
OTHER = "norms, rope, gate"
LM_HEAD = "lm_head"
PASS = "recorded pass"


class TimedProgram:
    """A recorded step, operation by operation."""

    def __init__(
        self, parts: Sequence[tuple[str, Program]], seconds: defaultdict[str, float]
    ) -> None:
        self._parts = parts
        self._seconds = seconds

    def run(self) -> None:
        """All operations once."""
        for category, program in self._parts:
            begin = time.perf_counter()
            program.run()
            self._seconds[category] += time.perf_counter() - begin


class Recorder:
    """Stands in for a backend while a step is recorded."""

    def __init__(self, kernels: KernelBackend, vocabulary: int) -> None:
        self._kernels = kernels
        self._vocabulary = vocabulary
        self.parts: list[tuple[str, Program]] = []

    def __getattr__(self, operation: str) -> Callable[..., None]:
        def record(*arguments: Any, **named: Any) -> None:
            def body(kernels: KernelBackend) -> None:
                getattr(kernels, operation)(*arguments, **named)

            self.parts.append((self._category(operation, arguments), self._kernels.record(body)))

        return record

    def _category(self, operation: str, arguments: tuple[Any, ...]) -> str:
        if operation in ("linear", "apply"):  # the output is as wide as the vocabulary
            out: Tensor = arguments[{"linear": 3, "apply": 1}[operation]]
            if out.shape[-1] >= self._vocabulary:
                return LM_HEAD
        return CATEGORIES.get(operation, OTHER)


class TimedKernels:
    """Delegates to a backend; programs recorded with it add up `seconds` by category."""

    def __init__(self, kernels: KernelBackend, vocabulary: int) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._kernels = kernels
        self._vocabulary = vocabulary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def record(self, body: Callable[[KernelBackend], None]) -> TimedProgram:
        """See KernelBackend.record."""
        recorder: Any = Recorder(self._kernels, self._vocabulary)
        body(recorder)
        return TimedProgram(recorder.parts, self.seconds)


class TimedPasses:
    """Delegates to a backend; programs recorded with it add up `seconds` as a whole."""

    def __init__(self, kernels: KernelBackend, seconds: defaultdict[str, float]) -> None:
        self._kernels = kernels
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def record(self, body: Callable[[KernelBackend], None]) -> TimedProgram:
        """See KernelBackend.record."""
        return TimedProgram([(PASS, self._kernels.record(body))], self._seconds)
