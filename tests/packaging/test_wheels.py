"""Each wheel holds what it should, installs alone and works."""

import json
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import ROOT, Environment, make_environment

pytestmark = pytest.mark.slow

PACKAGES = [
    "lensd_proto",
    "lensd_api",
    "lensd_server",
    "lensd_client",
    "lensd_dla",
    "lensd_graphtracer",
    "lensd_shop_r1",
    "lensd_vsa_probe",
    "lensd_template",
]


def _names(wheels: Path, distribution: str) -> set[str]:
    (wheel,) = wheels.glob(f"{distribution}-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_its_sources_its_type_marker_and_nothing_else(wheels: Path, package: str) -> None:
    (source,) = [path for path in ROOT.glob(f"**/src/{package}") if ".venv" not in path.parts]
    names = _names(wheels, package)
    expected = {
        str(path.relative_to(source.parent))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"{package}/py.typed" in names
    assert expected <= names
    strange = [n for n in names if not n.startswith((f"{package}/", f"{package}-")) or "__pycache__" in n]
    assert strange == []


def test_the_contract_travels_with_its_stubs(wheels: Path) -> None:
    names = _names(wheels, "lensd_proto")
    protos = [path.relative_to(ROOT / "proto") for path in (ROOT / "proto" / "lensd" / "v1").glob("*.proto")]
    assert {f"lensd_proto/protos/{path}" for path in protos} <= names
    assert "lensd_proto/protos/google/rpc/status.proto" in names
    assert {f"lensd_proto/v1/{path.stem}_pb2.py" for path in protos} <= names


def test_the_server_carries_the_plugin_template(wheels: Path) -> None:
    inside = "lensd_server/plugin_template/"
    carried = {n.removeprefix(inside) for n in _names(wheels, "lensd_server") if n.startswith(inside)}
    template = ROOT / "plugins" / "template"
    expected = {
        str(path.relative_to(template))
        for path in template.rglob("*")
        if path.is_file() and not {"__pycache__", "build", "dist"} & set(path.parts)
    }
    assert carried == expected


def test_the_meta_distribution_is_metadata_only(wheels: Path) -> None:
    assert all(".dist-info/" in name for name in _names(wheels, "lensd"))


_WITHOUT_TORCH = "import importlib.util as u; assert u.find_spec('torch') is None; "

_SMOKE = {
    "lensd-proto": """
from lensd_proto import PROTO_ROOT
from lensd_proto.v1 import analysis_pb2, analysis_pb2_grpc
request = analysis_pb2.AnalyzeRequest(analyzer="dla", model="m")
request.params["prompt"] = "hi"
assert analysis_pb2.AnalyzeRequest.FromString(request.SerializeToString()) == request
assert (PROTO_ROOT / "lensd/v1/analysis.proto").is_file()
assert analysis_pb2_grpc.AnalysisServiceStub
print("ok")
""",
    "lensd-api": """
from lensd_api import Analyzer, BaseParams, InvalidParams, Record
from lensd_api.analyzer import find_flaw
class Params(BaseParams):
    times: int
class Echo(Analyzer):
    "Echoes."
    name = "echo"
    Params = Params
    async def analyze(self, params, ctx):
        yield Record("echo", {"times": params.times})
assert find_flaw(Echo()) is None
assert Echo.Params.parse({"times": 3.0}).times == 3
try:
    Echo.Params.parse({"times": "3"})
except InvalidParams as refused:
    print("ok" if refused.violations[0].field == "times" else refused)
""",
    "lensd-client": """
from lensd_client import Client
import lensd_client.errors
try:
    with Client("127.0.0.1:1") as lens:
        lens.analyze("dla", prompt="hi", timeout_s=0.2).finish()
except lensd_client.LensdError as refused:
    print("ok")
""",
}


@pytest.mark.parametrize("distribution", _SMOKE)
def test_a_light_distribution_installs_alone_and_works(
    distribution: str, wheels: Path, tmp_path: Path
) -> None:
    environment = make_environment(tmp_path / "venv", wheels)
    environment.install(distribution)
    out = environment.run("python", "-W", "error", "-c", _WITHOUT_TORCH + _SMOKE[distribution])
    assert out.split() == ["ok"]
    if distribution == "lensd-client":
        assert "analyze" in environment.run("lensctl", "--help")


def test_the_server_installs_alone_and_lists_no_plugins(
    wheels: Path, third_party: Path, tmp_path: Path
) -> None:
    environment = make_environment(tmp_path / "venv", wheels, third_party)
    environment.install("lensd-server", index=False)
    assert "serve" in environment.run("lensd", "--help")
    assert json.loads(environment.run("lensd", "plugins", "--json")) == {"plugins": []}
    assert environment.attempt("python", "-c", "import lensd_client").returncode != 0


def test_a_plugin_installs_alone_and_is_found_once_the_server_is_there(
    wheels: Path, third_party: Path, tmp_path: Path
) -> None:
    environment = make_environment(tmp_path / "venv", wheels, third_party)
    environment.install("lensd-dla", index=False)
    assert environment.attempt("python", "-c", "import lensd_server").returncode != 0
    code = "import json, lensd_dla; print(json.dumps([a.name for a in lensd_dla.lensd_analyzers()]))"
    assert json.loads(environment.run("python", "-c", code)) == ["dla"]
    environment.install("lensd-server", index=False)
    assert "dla" in environment.run("lensd", "plugins")


def test_the_meta_distribution_brings_server_client_and_plugins(installed: Environment) -> None:
    assert "dla" in installed.run("lensd", "plugins")
    assert "analyze" in installed.run("lensctl", "--help")
    code = "import importlib.metadata as m; print({m.version(f'lensd{x}') for x in ('', '-api', '-proto', '-server', '-client', '-dla')})"
    assert installed.run("python", "-c", code).strip() == "{'0.1.0'}"
