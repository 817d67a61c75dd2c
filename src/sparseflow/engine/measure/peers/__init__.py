"""Other engines, each at its best settings, to be timed beside ours on the same weights and inputs."""

from sparseflow.engine.measure.peers import (  # noqa: F401  (each registers)
    litert_int8_peer,
    mnn_peer,
    onnxruntime_int8_peer,
    onnxruntime_peer,
    openvino_int8_peer,
    openvino_peer,
    torch_peer,
)
from sparseflow.engine.measure.peers.base import (
    PEERS,
    Array,
    Peer,
    Subject,
    accepted,
    float_peers,
    installed,
    prepared,
    version,
)

__all__ = [
    "PEERS", "Array", "Peer", "Subject", "accepted", "float_peers", "installed", "prepared", "version",
]  # fmt: skip
