"""Artifacts on disk: what analyzers stored, written whole and read with suspicion.

One folder a name, one a version: ``NAME/VERSION/info.json`` beside ``blobs/``. A version is written
under a hidden name and renamed, so it is there whole or not at all; its number is never used again.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import structlog
from pydantic import TypeAdapter, ValidationError

from lensd_api import ArtifactInfo, FailedPrecondition, InvalidRequest, TooLarge, UnknownArtifact
from lensd_api.artifacts import NAME_PATTERN, Artifact
from lensd_server.engine.blobs import (
    Damaged,
    check_blobs,
    digest_of,
    digests_of,
    is_name,
    read_blobs,
    sync_folder,
    write_blobs,
    write_through,
)

#: Metadata travels in one message with everything else that describes an artifact.
MAX_METADATA_BYTES = 256 * 1024
#: What lies half-written for longer than this belongs to a process that died.
_ABANDONED_S = 3600.0
_DEFAULT_MAX_BYTES = 1024**3

_INFO = TypeAdapter(ArtifactInfo)
_log = structlog.get_logger("lensd.artifacts")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who stores an artifact, and on which model: ``model`` and ``revision`` are empty without one."""

    distribution: str = ""
    analyzer: str = ""
    version: str = ""
    model: str = ""
    revision: str = ""


class DiskArtifacts:
    """Artifacts under a folder, which need not exist. Safe to use from any thread."""

    def __init__(
        self, folder: Path, max_bytes: int = _DEFAULT_MAX_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._max_bytes, self._clock = folder, max_bytes, clock

    def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`lensd_api.ArtifactStore.list`."""
        names = sorted(p.name for p in self._folder.glob("*") if p.is_dir() and is_name(p.name))
        return [info for name in names for info in self._versions(name)]

    def info(self, name: str) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.info`."""
        bare, _, version = name.partition("@")
        # Checked before it becomes a path: the name comes from a caller.
        if is_name(bare):
            for info in self._versions(bare):
                if not version or version == str(info.version):
                    return info
        raise UnknownArtifact(f"no artifact {name[:140]!r} is stored; `lensctl artifacts` lists them")

    def open(self, name: str, opener: Origin) -> Artifact:
        """See :meth:`lensd_api.ArtifactStore.open`."""
        info = self.info(name)
        folder = self._folder / info.name / str(info.version)
        stored = _read_info(folder)
        check_fits(info, str(stored.get("distribution", "")), opener)
        try:
            blobs = read_blobs(folder / "blobs", cast("dict[str, str]", stored.get("blobs", {})))
            if _contents_digest(blobs, info.metadata) != info.sha256:
                raise Damaged("its description was changed")
        except (Damaged, OSError) as error:
            _log.error("artifact is damaged", artifact=info.reference, problem=str(error))
            raise FailedPrecondition(
                f"artifact {info.reference} is damaged on the server's disk; delete it and make it again",
                reason="ARTIFACT_CORRUPT",
            ) from error
        return Artifact(info, blobs)

    def store(
        self, name: str, blobs: Mapping[str, bytes], metadata: Mapping[str, Any] | None, origin: Origin
    ) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.store`."""
        if not is_name(name):
            raise InvalidRequest(f"artifact name {name[:140]!r} does not match {NAME_PATTERN}")
        described = _plain(metadata or {}, name)
        size = check_blobs(blobs, self._max_bytes, f"artifact {name}")
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        self._sweep(home)
        writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=home))
        try:
            write_blobs(writing / "blobs", blobs)
            while True:
                info = ArtifactInfo(
                    name=name,
                    version=_next_version(home),
                    analyzer=origin.analyzer,
                    analyzer_version=origin.version,
                    model=origin.model,
                    model_revision=origin.revision,
                    sha256=_contents_digest(blobs, described),
                    size_bytes=size,
                    created=self._clock(),
                    metadata=described,
                )
                extra = {"distribution": origin.distribution, "blobs": digests_of(blobs)}
                write_through(writing / "info.json", json.dumps({**asdict(info), **extra}).encode())
                try:
                    writing.rename(home / str(info.version))
                except OSError:
                    # Somebody else stored that version meanwhile: a folder never replaces a full one.
                    if not (home / str(info.version)).exists():
                        raise
                    continue
                sync_folder(home)
                return info
        finally:
            shutil.rmtree(writing, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Removes ``name@version`` for good. Raises UnknownArtifact."""
        info = self.info(name)
        folder = self._folder / info.name / str(info.version)
        # Renamed first: half a deleted artifact must not look like an artifact. The empty folder
        # stays, so that a number once given never comes to mean something else.
        doomed = folder.with_name(f".{info.version}.deleted")
        folder.rename(doomed)
        for inside in doomed.iterdir():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()

    def _versions(self, name: str) -> Iterator[ArtifactInfo]:
        numbers = [int(p.name) for p in (self._folder / name).glob("*") if p.name.isdecimal()]
        for number in sorted(numbers, reverse=True):
            try:
                info = _INFO.validate_python(_read_info(self._folder / name / str(number)))
            except (OSError, ValueError, ValidationError):
                continue  # half-deleted, or not ours
            if (info.name, info.version) == (name, number):
                yield info

    def _sweep(self, home: Path) -> None:
        for left in home.glob(".writing-*"):
            try:
                if self._clock() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
            except OSError:
                continue  # its writer has just finished


def check_fits(info: ArtifactInfo, distribution: str, opener: Origin) -> None:
    """Raises FailedPrecondition unless ``opener`` may read what ``distribution`` stored."""
    if opener.revision and info.model_revision and opener.revision != info.model_revision:
        raise FailedPrecondition(
            f"artifact {info.reference} was made on model {info.model} of revision "
            f"{info.model_revision[:12]}; model {opener.model} is of revision {opener.revision[:12]}: "
            "make it again on this model, or name the other one",
            reason="ARTIFACT_OF_ANOTHER_MODEL",
        )
    same_plugin = distribution == opener.distribution
    if same_plugin and _series(info.analyzer_version) != _series(opener.version):
        raise FailedPrecondition(
            f"artifact {info.reference} was made by {distribution} {info.analyzer_version}; "
            f"{opener.version} is installed: make it again",
            reason="ARTIFACT_OF_ANOTHER_VERSION",
        )


def _series(version: str) -> list[str]:
    return version.split(".")[:2]


def _contents_digest(blobs: Mapping[str, bytes], metadata: Mapping[str, Any]) -> str:
    return digest_of({"blobs": digests_of(blobs), "metadata": dict(metadata)})


def _plain(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``metadata`` as it will be read back. Raises TypeError, ValueError: the analyzer's own fault."""
    text = json.dumps(dict(metadata), allow_nan=False)
    if len(text) > MAX_METADATA_BYTES:
        raise TooLarge(f"metadata of artifact {name}: {len(text)} bytes, at most {MAX_METADATA_BYTES}")
    return cast("dict[str, Any]", json.loads(text))


def _next_version(home: Path) -> int:
    numbers = [int(m[1]) for p in home.iterdir() if (m := re.fullmatch(r"\.?(\d+)(\.deleted)?", p.name))]
    return max(numbers, default=0) + 1


def _read_info(folder: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((folder / "info.json").read_bytes()))
