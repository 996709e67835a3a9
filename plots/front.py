"""The front picture: the sweep with an exact verifier beside the one whose verifier errs, from their logs alone.

    python -m plots.front [EXACT NOISY]        front.png in EXACT; by default plots/reference and plots/reference/noisy

Above accuracy against step, below leakage against accuracy: one trajectory per mode, from its start to its end.
"""

import io
import sys
from pathlib import Path

import numpy as np

from plots import compare, files, pool

SEE_REWARD = "rlvr", "rlsd", "cepo"


def finding(curves: dict, key: str, noise: float) -> str:
    """What a panel shows, in words that follow from the means over seeds. Under noise: of those who see the reward."""
    if key == "leakage":
        leak = {mode: compare.highest(curve[key]).mean() for mode, curve in curves.items()}
        return "highest leakage: " + compare.say(leak, ".2f")
    ends = {mode: curve[key][:, -1].mean() for mode, curve in curves.items()}
    if noise:
        return "right at the end: " + ", ".join(f"{compare.NAMES[mode]} {ends[mode]:.2f}" for mode in SEE_REWARD)
    return "right at the end: " + compare.say(ends, ".2f")


def draw(folders: list[Path]):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 9), dpi=110)
    figure.subplots_adjust(left=0.06, right=0.93, top=0.92, bottom=0.07, wspace=0.3, hspace=0.3)
    for folder, name, (above, below) in zip(folders, ("Exact verifier", "Verifier that errs"), figure.subplots(2, 2).T):
        runs = compare.read(sorted((folder / "runs").glob("carry-*-s?.jsonl")))
        curves = compare.curves(runs)
        noise = runs[0][0]["verifier_noise"]
        mean = {mode: {key: values.mean(0) for key, values in curve.items()} for mode, curve in curves.items()}
        for panel, across, up in ((above, "step", "accuracy"), (below, "accuracy", "leakage")):
            steps = max(curve["step"][-1] for curve in mean.values())
            panel.set(xlabel=compare.AXIS[across], ylabel=compare.AXIS[up], ylim=compare.SHARE,
                      xlim=(0, steps) if across == "step" else compare.SHARE)
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)
            for mode, curve in mean.items():  # from wide and pale to thin: none hides another
                x, y, look = curve[across], curve[up], {"color": compare.COLOURS[mode]}
                panel.plot(x, y, linewidth=compare.WIDTHS[mode], alpha=compare.OPAQUE.get(mode, 1), **look)
                if across == "step":
                    low, high = (ends(curves[mode][up], 0) for ends in (np.min, np.max))
                    panel.fill_between(x, low, high, alpha=0.13, linewidth=0, **look)
                else:
                    panel.plot(x[0], y[0], "o", markerfacecolor="white", markersize=8, **look)
                    panel.plot(x[-1], y[-1], "o", markersize=8, **look)
            compare.write_names(panel, {mode: (curve[across][-1], curve[up][-1]) for mode, curve in mean.items()})
            title = f"{name}{f', noise {noise:g}, eps_w 1 and lam 1 held' if noise and up == 'accuracy' else ''}"
            panel.set_title(f"{title}\n{finding(curves, up, noise)}", loc="left", fontsize=12)
    figure.text(0.5, 0.005, "mean of seeds; band: lowest to highest; open dot: base, full dot: end", ha="center")
    return figure


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or [Path("plots/reference"), Path("plots/reference/noisy")]
    if len(folders) != 2 or not all(any((folder / "runs").glob("carry-*-s?.jsonl")) for folder in folders):
        raise OSError(f"two folders with runs are needed, but given were {' '.join(map(str, folders))}")
    draw(folders).savefig(buffer := io.BytesIO())
    files.write_whole(folders[0] / "front.png", buffer.getvalue())
    pool.say(f"figure {folders[0] / 'front.png'}")


if __name__ == "__main__":
    pool.command("front", main, OSError)
