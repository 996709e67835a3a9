"""The answers to the lesson's three predictions (plots/LESSON.md), on two seeds.

python -m plots.lesson [--quick]        runs/lesson.jsonl under --out
"""

import argparse

from torch import Tensor

import rlsd
from plots import compare, study, variants

HELD = study.HELD_AT_1
COIN = HELD | study.error_rates(0.5)


def without_sign(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with the weight exp(Delta_t), the same for right and wrong responses."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        return gain.clamp(-60, 60).exp().clamp(1 - batch.eps_w, 1 + batch.eps_w)

    return variants.weighted(batch, weigh)


RUNS = {
    "OPSD, never copied": ({"mode": "opsd", "teacher_refresh": 1000}, rlsd.method_loss),
    "coin, RLSD": ({"mode": "rlsd", **COIN}, rlsd.method_loss),
    "coin, CEPO": ({"mode": "cepo", **COIN}, rlsd.method_loss),
    "RLSD": ({"mode": "rlsd", **HELD}, rlsd.method_loss),
    "RLSD without the sign": ({"mode": "rlsd", **HELD}, without_sign),
}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed and half of the steps."""
    runs = []
    for seed in study.seeds_of(flags):
        for label, (settings, method) in RUNS.items():
            runs.append((label, study.config_of(flags, seed, **settings), method))
    return runs


def table(lines: list[dict]) -> list[str]:
    rows = []
    for label in study.labels_of(lines):
        quantities = (
            compare.highest(study.curves(lines, "accuracy", label)),
            study.ends(lines, label),
            study.leaks(lines, label),
            study.curves(lines, "leakage", label)[:, -1],
        )
        rows.append((label, *map(per_seed, quantities)))
    head = ("per seed", "highest accuracy", "at the end", "highest leakage", "at the end")
    return study.markdown(head, rows)


def per_seed(values) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def main() -> None:
    flags = study.arguments(__doc__, seeds=2)
    lines = study.run_all("lesson", flags, plan(flags))
    study.say(table(lines))
    print(f"log    {study.log_of('lesson', flags)}")


if __name__ == "__main__":
    study.command(main)
