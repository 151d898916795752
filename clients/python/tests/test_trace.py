"""A client inside a trace hands it on; one outside pays nothing."""

import subprocess
import sys

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from lensd_client import Client
from lensd_client._trace import trace_metadata


def test_a_call_within_a_span_carries_it() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("outer") as span:
        trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        sent = dict(trace_metadata())
    assert sent["traceparent"].split("-")[1] == trace_id
    assert trace_metadata() == ()


def test_every_call_of_a_client_has_it_in_its_metadata() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with Client("127.0.0.1:1") as client:
        attempts = client._attempts()
        with tracer.start_as_current_span("outer"):
            assert "traceparent" in dict(client._options(attempts)["metadata"])
        assert "traceparent" not in dict(client._options(attempts)["metadata"])


def test_a_program_that_does_not_trace_imports_nothing_for_it() -> None:
    code = (
        "import sys\nfrom lensd_client import Client\nfrom lensd_client._trace import trace_metadata\n"
        "assert trace_metadata() == ()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_program_that_traces_need_not_know_how_traces_travel() -> None:
    code = (
        "from opentelemetry.sdk.trace import TracerProvider\nfrom lensd_client._trace import trace_metadata\n"
        "with TracerProvider().get_tracer('t').start_as_current_span('s'):\n"
        "    assert 'traceparent' in dict(trace_metadata())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
