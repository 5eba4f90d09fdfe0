"""The harness is tested itself: one bug of each class, found by the flavour that should find it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.kernels.ahead import SEEDED
from tests.kernels.cuda.executor import ORDERS, Executor, KernelFault, Order
from tests.kernels.cuda.host_build import RACES, SANITIZED, Flavour, preload_path
from tsugiki_kernels.cuda.launcher import Int32
from tsugiki_kernels.errors import BadArgument, CompileFailed

ROOT = Path(__file__).parents[3]
FAULTS = {
    "seeded_divergent_shuffle": "threads 0 to 15 wait at __shfl_down_sync",
    "seeded_wrong_mask": "a lane is not in the mask",
    "seeded_early_return": "a thread returned while others wait",
    "seeded_divergent_barrier": "meet in different __syncthreads",
    "seeded_copy_left_behind": "copy_async under way",
    "seeded_too_much_shared": "more shared memory than the GPU has",
}
WRONG_NUMBERS = (
    "seeded_missing_barrier",
    "seeded_wait_too_early",
    "seeded_uninitialised_tail",
)
ADDRESSES = {
    "seeded_shared_overflow": "heap-buffer-overflow",
    "seeded_global_overflow": "heap-buffer-overflow",
    "seeded_misaligned_load": "misaligned address",
}
DATA_RACES = (
    "seeded_missing_barrier",
    "seeded_warps_write_one_element",
    "seeded_blocks_write_one_element",
)
CLEAN = ("seeded_no_bug", "seeded_copied_without_bug")
in_every_order = pytest.mark.parametrize("order", ORDERS)


def played(cache: Path, kernel: str, order: Order = "forward") -> torch.Tensor:
    """What the kernel makes of 0 .. 127."""
    x, y = torch.arange(128, dtype=torch.float32), torch.zeros(128)
    executor = Executor(cache, order=order, sources=SEEDED)
    executor.launch(kernel, (1,), (128,), [x, y])
    return y


def expected() -> torch.Tensor:
    turned = torch.arange(127, -1, -1, dtype=torch.float32)
    return turned + turned.view(4, 32).sum(1).repeat_interleave(32)


def reports(cache: Path, flavour: Flavour, kernels: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """What the sanitizer said of each kernel: exit status and text."""
    Executor(cache, flavour, sources=SEEDED).build_all()
    environment = os.environ | {
        "LD_PRELOAD": str(preload_path(flavour)),
        "PYTHONPATH": str(ROOT),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
        "OMP_NUM_THREADS": "1",
    }

    def report(kernel: str) -> tuple[int, str]:
        command = [sys.executable, str(SEEDED / "run.py"), str(cache), flavour.name, kernel]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(kernels, pool.map(report, kernels), strict=True))


@pytest.mark.compiler
@in_every_order
@pytest.mark.parametrize("kernel", CLEAN)
def test_a_kernel_without_a_bug_is_right_in_every_order(
    shim_cache: Path, kernel: str, order: Order
) -> None:
    torch.testing.assert_close(played(shim_cache, kernel, order), expected(), rtol=0, atol=0)


@pytest.mark.compiler
@in_every_order
@pytest.mark.parametrize("kernel", WRONG_NUMBERS)
def test_what_a_gpu_might_forgive_gives_nan_or_differs(
    shim_cache: Path, kernel: str, order: Order
) -> None:
    assert not torch.equal(played(shim_cache, kernel, order), expected())


@pytest.mark.compiler
@in_every_order
@pytest.mark.parametrize("kernel", FAULTS)
def test_what_no_gpu_forgives_ends_the_launch_with_its_place(
    shim_cache: Path, kernel: str, order: Order
) -> None:
    with pytest.raises(KernelFault) as caught:
        played(shim_cache, kernel, order)
    message = str(caught.value)
    assert kernel in message
    assert "block (0, 0, 0), thread" in message
    if order == "forward":
        assert FAULTS[kernel] in message


@pytest.mark.compiler
def test_after_a_fault_the_next_launch_is_as_if_nothing_had_been(shim_cache: Path) -> None:
    with pytest.raises(KernelFault):
        played(shim_cache, "seeded_early_return")
    assert torch.equal(played(shim_cache, "seeded_no_bug"), expected())


@pytest.mark.compiler
def test_address_and_undefined_behaviour_sanitizers_name_the_line(seeded: Path) -> None:
    found = reports(seeded, SANITIZED, (*ADDRESSES, *CLEAN))
    for kernel, words in ADDRESSES.items():
        status, said = found[kernel]
        assert status != 0
        assert words in said
        assert "seeded.cu:" in said
    for kernel in CLEAN:
        assert found[kernel] == (0, "")


@pytest.mark.races
def test_the_thread_sanitizer_finds_races_between_threads_warps_and_blocks(
    seeded: Path,
) -> None:
    found = reports(seeded, RACES, (*DATA_RACES, *CLEAN))
    for kernel in DATA_RACES:
        assert "WARNING: ThreadSanitizer: data race" in found[kernel][1], kernel
        assert "seeded.cu:" in found[kernel][1]
    for kernel in CLEAN:
        assert found[kernel] == (0, "")


@pytest.mark.compiler
def test_scalars_of_another_type_than_the_kernel_declares_are_refused(shim_cache: Path) -> None:
    executor = Executor(shim_cache, sources=SEEDED)
    with pytest.raises(BadArgument, match="takes 'pp', was given 'pi'"):
        executor.launch("seeded_no_bug", (1,), (128,), [torch.zeros(128), Int32(1)])


@pytest.mark.compiler
def test_an_unknown_kernel_is_refused_by_name(shim_cache: Path) -> None:
    with pytest.raises(BadArgument, match="seeded_nothing: no such kernel"):
        Executor(shim_cache, sources=SEEDED).launch("seeded_nothing", (1,), (1,), [])


@pytest.mark.compiler
def test_a_source_that_is_not_c_plus_plus_says_so(tmp_path: Path) -> None:
    text = '#include "prelude.cuh"\nextern "C" __global__ void seeded_typo() { int x = "" }\n'
    (tmp_path / "typo.cu").write_text(text)
    with pytest.raises(CompileFailed, match=r"typo\.cu:2"):
        Executor(tmp_path / "cache", sources=tmp_path).launch("seeded_typo", (1,), (1,), [])
