"""The numbers of the lesson's exercises (plots/LESSON.md), on two seeds.

python -m plots.lesson [--quick]        runs/lesson.jsonl under --out
"""

import argparse
from dataclasses import dataclass

from torch import Tensor

import rlsd
from plots import compare, study, variants
from tiny_tasks import Carry

HELD = study.HELD_AT_1
NOISY = HELD | study.error_rates(0.4)
COIN = HELD | study.error_rates(0.5)


class Plain(Carry):
    """Column addition in which no carry is written down."""

    name = "plain"

    def working(self, problem, rng, homework, key_open):
        text, key = super().working(problem, rng, homework, key_open)
        return text.replace("c", "-"), key


@dataclass(frozen=True)
class PlainConfig(rlsd.Config):
    task: str = rlsd.setting(Plain.name, "the arithmetic", Plain.name)

    def make_task(self) -> Plain:
        return Plain(self.digits, self.slip, self.cite)


def without_sign(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with the weight exp(Delta_t), the same for right and wrong responses."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        return gain.clamp(-60, 60).exp().clamp(1 - batch.eps_w, 1 + batch.eps_w)

    return variants.weighted(batch, weigh)


RUNS = {
    "OPSD": ({"mode": "opsd"}, rlsd.method_loss),
    "OPSD, never copied": ({"mode": "opsd", "teacher_refresh": 1000}, rlsd.method_loss),
    "RLSD": ({"mode": "rlsd", **HELD}, rlsd.method_loss),
    "RLSD without the sign": ({"mode": "rlsd", **HELD}, without_sign),
    "RLSD, sign reversed": ({"mode": "rlsd", **HELD}, variants.away),
    "noise, RLSD": ({"mode": "rlsd", **NOISY}, rlsd.method_loss),
    "noise, RLSD, sign reversed": ({"mode": "rlsd", **NOISY}, variants.away),
    "noise, MINE": ({"mode": "rlsd", **NOISY}, variants.negative_only),
    "coin, RLSD": ({"mode": "rlsd", **COIN}, rlsd.method_loss),
    "coin, CEPO": ({"mode": "cepo", **COIN}, rlsd.method_loss),
    "plain, RLSD": ({"mode": "rlsd"}, rlsd.method_loss),
}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed and half of the steps."""
    runs = []
    for seed in study.seeds_of(flags):
        for label, (settings, method) in RUNS.items():
            make = PlainConfig if label.startswith("plain") else rlsd.Config
            runs.append((label, study.config_of(flags, seed, make, **settings), method))
    return runs


def table(lines: list[dict]) -> list[str]:
    rows = []
    for label in study.labels_of(lines):
        accuracy = study.curves(lines, "accuracy", label)
        quantities = (
            accuracy[:, 0],
            compare.highest(accuracy),
            study.ends(lines, label),
            study.leaks(lines, label),
            study.curves(lines, "leakage", label)[:, -1],
        )
        rows.append((label, *map(per_seed, quantities)))
    head = ("seeds 0, 1", "base", "highest accuracy", "at the end", "highest leakage", "at the end")
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
