"""Bearer tokens: made here, kept as digests, found again when a caller shows one.

The file has one JSON object a line: ``{"name", "sha256", "scopes", "created"}``. A token is 256
random bits, so its plain SHA-256 cannot be guessed back: bcrypt and the like, which make every
call slow, are for passwords that people think up. One name may have several tokens, which is how
one is replaced without a gap.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lensd_server.access.audit import Audit
from lensd_server.access.caller import Scope
from lensd_server.access.files import version_of
from lensd_server.settings import NAME_PATTERN

#: By which a leaked token is recognised for what it is.
PREFIX = "lensd_"
_ID_LENGTH = 12


class TokenFileError(Exception):
    """The file of tokens cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token: ``sha256`` in hexadecimal, ``created`` as ISO 8601."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    created: str

    @property
    def id(self) -> str:
        """By which it is listed and revoked; says nothing of the token."""
        return self.sha256[:_ID_LENGTH]

    def __str__(self) -> str:
        return f"{self.name} {self.id} ({', '.join(self.scopes)})"


class Tokens:
    """The tokens of a file, read again when it has changed. Safe to use from any thread.

    A file that has become unreadable leaves the tokens as they were, and is logged: rotation must not
    lock everybody out. Whoever wants a token gone revokes it.
    """

    def __init__(self, path: Path, audit: Audit | None = None) -> None:
        """Raises TokenFileError."""
        self._path = path
        self._audit = audit or Audit()
        self._lock = threading.Lock()
        self._seen = version_of(path)
        self._tokens = read_tokens(path)

    def find(self, presented: str) -> Token | None:
        """The token that ``presented`` is, compared with all of them in constant time."""
        self.refresh()
        digest = _digest(presented)
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def refresh(self) -> None:
        """Reads the file again if it is not the one that was read last."""
        version = version_of(self._path)
        if version == self._seen:
            return
        with self._lock:
            if version == self._seen:
                return
            try:
                before, self._tokens = self._tokens, read_tokens(self._path)
                self._audit.tokens_changed(
                    self._path,
                    added=[str(token) for token in self._tokens if token not in before],
                    removed=[str(token) for token in before if token not in self._tokens],
                )
            except TokenFileError as error:
                self._audit.tokens_refused(self._path, str(error))
            self._seen = version


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a file, in its order. Raises TokenFileError."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise TokenFileError(f"{path}: {reason}; `lensd token new NAME --scope ...` makes one") from error
    if mode & stat.S_IWOTH:
        raise TokenFileError(f"{path}: anybody may write it, so anybody could add a token: chmod o-w {path}")
    tokens: list[Token] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            tokens.append(_parse(line, f"{path}, line {number}"))
    return tokens


def issue_token(path: Path, name: str, scopes: Sequence[Scope]) -> str:
    """Makes a token, adds its digest to the file and returns it: it is not kept anywhere.

    Without ``scopes`` it gets those of the tokens that ``name`` has. Raises TokenFileError.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise TokenFileError(f"{name!r} is no name for a token: it must match {NAME_PATTERN}")
    with _changing(path) as (text, tokens):
        present = {token.scopes for token in tokens if token.name == name}
        wanted = tuple(scope for scope in Scope if scope in scopes)
        if not wanted and not present:
            raise TokenFileError(
                f"say what {name} may do: --scope {' --scope '.join(Scope)}, or some of them"
            )
        if wanted and present and present != {wanted}:
            had = " and ".join(sorted({", ".join(scopes) for scopes in present}))
            raise TokenFileError(
                f"{name} has tokens for {had}: revoke them first, or leave --scope out for one more of the kind"
            )
        token = PREFIX + secrets.token_urlsafe(32)
        entry = {
            "name": name,
            "sha256": _digest(token),
            "scopes": list(wanted or next(iter(present))),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        _replace(path, text + json.dumps(entry) + "\n")
    return token


def revoke_tokens(path: Path, which: str) -> list[Token]:
    """Removes the tokens whose identifier or name is ``which`` and returns them. Raises TokenFileError."""
    with _changing(path) as (text, tokens):
        gone = [token for token in tokens if which in (token.id, token.name)]
        if not gone:
            raise TokenFileError(
                f"{path}: no token {which!r}; `lensd token list` shows names and identifiers"
            )
        digests = {token.sha256 for token in gone}
        kept = [line for line in text.splitlines() if not any(digest in line for digest in digests)]
        _replace(path, "".join(f"{line}\n" for line in kept))
    return gone


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _parse(line: str, where: str) -> Token:
    try:
        entry = cast("dict[str, Any]", json.loads(line))
        name, digest, created = (str(entry[key]) for key in ("name", "sha256", "created"))
        scopes = tuple(Scope(scope) for scope in entry["scopes"])
    except (ValueError, KeyError, TypeError) as error:
        # The line itself is not shown: somebody may have put a token there.
        raise TokenFileError(f"{where}: not what `lensd token new` writes") from error
    if not re.fullmatch(NAME_PATTERN, name) or not re.fullmatch(r"[0-9a-f]{64}", digest) or not scopes:
        raise TokenFileError(f"{where}: its name, sha256 or scopes are not what `lensd token new` writes")
    return Token(name, digest, scopes, created)


@contextmanager
def _changing(path: Path) -> Iterator[tuple[str, list[Token]]]:
    """What the file holds, while nobody else changes it; nothing where there is none."""
    folder = path.resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TokenFileError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            tokens = read_tokens(path)
            text = path.read_text(encoding="utf-8")
            yield text if text.endswith("\n") or not text else text + "\n", tokens
        else:
            yield "", []
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    """Writes the file as a whole, with its owner and mode as they were: a reader sees it old or new."""
    path = path.resolve()
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                found = path.stat()
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
                if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), found.st_uid, found.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise TokenFileError(f"{path}: {error.strerror}") from error
