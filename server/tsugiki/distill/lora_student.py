"""A student whose only trained part is a LoRA branch, by peft.

Owns: how the branch is attached and saved. Does not know: losses, data, variant files.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.errors import ConfigError

ALL_LINEARS = "all-linear"
Init = Literal["default", "gaussian", "orthogonal"]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What peft attaches."""

    rank: int = 64
    lora_alpha: int | None = None  # None: twice the rank
    targets: tuple[str, ...] = ()  # names of modules; none: every linear of the decoder
    rslora: bool = False  # scale by the square root of the rank (arXiv 2312.03732)
    init: Init = "default"  # of the factor A: one that leaves the base's weights alone

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"--rank is {self.rank}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class LoraStudent:
    """A model with a branch beside its linears."""

    model: Any  # the transformers model, branches inside
    adapter: Any  # peft's wrapper around it

    def group(self, learning_rate: float) -> ParameterGroup:
        """The branch, to be trained at this rate."""
        named = self.model.named_parameters()
        trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        return ParameterGroup(trained, learning_rate)

    def save(self, directory: Path, base: Path) -> None:
        """As peft saves an adapter, in the dtype that was computed with."""
        self.adapter.peft_config["default"].base_model_name_or_path = str(base)
        self.adapter.save_pretrained(directory)


def attach(model: Any, settings: LoraSettings, seed: int, *, checkpointing: bool) -> LoraStudent:
    """Freeze the model and put the branch into it; `checkpointing` computes activations again in
    the backward pass instead of keeping them.

    Raises:
        ConfigError: peft is not installed, or knows no such module.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("distillation needs peft: pip install 'tsugiki[tune]'") from None
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.lora_alpha or 2 * settings.rank,
        target_modules=list(settings.targets) or ALL_LINEARS,
        lora_dropout=0.0,
        use_rslora=settings.rslora,
        init_lora_weights=True if settings.init == "default" else settings.init,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # names that transformers has newer ones for, called by peft and below
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        try:
            adapter = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ConfigError(f"--targets {' '.join(settings.targets)}: {error}") from None
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return LoraStudent(model.train(), adapter)
