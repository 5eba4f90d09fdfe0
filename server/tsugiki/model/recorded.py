"""Forward passes that are recorded once and replayed: successive decode steps have one shape.

Owns: what a recorded step consists of, when two steps are the same, and how many are kept. Does not
know: which operations a step records.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.step_plan import StepPlan
from tsugiki.model.workspace import Inputs, Workspace, table_width
from tsugiki_kernels.interface import Program

# Shapes; recording one costs milliseconds of Python, keeping one some 150 KB. Prompts that are read
# beside decodes need some 50: so many rows that decode, so many tokens of one or two prompts.
KEPT = 64


@dataclass(frozen=True, slots=True)
class LogitsPart:
    """The end of a step: the rows whose logits are wanted."""

    rows: Tensor | None  # int64 [n], of the step; None: all of them, in order
    segments: Sequence[Segment]  # over these rows
    hidden: Tensor  # [n, hidden], after the final norm
    branch: Tensor  # [n, hidden]: what the last layer adds
    logits: Tensor  # float32 [n, vocab]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Fill `inputs`, run `program`, read `last`. Holds its variants in memory."""

    plan: StepPlan
    cache: KVCache
    inputs: Inputs
    last: LogitsPart
    program: Program


Record = Callable[[Batch, KVCache], RecordedStep]


class RecordedSteps:
    """The steps of the last few shapes."""

    def __init__(self, record: Record, workspace: Workspace) -> None:
        self._record = record
        self._workspace = workspace
        self._growths = 0
        self._steps: OrderedDict[Hashable, RecordedStep] = OrderedDict()

    def get(self, batch: Batch, cache: KVCache) -> RecordedStep:
        """The recorded step of this shape, recording it when it is new."""
        key = _shape(batch, cache)
        if (step := self._steps.get(key)) is None:
            step = self._record(batch, cache)
            self._make_room()
            self._steps[key] = step
        self._steps.move_to_end(key)
        return step

    def clear(self) -> None:
        """Forget all, and with them the last references to their variants."""
        self._steps.clear()

    def _make_room(self) -> None:
        if self._growths != self._workspace.growths:  # older steps hold buffers of their own
            self._growths = self._workspace.growths
            self._steps.clear()
        while len(self._steps) >= KEPT:
            self._steps.popitem(last=False)


def _shape(batch: Batch, cache: KVCache) -> Hashable:
    """Equal for two steps that differ in nothing but what `Inputs` holds. Ids are sound keys: a
    recorded step keeps its variants and its cache alive."""
    segments = tuple((id(s.variant), s.start, s.stop, s.chunk_tokens) for s in batch.segments)
    where = batch.attention
    shape = (len(batch.token_ids), len(where.context), table_width(where), where.block_size)
    return (id(cache), shape, segments, tuple(batch.logit_rows.tolist()))
