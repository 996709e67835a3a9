"""Is RLSD ahead of RLVR? Each with the learning rate that suits it, paired by seed.

    python -m plots.ahead [--quick]        runs/ahead.jsonl and ahead.png under --out

With an exact and a noisy verifier, first the rate of each method is tuned: the one with the best
mean over the run, on three seeds that are not reported. Then fresh seeds are run. CEPO and
RLVR + OPSD stand beside them, and RLVR at the default rate. Intervals are of 95 %. --quick tunes
nothing, and has the noisy verifier only.
"""

import argparse
from itertools import product

import numpy as np

import rlsd
from plots import study, variants
from plots.study import noisy

HELD = {"lam": 1.0, "lam_decay": 0}
FALLING = {"lam": 1.0, "lam_decay": 50}
METHODS = {  # settings and method; if the settings hold a learning rate, it is not tuned
    "RLVR": ({"mode": "rlvr"}, rlsd.method_loss),
    "RLVR, default rate": ({"mode": "rlvr", "lr": rlsd.Config.lr}, rlsd.method_loss),
    "RLSD, paper": ({"mode": "rlsd"}, rlsd.method_loss),
    "RLSD, eps_w 0.2, held": ({"mode": "rlsd", "eps_w": 0.2, **HELD}, rlsd.method_loss),
    "CEPO, held": ({"mode": "cepo", "eps_w": 1.0, **HELD}, rlsd.method_loss),
    "RLVR + OPSD, falling": ({"mode": "rlsd", **FALLING}, variants.plain_sum),
}
SHOWN = {"RLSD, eps_w 0.2, held": "RLSD, eps_w 0.2,\nheld"}
NOISES = (0.0, 0.4)
RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
TUNING = range(10, 13)  # seeds
REPORTED = 20  # the first seed that is reported
# Student's t, two-sided, for 1 to 9 degrees of freedom
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def plan(
    flags: argparse.Namespace, seeds: range, rates: dict[str, tuple], stage: str = ""
) -> list[tuple]:
    """Runs of all labels that have rates, at each of them."""
    runs = []
    for seed, noise, name in product(seeds, NOISES, METHODS):
        settings, method = METHODS[name]
        label = noisy(name, noise)
        for lr in rates.get(label, ()):
            at_rate = {"lr": lr, **study.error_rates(noise), **settings}
            runs.append((stage + label, study.config_of(flags, seed, **at_rate), method))
    return runs


def tune(flags: argparse.Namespace) -> dict[str, tuple]:
    """The best rate per label. Prints the means over the run, on which this rests."""
    tuned = [name for name, (settings, _) in METHODS.items() if "lr" not in settings]
    labels = [noisy(name, noise) for noise, name in product(NOISES, tuned)]
    rates = dict.fromkeys(labels, RATES)
    tried = study.run_all("ahead", flags, plan(flags, TUNING, rates, "tuning, "))
    rows, best = [], {}
    for label in labels:
        means = []
        for lr in RATES:
            lines = [line for line in tried if line["config"]["lr"] == lr]
            means.append(study.means(lines, f"tuning, {label}").mean())
        rows.append((label, *(f"{mean:.3f}" for mean in means)))
        best[label] = (RATES[int(np.argmax(means))],)
    head = ("mean over the run at the rate", *(f"{lr:g}" for lr in RATES))
    study.say(study.markdown(head, rows))
    flags.resume = True  # now the log holds the first stage
    return best


def interval(ahead: np.ndarray) -> float:
    """Half the 95 % interval of the mean of seeds; 0 for one seed."""
    count = len(ahead)
    if count == 1:
        return 0.0
    return T_95[min(count, 10) - 2] * ahead.std(ddof=1) / count**0.5


def lead(lines: list[dict], name: str, noise: float) -> tuple[np.ndarray, str]:
    """Per seed: mean over the run above RLVR's; and in words, with the interval of their mean."""
    rlvr = study.means(lines, noisy("RLVR", noise))
    ahead = study.means(lines, noisy(name, noise)) - rlvr
    told = f"{ahead.mean():+.3f}"
    if len(ahead) > 1:
        told += f" ± {interval(ahead):.3f}"
    return ahead, told


def table(lines: list[dict]) -> list[str]:
    rows = []
    for noise, name in product(study.noises(lines), METHODS):
        label = noisy(name, noise)
        rate = next(line["config"]["lr"] for line in lines if line["label"] == label)
        cells = ["", "", ""]
        if name != "RLVR":
            ahead, told = lead(lines, name, noise)
            count = f"{(ahead > 0).sum()} of {len(ahead)}"
            cells = [told, count, reaches(lines, label, noisy("RLVR", noise))]
        shares = study.spreads(lines, label, study.means, study.ends, study.leaks)
        verifier = f"noise {noise:g}" if noise else "exact"
        rows.append((verifier, name, f"{rate:g}", *cells, *shares))
    head = (
        "verifier",
        "method",
        "learning rate",
        "lead over RLVR, mean over the run, 95 %",
        "seeds ahead",
        "steps to RLVR's end",
        "accuracy, mean over the run",
        "accuracy at the end",
        "highest leakage",
    )
    return study.markdown(head, rows)


def reaches(lines: list[dict], label: str, other: str) -> str:
    """The first step at which a method's mean over seeds is where the other's is at the end."""
    goal = study.ends(lines, other).mean()
    accuracy = study.curves(lines, "accuracy", label).mean(0)
    there = study.steps(lines, label)[accuracy >= goal]
    return f"{there[0]:g}" if len(there) else "never"


def draw(panel, lines: list[dict], noise: float) -> None:
    """The leads under one noise, one row per method."""
    others = [name for name in METHODS if not name.startswith("RLVR,") and name != "RLVR"]
    for row, name in enumerate(others):
        ahead, _ = lead(lines, name, noise)
        rows = np.full(len(ahead), row + 0.12)
        panel.plot(ahead, rows, "o", markersize=4, color="#888888")
        mean, half = ahead.mean(), interval(ahead)
        panel.errorbar(mean, row - 0.12, xerr=half, fmt="o", capsize=4, color="#0072B2")
    panel.axvline(0, color="#888888", linewidth=0.8)
    panel.set_yticks(range(len(others)), [SHOWN.get(name, name) for name in others])
    panel.set_xlabel("lead over RLVR, mean over the run (blue: mean, 95 %; grey: seeds)")
    if noise == 0:
        tuned = [lead(lines, name, noise)[0] for name in others]
        level = all(abs(ahead.mean()) <= interval(ahead) for ahead in tuned)
        text = "Exact verifier: each at its best rate,\nno method clearly differs from RLVR"
        study.claim(panel, text, level, "Exact verifier")
    else:
        names = ("RLSD, paper", "CEPO, held", "RLVR + OPSD, falling")
        lowest = min(lead(lines, name, noise)[0].min() for name in names)
        behind = (lead(lines, "RLSD, eps_w 0.2, held", noise)[0] < 0).sum()
        text = f"Noise {noise:g}: three methods are ahead on all seeds;\n"
        text += f"RLSD, eps_w 0.2, held, is behind on {behind}"
        study.claim(panel, text, bool(lowest > 0), f"Noise {noise:g}")


def main() -> None:
    flags = study.arguments(__doc__, seeds=10)
    noises = NOISES[1:] if flags.quick else NOISES
    labels = [noisy(name, noise) for name, noise in product(METHODS, noises)]
    rates = dict.fromkeys(labels, (rlsd.Config.lr,))
    if not flags.quick:
        rates |= tune(flags)
    seeds = range(REPORTED, REPORTED + len(study.seeds_of(flags)))
    lines = study.run_all("ahead", flags, plan(flags, seeds, rates))
    study.say(table(lines))
    figure, axes = study.panels(1, len(noises), width=6.4)
    for panel, noise in zip(axes[0], noises):
        draw(panel, lines, noise)
    study.finish(figure, "ahead", flags)


if __name__ == "__main__":
    study.command(main)
