"""``python -m tests.kernels.snapshots``: the files anew."""

from tests.kernels.snapshots import FOLDER, SNAPSHOTS, text_of

for old in FOLDER.glob("*.txt"):
    old.unlink()
for name in SNAPSHOTS:
    (FOLDER / f"{name}.txt").write_text(text_of(name), encoding="utf-8")
