"""Does OPSD leak more slowly, the less of the teacher's distribution it imitates?

    python -m plots.bandwidth [--quick]        runs/bandwidth.jsonl and bandwidth.png under --out

OPSD with the whole vocabulary as its target, and with one token: the teacher's most likely one, or
the student's. One token is two outcomes, this token or any other: a coarser divergence, which no
longer says what the others are.
"""

import argparse
from itertools import product

import torch
from torch import Tensor

import rlsd
from plots import compare, study

NAMES = {
    "full": "the whole vocabulary",
    "teacher": "teacher's top token",
    "student": "student's top token",
}
COLOURS = {"full": "#000000", "teacher": "#D55E00", "student": "#0072B2"}
KINDS = ("reverse_kl", "forward_kl")


def two_outcomes(log_probs: Tensor, token: Tensor) -> Tensor:
    """The log-probabilities of a token, and of any other. (B, T, V), (B, T, 1) -> (B, T, 2)."""
    one = log_probs.gather(-1, token).clamp(max=-1e-6)
    other = torch.log(-torch.expm1(one))
    return torch.cat((one, other), -1)


def one_token(batch: rlsd.Batch, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """OPSD whose target is the most likely token of a distribution (B, T, V)."""
    token = log_probs.detach().argmax(-1, keepdim=True)
    student = two_outcomes(batch.student_log_probs, token)
    teacher = two_outcomes(batch.right_key_log_probs, token)
    distance = rlsd.divergence(student, teacher, batch.divergence)
    return rlsd.response_mean(distance, batch.mask), distance.detach()


def teacher_top(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    return one_token(batch, batch.right_key_log_probs)


def student_top(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    return one_token(batch, batch.student_log_probs)


METHODS = {"full": rlsd.method_loss, "teacher": teacher_top, "student": student_top}


def plan(flags: argparse.Namespace, kinds: tuple) -> list[tuple]:
    runs = []
    for kind, seed, target in product(kinds, study.seeds_of(flags), METHODS):
        config = rlsd.Config(
            mode="opsd", divergence=kind, seed=seed, digits=flags.digits, steps=flags.steps
        )
        runs.append((f"{target}, {kind}", config, METHODS[target]))
    return runs


def table(lines: list[dict]) -> list[str]:
    steps = lines[0]["step"]
    early = len(steps) // 3
    rows = []
    for label in study.labels_of(lines):
        target, kind = label.split(", ")
        leakage = study.curves(lines, "leakage", label)
        onsets = [onset(steps, seed) for seed in leakage]
        shares = study.spreads(lines, label, study.leaks, study.means, study.ends)
        told = ", ".join(onsets), compare.spread(leakage[:, early])
        rows.append((kind.replace("_kl", " KL"), NAMES[target], *told, *shares))
    head = (
        "divergence",
        "target",
        "leakage over 0.1 at step (per seed)",
        f"leakage at step {steps[early]}",
        "highest leakage",
        "accuracy, mean over the run",
        "accuracy at the end",
    )
    return study.markdown(head, rows)


def onset(steps: list[int], leakage: list[float]) -> str:
    """The first step at which leakage is over 0.1."""
    for step, leak in zip(steps, leakage):
        if leak > 0.1:
            return str(step)
    return "never"


def draw(panel, lines: list[dict], kind: str) -> None:
    """Leakage with one divergence."""
    names = {f"{target}, {kind}": name for target, name in NAMES.items()}
    colours = {f"{target}, {kind}": colour for target, colour in COLOURS.items()}
    study.draw_runs(panel, lines, "leakage", names, colours)
    told = {"reverse_kl": "Reverse KL", "forward_kl": "Forward KL"}[kind]
    onsets = []
    for label in names:
        for leakage in study.curves(lines, "leakage", label):
            onsets.append(onset(lines[0]["step"], leakage))
    if "never" in onsets:
        study.title(panel, f"{told}: leakage")
    else:
        first, last = min(map(int, onsets)), max(map(int, onsets))
        text = f"{told}: with every target every run leaks,\n"
        text += f"for the first time at step {first} to {last}"
        study.title(panel, text)


def main() -> None:
    flags = study.arguments(__doc__, seeds=3)
    kinds = KINDS[:1] if flags.quick else KINDS
    lines = study.run_all("bandwidth", flags, plan(flags, kinds))
    study.say(table(lines))
    figure, axes = study.panels(1, len(kinds), width=5.8)
    for kind, panel in zip(kinds, axes[0]):
        draw(panel, lines, kind)
    study.finish(figure, "bandwidth", flags)


if __name__ == "__main__":
    study.command(main)
