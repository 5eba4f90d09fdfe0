"""Forward passes that are recorded once and replayed: successive decode steps have one shape.

Owns: what a recorded step consists of, when two steps are the same, and how many are kept. Does not
know: which operations a step records.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from torch import Tensor

from tsugiki.codecs.base import ResidentVariant
from tsugiki.model.batch import Batch
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.step_plan import RebuiltRows, StepPlan
from tsugiki.model.variant_deltas import StepTables
from tsugiki.model.workspace import Inputs, Workspace, table_width
from tsugiki_kernels.interface import Program

# Shapes; recording one costs milliseconds of Python, keeping one some 280 KB. Sixteen requests with
# prompts of 128 tokens meet some 150: so many rows that decode, so many of one or two prompts.
KEPT = 256


@dataclass(frozen=True, slots=True)
class LogitsPart:
    """The end of a step: the rows whose logits are wanted."""

    every_row: bool  # of the step, in order; else `Inputs.logit_rows` says which
    rebuilt: RebuiltRows  # among these rows
    tables: StepTables
    hidden: Tensor  # [n, hidden], after the final norm
    branch: Tensor  # [n, hidden]: what the last layer adds
    logits: Tensor  # float32 [n, vocab]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Fill `inputs` and the tables, run `program`, read `hidden` and `logits`."""

    cache: KVCache
    rebuilt: tuple[ResidentVariant, ...]  # kept: their weights are part of the program
    tables: StepTables
    last_tables: StepTables
    inputs: Inputs
    hidden: Tensor  # see LogitsPart
    logits: Tensor
    program: Program

    def fill_tables(self, plan: StepPlan, last: StepPlan) -> None:
        """Say which variant has which rows in the next run."""
        self.tables.fill(plan.fused)
        if self.last_tables is not self.tables:
            self.last_tables.fill(last.fused)

    def forget_variants(self) -> None:
        """Keep none alive but those in `rebuilt`."""
        self.tables.fill(())
        self.last_tables.fill(())


class RecordedSteps:
    """The steps of the last few shapes."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._growths = 0
        self._steps: OrderedDict[Hashable, RecordedStep] = OrderedDict()

    def get(self, shape: Hashable, record: Callable[[], RecordedStep]) -> RecordedStep:
        """The recorded step of this shape (`step_shape`), recording it when it is new."""
        self._drop_stale()
        if (step := self._steps.get(shape)) is None:
            step = record()
            self._drop_stale()
            while len(self._steps) >= KEPT:
                self._steps.popitem(last=False)
            self._steps[shape] = step
        self._steps.move_to_end(shape)
        return step

    def forget_variants(self) -> None:
        """Let go of the last references to variants, and of the steps that are only theirs."""
        for shape, step in list(self._steps.items()):
            step.forget_variants()
            if step.rebuilt:
                del self._steps[shape]

    def _drop_stale(self) -> None:
        if self._growths != self._workspace.growths:  # older steps hold buffers of their own
            self._growths = self._workspace.growths
            self._steps.clear()


def step_shape(batch: Batch, cache: KVCache, plan: StepPlan, last: StepPlan) -> Hashable:
    """Equal for two steps that differ in nothing but what inputs and tables hold. Ids are sound
    keys: a recorded step keeps its cache and the variants that it rebuilds alive."""
    where = batch.attention
    sequences = len(where.context), table_width(where), where.block_size
    return id(cache), sequences, plan.shape, last is plan, last.shape
