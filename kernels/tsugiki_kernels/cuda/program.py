"""A recorded step on a GPU: carried out once as it is, from then on as one captured graph.

Owns: what recording means for launches and for torch's operations, and when a graph is captured.
Knows nothing of what they compute.

What differs from run to run (inputs, work lists) lies in memory that stays where it is and is
written before the run. The first run is the warm-up that a capture needs: every kernel is loaded,
every library has its workspace. Where memory moved or launches were added since (a table met parts
of another form), the next run is a first one again.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import torch

from tsugiki_kernels.cuda.launcher import Argument, Launcher, check_launch
from tsugiki_kernels.cuda.scratch import Scratch
from tsugiki_kernels.device import Device, Replay

Step = Callable[[], object]
Version = Callable[[], int]


class Steps:
    """What was recorded so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.kept: list[object] = []
        self.capturable = True  # False: a step waits for the device, which a graph cannot
        self.versions: dict[Version, None] = {}

    def keep(self, value: object) -> None:
        """Keep alive what launches reach through addresses in device memory."""
        self.kept.append(value)

    def watch(self, version: Version) -> None:
        """What was captured is valid for as long as this answers the same."""
        self.versions[version] = None

    def add(self, step: Step, *, capturable: bool = True) -> None:
        """Record one more."""
        self.steps.append(step)
        self.capturable &= capturable


class RecordingLauncher:
    """A launcher that keeps its launches for later; see Launcher."""

    def __init__(self, launcher: Launcher, recorded: Steps) -> None:
        self._launcher = launcher
        self._recorded = recorded

    @property
    def device(self) -> torch.device:
        """See Launcher.device."""
        return self._launcher.device

    @property
    def multiprocessors(self) -> int:
        """See Launcher.multiprocessors."""
        return self._launcher.multiprocessors

    @property
    def capability(self) -> tuple[int, int]:
        """See Launcher.capability."""
        return self._launcher.capability

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """See Launcher.launch."""
        check_launch(name, self.device, grid, block, args)
        launch = self._launcher.launch
        self._recorded.add(partial(launch, name, grid, block, tuple(args), shared_bytes))


class Execution:
    """How the operations of a backend are carried out: at once, or into what is recorded."""

    def __init__(self, direct: Launcher) -> None:
        """At once; `recording` gives another."""
        self.direct = direct  # for what is launched when its turn comes
        self.launcher = direct  # for what is asked for
        self.scratch = Scratch(direct.device)
        self._recorded: Steps | None = None

    def recording(self, recorded: Steps) -> "Execution":
        """The same, but that what is asked for is recorded."""
        other = copy(self)
        other.launcher, other._recorded = RecordingLauncher(self.direct, recorded), recorded
        return other

    def do(self, call: Step, *, capturable: bool = True) -> None:
        """Call it, now or when what is recorded runs."""
        if self._recorded is None:
            call()
        else:
            self._recorded.add(call, capturable=capturable)

    def keep(self, value: object) -> None:
        """What launches reach through addresses lives as long as the program that holds them."""
        if self._recorded is not None:
            self._recorded.keep(value)

    def watch(self, version: Version) -> None:
        """See Steps.watch."""
        if self._recorded is not None:
            self._recorded.watch(version)

    def at_once(self) -> "Execution":
        """Without recording."""
        other = copy(self)
        other.launcher, other._recorded = self.direct, None
        return other


class Program:
    """See interface.Program. Not for two threads at once."""

    def __init__(self, recorded: Steps, device: Device) -> None:
        self._steps = tuple(recorded.steps)
        self._kept = tuple(recorded.kept)
        self._capturable = recorded.capturable
        self._device = device
        self._versions = tuple(recorded.versions)
        self._warm: tuple[int, ...] | None = None  # the versions of the last run as it is
        self._replay: Replay | None = None

    def run(self) -> None:
        """See interface.Program.run."""
        versions = tuple(version() for version in self._versions)
        if versions != self._warm or not self._capturable:
            self._run_all()
            self._warm, self._replay = versions, None
            return
        if self._replay is None:
            self._replay = self._device.capture(self._run_all)
        self._replay()

    def _run_all(self) -> None:
        for step in self._steps:
            step()
