"""Twice the steps, and the plain sum: does either do what RLSD does?

    python -m plots.baselines [--quick]        runs/baselines.jsonl and baselines.png under --out

RLVR for twice the steps, and RLVR + OPSD, the two losses added (lam 1, held), for once and twice, against RLSD. The
verifier is exact.
"""

import argparse

import rlsd
from plots import compare, pool, study, variants

HELD, SUM = "RLSD, lam held", "RLVR + OPSD"
METHODS = {name: ({"mode": mode}, rlsd.method_loss) for mode, name in compare.NAMES.items()} | {
    HELD: ({"mode": "rlsd", "lam_decay": 0}, rlsd.method_loss),
    SUM: ({"mode": "rlsd", "lam": 1.0, "lam_decay": 0}, variants.plain_sum)}
COLOURS = {name: compare.COLOURS[mode] for mode, name in compare.NAMES.items()} | {HELD: "#56B4E9", SUM: "#E69F00"}
TIMES = {"RLVR": 2, "RLSD": 1, SUM: 2}  # --steps


def plan(flags: argparse.Namespace, times: dict[str, int]) -> list[tuple]:
    """One run per seed and label, over so many `times` the steps."""
    steps = -(-flags.steps // 2) if flags.quick else flags.steps
    return [(label, rlsd.Config(seed=seed, digits=flags.digits, steps=factor * steps, evaluate_every=min(20, steps),
                                **METHODS[label][0]), METHODS[label][1])
            for seed in range(1 if flags.quick else flags.seeds) for label, factor in times.items()]


def table(lines: list[dict], times: dict[str, int] = TIMES) -> list[str]:
    """Accuracy in the mean over the run and after each multiple of the steps."""
    labels = list(dict.fromkeys(line["label"] for line in lines))
    unit = lines[0]["step"][-1] // times[lines[0]["label"]]
    multiples = range(unit, unit * max(times[label] for label in labels) + 1, unit)
    rows = []
    for label in labels:
        steps, accuracy = list(study.curves(lines, "step", label)[0]), study.curves(lines, "accuracy", label)
        after = [compare.spread(accuracy[:, steps.index(step)]) if step in steps else "" for step in multiples]
        mean, leak = compare.spread(study.means(lines, label)), compare.spread(study.leaks(lines, label))
        rows.append((label, str(steps[-1]), mean, *after, leak))
    return study.markdown(("method", "steps", "accuracy, mean over the run",
                           *(f"after {step} steps" for step in multiples), "highest leakage"), rows)


def show(name: str, flags: argparse.Namespace, lines: list[dict], title: str) -> None:
    """The figure: accuracy and leakage."""
    figure, axes = study.panels(1, 2, width=6)
    names = {line["label"]: line["label"] for line in lines}
    for panel, key in zip(axes[0], ("accuracy", "leakage")):
        study.draw_runs(panel, lines, key, names, COLOURS)
    axes[0, 0].set_title(title, loc="left", fontsize=11)
    leaky = [label for label in names if study.leaks(lines, label).max() > 0.1]
    axes[0, 1].set_title(f"Over 0.1 of leakage in some seed: {'; '.join(leaky) or 'none'}", loc="left", fontsize=11)
    study.finish(figure, flags.out / f"{name}.png", study.log_of(name, flags))


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("baselines", flags, plan(flags, TIMES))
    pool.say("\n".join(table(lines)))
    rlsd_end, rlvr_end, sum_end = (study.ends(lines, label).mean() for label in ("RLSD", "RLVR", SUM))
    show("baselines", flags, lines,
         f"At the end RLSD {rlsd_end:.3f}; with twice the steps RLVR {rlvr_end:.3f}, the sum {sum_end:.3f}")


if __name__ == "__main__":
    study.command(main)
