"""The generated modules say what the .proto file says."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

from protos.tandem.v1 import collaboration_pb2, collaboration_pb2_grpc

ROOT = Path(__file__).parents[2]
PROTO = "protos/tandem/v1/collaboration.proto"


def test_generated_code_is_current(tmp_path: Path) -> None:
    target = tmp_path / "descriptors"
    arguments = ["protoc", f"-I{ROOT}", f"--descriptor_set_out={target}", PROTO]
    assert protoc.main(arguments) == 0
    (compiled,) = FileDescriptorSet.FromString(target.read_bytes()).file
    committed = FileDescriptorProto.FromString(collaboration_pb2.DESCRIPTOR.serialized_pb)
    compiled.ClearField("source_code_info")
    for method in compiled.service[0].method:
        assert hasattr(collaboration_pb2_grpc.CollaborationServicer, method.name)
    for descriptor in (compiled, committed):  # protoc versions differ in writing defaults
        for message in descriptor.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert compiled == committed, "run `make protos`"


def test_type_stubs_name_every_message() -> None:
    stubs = (ROOT / PROTO).with_name("collaboration_pb2.pyi").read_text()
    for name in collaboration_pb2.DESCRIPTOR.message_types_by_name:
        assert f"class {name}(" in stubs
