"""Twice the steps, and the plain sum: does either do what RLSD does?

    python -m plots.baselines [--quick] [--coefficient 1.0]       runs/baselines.jsonl and baselines.png under --out

RLVR for twice the steps, and GRPO + OPSD (the two losses added) for once and twice, against RLSD. Exact verifier.
"""

import rlsd
from plots import study, variants

LABELS = {"rlvr": "RLVR", "opd": "OPD", "opsd": "OPSD", "rlsd": "RLSD", "held": "RLSD, lam held", "sum": "GRPO + OPSD"}
COLOURS = {**rlsd.COLOURS, "held": "#CC79A7", "sum": "#E69F00"}


def plan(flags, times: dict[str, int], every: int) -> list[tuple]:
    """A run a label and seed, over `times` the default's steps, evaluated `every` so many."""
    if not 0 <= flags.coefficient <= 1:
        raise rlsd.UserError(f"--coefficient is {flags.coefficient}, but must be from 0 to 1")
    runs = []
    for seed in range(1 if flags.quick else flags.seeds):
        for label, factor in times.items():
            changes = {"held": {"mode": "rlsd", "lam_decay": 0},
                       "sum": {"mode": "rlsd", "lam": flags.coefficient, "lam_decay": 0}}.get(label, {"mode": label})
            config = rlsd.Config(seed=seed, digits=flags.digits, steps=factor * flags.steps,
                                 evaluate_every=max(1, every), **changes)
            runs.append((label, config, variants.plain_sum if label == "sum" else rlsd.method_loss))
    return runs


def table(lines: list[dict], steps: int) -> list[str]:
    """The README's rows: accuracy after each multiple of `steps`, and the highest leakage; mean (range) over seeds."""
    rows, times = [], max(line["step"][-1] for line in lines) // steps
    for label, name in LABELS.items():
        if any(line["label"] == label for line in lines):
            at, accuracy = list(study.curves(lines, "step", label)[0]), study.curves(lines, "accuracy", label)
            cells = [study.spread(accuracy[:, at.index(step)]) if step in at else "-" for step in range(steps, times * steps + 1, steps)]
            rows.append("| " + " | ".join([name, *cells, study.spread(study.curves(lines, "leakage", label).max(1))]) + " |")
    return rows


def show(lines: list[dict], flags, name: str, title: str) -> None:
    """The table and the figure: accuracy and leakage against the step."""
    print("accuracy after each multiple of the default steps; highest leakage; mean (range) over seeds")
    print("\n".join(table(lines, flags.steps)))
    labels = [label for label in LABELS if any(line["label"] == label for line in lines)]
    figure, axes = study.panels(1, 2, width=6)
    for panel, key in zip(axes[0], ("accuracy", "leakage")):
        ends = {}
        for label in labels:
            steps, values = study.curves(lines, "step", label)[0], study.curves(lines, key, label)
            panel.plot(steps, values.mean(0), color=COLOURS[label], linestyle=rlsd.LINES.get(label, "-"), linewidth=2)
            panel.fill_between(steps, values.min(0), values.max(0), color=COLOURS[label], alpha=0.12, linewidth=0)
            ends[label] = (steps[-1], values.mean(0)[-1])
        panel.axvline(flags.steps, color="#888888", linewidth=0.8)
        panel.set(xlabel="training step (line: the default's end)", ylabel=rlsd.AXIS[key], ylim=(-0.02, 1.02), xlim=(0, None))
        rlsd.write_names(panel, ends, LABELS, COLOURS)
    axes[0, 0].set_title(title, loc="left")
    leakers = [LABELS[label] for label in labels if study.curves(lines, "leakage", label).max() > 0.1]
    axes[0, 1].set_title(f"Over 0.1 of leakage in some seed: {', '.join(leakers) or 'none'}", loc="left")
    study.finish(figure, flags.out / f"{name}.png", flags.out / "runs" / f"{name}.jsonl")


def main() -> None:
    flags = study.arguments(__doc__, seeds=5, coefficient=1.0)
    lines = study.run_all("baselines", flags, plan(flags, {"rlvr": 2, "sum": 2, "rlsd": 1}, flags.steps // (2 if flags.quick else 4)))
    ends = {label: study.curves(lines, "accuracy", label)[:, -1].mean() for label in ("rlvr", "sum", "rlsd")}
    show(lines, flags, "baselines", f"RLSD {ends['rlsd']:.3f}; with twice the steps RLVR {ends['rlvr']:.3f}, the sum {ends['sum']:.3f}")


if __name__ == "__main__":
    study.command(main)
