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


def draw(panel, lines: list[dict], conditions: list[str], of, ylabel: str) -> dict:
    """A column of dots per teacher and condition. Returns condition -> teacher -> (seeds,)."""
    found = {}
    for n, condition in enumerate(conditions):
        columns = {}
        for teacher in TEACHERS:
            columns[teacher] = np.array([np.nan])  # it did not run
            if f"{condition}: {teacher}" in study.labels_of(lines):
                columns[teacher] = of(lines, f"{condition}: {teacher}")
        colour = compare.COLOURS[CONDITIONS[condition].mode]
        study.draw_dots(panel, columns, dict.fromkeys(columns, colour), shift=0.36 * n)
        found[condition] = columns
    panel.set_xticks(range(len(TEACHERS)), TEACHERS)
    panel.set(ylabel=ylabel, ylim=rlsd.SHARE)
    return found


def entitle(panel, leaks: dict) -> None:
    """What is found of leakage in a column of the figure, if it holds."""
    texts, holds = [], []
    for condition, columns in leaks.items():
        name = condition.partition(",")[0]
        if name == "CEPO":
            texts.append("CEPO (pink): no seed leaks")
            holds.append(np.nanmax(np.concatenate([*columns.values()])) < study.LEAKS)
        else:
            texts.append(f"{name}: in the mean, it leaks least with the frozen teacher")
            means = [values.mean() for values in columns.values()]
            holds.append(means[0] == np.nanmin(means))
    study.claim(panel, "\n".join(texts), all(holds), "Leakage")


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("teacher", flags, plan(flags), measure)
    study.say(table(lines))
    found = dict.fromkeys(label.partition(":")[0] for label in study.labels_of(lines))
    by_verifier = {}
    for condition in found:
        by_verifier.setdefault(condition.partition(", ")[2], []).append(condition)
    figure, axes = study.panels(2, len(by_verifier), width=5.2)
    for (upper, lower), (verifier, conditions) in zip(axes.T, by_verifier.items()):
        draw(upper, lines, conditions, study.ends, "right answers at the end (share)")
        leaks = draw(lower, lines, conditions, study.leaks, "highest leakage of a run (share)")
        names = [condition.partition(",")[0] for condition in conditions]
        told = " and ".join(f"{name} ({COLOUR_NAMES[name]})" for name in names)
        study.title(upper, f"{told}. Verifier: {verifier}")
        entitle(lower, leaks)
    study.finish(figure, "teacher", flags)


if __name__ == "__main__":
    study.command(main)
