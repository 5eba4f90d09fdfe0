"""What a machine must have for the CUDA kernels, as one clear line for each thing that is missing.

Owns: these rules and their words. Does not know how the facts are found out (cupy_launcher.py).
"""

from dataclasses import dataclass

from tsugiki_kernels.errors import BackendUnavailable

OLDEST_DRIVER = 13000  # CUDA 13.0, as cuDriverGetVersion counts
OLDEST_CAPABILITY = (7, 5)  # the oldest that CUDA 13 compiles for
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts, as far as they could be found out."""

    driver: int  # the newest CUDA that the driver knows, 0: no driver
    torch_cuda: str | None  # the CUDA that torch was built with; None: a CPU build
    devices: int  # that torch sees


def check_machine(machine: Machine) -> None:
    """There is a device that torch and the kernels can use.

    Raises:
        BackendUnavailable: what is missing, and what to do.
    """
    if machine.driver == 0:
        raise BackendUnavailable(
            "no CUDA device: this machine has no NVIDIA driver; use --kernels cpu or reference"
        )
    if machine.driver < OLDEST_DRIVER:
        raise BackendUnavailable(
            f"the NVIDIA driver is too old: it knows CUDA {_version(machine.driver)}, the kernels "
            f"need {_version(OLDEST_DRIVER)}; install driver 580 or newer"
        )
    if machine.torch_cuda is None:
        raise BackendUnavailable(
            "this torch was built without CUDA; install a torch for CUDA 13 (pip install torch)"
        )
    if machine.devices == 0:
        raise BackendUnavailable(
            "no CUDA device: the driver is there, torch sees no GPU (nvidia-smi, "
            "CUDA_VISIBLE_DEVICES, docker run --gpus all); use --kernels cpu or reference"
        )


def check_capability(gpu: str, capability: tuple[int, int]) -> None:
    """The kernels compile for this GPU.

    Raises:
        BackendUnavailable: it is too old.
    """
    if capability < OLDEST_CAPABILITY:
        raise BackendUnavailable(
            f"wrong architecture: {gpu} is {architecture(capability)}, the CUDA kernels need "
            f"{architecture(OLDEST_CAPABILITY)} or newer; use --kernels reference"
        )


def architecture(capability: tuple[int, int]) -> str:
    """(9, 0) -> "sm_90"."""
    return f"sm_{capability[0]}{capability[1]}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
