"""Smoke test of an installed wheel: run from outside the checkout, without network or GPU.

Checks that the three packages import, that the command answers, that the kernel sources travelled
in the wheel, and that every variant file given is readable and whole.
"""

import subprocess
import sys
from pathlib import Path


def run(*arguments: str) -> str:
    """Standard output of `tsugiki ARGUMENTS`; raises when it fails."""
    command = [sys.executable, "-m", "tsugiki", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Entry point."""
    import tsugiki
    import tsugiki_client
    import tsugiki_kernels

    for package in (tsugiki, tsugiki_client, tsugiki_kernels):
        location = Path(str(package.__file__))
        if "site-packages" not in location.parts:
            print(f"{package.__name__} comes from {location}, not from the wheel", file=sys.stderr)
            return 1
    kernels = Path(str(tsugiki_kernels.__file__)).parent
    sources = [list(kernels.glob(pattern)) for pattern in ("cpu/src/*.cpp", "cuda/src/*.cu")]
    if not all(sources):
        print("the wheel carries no C++ or no CUDA kernel sources", file=sys.stderr)
        return 1
    print(run("--version").strip())
    for file in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        print(run("inspect", str(file)).splitlines()[0])
    print(f"smoke: {sum(map(len, sources))} kernel sources, all variant files whole")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
