"""Three times the steps: is RLSD stable, or has its schedule turned it off?

    python -m plots.longrun [--quick]        runs/longrun.jsonl and longrun.png under --out

All modes and RLVR + OPSD, with an exact verifier. RLSD's default weights are off after 50 steps, so
RLSD runs also with lam held at its first value.
"""

from plots import baselines, study

TIMES = dict.fromkeys(baselines.METHODS, 3)  # --steps


def table(lines: list[dict]) -> list[str]:
    return baselines.table(lines, TIMES)


def main() -> None:
    flags = study.arguments(__doc__, seeds=2)
    chosen = (baselines.HELD, baselines.SUM) if flags.quick else TIMES
    times = {label: TIMES[label] for label in chosen}
    lines = study.run_all("longrun", flags, baselines.plan(flags, times))
    study.say(table(lines))
    baselines.show("longrun", flags, lines, "Right answers, exact verifier")


if __name__ == "__main__":
    study.command(main)
