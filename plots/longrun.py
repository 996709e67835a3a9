"""Three times the steps: does RLSD stay up because the method is stable, or because its schedule has turned it off?

    python -m plots.longrun [--quick]       runs/longrun.jsonl and longrun.png under --out

All modes and GRPO + OPSD, with an exact verifier. RLSD's default weights are off after 60 steps, so RLSD runs also with
lambda held at its first value.
"""

from plots import baselines, study


def main() -> None:
    flags = study.arguments(__doc__, seeds=2, coefficient=1.0)
    times = {"held": 2, "sum": 2} if flags.quick else dict.fromkeys(baselines.LABELS, 3)
    lines = study.run_all("longrun", flags, baselines.plan(flags, times, flags.steps // 2))
    held = study.curves(lines, "accuracy", "held")
    baselines.show(lines, flags, "longrun", f"RLSD with lambda held ends at {held[:, -1].mean():.3f} (lowest seed {held[:, -1].min():.3f})")


if __name__ == "__main__":
    study.command(main)
