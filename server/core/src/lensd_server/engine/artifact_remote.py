"""Artifacts in a store that several daemons share, through fsspec: S3, GCS, Azure, SFTP, a mounted folder.

Such stores rename nothing atomically, but a single object appears whole. So the blobs of a version are
written first, under a name nobody guesses, and ``NAME/VERSION.json`` last, with the place of its blobs: a
version is there once that object is. A removed one leaves an empty object, so that its number is not used
again.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from lensd_api import Unavailable

_VERSION = re.compile(r"(\d+)\.json")


#: Where a package is not called as what is imported of it.
_PACKAGES = {"smbclient": "smbprotocol", "libarchive": "libarchive-c"}


class WrongStore(ValueError):
    """The URL cannot be used; the message says why and what to do. ``package`` is the one that is missing,
    if that is why."""

    def __init__(self, message: str, package: str = "") -> None:
        super().__init__(message)
        self.package = package


class RemoteShelf:
    """A :class:`lensd_server.engine.artifacts.Shelf` at ``url``.

    Where the store can create an object only if it is not there, any number of daemons may store under
    one name; elsewhere, threads of this one only. Raises WrongStore.
    """

    def __init__(self, url: str) -> None:
        # Here, since it brings asyncio clients and more that most daemons never need.
        from fsspec.core import url_to_fs

        try:
            self._fs, self._root = cast("tuple[Any, str]", url_to_fs(url, use_listings_cache=False))
        except ImportError as error:
            package = _missing_package(error)
            mend = f"pip install {package}" if package else str(error)
            raise WrongStore(
                f"the artifact store {scheme_of(url)}:// needs a package that is not installed: {mend}",
                package,
            ) from error
        except ValueError as error:
            raise WrongStore(
                f"the artifact store's scheme {scheme_of(url)!r} is unknown to fsspec"
            ) from error
        except Exception as error:  # of the store's library: some connect at once
            raise WrongStore(
                f"the artifact store {scheme_of(url)}:// cannot be opened: {type(error).__name__}: {error}"
            ) from error
        self._lock = threading.Lock()

    def probe(self) -> None:
        """Writes an object of a name nobody uses, reads it and removes it, and what had to be made for it.

        Raises whatever the store's library does, and OSError when something else is read.
        """
        name, content = self._path(f"probe-{uuid.uuid4().hex}"), uuid.uuid4().bytes
        was_there = self._fs.exists(self._root)
        self._fs.makedirs(self._root, exist_ok=True)
        try:
            self._fs.pipe_file(name, content)
            if self._fs.cat_file(name) != content:
                raise OSError("what was written is not what is read back")
            self._fs.rm_file(name)
        finally:
            if not was_there:
                with _quietly():
                    self._fs.rmdir(self._root)

    def names(self) -> Sequence[str]:
        """Names of folders."""
        return self._inside(self._root, "directory")

    def versions(self, name: str) -> Sequence[int]:
        """Objects named by numbers, removed versions among them."""
        files = self._inside(self._path(name), "file")
        return [int(match[1]) for file in files if (match := _VERSION.fullmatch(file))]

    def description(self, name: str, version: int) -> bytes:
        """See :meth:`lensd_server.engine.artifacts.Shelf.description`."""
        with _answering():
            return cast("bytes", self._fs.cat_file(self._path(name, f"{version}.json")))

    def blob(self, name: str, version: int, blob: str) -> bytes:
        """See :meth:`lensd_server.engine.artifacts.Shelf.blob`."""
        with _answering():
            return cast("bytes", self._fs.cat_file(self._path(self._home(name, version), blob)))

    def put(self, name: str, blobs: Mapping[str, bytes], describe: Callable[[int], bytes]) -> int:
        """See :meth:`lensd_server.engine.artifacts.Shelf.put`."""
        located = f"blobs-{uuid.uuid4().hex}"
        home = f"{name}/{located}"
        committed = False
        try:
            with _answering():
                self._fs.makedirs(self._path(home), exist_ok=True)
                for blob, content in blobs.items():
                    self._fs.pipe_file(self._path(home, blob), content)
            while True:
                version = max(self.versions(name), default=0) + 1
                description = json.dumps({**json.loads(describe(version)), "located": located}).encode()
                with _answering():
                    if self._created(self._path(name, f"{version}.json"), description):
                        committed = True
                        return version
        finally:
            if not committed:
                self._discard(home)

    def remove(self, name: str, version: int) -> None:
        """See :meth:`lensd_server.engine.artifacts.Shelf.remove`."""
        home = self._home(name, version)
        with _answering():
            self._fs.pipe_file(self._path(name, f"{version}.json"), b"")
        self._discard(home)

    def used_bytes(self) -> int:
        """See :meth:`lensd_server.engine.artifacts.Shelf.used_bytes`: one listing, however many there are."""
        try:
            with _answering():
                found = cast("dict[str, dict[str, Any]]", self._fs.find(self._root, detail=True))
        except FileNotFoundError:
            return 0
        return sum(int(entry.get("size") or 0) for entry in found.values())

    def _home(self, name: str, version: int) -> str:
        """Where the blobs of a version are, below the root."""
        located = str(cast("dict[str, Any]", json.loads(self.description(name, version))).get("located", ""))
        if not re.fullmatch(r"blobs-[0-9a-f]{32}", located):
            raise FileNotFoundError(f"{name}/{version}.json does not say where its blobs are")
        return f"{name}/{located}"

    def _created(self, path: str, content: bytes) -> bool:
        """Whether this call made the object; False when there is one already."""
        with self._lock:  # for stores that cannot say "only if absent"
            if self._fs.exists(path):
                return False
            try:
                self._create(path, content)
            except FileExistsError:
                return False
            except (NotImplementedError, ValueError, TypeError):
                self._fs.pipe_file(path, content)
        return True

    def _create(self, path: str, content: bytes) -> None:
        """Writes an object that is not there yet, where the store can say so. Raises FileExistsError."""
        if self._fs.async_impl:  # stores over HTTP have a condition for it in one request
            self._fs.pipe_file(path, content, mode="create")
            return
        # What other file systems inherit as `mode="create"` looks first and then writes.
        with self._fs.open(path, "xb") as file:
            file.write(content)

    def _discard(self, home: str) -> None:
        # Nothing names it any more; what cannot be removed now only takes room.
        with _quietly():
            self._fs.rm(self._path(home), recursive=True)

    def _inside(self, folder: str, kind: str) -> list[str]:
        try:
            with _answering():
                entries = cast("list[dict[str, Any]]", self._fs.ls(folder, detail=True))
        except FileNotFoundError:
            return []
        return [str(e["name"]).rstrip("/").rpartition("/")[2] for e in entries if e["type"] == kind]

    def _path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))


def scheme_of(url: str) -> str:
    """``s3`` of ``s3://bucket/path``: the part that may be shown, since the rest may hold a password."""
    return url.partition("://")[0]


def _missing_package(error: ImportError) -> str:
    """What to install, as far as the error tells."""
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    module = (cause.name or "").partition(".")[0]
    return _PACKAGES.get(module, module)


@contextmanager
def _answering() -> Iterator[None]:
    """What a store's own library raises becomes Unavailable; a missing object stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, NotImplementedError):
        raise
    except Exception as error:  # of the store's library, which may raise anything
        raise Unavailable(
            "the artifact store does not answer; try again", reason="STORE_UNAVAILABLE", retry_after_s=5.0
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except Exception:  # of the store's library
        return
