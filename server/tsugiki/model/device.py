"""Where torch computes: what `--device` means, for the server and for everything that trains.

Owns: the choice. Does not know: models, kernels (tsugiki_kernels/select.py).
"""

from typing import Any

import torch

from tsugiki.config import DEVICES
from tsugiki.errors import ConfigError

CPU = torch.device("cpu")


def choose_device(wanted: str) -> torch.device:
    """cpu or cuda; auto is cuda where torch sees one.

    Raises:
        ConfigError: an unknown name, or cuda is wanted and torch sees none.
    """
    if wanted not in DEVICES:
        raise ConfigError(f"--device {wanted}: one of {', '.join(DEVICES)}")
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise ConfigError("--device cuda: torch sees no CUDA device; use --device cpu")
    return torch.device("cuda") if wanted != "cpu" and found else CPU


def device_of(model: Any) -> torch.device:
    """Where its parameters are: what goes in must be there too."""
    found: torch.device = next(model.parameters()).device
    return found
