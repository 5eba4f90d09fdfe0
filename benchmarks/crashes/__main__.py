"""Kill -9 a hundred times, and look at the order of syncs.

python -m benchmarks.crashes                     80 kills of the registry, 20 of the server
python -m benchmarks.crashes --strace            the system calls of one PUT, activate, DELETE
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.crashes import registry_kills, server_kills, syncs
from benchmarks.crashes.registry_kills import Kill


def main() -> int:
    """1 when anything was wrong."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="tsugiki-crashes-") as name:
        folder = Path(name)
        if arguments.strace:
            return syncs.run(folder, arguments.base)
        torch.set_num_threads(1)  # the children are forks: a pool of threads would not survive
        parts: dict[str, list[Kill]] = {}
        if arguments.registry:
            parts["registry"] = registry_kills.run(
                folder / "registry", arguments.registry, arguments.seed
            )
            _print("registry", parts["registry"])
        if arguments.server:
            parts["server"] = server_kills.run(
                folder / "server", arguments.base, arguments.server, arguments.seed
            )
            _print("server", parts["server"])
    if arguments.save:
        data = {part: [asdict(kill) for kill in kills] for part, kills in parts.items()}
        print(f"written: {results.save('crashes', {'seed': arguments.seed, **data})}")
    return int(any(kill.faults for kills in parts.values() for kill in kills))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--registry", type=int, default=80, help="kills of the registry's process")
    parser.add_argument("--server", type=int, default=20, help="kills of the whole server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strace", action="store_true", help="only show the order of syncs")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def _print(part: str, kills: Sequence[Kill]) -> None:
    """One line for each operation that was under way, then the faults."""
    print(f"\n{part}: {len(kills)} kills, {sum(k.acknowledged for k in kills)} acknowledged")
    print(f"{'under way':<16}{'kills':>6}{'happened':>10}  after step")
    for operation in sorted({kill.operation for kill in kills}):
        own = [kill for kill in kills if kill.operation == operation]
        steps = Counter(kill.step or "-" for kill in own)
        told = ", ".join(f"{step} {count}" for step, count in sorted(steps.items()))
        print(f"{operation:<16}{len(own):>6}{sum(kill.kept for kill in own):>10}  {told}")
    faults = [fault for kill in kills for fault in kill.faults]
    print(f"faults: {len(faults)}", *faults[:20], sep="\n  " if faults else "")


if __name__ == "__main__":
    raise SystemExit(main())
