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
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided, for 1 to 9 degrees of freedom


def plan(flags, seeds: range, rates: dict | None) -> list[tuple]:
    """Runs of every method under every noise, at each rate, or at the one that was chosen."""
    return [(f"{name}, noise {noise}", rlsd.Config(seed=seed, digits=flags.digits, evaluate_every=20, lr=lr, verifier_noise=noise,
                                                   steps=flags.steps // (2 if flags.quick else 1), **settings), rlsd.method_loss)
            for seed in seeds for noise in NOISES for name, settings in METHODS.items()
            for lr in (RATES if rates is None else [rates[f"{name}, noise {noise}"]])]


def lead(lines: list[dict], name: str, noise: float) -> tuple[np.ndarray, str]:
    """Of each seed: mean accuracy over the run above RLVR's; and in words, with the 95 % interval of the seeds' mean."""
    mine, rlvr = (study.curves(lines, "accuracy", f"{label}, noise {noise}").mean(1) for label in (name, "RLVR"))
    if len(mine) == 1:
        return mine - rlvr, f"{(mine - rlvr)[0]:+.3f} (one seed)"
    half = T_95[min(len(mine), 10) - 2] * (mine - rlvr).std(ddof=1) / len(mine) ** 0.5
    return mine - rlvr, f"{(mine - rlvr).mean():+.3f} ± {half:.3f}"


def table(lines: list[dict]) -> list[str]:
    """The README's rows: verifier, method, rate, lead, seeds ahead, end, steps to RLVR's end as a share, leakage."""
    rows = []
    for noise in NOISES:
        goal = study.curves(lines, "accuracy", f"RLVR, noise {noise}").mean(0)[-1]
        for name in METHODS:
            label = f"{name}, noise {noise}"
            accuracy, leak = (study.curves(lines, key, label) for key in ("accuracy", "leakage"))
            steps, (ahead, told) = study.curves(lines, "step", label)[0], lead(lines, name, noise)
            there = steps[accuracy.mean(0) >= goal]
            share = f"{there[0] / steps[-1]:.2f}" if len(there) else "never"
            compared = ("", "", "") if name == "RLVR" else (told, f"{(ahead > 0).sum()} of {len(ahead)}", share)
            rate = next(line["config"]["lr"] for line in lines if line["label"] == label)
            cells = [f"noise {noise:g}" if noise else "exact", name, f"{rate:g}", *compared[:2], f"{accuracy[:, -1].mean():.3f}",
                     compared[2], f"{leak.max():.3f}, {leak[:, -1].max():.3f}"]
            rows.append("| " + " | ".join(cells).replace("  ", " ") + " |")
    return rows


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
    lines = study.run_all("ahead", flags, plan(flags, range(20, 20 + (1 if flags.quick else flags.seeds)), rates))
    print("lead over RLVR in mean accuracy over the run, 95 %; seeds ahead; at the end; steps to RLVR's end; leakage, highest and at the end")
    print("\n".join(table(lines)))
    figure, axes = study.panels(1, 2, width=6)
    for panel, noise in zip(axes[0], NOISES):
        ends, told = {}, []
        for name in METHODS:
            label = f"{name}, noise {noise}"
            steps, accuracy = study.curves(lines, "step", label)[0], study.curves(lines, "accuracy", label)
            panel.plot(steps, accuracy.mean(0), color=COLOURS[name], linewidth=2)
            panel.fill_between(steps, accuracy.min(0), accuracy.max(0), color=COLOURS[name], alpha=0.1, linewidth=0)
            ends[name] = (steps[-1], accuracy.mean(0)[-1])
            if name != "RLVR":
                told.append(lead(lines, name, noise)[1])
        panel.set(xlabel="training step", ylabel=rlsd.AXIS["accuracy"], ylim=(0, 1.02), xlim=(0, None))
        rlsd.write_names(panel, ends, {name: name for name in METHODS}, COLOURS)
        panel.set_title(f"{f'Noise {noise:g}' if noise else 'Exact verifier'}: lead over RLVR, paper {told[0]}, best {told[1]}", loc="left", fontsize=10)
    study.finish(figure, flags.out / "ahead.png", flags.out / "runs" / "ahead.jsonl")


if __name__ == "__main__":
    study.command(main)
