"""The store of artifacts: can it be opened, written, read and deleted from? What was written is removed."""

import queue
import shlex
import sys
import threading
from collections.abc import Callable, Iterator

from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.settings import Settings

#: How long the store may take.
PATIENCE_S = 30.0
_WHAT = "server.artifact_store"
_MAX_TEXT = 300
_MEND = "check the URL, the network, and that the credentials the daemon will find may write and delete there"


def examine_store(settings: Settings) -> Iterator[Finding]:
    """One finding, if artifacts are anywhere but in the state folder."""
    url = settings.server.artifact_store
    if url is None:
        return
    from lensd_server.engine.artifact_remote import RemoteShelf, WrongStore, scheme_of

    # The rest may hold a password, though it should not.
    shown = f"{scheme_of(url)}://…"
    try:
        problem = _problem(lambda: RemoteShelf(url).probe())
    except WrongStore as error:
        command = (sys.executable, "-m", "pip", "install", error.package) if error.package else ()
        mend = shlex.join(command) if command else _MEND
        yield Finding(_WHAT, Verdict.BROKEN, str(error), mend, command)
        return
    if problem:
        yield Finding(_WHAT, Verdict.BROKEN, f"{shown}: {problem}", _MEND)
    else:
        yield Finding(_WHAT, Verdict.FINE, f"{shown}: a probe was written, read and deleted")


def _problem(probe: Callable[[], None]) -> str:
    """Why ``probe`` failed; nothing when it did not. Raises WrongStore."""
    from lensd_server.engine.artifact_remote import WrongStore

    outcome: queue.Queue[Exception | None] = queue.Queue()

    def run() -> None:
        try:
            probe()
        except Exception as error:  # of the store's library, which may raise anything
            outcome.put(error)
        else:
            outcome.put(None)

    # A daemon thread: a store that never answers must not keep the command from ending.
    threading.Thread(target=run, name="lensd-probe", daemon=True).start()
    try:
        error = outcome.get(timeout=PATIENCE_S)
    except queue.Empty:
        return f"it did not answer within {PATIENCE_S:g} s"
    if isinstance(error, WrongStore):
        raise error
    return "" if error is None else f"{type(error).__name__}: {error}"[:_MAX_TEXT]
