"""OpenVINO's CPU plugin on a model that NNCF quantised to int8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from sparseflow.engine.measure.peers.base import PEERS, Subject, require
from sparseflow.engine.measure.peers.openvino_peer import OpenVinoPeer
from sparseflow.engine.measure.peers.quantising import quantising


@PEERS.register("openvino-int8")
class OpenVinoInt8Peer(OpenVinoPeer):
    """The settings of the float32 peer; what NNCF leaves unquantised stays float32.

    References
    ----------
    NNCF, "Basic quantization flow": ``nncf.quantize`` with the performance preset (symmetric weights and maps), and
    with ``model_type=TRANSFORMER``, which knows the patterns of attention, for networks of linear layers.
    """

    needs: ClassVar[tuple[str, ...]] = ("nncf",)
    quantised: ClassVar[bool] = True

    @classmethod
    def model(cls, subject: Subject, folder: Path) -> Any:
        """The quantised model, calibrated with the subject's calls.

        Raises
        ------
        CompileError
            If NNCF is not installed or cannot quantise the model.
        """
        os.environ.setdefault("NNCF_CI", "1")  # else importing it sets up reports of its use to a server
        nncf = require("nncf", cls.install, "openvino-int8")
        model = super().model(subject, folder)
        with quantising("openvino-int8", subject):
            return nncf.quantize(
                model,
                nncf.Dataset([list(call) for call in subject.calls]),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER if _of_linear_layers(model) else None,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(subject.calls),
            )


def _of_linear_layers(model: Any) -> bool:
    """Whether matrix products outnumber convolutions: transformers of images too begin with a convolution."""
    kinds = [operator.get_type_name() for operator in model.get_ops()]
    return kinds.count("MatMul") > kinds.count("Convolution") + kinds.count("GroupConvolution")
