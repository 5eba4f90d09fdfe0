"""A GPU that is not there: its tensors compute on the CPU and refuse to be mixed with others.

For tests of code that trains or evaluates on whatever device it is given, on machines without one:
an operation between a tensor there and one here fails as it would on a GPU. Only what goes through
torch's dispatcher is seen: no kernels of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# the one device that every build of torch has beside the CPU
GPU, CPU = torch.device("meta"), torch.device("cpu")
# their operands may be on two devices
CROSSING = ("_to_copy", "to", "copy_", "_copy_from")
# indices may be here while what they index is there
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class There(torch.Tensor):
    """A tensor on the pretended GPU; `here` is what it holds."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=GPU,
            requires_grad=False,
        )
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"There({self.here!r})"

    def tolist(self) -> Any:
        """Its values, for Python."""
        return self.here.tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["here"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Any], *_: object) -> "There":
        return There(inner["here"])

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """Sees what creates tensors there as well."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; its results are where its operands are, or where it says."""
    flat, _ = tree_flatten((args, kwargs))
    there = any(isinstance(value, There) for value in flat)
    if not there and torch.utils._device.CURRENT_DEVICE == GPU:
        return func(*args, **kwargs)  # transformers lays out a model before it has weights
    asked = [value for value in flat if isinstance(value, torch.device)]
    if not there and not asked:
        return func(*args, **kwargs)
    place = asked[-1] if asked else GPU
    if place == GPU and any(isinstance(value, torch.Generator) for value in flat):
        raise RuntimeError(f"{func}: a generator of the CPU draws on the CPU")
    if there and func.__name__.split(".")[0] not in CROSSING:
        refuse_mixtures(func, flat)
    if func is torch.ops.aten.copy_.default:
        place = GPU if isinstance(args[0], There) else CPU
    found = func(*tree_map(inner, args), **tree_map(inner, kwargs))
    originals = {id(v.here): v for v in flat if isinstance(v, There)}

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or place == CPU:
            return value
        return originals[id(value)] if id(value) in originals else There(value)

    return tree_map(placed, found)


def inner(value: Any) -> Any:
    """What stands for it here."""
    if isinstance(value, There):
        return value.here
    return CPU if isinstance(value, torch.device) else value


def refuse_mixtures(func: Any, flat: list[Any]) -> None:
    """As torch does: only numbers, and what indexes, may come from the CPU."""
    if func.__name__.split(".")[0] in INDEXING:
        flat = [v for v in flat if not isinstance(v, torch.Tensor) or v.dtype.is_floating_point]
    for value in flat:
        if isinstance(value, torch.Tensor) and not isinstance(value, There) and value.dim():
            raise RuntimeError(f"{func}: all tensors must be on one device, one is on the CPU")


of_values = torch.tensor


def tensor(values: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """As torch.tensor, which makes its values where nobody sees it."""
    found = of_values(values, **options)
    return found if device is None else found.to(device)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """While it lasts its device can be computed on."""
    fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            patch(fused, lambda: ["cpu", GPU.type]),
            patch("torch.tensor", tensor),
            PretendedGpu(),
        ):
            yield GPU
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
