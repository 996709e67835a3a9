"""Twice the steps, and the plain sum: does either do what RLSD does?

    python -m plots.baselines [--quick]        runs/baselines.jsonl and baselines.png under --out

RLVR for twice the steps, and RLVR + OPSD, the two losses added (lam 1, held), for once and twice,
against RLSD. The verifier is exact.
"""

import argparse

import rlsd
from plots import compare, study, variants

HELD = "RLSD, lam held"
SUM = "RLVR + OPSD"
METHODS = {name: ({"mode": mode}, rlsd.method_loss) for mode, name in compare.NAMES.items()}
METHODS[HELD] = {"mode": "rlsd", "lam_decay": 0}, rlsd.method_loss
METHODS[SUM] = {"mode": "rlsd", "lam": 1.0, "lam_decay": 0}, variants.plain_sum
COLOURS = dict(zip(METHODS, rlsd.COLOURS))
TIMES = {"RLVR": 2, "RLSD": 1, SUM: 2}  # --steps


def plan(flags: argparse.Namespace, times: dict[str, int]) -> list[tuple]:
    """A run for each seed and label, over so many `times` the steps."""
    steps, runs = study.steps_of(flags), []
    for seed in study.seeds_of(flags):
        for label, factor in times.items():
            settings, method = METHODS[label]
            length = {"steps": factor * steps, "evaluate_every": min(20, steps)}
            runs.append((label, study.config_of(flags, seed, **length, **settings), method))
    return runs


def table(lines: list[dict], times: dict[str, int] = TIMES) -> list[str]:
    """Accuracy in the mean over the run and after each multiple of the steps."""
    labels = study.labels_of(lines)
    unit = lines[0]["step"][-1] // times[lines[0]["label"]]
    most = max(times[label] for label in labels)
    multiples = [unit * n for n in range(1, most + 1)]
    rows = []
    for label in labels:
        steps = list(study.steps(lines, label))
        accuracy = study.curves(lines, "accuracy", label)
        after = []
        for step in multiples:
            reached = step in steps
            after.append(compare.spread(accuracy[:, steps.index(step)]) if reached else "")
        mean = compare.spread(study.means(lines, label))
        leak = compare.spread(study.leaks(lines, label))
        rows.append((label, str(steps[-1]), mean, *after, leak))
    after = [f"after {step} steps" for step in multiples]
    head = ("method", "steps", "accuracy, mean over the run", *after, "highest leakage")
    return study.markdown(head, rows)


def show(name: str, flags: argparse.Namespace, lines: list[dict], title: str) -> None:
    """The figure: accuracy and leakage."""
    names = {label: label for label in study.labels_of(lines)}
    figure, axes = study.panels(1, 2, width=6)
    left, right = axes[0]
    study.draw_runs(left, lines, "accuracy", names, COLOURS)
    study.draw_runs(right, lines, "leakage", names, COLOURS)
    study.title(left, title)
    study.title(right, "Leakage, exact verifier")
    study.finish(figure, name, flags)


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("baselines", flags, plan(flags, TIMES))
    study.say(table(lines))
    show("baselines", flags, lines, "Right answers, exact verifier")


if __name__ == "__main__":
    study.command(main)
