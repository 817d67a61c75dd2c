"""Other engines, each at its best settings, to be timed beside ours on the same weights and inputs."""

from sparseflow.engine.peers import onnxruntime_peer, openvino_peer, torch_peer  # noqa: F401  (each registers)
from sparseflow.engine.peers.base import PEERS, Array, Peer, Subject

__all__ = ["PEERS", "Array", "Peer", "Subject"]
