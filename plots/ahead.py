"""Is RLSD ahead of RLVR? Both with the learning rate that suits them, paired by seed, with 95 % intervals.

    python -m plots.ahead [--quick]       runs/ahead-tune.jsonl, runs/ahead.jsonl and ahead.png under --out

Three methods: RLVR, RLSD as in the paper, and RLSD with the setting that gained most in plots.drift
at noise 0.4 (eps_w 0.2, lambda 1 and constant); an exact and a noisy verifier.
The learning rate is chosen for each of the six from the same candidates, on seeds that are not reported.
"""

import numpy as np

import rlsd
from plots import study

METHODS = {"RLVR": {"mode": "rlvr"}, "RLSD, paper": {"mode": "rlsd"},
           "RLSD, best of drift": {"mode": "rlsd", "lam": 1.0, "lam_decay": 0}}
NOISES, RATES = (0.0, 0.4), (2e-4, 4e-4, 8e-4, 1.6e-3)
COLOURS = {"RLVR": "#0072B2", "RLSD, paper": "#000000", "RLSD, best of drift": "#D55E00"}
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 9: 2.26}  # Student's t, two-sided, by degrees of freedom


def plan(flags, seeds: range, rates: dict | None) -> list[tuple]:
    """Runs of every method under every noise, at each rate, or at the one that was chosen."""
    return [(f"{name}, noise {noise}", rlsd.Config(seed=seed, digits=flags.digits, steps=flags.steps, evaluate_every=20, lr=lr,
                                                   verifier_noise=noise, **settings), rlsd.method_loss)
            for seed in seeds for noise in NOISES for name, settings in METHODS.items()
            for lr in (RATES if rates is None else [rates[f"{name}, noise {noise}"]])]


def main() -> None:
    flags = study.arguments(__doc__, seeds=10)
    rates = {f"{name}, noise {noise}": 2e-4 for name in METHODS for noise in NOISES}
    if not flags.quick:
        tried = study.run_all("ahead-tune", flags, plan(flags, range(10, 12), None))
        print("mean accuracy over the run on seeds 10 and 11, by learning rate")
        for label in rates:
            mean = {lr: np.mean([line["accuracy"] for line in tried if line["label"] == label and line["config"]["lr"] == lr]) for lr in RATES}
            rates[label] = max(mean, key=mean.get)
            print(f"  {label:32} " + "  ".join(f"{lr:g}: {value:.3f}" for lr, value in mean.items()))
    lines = study.run_all("ahead", flags, plan(flags, range(20, 20 + (2 if flags.quick else flags.seeds)), rates))
    figure, axes = study.panels(1, 2, width=6)
    for panel, noise in zip(axes[0], NOISES):
        steps, ends, told = study.curves(lines, "step", f"RLVR, noise {noise}")[0], {}, []
        rlvr = study.curves(lines, "accuracy", f"RLVR, noise {noise}")
        for name in METHODS:
            accuracy = study.curves(lines, "accuracy", f"{name}, noise {noise}")
            lead = accuracy.mean(1) - rlvr.mean(1)
            half = T_95.get(len(lead) - 1, 2.0 if len(lead) > 10 else float("nan")) * lead.std(ddof=1) / len(lead) ** 0.5 if len(lead) > 1 else float("nan")
            there = steps[accuracy.mean(0) >= rlvr.mean(0)[-1]]
            ratio = f"{there[0] / steps[-1]:.2f}" if len(there) else "never"
            leak = study.curves(lines, "leakage", f"{name}, noise {noise}")
            print(f"{name}, noise {noise}, lr {rates[f'{name}, noise {noise}']:g}: lead {lead.mean():+.3f} +- {half:.3f} (95 %), ahead in "
                  f"{(lead > 0).sum()} of {len(lead)}; end {accuracy[:, -1].mean():.3f}; steps to RLVR's end, ratio {ratio}; "
                  f"leakage highest {leak.max():.3f}, end {leak[:, -1].max():.3f}")
            panel.plot(steps, accuracy.mean(0), color=COLOURS[name], linewidth=2)
            panel.fill_between(steps, accuracy.min(0), accuracy.max(0), color=COLOURS[name], alpha=0.1, linewidth=0)
            ends[name] = (steps[-1], accuracy.mean(0)[-1])
            if name != "RLVR":
                told.append(f"{lead.mean():+.3f} ± {half:.3f}")
        panel.set(xlabel="training step", ylabel=rlsd.AXIS["accuracy"], ylim=(0, 1.02), xlim=(0, None))
        rlsd.write_names(panel, ends, {name: name for name in METHODS}, COLOURS)
        panel.set_title(f"{f'Noise {noise:g}' if noise else 'Exact verifier'}: lead over RLVR, paper {told[0]}, best {told[1]}", loc="left", fontsize=10)
    study.finish(figure, flags.out / "ahead.png", flags.out / "runs" / "ahead.jsonl")


if __name__ == "__main__":
    study.command(main)
