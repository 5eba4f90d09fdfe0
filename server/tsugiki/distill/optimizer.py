"""AdamW over float32 masters of parameters that may be computed with in 16 bits.

Owns: masters, gradient accumulation in float32, clipping, the optimizer's state by name.
Does not know: schedules, losses, files.

A 16-bit parameter would swallow most updates of a fine-tune: its master takes them and is rounded
into it after every step. A float32 parameter is its own master.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters by name, and their learning rate at the peak of the schedule."""

    parameters: Mapping[str, nn.Parameter]
    learning_rate: float


class Optimizer:
    """Collects the gradients of batches, then makes one step with all of them."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        betas: tuple[float, float],
        clip: float | None,
    ) -> None:
        self._peaks = [group.learning_rate for group in groups]
        self._live = {name: p for group in groups for name, p in group.parameters.items()}
        self._masters = {name: _master(p) for name, p in self._live.items()}
        self._clip = clip
        self._adam = torch.optim.AdamW(
            [{"params": [self._masters[name] for name in group.parameters]} for group in groups],
            lr=0.0,
            betas=betas,
            weight_decay=0.0,  # decay would pull a variant towards nothing in particular
            fused=True,
        )

    def collect(self) -> None:
        """Add the gradients that a backward pass left in the parameters to those of the step."""
        for name, parameter in self._live.items():
            master = self._masters[name]
            if master is parameter or parameter.grad is None:
                continue
            fresh = parameter.grad.float()
            master.grad = fresh if master.grad is None else master.grad.add_(fresh)
            parameter.grad = None

    def step(self, factor: float) -> None:
        """One update at `factor` times the peak learning rates."""
        if self._clip is not None:
            nn.utils.clip_grad_norm_(list(self._masters.values()), self._clip)
        for group, peak in zip(self._adam.param_groups, self._peaks, strict=True):
            group["lr"] = factor * peak
        self._adam.step()
        self._adam.zero_grad()
        self._round()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by "<parameter>|<part>"."""
        found = {f"{name}|master": master.detach() for name, master in self._masters.items()}
        for name, master in self._masters.items():
            moments = self._adam.state[master]
            found |= {f"{name}|{part}": moments[part] for part in MOMENTS if part in moments}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state()` was taken."""
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(state[f"{name}|master"])
                moments = {part: state[f"{name}|{part}"] for part in _present(state, name)}
                self._adam.state[master] = {
                    # Adam counts steps on the processor: a count on a GPU is waited for each time
                    part: kept.to("cpu" if part == "step" else master.device, copy=True)
                    for part, kept in moments.items()
                }
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for name, parameter in self._live.items():
            if self._masters[name] is not parameter:
                parameter.copy_(self._masters[name])


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())


def _present(state: Mapping[str, Tensor], name: str) -> Iterable[str]:
    return [part for part in MOMENTS if f"{name}|{part}" in state]
