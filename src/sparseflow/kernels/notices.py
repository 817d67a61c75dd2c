"""What TVM and LLVM write to the process's standard error, beside the error that Python raises."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NOTICE = re.compile("Scope (Loaded|Saving):|is not a recognized feature for this target")
_ONE_AT_A_TIME = threading.Lock()
"""Two threads that swap the process's standard error at once would leave one's temporary file in its place."""


@contextmanager
def without_notices() -> Iterator[None]:
    """Drops TVM's notice of each memory scope it saves or loads, and LLVM's of each feature it ignores."""
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines()
            sys.stderr.writelines(f"{line}\n" for line in lines if not _NOTICE.search(line))
