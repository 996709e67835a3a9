"""Is RLSD ahead of RLVR? Each with the learning rate that suits it, paired by seed, with 95 % intervals.

    python -m plots.ahead [--quick]        runs/ahead.jsonl and ahead.png under --out

With an exact and a noisy verifier: per method the rate with the best mean over the run on three seeds that are not
reported; then fresh seeds. CEPO and RLVR + OPSD stand beside them, and RLVR at the default rate. --quick tunes nothing,
and has the noisy verifier only.
"""

import argparse
from itertools import product

import numpy as np

import rlsd
from plots import compare, pool, study, variants

HELD, FALLING = {"lam": 1.0, "lam_decay": 0}, {"lam": 1.0, "lam_decay": 50}
METHODS = {  # a method whose settings hold a learning rate is not tuned
    "RLVR": ({"mode": "rlvr"}, rlsd.method_loss),
    "RLVR, default rate": ({"mode": "rlvr", "lr": rlsd.Config.lr}, rlsd.method_loss),
    "RLSD, paper": ({"mode": "rlsd"}, rlsd.method_loss),
    "RLSD, held": ({"mode": "rlsd", "eps_w": 0.2, **HELD}, rlsd.method_loss),
    "CEPO, held": ({"mode": "cepo", "eps_w": 1.0, **HELD}, rlsd.method_loss),
    "RLVR + OPSD, falling": ({"mode": "rlsd", **FALLING}, variants.plain_sum)}
NOISES, RATES, TUNING, REPORTED = (0.0, 0.4), (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3), range(10, 13), 20
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t, two-sided, for 1 to 9 degrees of freedom


def plan(flags: argparse.Namespace, seeds: range, rates: dict[str, tuple], stage: str = "") -> list[tuple]:
    """Runs of the methods, under both noises, at all rates that the label has."""
    runs, steps = [], -(-flags.steps // 2) if flags.quick else flags.steps
    for seed, noise, (name, (settings, method)) in product(seeds, NOISES, METHODS.items()):
        label = f"{name}, noise {noise:g}"
        shared = {"seed": seed, "digits": flags.digits, "steps": steps, "evaluate_every": 20, "verifier_noise": noise}
        runs += [(stage + label, rlsd.Config(**{"lr": lr, **shared, **settings}), method)
                 for lr in rates.get(label, ())]
    return runs


def tune(flags: argparse.Namespace) -> dict[str, tuple]:
    """The best rate per label. Prints the means over the run, on which this rests."""
    labels = [f"{name}, noise {noise:g}" for noise in NOISES for name in METHODS if "lr" not in METHODS[name][0]]
    tried = study.run_all("ahead", flags, plan(flags, TUNING, dict.fromkeys(labels, RATES), "tuning, "))
    at = {lr: [line for line in tried if line["config"]["lr"] == lr] for lr in RATES}
    means = {label: [study.means(at[lr], f"tuning, {label}").mean() for lr in RATES] for label in labels}
    rows = [(label, *(f"{mean:.3f}" for mean in row)) for label, row in means.items()]
    pool.say("\n".join(study.markdown(("mean over the run at the rate", *(f"{lr:g}" for lr in RATES)), rows)))
    flags.resume = True  # the log holds the first stage now
    return {label: (RATES[int(np.argmax(row))],) for label, row in means.items()}


def interval(ahead: np.ndarray) -> float:
    """Half the 95 % interval of the mean of seeds; 0 for one seed."""
    count = len(ahead)
    return T_95[min(count, 10) - 2] * ahead.std(ddof=1) / count ** 0.5 if count > 1 else 0.0


def lead(lines: list[dict], name: str, noise: float) -> tuple[np.ndarray, str]:
    """Per seed: mean over the run above RLVR's; and in words, with the 95 % interval of their mean."""
    ahead = study.means(lines, f"{name}, noise {noise:g}") - study.means(lines, f"RLVR, noise {noise:g}")
    return ahead, f"{ahead.mean():+.3f}" + (f" ± {interval(ahead):.3f}" if len(ahead) > 1 else "")


def table(lines: list[dict]) -> list[str]:
    rows = []
    for noise in study.noises(lines):
        goal = study.ends(lines, f"RLVR, noise {noise:g}").mean()
        for name in METHODS:
            label = f"{name}, noise {noise:g}"
            steps, accuracy = study.curves(lines, "step", label)[0], study.curves(lines, "accuracy", label).mean(0)
            ahead, told = lead(lines, name, noise)
            there = steps[accuracy >= goal]
            cells = [told, f"{(ahead > 0).sum()} of {len(ahead)}", str(there[0]) if len(there) else "never"]
            rate = next(line["config"]["lr"] for line in lines if line["label"] == label)
            shares = study.means(lines, label), study.ends(lines, label), study.leaks(lines, label)
            rows.append((f"noise {noise:g}" if noise else "exact", name, f"{rate:g}",
                         *([""] * 3 if name == "RLVR" else cells), *map(compare.spread, shares)))
    return study.markdown(("verifier", "method", "learning rate", "lead over RLVR, mean over the run, 95 %",
                           "seeds ahead", "steps to RLVR's end", "accuracy, mean over the run", "accuracy at the end",
                           "highest leakage"), rows)


def main() -> None:
    flags = study.arguments(__doc__, seeds=10)
    noises, seeds = (NOISES[1:], 1) if flags.quick else (NOISES, flags.seeds)
    rates = {f"{name}, noise {noise:g}": (rlsd.Config.lr,) for name in METHODS for noise in noises}
    if not flags.quick:
        rates |= tune(flags)
    lines = study.run_all("ahead", flags, plan(flags, range(REPORTED, REPORTED + seeds), rates))
    pool.say("\n".join(table(lines)))
    figure, axes = study.panels(1, len(noises), width=6.4)
    others = [name for name in METHODS if name != "RLVR"]
    for panel, noise in zip(axes[0], noises):
        for row, name in enumerate(others):
            ahead, _ = lead(lines, name, noise)
            panel.plot(ahead, np.full(len(ahead), row + 0.12), "o", markersize=4, color="#888888")
            panel.errorbar(ahead.mean(), row - 0.12, xerr=interval(ahead), fmt="o", capsize=4, color="#0072B2")
        panel.axvline(0, color="#888888", linewidth=0.8)
        panel.set_yticks(range(len(others)), others)
        panel.set_xlabel("lead over RLVR, mean over the run (blue: mean, 95 %; grey: seeds)")
        told = "; ".join(f"{name} {lead(lines, f'{name}, held', noise)[1]}" for name in ("RLSD", "CEPO"))
        panel.set_title(f"Noise {noise:g}, held: {told}", loc="left", fontsize=10)
    study.finish(figure, flags.out / "ahead.png", study.log_of("ahead", flags))


if __name__ == "__main__":
    study.command(main)
