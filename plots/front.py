"""The README's first figure: all methods with an exact verifier, and beside it with one that errs.

    python -m plots.front [--exact FOLDER] [--noisy FOLDER] [--figure FILE]

Drawn from the runs' logs alone, FOLDER/runs/carry-<mode>-s<seed>.jsonl. Above accuracy against the step, below leakage
against accuracy: one trajectory per method, in the mean over seeds, with its start and its end.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from plots import compare, files

REFERENCE = Path(__file__).parent / "reference"


def read(folder: Path) -> tuple[float, dict[str, dict[str, np.ndarray]]]:
    """The verifier's noise in a sweep; and mode -> quantity -> its mean over seeds, (evaluations,)."""
    paths = [path for mode in compare.NAMES for path in sorted((folder / "runs").glob(f"carry-{mode}-s*.jsonl"))]
    if not paths:
        raise OSError(f"{folder / 'runs'} has no log of a run: run rlsd.py --mode all first")
    runs = compare.read(paths)
    return runs[0][0]["verifier_noise"], {mode: {key: values.mean(0) for key, values in curve.items()}
                                          for mode, curve in compare.curves(runs).items()}


def findings(noise: float, mean: dict[str, dict[str, np.ndarray]]) -> tuple[str, str]:
    """The titles: who learns and then loses it, with all ends; and who leaks, over 0.05."""
    right, leak = ({mode: curve[key] for mode, curve in mean.items()} for key in ("accuracy", "leakage"))
    lost = [compare.NAMES[mode] for mode, values in right.items() if values.max() - values[-1] > 0.1]
    lost = f"{' and '.join(lost)} learned, and lost it" if lost else "nothing learned is lost"
    ends = ", ".join(f"{compare.NAMES[mode]} {right[mode][-1]:.2f}"
                     for mode in sorted(right, key=lambda mode: right[mode][-1]))
    leaky = [f"{compare.NAMES[mode]} {values.max():.0%}" for mode, values in leak.items() if values.max() > 0.05]
    rest = max((values.max() for values in leak.values() if values.max() <= 0.05), default=0.0)
    verifier = f"A verifier that errs in {noise:.0%}" if noise else "An exact verifier"
    return (f"{verifier}: {lost}\nAt the end: {ends}",
            f"Highest leakage: {', '.join(leaky) or 'none over 5%'}; the others at most {rest:.1%}")


def draw(axes, mean: dict[str, dict[str, np.ndarray]], across: str, up: str, title: str) -> None:
    trajectory = across == "accuracy"
    axes.set(xlim=compare.SHARE if trajectory else (0, max(curve["step"][-1] for curve in mean.values())),
             ylim=compare.SHARE)
    axes.set_xlabel(compare.AXIS[across] + ("; open dot: start, full: end" if trajectory else ""), fontsize=12)
    axes.set_ylabel(compare.AXIS[up], fontsize=12)
    axes.set_title(title, loc="left", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    for mode, curve in mean.items():  # from wide to thin, so that each is seen beside those above it
        width, colour = compare.WIDTHS[mode], (compare.COLOURS[mode], compare.OPAQUE.get(mode, 1))
        axes.plot(curve[across], curve[up], color=colour, linewidth=width)
        for at, inside in ((0, "white"), (-1, colour))[0 if trajectory else 1:]:
            axes.plot(curve[across][at], curve[up][at], "o", color=colour, markersize=width + 4, clip_on=False,
                      markerfacecolor=inside)
    ends = {mode: (curve[across][-1], curve[up][-1]) for mode, curve in mean.items()}
    compare.write_names(axes, ends, low=0.09 if trajectory else -np.inf)  # above the trajectories that run along 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    for name, default, text in (("exact", REFERENCE, "sweep of the left side"),
                                ("noisy", REFERENCE / "noisy", "sweep of the right side"),
                                ("figure", REFERENCE / "front.png", "what is drawn")):
        parser.add_argument(f"--{name}", type=Path, default=default, help=f"{text} [{default}]")
    flags = parser.parse_args()
    sweeps = read(flags.exact), read(flags.noisy)
    from matplotlib.figure import Figure  # takes a second
    sheet = Figure(figsize=(13.5, 8.4), dpi=110, layout="constrained")
    for column, (noise, mean) in zip(sheet.subplots(2, 2).T, sweeps):
        above, below = findings(noise, mean)
        draw(column[0], mean, "step", "accuracy", above)
        draw(column[1], mean, "accuracy", "leakage", below)
    sheet.savefig(buffer := io.BytesIO(), format="png")
    files.write_whole(flags.figure, buffer.getvalue())
    print(f"figure {flags.figure}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"front: {error}", file=sys.stderr)
        sys.exit(2)
