"""The answers to the lesson's three predictions (plots/LESSON.md), on two seeds.

    python -m plots.lesson [--quick]        runs/lesson.jsonl under --out
"""

import argparse

from torch import Tensor

import rlsd
from plots import compare, pool, study, variants

HELD = {"eps_w": 1.0, "lam": 1.0, "lam_decay": 0}


def without_sign(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with the weight exp(Delta_t), the same for right and wrong responses."""
    def weigh(gain: Tensor, _: Tensor) -> Tensor:
        return gain.clamp(-60, 60).exp().clamp(1 - batch.eps_w, 1 + batch.eps_w)

    return variants.weighted(batch, weigh)


RUNS = {"OPSD, never copied": ({"mode": "opsd", "teacher_refresh": 1000}, rlsd.method_loss),
        "coin, RLSD": ({"mode": "rlsd", "verifier_noise": 0.5, **HELD}, rlsd.method_loss),
        "coin, CEPO": ({"mode": "cepo", "verifier_noise": 0.5, **HELD}, rlsd.method_loss),
        "RLSD": ({"mode": "rlsd", **HELD}, rlsd.method_loss),
        "RLSD without the sign": ({"mode": "rlsd", **HELD}, without_sign)}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed and half of the steps."""
    steps, seeds = (-(-flags.steps // 2), range(1)) if flags.quick else (flags.steps, range(flags.seeds))
    return [(label, rlsd.Config(seed=seed, digits=flags.digits, steps=steps, evaluate_every=20, **settings), method)
            for seed in seeds for label, (settings, method) in RUNS.items()]


def table(lines: list[dict]) -> list[str]:
    rows = []
    for label in dict.fromkeys(line["label"] for line in lines):
        values = (compare.highest(study.curves(lines, "accuracy", label)), study.ends(lines, label),
                  study.leaks(lines, label), study.curves(lines, "leakage", label)[:, -1])
        rows.append((label, *(", ".join(f"{value:.2f}" for value in each) for each in values)))
    return study.markdown(("per seed", "highest accuracy", "at the end", "highest leakage", "at the end"), rows)


def main() -> None:
    flags = study.arguments(__doc__, seeds=2)
    lines = study.run_all("lesson", flags, plan(flags))
    pool.say("\n".join(table(lines)))
    pool.say(f"log    {study.log_of('lesson', flags)}")


if __name__ == "__main__":
    study.command(main)
