"""Does OPSD leak more slowly, the less of the teacher's distribution it imitates?

    python -m plots.bandwidth [--quick]        runs/bandwidth.jsonl and bandwidth.png under --out

OPSD with the whole vocabulary as its target, and with one token: the teacher's most likely one, or the student's. One
token is two outcomes, this token or any other: a coarser divergence, which no longer says what the others are.
"""

import torch
from torch import Tensor

import rlsd
from plots import compare, pool, study

NAMES = {"full": "the whole vocabulary", "teacher": "teacher's top token", "student": "student's top token"}
COLOURS = {"full": "#000000", "teacher": "#D55E00", "student": "#0072B2"}


def two_outcomes(logp: Tensor, token: Tensor) -> Tensor:
    """(B, T, V), (B, T, 1) -> (B, T, 2): log-probabilities of the token, and of any other."""
    one = logp.gather(-1, token).clamp(max=-1e-6)
    return torch.cat((one, torch.log(-torch.expm1(one))), -1)


def one_token(batch: rlsd.Batch, of: Tensor) -> tuple[Tensor, Tensor]:
    """OPSD's loss where the target is the most likely token of a distribution (B, T, V)."""
    token = of.detach().argmax(-1, keepdim=True)
    student, teacher = (two_outcomes(logp, token) for logp in (batch.student_logp, batch.teacher_logp[0]))
    value = rlsd.divergence(student, teacher, batch.divergence)
    return rlsd.response_mean(value, batch.rollout.mask), value.detach()


def teacher_top(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    return one_token(batch, batch.teacher_logp[0])


def student_top(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    return one_token(batch, batch.student_logp)


METHODS = {"full": rlsd.method_loss, "teacher": teacher_top, "student": student_top}


def table(lines: list[dict]) -> list[str]:
    rows, steps = [], lines[0]["step"]
    early = len(steps) // 3
    for label in dict.fromkeys(line["label"] for line in lines):
        leakage, (target, kind) = study.curves(lines, "leakage", label), label.split(", ")
        onset = [next((str(step) for step, leak in zip(steps, seed) if leak > 0.1), "never") for seed in leakage]
        shares = leakage[:, early], study.leaks(lines, label), study.means(lines, label), study.ends(lines, label)
        rows.append((kind.replace("_kl", " KL"), NAMES[target], ", ".join(onset), *map(compare.spread, shares)))
    return study.markdown(("divergence", "target", "leakage over 0.1 at step (per seed)",
                           f"leakage at step {steps[early]}", "highest leakage", "accuracy, mean over the run",
                           "accuracy at the end"), rows)


def main() -> None:
    flags = study.arguments(__doc__, seeds=3)
    kinds = ("reverse_kl",) if flags.quick else ("reverse_kl", "forward_kl")
    runs = [(f"{target}, {kind}", rlsd.Config(mode="opsd", divergence=kind, seed=seed, digits=flags.digits,
                                              steps=flags.steps), method)
            for kind in kinds for seed in range(1 if flags.quick else flags.seeds)
            for target, method in METHODS.items()]
    lines = study.run_all("bandwidth", flags, runs)
    pool.say("\n".join(table(lines)))
    figure, axes = study.panels(2, len(kinds))
    for kind, (upper, lower) in zip(kinds, axes.T):
        names = {f"{target}, {kind}": name for target, name in NAMES.items()}
        for panel, key in ((upper, "leakage"), (lower, "accuracy")):
            study.draw_runs(panel, lines, key, names, {label: COLOURS[label.split(",")[0]] for label in names})
        most = max(names, key=lambda label: study.curves(lines, "leakage", label).mean())
        upper.set_title(f"{kind.replace('_kl', ' KL')}, most leakage on average: {names[most]}",
                        loc="left", fontsize=11)
        accuracy = study.curves(lines, "accuracy", f"full, {kind}").mean(0)
        lower.set_title(f"Whole vocabulary: {accuracy.max():.2f} right at most, {accuracy[-1]:.2f} at the end",
                        loc="left", fontsize=11)
    study.finish(figure, flags.out / "bandwidth.png", study.log_of("bandwidth", flags))


if __name__ == "__main__":
    study.command(main)
