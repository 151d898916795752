"""The wire contract: generated stubs, documentation of every element, compatibility."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

import lensd_proto

PROTO = Path(__file__).parents[1]
IMAGE = PROTO / "buf.image.binpb"


def buf() -> str:
    """The ``buf`` command of this environment."""
    found = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if found is None:
        pytest.fail("buf is not installed: pip install buf-bin")
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Descriptors of ``lensd/v1`` with source locations, as they are now."""
    image = tmp_path_factory.mktemp("image") / "now.binpb"
    subprocess.run([buf(), "build", str(PROTO), "--output", str(image)], check=True)
    built = FileDescriptorSet.FromString(image.read_bytes())
    return [file for file in built.file if file.package == "lensd.v1"]


def _messages(
    messages: Iterable[DescriptorProto], path: tuple[int, ...], prefix: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, message in enumerate(messages):
        here, name = (*path, number), f"{prefix}.{message.name}"
        if message.options.map_entry:
            continue
        yield name, here
        for index, field in enumerate(message.field):
            yield f"{name}.{field.name}", (*here, DescriptorProto.FIELD_FIELD_NUMBER, index)
        # An optional field has a oneof that nobody wrote.
        unwritten = {field.oneof_index for field in message.field if field.proto3_optional}
        for index, oneof in enumerate(message.oneof_decl):
            if index in unwritten:
                continue
            yield f"{name}.{oneof.name}", (*here, DescriptorProto.ONEOF_DECL_FIELD_NUMBER, index)
        yield from _messages(message.nested_type, (*here, DescriptorProto.NESTED_TYPE_FIELD_NUMBER), name)


def _elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and location path of everything that needs a comment."""
    yield from _messages(file.message_type, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER,), file.name)
    for number, enum in enumerate(file.enum_type):
        here = (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, number)
        yield enum.name, here
        for index, value in enumerate(enum.value):
            yield value.name, (*here, descriptor_pb2.EnumDescriptorProto.VALUE_FIELD_NUMBER, index)
    for number, service in enumerate(file.service):
        here = (FileDescriptorProto.SERVICE_FIELD_NUMBER, number)
        yield service.name, here
        for index, method in enumerate(service.method):
            yield (
                f"{service.name}.{method.name}",
                (*here, descriptor_pb2.ServiceDescriptorProto.METHOD_FIELD_NUMBER, index),
            )


def test_every_element_of_the_contract_is_documented(files: list[FileDescriptorProto]) -> None:
    bare: list[str] = []
    seen = 0
    for file in files:
        comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
        for name, path in _elements(file):
            seen += 1
            if not comments.get(path, "").strip():
                bare.append(name)
    assert seen > 200, "the walk lost most of the contract"
    assert not bare, f"no comment: {', '.join(bare)}"


def test_stubs_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(PROTO / "generate.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_stub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate", PROTO / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    committed = tmp_path / "committed"
    shutil.copytree(generate.STUBS, committed, ignore=shutil.ignore_patterns("__pycache__"))
    (committed / "results_pb2.py").write_text("# edited by hand\n")
    (committed / "left_over_pb2.py").write_text("")
    monkeypatch.setattr(generate, "STUBS", committed)
    fresh = tmp_path / "fresh"
    generate.generate(fresh)
    assert sorted(generate.stale(fresh)) == ["left_over_pb2.py", "results_pb2.py"]


def test_the_contract_follows_the_style_rules() -> None:
    done = subprocess.run([buf(), "lint", str(PROTO)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_contract_is_compatible_with_the_committed_image() -> None:
    command = [buf(), "breaking", str(PROTO), "--against", str(IMAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_renumbered_field_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(PROTO / "lensd", tmp_path / "lensd")
    shutil.copytree(PROTO / "google", tmp_path / "google")
    shutil.copy(PROTO / "buf.yaml", tmp_path)
    models = tmp_path / "lensd" / "v1" / "models.proto"
    models.write_text(models.read_text().replace("uint32 leases = 11;", "uint32 leases = 111;"))
    command = [buf(), "breaking", str(tmp_path), "--against", str(IMAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "leases" in done.stdout


def test_the_include_path_holds_all_a_client_needs() -> None:
    root = lensd_proto.PROTO_ROOT
    for proto in sorted((PROTO / "lensd" / "v1").glob("*.proto")):
        assert (root / "lensd" / "v1" / proto.name).read_text() == proto.read_text()
    assert (root / "google" / "rpc" / "status.proto").is_file()
