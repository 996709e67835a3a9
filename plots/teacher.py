"""Does it matter how the teacher follows the student? Frozen, averaged, copied or live.

    python -m plots.teacher [--quick]        runs/teacher.jsonl and teacher.png under --out

The teacher of OPSD, RLSD and CEPO is the student's network, shown the key. Frozen: it stays the
base. EMA r: before each step, every weight moves by a share r towards the student's. Copied: the
paper's, a copy every 10 steps. Live: a copy before every step. eps_w and lam are 1, held.
"""

import argparse
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import rlsd
from plots import compare, study
from plots.study import HELD_AT_1

ALL_STEPS = 480  # where the verifier only misses right answers; elsewhere --steps


@torch.no_grad()
def average(
    config: rlsd.Config, step: int, student: rlsd.GPT, teacher: rlsd.GPT, rate: float
) -> None:
    """An exponential moving average: teacher = (1 - rate) teacher + rate student."""
    for mine, its in zip(teacher.parameters(), student.parameters()):
        mine.lerp_(its, rate)


TEACHERS = {
    "frozen": partial(average, rate=0.0),
    "EMA 0.01": partial(average, rate=0.01),
    "EMA 0.05": partial(average, rate=0.05),
    "copied": rlsd.copy_every_n_steps,
    "live": partial(average, rate=1.0),
}


@dataclass(frozen=True)
class Condition:
    """A method and what its verifier gets wrong."""

    mode: str
    errors: dict
    steps: int | None = None  # None: --steps


CONDITIONS = {
    "OPSD, exact": Condition("opsd", {}),
    "RLSD, noise 0.4": Condition("rlsd", study.error_rates(0.4)),
    "RLSD, false negatives 0.5": Condition("rlsd", {"false_negatives": 0.5}, ALL_STEPS),
    "CEPO, noise 0.4": Condition("cepo", study.error_rates(0.4)),
    "CEPO, false negatives 0.5": Condition("cepo", {"false_negatives": 0.5}, ALL_STEPS),
}
COLOUR_NAMES = {"OPSD": "orange", "RLSD": "black", "CEPO": "pink"}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs. --quick: OPSD, and RLSD at noise 0.4; frozen and copied; a seed, half the steps."""
    runs = []
    for seed in study.seeds_of(flags):
        for condition, given in CONDITIONS.items():
            if flags.quick and condition not in ("OPSD, exact", "RLSD, noise 0.4"):
                continue
            settings = {"mode": given.mode, **HELD_AT_1, **given.errors}
            if given.steps is not None:
                settings |= {"steps": given.steps, "evaluate_every": 40}
            config = study.config_of(flags, seed, **settings)
            for teacher in ("frozen", "copied") if flags.quick else TEACHERS:
                runs.append((f"{condition}: {teacher}", config, teacher))
    return runs


def measure(config: rlsd.Config, teacher: str) -> dict:
    task = config.make_task()
    run = study.training(config, refresh_teacher=TEACHERS[teacher], task=task)
    return study.watch(task, run)


def table(lines: list[dict]) -> list[str]:
    return study.watched_table(lines, list(CONDITIONS), ("method, verifier", "teacher"))


def draw(panel, lines: list[dict], verifier: str, conditions: list[str]) -> None:
    """The highest leakage, a column of dots per teacher and condition."""
    teachers = [name for name in TEACHERS if f"{conditions[0]}: {name}" in study.labels_of(lines)]
    leaks = {}
    for n, condition in enumerate(conditions):
        columns = {name: study.leaks(lines, f"{condition}: {name}") for name in teachers}
        leaks[condition.partition(",")[0]] = columns
        colour = compare.COLOURS[CONDITIONS[condition].mode]
        study.draw_dots(panel, columns, dict.fromkeys(columns, colour), shift=0.36 * n)
    panel.axhline(study.LEAKS, color="#888888", linewidth=1, linestyle=":")
    panel.set_xticks(range(len(teachers)), teachers)
    panel.set(ylabel="highest leakage (dotted: 0.1)", ylim=rlsd.SHARE)
    told = " and ".join(f"{name} ({COLOUR_NAMES[name]})" for name in leaks)
    panel.set_xlabel(told)

    name = next(iter(leaks))
    means = [values.mean() for values in leaks[name].values()]
    label = f"{verifier[0].upper()}{verifier[1:]}: with a frozen teacher,\n"
    label += f"{name} leaks least in the mean"
    holds = means[0] == min(means)
    if "CEPO" in leaks:
        label += "; CEPO never leaks"
        holds &= np.concatenate([*leaks["CEPO"].values()]).max() <= study.LEAKS
    study.claim(panel, label, holds, f"Verifier: {verifier}")


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("teacher", flags, plan(flags), measure)
    study.say(table(lines))
    found = dict.fromkeys(label.partition(":")[0] for label in study.labels_of(lines))
    by_verifier = {}
    for condition in found:
        by_verifier.setdefault(condition.partition(", ")[2], []).append(condition)
    figure, axes = study.panels(1, len(by_verifier), width=5.8)
    for panel, (verifier, conditions) in zip(axes[0], by_verifier.items()):
        draw(panel, lines, verifier, conditions)
    study.finish(figure, "teacher", flags)


if __name__ == "__main__":
    study.command(main)
