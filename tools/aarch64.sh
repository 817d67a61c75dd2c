#!/usr/bin/env bash
# Brings what the aarch64 tests need: a cross compiler, an emulator, TVM's runtime for aarch64. Then: make test-slow
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
RUNTIME=build/aarch64

if ! { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null; then
  SUDO=""
  [ "$(id -u)" = 0 ] || SUDO="sudo -n"
  $SUDO apt-get update -qq
  $SUDO apt-get install -y -qq --no-install-recommends g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
fi

WANTED="$("$PYTHON" -c 'from importlib.metadata import version as v; print("apache-tvm==" + v("apache-tvm"), "apache-tvm-ffi==" + v("apache-tvm-ffi"))')"
if [ "$(cat "$RUNTIME/versions" 2>/dev/null || true)" != "$WANTED" ]; then
  rm -rf "$RUNTIME"
  mkdir -p "$RUNTIME/wheels"
  # shellcheck disable=SC2086
  "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 -d "$RUNTIME/wheels" $WANTED
  for wheel in "$RUNTIME"/wheels/*.whl; do
    "$PYTHON" - "$wheel" "$RUNTIME/lib" <<'PYTHON'
import pathlib, sys, zipfile

wheel, folder = sys.argv[1], pathlib.Path(sys.argv[2])
folder.mkdir(exist_ok=True)
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith(("libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_ffi.so")):
            (folder / pathlib.Path(name).name).write_bytes(archive.read(name))
PYTHON
  done
  rm -r "$RUNTIME/wheels"
  echo "$WANTED" > "$RUNTIME/versions"
fi
echo "aarch64: compiler, emulator and runtime are ready"
