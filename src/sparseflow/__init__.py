"""sparseflow: the sparsity flow for Apache TVM, from sparsity training to machine code that is faster than dense.

`compile` makes an `Engine` of a model, `compile_stream` one for frames that resemble each other; heavy libraries are
imported when they are first needed, so that training works without TVM and running an engine without torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Read by TVM's thread pool when it starts. It would take half the cores for hyper-threads and pin the caller to one.
os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
os.environ.setdefault("TVM_BIND_THREADS", "0")

if TYPE_CHECKING:
    from sparseflow.engine.compile import compile
    from sparseflow.engine.runtime.engine import Engine
    from sparseflow.engine.stream.build import compile_stream
    from sparseflow.engine.stream.stream import StreamEngine

__all__ = ["Engine", "StreamEngine", "__version__", "compile", "compile_stream"]


def __getattr__(name: str) -> Any:
    if name == "compile":
        from sparseflow.engine.compile import compile

        return compile
    if name == "Engine":
        from sparseflow.engine.runtime.engine import Engine

        return Engine
    if name == "compile_stream":
        from sparseflow.engine.stream.build import compile_stream

        return compile_stream
    if name == "StreamEngine":
        from sparseflow.engine.stream.stream import StreamEngine

        return StreamEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
