"""Twice the steps, the plain sum, and the long run.

    python -m plots.baselines [--quick] [--coefficient 1.0]       runs/baselines.jsonl and baselines.png under --out

Does RLVR for twice the steps, or GRPO + OPSD (the two losses added), do what RLSD does? And over three times the steps:
does RLSD stay up because the method is stable, or because its schedule has turned it off? RLSD with lambda held tells.
"""

import rlsd
from plots import study, variants

LABELS = {"rlvr": "RLVR", "opd": "OPD", "opsd": "OPSD", "rlsd": "RLSD", "held": "RLSD, lam held", "sum": "GRPO + OPSD"}
COLOURS = {**rlsd.COLOURS, "held": "#CC79A7", "sum": "#E69F00"}


def table(lines: list[dict], steps: int) -> list[str]:
    """The README's rows: accuracy after 1, 2 and 3 times `steps`, and the highest leakage; mean (range) over seeds."""
    rows = []
    for label, name in LABELS.items():
        if any(line["label"] == label for line in lines):
            at, accuracy = study.curves(lines, "step", label)[0], study.curves(lines, "accuracy", label)
            cells = [study.spread(accuracy[:, i]) for i, step in enumerate(at) if step and step % steps == 0]
            rows.append("| " + " | ".join([name, *cells, study.spread(study.curves(lines, "leakage", label).max(1))]) + " |")
    return rows


def main() -> None:
    flags = study.arguments(__doc__, seeds=5, coefficient=1.0)
    runs = []
    for seed in range(1 if flags.quick else flags.seeds):
        settings = {"seed": seed, "digits": flags.digits, "evaluate_every": max(1, flags.steps // 4),
                    "steps": (2 if flags.quick else 3) * flags.steps}
        for name in ("rlvr", "opsd", "held", "sum") if flags.quick else LABELS:
            changes = {"held": {"mode": "rlsd", "lam_decay": 0},
                       "sum": {"mode": "rlsd", "lam": flags.coefficient, "lam_decay": 0}}.get(name, {"mode": name})
            runs.append((name, rlsd.Config(**settings, **changes), variants.plain_sum if name == "sum" else rlsd.method_loss))
    lines = study.run_all("baselines", flags, runs)
    labels = [label for label in LABELS if any(line["label"] == label for line in lines)]
    print("accuracy after 1, 2 and 3 times the default steps; highest leakage; mean (range) over seeds")
    print("\n".join(table(lines, flags.steps)))
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
    stays = study.curves(lines, "accuracy", "held")[:, -1].mean()
    axes[0, 0].set_title(f"In the long run: RLSD with lambda held ends at {stays:.2f}", loc="left")
    leakers = [LABELS[label] for label in labels if study.curves(lines, "leakage", label).max() > 0.1]
    axes[0, 1].set_title(f"Over 0.1 of leakage in some seed: {', '.join(leakers) or 'none'}", loc="left")
    study.finish(figure, flags.out / "baselines.png", flags.out / "runs" / "baselines.jsonl")


if __name__ == "__main__":
    study.command(main)
