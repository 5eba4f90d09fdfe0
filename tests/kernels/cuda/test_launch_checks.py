"""What is said before anything is launched: about the machine, the binaries, the arguments."""

from pathlib import Path

import pytest
import torch

from tsugiki_kernels.cuda.binaries import Binaries, Compiler, Kind, fatbin_name
from tsugiki_kernels.cuda.build import parse_architectures
from tsugiki_kernels.cuda.launcher import Int32, Int64, check_launch
from tsugiki_kernels.cuda.requirements import Machine, check_capability, check_machine
from tsugiki_kernels.cuda.sources import sources
from tsugiki_kernels.errors import BackendUnavailable, BadArgument

CPU = torch.device("cpu")
GOOD = Machine(driver=13000, torch_cuda="13.0", devices=1)


class Compiled:
    """A compiler that writes down what it was asked."""

    version = "NVRTC 13.0"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Kind]] = []

    def compile(self, source: Path, architecture: str, kind: Kind) -> bytes:
        self.asked.append((source.name, architecture, kind))
        return b"machine code"


def no_compiler() -> Compiler:
    raise BackendUnavailable("the CUDA kernels need CuPy: pip install 'tsugiki[cuda]'")


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine(0, "13.0", 0), "no CUDA device: .*no NVIDIA driver"),
        (Machine(12080, "13.0", 0), r"driver is too old: it knows CUDA 12\.8.*need 13\.0.*580"),
        (Machine(13000, None, 0), "torch was built without CUDA"),
        (Machine(13000, "13.0", 0), "no CUDA device: .*torch sees no GPU"),
    ],
)
def test_what_a_machine_lacks_is_one_line_with_the_remedy(machine: Machine, words: str) -> None:
    with pytest.raises(BackendUnavailable, match=words) as refused:
        check_machine(machine)
    assert "\n" not in str(refused.value)


def test_a_machine_with_all_of_it_is_taken_unless_its_gpu_is_too_old() -> None:
    check_machine(GOOD)
    check_capability("T4", (7, 5))
    with pytest.raises(BackendUnavailable, match=r"wrong architecture: V100 is sm_70.*sm_75"):
        check_capability("V100", (7, 0))


def test_a_binary_is_compiled_once_for_each_architecture(tmp_path: Path) -> None:
    compiler = Compiled()
    binaries = Binaries(tmp_path, lambda: compiler, prebuilt=tmp_path / "none")
    source = sources()[0]
    first = binaries.compiled(source, "sm_90")
    assert binaries.compiled(source, "sm_90") == first
    assert binaries.compiled(source, "sm_80") != first
    assert [asked[1:] for asked in compiler.asked] == [("sm_90", "cubin"), ("sm_80", "cubin")]
    assert first.read_bytes() == b"machine code"
    assert first.stat().st_mode & 0o777 == 0o644
    assert len(list(tmp_path.iterdir())) == 2


def test_an_ahead_of_time_file_is_found_by_the_stamp_of_its_source(tmp_path: Path) -> None:
    binaries = Binaries(tmp_path, no_compiler, prebuilt=tmp_path)
    source = sources()[0]
    assert binaries.prebuilt(source) is None
    (tmp_path / fatbin_name(source)).touch()
    assert binaries.prebuilt(source) == tmp_path / fatbin_name(source)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    binaries = Binaries(tmp_path / "file", Compiled, prebuilt=tmp_path)
    with pytest.raises(BackendUnavailable, match=r"cannot write .*file.*TSUGIKI_CACHE") as refused:
        binaries.compiled(sources()[0], "sm_80")
    assert "\n" not in str(refused.value)


def test_without_cupy_the_remedy_is_named(tmp_path: Path) -> None:
    binaries = Binaries(tmp_path, no_compiler, prebuilt=tmp_path)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tsugiki\[cuda\]'"):
        binaries.compiled(sources()[0], "sm_80")


def test_architectures_are_chosen_from_those_there_are() -> None:
    assert parse_architectures("sm_90, sm_80") == ("sm_80", "sm_90")
    for wrong in ("sm_70", "", "90"):
        with pytest.raises(BackendUnavailable, match="choose some of sm_75"):
            parse_architectures(wrong)


@pytest.mark.parametrize(
    ("grid", "block", "words"),
    [
        ((0,), (32,), "a grid of"),
        ((1, 65536), (32,), "a grid of"),
        ((1,), (1025,), "a block of"),
        ((1,), (64, 32), "2048 threads, the limit is 1024"),
        ((1,), (1, 1, 65), "a block of"),
    ],
)
def test_what_no_gpu_can_start_is_refused_by_the_kernels_name(
    grid: tuple[int, ...], block: tuple[int, ...], words: str
) -> None:
    with pytest.raises(BadArgument, match=f"tsugiki_x: .*{words}"):
        check_launch("tsugiki_x", CPU, grid, block, [])


def test_a_tensor_elsewhere_is_refused_by_its_position() -> None:
    elsewhere = torch.empty(1, device="meta")
    with pytest.raises(BadArgument, match="tsugiki_x: argument 1 lies on meta, expected cpu"):
        check_launch("tsugiki_x", CPU, (1,), (32,), [Int32(1), elsewhere])


def test_scalars_that_do_not_fit_their_parameter_are_refused() -> None:
    with pytest.raises(BadArgument, match="32 bits"):
        Int32(2**31)
    with pytest.raises(BadArgument, match="64 bits"):
        Int64(2**63)
