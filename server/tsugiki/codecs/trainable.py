"""What training adds to a packed linear: the protocol of repair, whatever the codec.

Owns: the protocol and the unit that values are trained in. Does not know: any codec (retune.py has
the table), losses, models.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from tsugiki.codecs.base import Packed

LEAST_UNIT = 1e-6


class TrainableChange(nn.Module):
    """What training adds to a packed linear: nothing at first.

    All its tensors are parameters or buffers, so that it can be moved to another device whole; it
    is packed on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of x."""
        raise NotImplementedError

    def kinds(self) -> Mapping[str, nn.Parameter]:
        """What is trained, float32, by kind: each kind has a learning rate of its own."""
        return dict(self.named_parameters())

    def pack(self) -> Packed:
        """The linear with the trained values, as many bytes as before."""
        raise NotImplementedError


def hold(module: nn.Module, **tensors: Tensor | None) -> None:
    """Make these its buffers: they move with it and are no part of its state."""
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor, persistent=False)


def unit(values: Tensor) -> Tensor:
    """The root mean square of what is stored."""
    return values.square().mean().sqrt().clamp_min(LEAST_UNIT)
