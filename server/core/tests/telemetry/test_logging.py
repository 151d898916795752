"""Logs: JSON where nobody looks, readable where somebody does, prompts nowhere."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.telemetry.logging import AnalysisLog, configure_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was, since it is set up process-wide."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_each_line_is_a_json_object_with_the_request_id() -> None:
    import transformers  # noqa: F401 - once imported it has a handler and a format of its own

    out = io.StringIO()
    configure_logging(stream=out)
    structlog.contextvars.bind_contextvars(request_id="r-1")
    structlog.get_logger("lensd.test").info("hello", n=1)
    logging.getLogger("transformers").warning("from %s", "elsewhere")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["n"], first["request_id"], first["level"]) == ("hello", 1, "r-1", "info")
    assert first["logger"] == "lensd.test"
    assert (second["event"], second["logger"]) == ("from elsewhere", "transformers")
    assert first["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(log_format: str) -> None:
    out = io.StringIO()
    configure_logging(log_format=log_format, stream=out)  # type: ignore[arg-type]

    def fail(prompt: str) -> None:
        raise RuntimeError("failed")

    secret = " ".join(("private", "prompt"))  # so that the source line does not hold it
    try:
        fail(secret)
    except RuntimeError:
        structlog.get_logger("lensd.test").exception("it failed")
    text = out.getvalue()
    assert "RuntimeError" in text
    assert "in fail" in text
    assert "private prompt" not in text


def test_a_terminal_gets_lines_for_people() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    configure_logging(stream=out)
    structlog.get_logger("lensd.test").info("hello")
    assert "hello" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_the_level_holds() -> None:
    out = io.StringIO()
    configure_logging(stream=out, level="warning")
    structlog.get_logger("lensd.test").info("quiet")
    assert out.getvalue() == ""


def test_an_analysis_that_ended_is_one_line_with_what_it_took() -> None:
    out = io.StringIO()
    configure_logging(stream=out)
    log = AnalysisLog()
    log.started(AnalysisRecord("r-1", "dla", "tiny"))
    log.finished(
        AnalysisRecord(
            "r-1",
            "dla",
            "tiny",
            outcome="ok",
            seconds=1.23456,
            usage={"rows": 3, "queue_s": 0.1},
            caller="trainer",
        )
    )
    (line,) = map(json.loads, out.getvalue().splitlines())
    expected = {
        "event": "analysis finished",
        "request_id": "r-1",
        "analyzer": "dla",
        "model": "tiny",
        "caller": "trainer",
        "outcome": "ok",
        "seconds": 1.2346,
        "rows": 3,
        "queue_s": 0.1,
    }
    assert {key: line[key] for key in expected} == expected
