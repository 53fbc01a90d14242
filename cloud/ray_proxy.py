"""What Ray Serve's gRPC proxies are told of the service.

Proxies import this module on every node, so it is kept from torch and the model.
"""

from __future__ import annotations

from typing import Any

import grpc

from protos.tandem.v1 import collaboration_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["Collaboration"].full_name


def add_collaboration(servicer: Any, server: Any) -> None:
    """Make a proxy take ``Session``.  Its messages pass as bytes, which the replica reads: what is
    no message then ends its session with a typed error, as it does without Ray."""
    session = grpc.stream_stream_rpc_method_handler(servicer.Session)
    handler = grpc.method_handlers_generic_handler(_SERVICE, {"Session": session})
    server.add_generic_rpc_handlers((handler,))
