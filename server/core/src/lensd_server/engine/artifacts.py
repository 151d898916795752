"""Artifacts: what analyzers stored, described, bound to what made it and read with suspicion.

Where they lie is a :class:`Shelf`'s business: a folder of this machine, or a store that several share.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import structlog
from pydantic import TypeAdapter, ValidationError

from lensd_api import ArtifactInfo, FailedPrecondition, InvalidRequest, TooLarge, UnknownArtifact
from lensd_api.artifacts import NAME_PATTERN, Artifact
from lensd_server.engine.artifact_room import ArtifactRoom
from lensd_server.engine.blobs import Damaged, check_blobs, check_digest, digest_of, digests_of, is_name

#: Metadata travels in one message with everything else that describes an artifact.
MAX_METADATA_BYTES = 256 * 1024
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


class Shelf(Protocol):
    """Numbered versions of named sets of blobs. Safe to use from any thread.

    A version is there whole or not at all, and its number never comes to mean something else. Names
    have been checked before they get here. Methods raise OSError when the place cannot be reached.
    """

    def names(self) -> Sequence[str]:
        """Names of which there may be versions, in any order; others may be among them."""
        ...

    def versions(self, name: str) -> Sequence[int]:
        """Versions that may be there, in any order."""
        ...

    def description(self, name: str, version: int) -> bytes:
        """What :meth:`put` was given as the description. Raises FileNotFoundError."""
        ...

    def blob(self, name: str, version: int, blob: str) -> bytes:
        """Contents of one blob. Raises FileNotFoundError."""
        ...

    def put(self, name: str, blobs: Mapping[str, bytes], describe: Callable[[int], bytes]) -> int:
        """Writes the next version; answers its number, for which ``describe`` was called last."""
        ...

    def remove(self, name: str, version: int) -> None:
        """Removes a version for good."""
        ...

    def used_bytes(self) -> int:
        """What all versions take together, and what is being written as well."""
        ...


class Artifacts:
    """Artifacts on a shelf. Safe to use from any thread."""

    def __init__(
        self,
        shelf: Shelf,
        max_bytes: int = _DEFAULT_MAX_BYTES,
        clock: Callable[[], float] = time.time,
        *,
        max_bytes_together: int | None = None,
    ) -> None:
        self._shelf, self._max_bytes, self._clock = shelf, max_bytes, clock
        self._room = ArtifactRoom(max_bytes_together, shelf.used_bytes)

    def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`lensd_api.ArtifactStore.list`."""
        return [
            info for name in sorted(filter(is_name, self._shelf.names())) for info in self._versions(name)
        ]

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
        stored = self._stored(info.name, info.version)
        check_fits(info, str(stored.get("distribution", "")), opener)
        try:
            digests = cast("dict[str, str]", stored.get("blobs", {}))
            blobs = {blob: self._read(info, blob, digest) for blob, digest in digests.items()}
            if _contents_digest(blobs, info.metadata) != info.sha256:
                raise Damaged("its description was changed")
        except Damaged as error:
            _log.error("artifact is damaged", artifact=info.reference, problem=str(error))
            raise FailedPrecondition(
                f"artifact {info.reference} is damaged where the server keeps it; delete it and make it again",
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
        extra = {"distribution": origin.distribution, "blobs": digests_of(blobs)}
        digest, created = _contents_digest(blobs, described), self._clock()

        def info(version: int) -> ArtifactInfo:
            return ArtifactInfo(
                name=name,
                version=version,
                analyzer=origin.analyzer,
                analyzer_version=origin.version,
                model=origin.model,
                model_revision=origin.revision,
                sha256=digest,
                size_bytes=size,
                created=created,
                metadata=described,
            )

        def describe(version: int) -> bytes:
            return json.dumps({**asdict(info(version)), **extra}).encode()

        with self._room.take(name, size + len(json.dumps(described))):
            return info(self._shelf.put(name, blobs, describe))

    def delete(self, name: str) -> None:
        """Removes ``name@version`` for good. Raises UnknownArtifact."""
        info = self.info(name)
        self._shelf.remove(info.name, info.version)
        self._room.give_back(info.size_bytes)

    def _versions(self, name: str) -> Iterator[ArtifactInfo]:
        for number in sorted(self._shelf.versions(name), reverse=True):
            try:
                info = _INFO.validate_python(self._stored(name, number))
            except (OSError, ValueError, ValidationError):
                continue  # half-deleted, or not ours
            if (info.name, info.version) == (name, number):
                yield info

    def _stored(self, name: str, version: int) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self._shelf.description(name, version)))

    def _read(self, info: ArtifactInfo, blob: str, digest: str) -> bytes:
        if not is_name(blob):
            raise Damaged("a blob with an impossible name")
        try:
            content = self._shelf.blob(info.name, info.version, blob)
        except FileNotFoundError as error:
            raise Damaged(f"blob {blob} is missing") from error
        check_digest(blob, content, digest)
        return content


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
