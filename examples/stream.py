"""Frames that resemble each other: the engine keeps the last frame's maps and recomputes what a change reaches.

python examples/stream.py
"""

from __future__ import annotations

import torch
from torch import nn

import sparseflow


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    example = (torch.randn(1, 3, 64, 64),)
    # measure=False estimates what tiles of each size cost; leave it out to time them on this machine.
    stream = sparseflow.compile_stream(model, example, threshold=0.0, measure=False)

    frame = example[0].clone()
    for number in range(4):
        if number:
            frame[..., 8 * number : 8 * number + 8, 16:24] += 0.5  # something moves
        y = stream(frame)
        with torch.inference_mode():
            torch.testing.assert_close(y, model(frame), rtol=1e-3, atol=1e-3)
        pixels = sum(step.pixels for step in stream.last.steps)
        total = sum(step.pixels_total for step in stream.last.steps)
        print(f"frame {number}: {pixels / total:.0%} of all maps' pixels changed")
    stream.reset()  # a cut: the next frame is a first one


if __name__ == "__main__":
    main()
