"""Draws README's picture from a run on the digits: samples at 1, 4 and 128 steps, and the distance.

./launch/local_pod.sh --config=digits
.venv/bin/python docs/make_overview.py runs/digits docs/overview.png
"""

import io
import json
from pathlib import Path
import sys

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from shortcut_tpu.evaluation.samples import sample
from shortcut_tpu.runs.loading import load_run

STEPS = (1, 4, 128)
ROWS = 6


def main(workdir, output):
    """Writes the picture of a run that `launch/local_pod.sh` has scored."""
    run = load_run(workdir)
    labels = np.tile(np.arange(10), ROWS)
    distances = json.loads((Path(workdir) / "distances.json").read_text())["distances"]

    figure, axes = plt.subplots(1, 4, figsize=(11, 2.1), width_ratios=(1, 1, 1, 0.72), dpi=110)
    for panel, num_steps in zip(axes, STEPS, strict=False):
        images = sample(run, labels, num_steps)[..., 0].reshape(ROWS, 10, 8, 8)
        framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=255)
        panel.imshow(framed.transpose(0, 2, 1, 3).reshape(ROWS * 9, 90), cmap="gray")
        panel.set_title(f"{num_steps} step{'s' * (num_steps > 1)}", fontsize=9)
        panel.axis("off")
    curve = axes[-1]
    steps = [int(n) for n in distances]
    curve.semilogx(steps, list(distances.values()), "o-", base=2, markersize=4)
    curve.set_xticks(STEPS, map(str, STEPS))
    curve.set_ylim(0)
    curve.set_title("FD-pixel over sampling steps", fontsize=9)
    curve.grid(alpha=0.3)
    figure.tight_layout(pad=0.3, w_pad=1.2)

    content = io.BytesIO()
    figure.savefig(content, format="png")
    # 64 colours are enough for grey digits and one line, and a third of the size.
    Image.open(content).convert("RGB").quantize(64).save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
