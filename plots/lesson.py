"""The answers to the lesson's three predictions (plots/LESSON.md), two seeds each: python -m plots.lesson [--quick]

The log is runs/lesson.jsonl under --out. Each run has the settings of the lesson's command; there is no figure.
"""

import argparse

import torch
from torch import Tensor

import rlsd
from plots import compare, pool, study, variants


def without_sign(_: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD whose Eq 14 is w_t = exp(Delta_t), for right and wrong responses alike."""
    return variants.weighted(batch, lambda gain, advantage: variants.clipped_weight(
        gain, torch.ones_like(advantage), batch.eps_w))


HELD = {"eps_w": 1.0, "lam": 1.0, "lam_decay": 0}
COIN = {"verifier_noise": 0.5, **HELD}
FROZEN, SIGNED, UNSIGNED = "OPSD, teacher never copied", "RLSD, Eq 14", "RLSD, Eq 14 without the sign"
COINS = "RLVR, a coin", "RLSD, a coin", "CEPO, a coin"
RUNS = {FROZEN: ({"mode": "opsd", "teacher_refresh": 1000}, rlsd.method_loss),
        **{label: ({"mode": label[:4].lower(), **COIN}, rlsd.method_loss) for label in COINS},
        SIGNED: ({"mode": "rlsd", **HELD}, rlsd.method_loss), UNSIGNED: ({"mode": "rlsd", **HELD}, without_sign)}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed and half of the steps."""
    seeds, steps = range(1 if flags.quick else flags.seeds), -(-flags.steps // 2) if flags.quick else flags.steps
    return [(label, rlsd.Config(seed=seed, digits=flags.digits, steps=steps, **settings), method)
            for seed in seeds for label, (settings, method) in RUNS.items()]


def table(lines: list[dict]) -> list[str]:
    """Mean (lowest to highest) over seeds."""
    rows = []
    for label in RUNS:
        right, leak = (study.curves(lines, key, label) for key in ("accuracy", "leakage"))
        peaks = study.curves(lines, "step", label)[0][right.argmax(1)]
        rows.append((label, compare.spread(compare.highest(right)), ", ".join(map(str, peaks)),
                     compare.spread(study.ends(lines, label)), compare.spread(study.leaks(lines, label)),
                     compare.spread(leak[:, -1])))
    return study.markdown(("run", "accuracy, highest", "at step, per seed", "at the end", "leakage, highest",
                           "leakage at the end"), rows)


def answers(lines: list[dict]) -> list[str]:
    """The three answers, one line each: per seed, from its highest accuracy to its last, and leakage."""
    def told(key: str, label: str) -> str:
        return " and ".join(f"{values.max():.2f} to {values[-1]:.2f}" for values in study.curves(lines, key, label))

    frozen, coins = study.curves(lines, "leakage", FROZEN)[:, -1], (f"{label[:4]} {told('accuracy', label)}" for label in COINS)
    return ["1. Does OPSD leak when its teacher is never copied? Leakage at the end: "
            + " and ".join(f"{value:.2f}" for value in frozen),
            f"2. The verifier tosses a coin. Accuracy, from the highest to the end: {'; '.join(coins)}",
            f"3. Is the sign in Eq 14 needed? Accuracy at the end: with it {compare.spread(study.ends(lines, SIGNED))}, "
            f"without {compare.spread(study.ends(lines, UNSIGNED))}"]


def main() -> None:
    flags = study.arguments(__doc__, seeds=2)
    lines = study.run_all("lesson", flags, plan(flags))
    pool.say("\n".join([*table(lines), *answers(lines), f"log    {study.log_of('lesson', flags)}"]))


if __name__ == "__main__":
    study.command(main)
