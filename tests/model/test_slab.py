"""Many tensors in one piece of memory."""

import pytest
import torch

from tsugiki.model.slab import ALIGNMENT, Slab, below, room


def test_tensors_are_zero_aligned_and_apart() -> None:
    shapes = [((3, 5), torch.bfloat16), ((7,), torch.float32), ((2, 2, 2), torch.float16)]
    slab = Slab(sum(room(*shape) for shape in shapes), "cpu")
    tensors = [slab.take(*shape) for shape in shapes]
    assert not any(tensor.any() for tensor in tensors)
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
    for value, tensor in enumerate(tensors, start=1):
        tensor.fill_(value)
    assert [tensor.unique().tolist() for tensor in tensors] == [[1], [2], [3]]


def test_tensors_outlive_the_slab() -> None:
    tensor = Slab(room((4,), torch.float32), "cpu").take((4,), torch.float32)
    assert tensor.tolist() == [0, 0, 0, 0]


def test_a_slab_that_is_used_up_says_what_is_left() -> None:
    slab = Slab(room((16,), torch.float32), "cpu")
    slab.take((16,), torch.float32)
    with pytest.raises(ValueError, match="4 bytes wanted of a slab with 0 left"):
        slab.take((1,), torch.float32)


def test_an_empty_slab_gives_empty_tensors() -> None:
    assert Slab(0, "cpu").take((0, 4), torch.float32).shape == (0, 4)


def test_tensors_are_copied_below_each_other_to_another_device() -> None:
    parts = [torch.ones(2, 3), torch.zeros(4, 3)]
    taken = below(lambda shape, dtype: torch.empty(shape, dtype=dtype), parts)
    assert torch.equal(taken, torch.cat(parts))
    elsewhere = below(lambda shape, dtype: torch.empty(shape, dtype=dtype, device="meta"), parts)
    assert (elsewhere.shape, elsewhere.device.type) == ((6, 3), "meta")
