"""Artifacts on disk: what analyzers stored, listed and described.

One folder a name, one a version: ``NAME/VERSION/info.json`` beside the contents. Nothing in this
version writes artifacts; whatever lies there is read with suspicion.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lensd_api import ArtifactInfo, UnknownArtifact

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_INFO = TypeAdapter(ArtifactInfo)


class DiskArtifacts:
    """An :class:`lensd_api.ArtifactStore` over a folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`lensd_api.ArtifactStore.list`."""
        names = sorted(p.name for p in self._folder.glob("*") if p.is_dir() and _NAME.fullmatch(p.name))
        return [info for name in names for info in self._versions(name)]

    def info(self, name: str) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.info`."""
        bare, _, version = name.partition("@")
        # Checked before it becomes a path: the name comes from a caller.
        if _NAME.fullmatch(bare):
            for info in self._versions(bare):
                if not version or version == str(info.version):
                    return info
        raise UnknownArtifact(f"no artifact {name[:140]!r} is stored; `lensctl artifacts` lists them")

    def delete(self, name: str) -> None:
        """Removes ``name@version`` for good. Raises UnknownArtifact."""
        info = self.info(name)
        folder = self._folder / info.name / str(info.version)
        # Renamed first: half a deleted artifact must not look like an artifact.
        doomed = folder.with_name(f".{info.version}.deleted")
        folder.rename(doomed)
        shutil.rmtree(doomed)

    def _versions(self, name: str) -> Iterator[ArtifactInfo]:
        numbers = [int(p.name) for p in (self._folder / name).glob("*") if p.name.isdecimal()]
        for number in sorted(numbers, reverse=True):
            try:
                info = _INFO.validate_python(
                    json.loads((self._folder / name / str(number) / "info.json").read_bytes())
                )
            except (OSError, ValueError, ValidationError):
                continue  # half-deleted, or not ours
            if (info.name, info.version) == (name, number):
                yield info
