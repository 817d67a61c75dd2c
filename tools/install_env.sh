#!/usr/bin/env bash
# Makes .venv with all extras. PyTorch's CPU build is enough: where the plain package would bring CUDA, pin a CPU wheel
# by setting TORCH (default: the release the project is tested with). LITERT=1 adds the packages of the peer litert-int8
# (800 MB); they come first, because their typing_extensions is older than TVM's.
set -euo pipefail
PYTHON=${PYTHON:-python3}; VENV=${VENV:-.venv}; TORCH=${TORCH:-torch==2.13.0}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet "$TORCH"
[ -z "${LITERT:-}" ] || "$VENV/bin/python" -m pip install --quiet litert-torch
"$VENV/bin/python" -m pip install --quiet -e ".[train,ray,lightning,transformers,tensorboard,onnx,report,peers,docs,dev]"
