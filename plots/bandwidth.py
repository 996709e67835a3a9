"""Leakage bandwidth: the less of the teacher's distribution OPSD imitates, the slower it leaks?

    python -m plots.bandwidth [--quick]       runs/bandwidth.jsonl and bandwidth.png under --out

OPSD with the whole vocabulary as its target, and with one token only: the teacher's most likely one, or the student's.
One token is taken as two outcomes, this token or any other: a coarser divergence, which no longer says what the others are.
"""

import torch

import rlsd
from plots import study

TARGETS = {"full": "the whole vocabulary", "teacher_top": "teacher's top token", "student_top": "student's top token"}
COLOURS = {"full": "#000000", "teacher_top": "#D55E00", "student_top": "#0072B2"}


def two_outcomes(logp, token):
    """(B, T, V), (B, T, 1) -> (B, T, 2): log-probabilities of the token, and of anything else."""
    one = logp.gather(-1, token).clamp(max=-1e-6)
    return torch.cat((one, torch.log(-torch.expm1(one))), -1)


def narrow(rollout, student_logp, teacher_logp, group_size, kind, of):
    """OPSD's loss on two outcomes, by the most likely token of the teacher or of the student."""
    token = of.detach().argmax(-1, keepdim=True)
    value = rlsd.divergence(two_outcomes(student_logp, token), two_outcomes(teacher_logp, token), kind)
    return rlsd.response_mean(value, rollout.mask), value.detach()


def teacher_top(mode, rollout, reward, student_logp, teacher_logp, group_size, kind, eps_w, lam):
    return narrow(rollout, student_logp, teacher_logp, group_size, kind, teacher_logp)


def student_top(mode, rollout, reward, student_logp, teacher_logp, group_size, kind, eps_w, lam):
    return narrow(rollout, student_logp, teacher_logp, group_size, kind, student_logp)


def main() -> None:
    flags = study.arguments(__doc__, seeds=3)
    kinds = ("reverse_kl",) if flags.quick else ("reverse_kl", "forward_kl")
    methods = {"full": rlsd.method_loss, "teacher_top": teacher_top, "student_top": student_top}
    runs = [(f"{name}, {kind}", rlsd.Config(mode="opsd", divergence=kind, seed=seed, digits=flags.digits, steps=flags.steps * 3 // 4 if flags.quick else flags.steps,
                                            evaluate_every=40 if flags.quick else 10), method)
            for kind in kinds for seed in range(1 if flags.quick else flags.seeds) for name, method in methods.items()]
    lines = study.run_all("bandwidth", flags, runs)
    figure, axes = study.panels(2, len(kinds))
    for column, kind in enumerate(kinds):
        for row, key in enumerate(("leakage", "accuracy")):
            ends = {}
            for name in TARGETS:
                label = f"{name}, {kind}"
                steps, values = study.curves(lines, "step", label)[0], study.curves(lines, key, label)
                axes[row, column].plot(steps, values.mean(0), color=COLOURS[name], linewidth=2)
                axes[row, column].fill_between(steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.15, linewidth=0)
                ends[name] = (steps[-1], values.mean(0)[-1])
                if key == "leakage":
                    past = [int(steps[run > 0.1][0]) if (run > 0.1).any() else None for run in values]
                    print(f"{label:24} leakage over 0.1 first at step {past}; at the end {study.spread(values[:, -1])}; "
                          f"highest accuracy {study.spread(study.curves(lines, 'accuracy', label).max(1))}, "
                          f"at the end {study.spread(study.curves(lines, 'accuracy', label)[:, -1])}")
            axes[row, column].set(xlabel="training step", ylabel=rlsd.AXIS[key], ylim=(-0.02, 1.02), xlim=(0, None))
            rlsd.write_names(axes[row, column], ends, TARGETS, COLOURS)
        early = {name: study.curves(lines, "leakage", f"{name}, {kind}").mean(0)[len(steps) * 3 // 10] for name in TARGETS}
        told = ", ".join(f"{name.partition('_')[0]} {value:.2f}" for name, value in sorted(early.items(), key=lambda pair: -pair[1]))
        axes[0, column].set_title(f"{kind.split('_')[0].capitalize()} KL: {TARGETS[max(early, key=early.get)]} leads early", loc="left")
        print(f"{kind}, leakage at step {steps[len(steps) * 3 // 10]}: {told}")
        accuracy = study.curves(lines, "accuracy", f"full, {kind}").mean(0)
        axes[1, column].set_title(f"Whole vocabulary: accuracy {accuracy.max():.2f} at most, {accuracy[-1]:.2f} at the end", loc="left", fontsize=11)
    study.finish(figure, flags.out / "bandwidth.png", flags.out / "runs" / "bandwidth.jsonl")


if __name__ == "__main__":
    study.command(main)
