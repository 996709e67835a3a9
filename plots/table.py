"""The README's tables, from the logs alone: python -m plots.table [folders of sweeps, default plots/reference].

Several folders are one sweep in several parts, such as the same seeds on several machines: their runs are put together.
"""

import sys
from pathlib import Path

from plots.study import command, spread
from rlsd import MODES, NAMES, UserError, curves_of, read_log

COLUMNS = ("method", "accuracy at step 0", "highest", "at the end", "mean over the run", "leakage, highest", "leakage at the end",
           "KL at step 0", "KL, lowest", "KL at the end")


def read_sweep(*folders: Path) -> dict:
    """The curves of a sweep's logs (seeds 0 to 9); every mode must be there."""
    logs = []
    for folder in folders:
        found = [read_log(path) for path in sorted((folder / "runs").glob("*-s?.jsonl"))]
        for mode in MODES:
            if mode not in {config.mode for config, _ in found}:
                raise UserError(f"{folder / 'runs'} has no log of {mode}: run rlsd.py --mode all --out {folder} first")
        logs += found
    return curves_of(logs)


def table(curves: dict) -> list[str]:
    """A row a mode: means over seeds, and the lowest and highest seed."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for mode in MODES:
        accuracy, leakage, kl = (curves[mode][key] for key in ("accuracy", "leakage", "kl"))
        cells = (accuracy[:, 0], accuracy.max(1), accuracy[:, -1], accuracy.mean(1), leakage.max(1), leakage[:, -1],
                 kl[:, 0], kl.min(1), kl[:, -1])
        rows.append(f"| {NAMES[mode]} | " + " | ".join(map(spread, cells)) + " |")
    return rows


def compare(curves: dict, first: str = "rlsd", second: str = "rlvr") -> list[str]:
    """The lead of one mode over another, paired by seed, and the steps to where the other ends (mean curves)."""
    lead = curves[first]["accuracy"].mean(1) - curves[second]["accuracy"].mean(1)
    steps, goal = curves[first]["step"][0], curves[second]["accuracy"].mean(0)[-1]
    reached = [int(step) for step, value in zip(steps, curves[first]["accuracy"].mean(0)) if value >= goal]
    return [f"{NAMES[first]} over {NAMES[second]}, mean accuracy over the run, a seed each: "
            + ", ".join(f"{value:+.3f}" for value in lead) + f"; mean {lead.mean():+.3f}",
            f"{NAMES[second]} ends at {goal:.3f}; {NAMES[first]} is there "
            + (f"after {reached[0]} of {int(steps[-1])} steps" if reached else "never")]


def main() -> None:
    curves = read_sweep(*map(Path, sys.argv[1:] or ["plots/reference"]))
    print("\n".join([*table(curves), "", *compare(curves)]))


if __name__ == "__main__":
    command(main)
