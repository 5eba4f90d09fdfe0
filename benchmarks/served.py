"""Directories of variants for the servers of a run.

Owns: what lies in them. A server keeps its store beside the files that it serves, so none is
started on a folder of somebody else's. Does not know servers (server.py, resident.py).
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import ArtifactSpec


def placed(files: Iterable[Path], folder: Path) -> list[str]:
    """Put the files into a folder, made if need be, that lacks them; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in files:
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
        names.append(file.stem)
    return names


def multiplied(shipped: Path, folder: Path, count: int) -> list[str]:
    """Write `count` variants with the content of the shipped ones, each with a digest of its own
    (another provenance); returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [artifact.read(path) for path in sorted(shipped.glob("*.safetensors"))]
    names = []
    for number in range(count):
        content = contents[number % len(contents)]
        header = content.header
        spec = ArtifactSpec(
            codec=header.codec,
            base=header.base,
            role=header.role,
            text=header.text,
            provenance={"copy": number},
        )
        names.append(f"copy-{number:03}")
        artifact.write(folder / f"{names[-1]}.safetensors", spec, content.modules)
    return names
