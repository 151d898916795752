"""Which distribution may import what, read from the source.

::

    clients --> proto <-- server/core --> server/api <-- plugins/*

A plugin added under ``plugins/`` is under these rules from its first commit.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))

#: Folder of a distribution -> first-party packages it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "proto": set(),
    "server/api": set(),
    "server/core": {"lensd_api", "lensd_proto"},
    "clients/python": {"lensd_proto"},
    **{f"plugins/{name}": {"lensd_api"} for name in PLUGINS},
}

#: Top-level packages shared by several distributions: the first prefix wins.
_SHARED = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "google.type": "googleapis-common-protos",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}

#: Declared although nothing here imports them, and why.
_USED_UNSEEN = {
    "accelerate": "transformers asks for it when it reads GGUF",
    "gguf": "transformers asks for it when it reads GGUF",
    "safetensors": "transformers asks for it when it reads weights",
}


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module: where, and whether only a type checker sees it."""

    module: str
    path: Path
    line: int
    for_types_only: bool

    @property
    def package(self) -> str:
        """Top-level package."""
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def _package(folder: str) -> str:
    (package,) = {path.parent.name for path in (ROOT / folder / "src").glob("*/__init__.py")}
    return package


def _modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(module), level=0):
            # `from google import rpc` names a module too, so keep what is imported from a namespace.
            return [f"{module}.{alias.name}" for alias in node.names] if module == "google" else [module]
        case ast.Call(func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"), args=[first, *_]):
            return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        case _:
            return []


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _walk(node: ast.AST, path: Path, for_types_only: bool) -> Iterator[Import]:
    for module in _modules(node):
        yield Import(module, path, getattr(node, "lineno", 0), for_types_only)
    guarded: Sequence[ast.AST] = node.body if isinstance(node, ast.If) and _is_type_checking(node) else ()
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, path, for_types_only or child in guarded)


@cache
def imports_of(folder: str) -> tuple[Import, ...]:
    """Every absolute import in the sources of the distribution in ``folder``."""
    return tuple(
        found
        for path in sorted((ROOT / folder / "src").rglob("*.py"))
        for found in _walk(ast.parse(path.read_text()), path, path.suffix == ".pyi")
    )


def _normalised(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def _provider(found: Import, providers: dict[str, list[str]]) -> str:
    """Distribution that brings an imported package."""
    for prefix, distribution in _SHARED.items():
        if found.module == prefix or found.module.startswith(prefix + "."):
            return distribution
    if found.package.startswith("lensd_"):
        return found.package.replace("_", "-")
    named = {_normalised(name) for name in providers.get(found.package, [])}
    assert len(named) == 1, f"{found}: provided by {sorted(named) or 'nothing installed'}"
    return named.pop()


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_distribution_imports_only_what_the_table_allows(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {_package(folder)}
    wrong = [
        str(i) for i in imports_of(folder) if i.package.startswith("lensd_") and i.package not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_no_source_imports_tests(folder: str) -> None:
    wrong = [str(i) for i in imports_of(folder) if i.package in ("tests", "conftest")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_are_absolute(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / folder / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, f"relative imports hide what the rules look for: {wrong}"


def test_the_api_imports_torch_for_types_only() -> None:
    wrong = [str(i) for i in imports_of("server/api") if i.package == "torch" and not i.for_types_only]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["clients/python", "proto"])
def test_clients_never_import_torch(folder: str) -> None:
    wrong = [str(i) for i in imports_of(folder) if i.package in ("torch", "transformers")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("plugin", [name for name in PLUGINS if name != "template"])
def test_the_server_never_names_a_plugin(plugin: str) -> None:
    named = re.compile(rf"lensd[-_]{plugin}\b|lensd[-_]{plugin.replace('_', '-')}\b")
    wrong: list[str] = []
    for path in sorted((ROOT / "server" / "core" / "src").rglob("*.py")):
        text = path.read_text()
        wrong += [f"{path.relative_to(ROOT)}: {m[0]}" for m in named.finditer(text)]
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Constant) and node.value in (plugin, plugin.replace("_", "-"))
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_distribution_declares_exactly_what_it_imports(folder: str) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    required = {_normalised(r) for r in project.get("dependencies", [])}
    extras = project.get("optional-dependencies", {})
    tested_with = {_normalised(r) for r in extras.get("test", [])}
    optional = {_normalised(r) for name, rs in extras.items() if name != "test" for r in rs}

    providers = {package: list(names) for package, names in packages_distributions().items()}
    own = _package(folder)
    outside = [
        found
        for found in imports_of(folder)
        if found.package not in {own, "__future__"} and found.package not in sys.stdlib_module_names
    ]
    imported = {_provider(found, providers) for found in outside if not found.for_types_only}
    undeclared = imported - required - optional - tested_with
    assert undeclared == set(), "imported, not declared"
    # An extra's package may be loaded by name when it is asked for; only a type checker sees it named.
    seen = {_provider(found, providers) for found in outside if found.package in providers} | imported
    assert required - imported - _USED_UNSEEN.keys() == set(), "declared, not imported"
    assert optional - seen == set(), "an extra that nothing uses"
