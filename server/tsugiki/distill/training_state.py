"""A training run that was interrupted, on disk: one safetensors file, replaced in one move.

Owns: the file, and that it is only taken up by the run that it belongs to.
Does not know: what the tensors mean.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tsugiki.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SavedRun:
    """Where a run stands after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]


def state_path(out: Path) -> Path:
    """Where an interrupted run that is to write `out` is kept."""
    return out.with_name(f"{out.name}.training")


class StateFile:
    """The state of one run. `identity`: JSON values on which its course depends."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))

    def save(self, run: SavedRun) -> None:
        """Replace what was saved before."""
        content = {"identity": self._identity, "step": run.step}
        scratch = self.path.with_name(f".{self.path.name}.new")
        tensors = {name: tensor.contiguous() for name, tensor in run.tensors.items()}
        save_file(tensors, scratch, metadata={"run": json.dumps(content)})
        os.replace(scratch, self.path)

    def load(self) -> SavedRun | None:
        """What was saved; None where there is nothing.

        Raises:
            ConfigError: it belongs to another run, or is damaged; says which and what to do.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                content = json.loads(file.metadata()["run"])
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.path} is damaged ({error}): remove it to start anew"
            ) from None
        self._check(content["identity"])
        return SavedRun(content["step"], tensors)

    def remove(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)

    def _check(self, found: Mapping[str, Any]) -> None:
        for key in sorted({*found, *self._identity}):
            there, here = found.get(key), self._identity.get(key)
            if there != here:
                raise ConfigError(
                    f"{self.path} belongs to a run with {key} {there!r}, this one has {here!r}: "
                    "repeat that command, or remove the file to start anew"
                )
