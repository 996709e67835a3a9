"""Does the push on shared tokens cause RLSD's gain and its leak?

    python -m plots.drift [--quick]        runs/drift.jsonl and drift.png under --out

In the mean over a group, RLVR does not push a token that all share; Eq 15 does, by lam sqrt(p (1 -
p)) (w+ - w-) (the proposition in plots/README.md). Measured: the dose (the verifier's noise, eps_w,
lam of 1 held or falling to 0 in 50 steps) against accuracy and leakage; and controls at noise 0.4,
eps_w 1: RLVR + a falling OPSD term, a weight without the sign, and one balanced so that no position
gets a push in the mean. plots.push measures the push itself.
"""

import argparse
from itertools import product

import numpy as np

import rlsd
from plots import study, variants
from plots.study import noisy

NOISES = (0.0, 0.3, 0.4, 0.5)
CLIPS = (0.2, 1.0, 4.0)
SCHEDULES = {"held": 0, "falling": 50}
CONTROLLED = 0.4
COLOURS = dict(zip(NOISES, ("#0072B2", "#009E73", "#D55E00", "#000000")))

METHODS = {"RLVR": (rlsd.method_loss, {"mode": "rlvr"})}  # the method and its settings
RLSD = []  # names
for schedule, eps_w in product(SCHEDULES, CLIPS):
    RLSD.append(f"RLSD, eps_w {eps_w:g}, {schedule}")
    settings = {"eps_w": eps_w, "lam_decay": SCHEDULES[schedule]}
    METHODS[RLSD[-1]] = rlsd.method_loss, settings
CONTROLS = {
    "RLVR + OPSD, falling": (variants.plain_sum, {"lam_decay": 50}),
    "unsigned, held": (variants.unsigned, {"lam_decay": 0}),
    "balanced, held": (variants.balanced, {"lam_decay": 0}),
    "balanced, falling": (variants.balanced, {"lam_decay": 50}),
}
METHODS |= CONTROLS


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, one noise, one eps_w and half of the steps."""
    noises = (CONTROLLED,) if flags.quick else NOISES
    runs = []
    for seed, noise, name in product(study.seeds_of(flags), noises, METHODS):
        method, settings = METHODS[name]
        settings = {"eps_w": 1.0, "lam": 1.0, **settings}
        if name in CONTROLS and noise != CONTROLLED:
            continue
        if flags.quick and settings["eps_w"] != 1:
            continue
        settings |= study.error_rates(noise)
        runs.append((noisy(name, noise), study.config_of(flags, seed, **settings), method))
    return runs


def gain(lines: list[dict], name: str, noise: float) -> np.ndarray:
    """How far the mean over the run is above RLVR's; RLVR's own above the base. (seeds,)"""
    rlvr = noisy("RLVR", noise)
    if name == "RLVR":
        below = study.curves(lines, "accuracy", rlvr)[:, 0]
    else:
        below = study.means(lines, rlvr)
    return study.means(lines, noisy(name, noise)) - below


def leak(lines: list[dict], name: str, noise: float) -> np.ndarray:
    """The highest leakage. (seeds,)"""
    return study.leaks(lines, noisy(name, noise))


def table(lines: list[dict]) -> list[str]:
    """Means over seeds; a column per noise."""
    labels, noises = study.labels_of(lines), study.noises(lines)
    rows = []
    for name in METHODS:
        cells = []
        for noise in noises:
            label = noisy(name, noise)
            if label not in labels:
                cells.append("")
                continue
            end = study.ends(lines, label).mean()
            above, leaked = gain(lines, name, noise).mean(), leak(lines, name, noise).mean()
            cells.append(f"{above:+.3f}; {end:.3f}; {leaked:.3f}")
        if any(cells):
            rows.append((f"{name} (gain over the base)" if name == "RLVR" else name, *cells))
    head = ("gain over RLVR; end; leak", *(f"noise {noise:g}" for noise in noises))
    return study.markdown(head, rows)


def draw_doses(panel, lines: list[dict], of, schedule: str, what: str) -> None:
    """Gain or leak against eps_w, a colour per noise; bars: all seeds."""
    ends, means = [], []
    for n, noise in enumerate(NOISES):
        names = [f"RLSD, eps_w {eps_w:g}, {schedule}" for eps_w in CLIPS]
        values = np.array([of(lines, name, noise) for name in names])
        mean = values.mean(1)
        means.append(mean)
        x = np.arange(len(CLIPS)) + 0.04 * n  # or the bars would hide each other
        panel.plot(x, mean, marker="o", color=COLOURS[noise])
        panel.vlines(x, values.min(1), values.max(1), color=COLOURS[noise], linewidth=0.8)
        ends.append((f"noise {noise:g}", COLOURS[noise], x[-1], mean[-1]))
    panel.set_xlabel("eps_w; dots: mean, bars: all seeds")
    panel.set_xticks(range(len(CLIPS)), [f"{clip:g}" for clip in CLIPS])
    panel.axhline(0, color="#888888", linewidth=0.8)
    rlsd.name_ends(panel, ends)
    grows = bool((np.diff(means, axis=0) > 0).all())
    text = f"lam {schedule}: in the mean, the more noise,\nthe more {what}, at every eps_w"
    study.claim(panel, text, grows, f"lam {schedule}: {what}")


def draw_controls(panel, lines: list[dict]) -> None:
    """Gain and leak at one noise and eps_w 1, a row per method; bars: all seeds."""
    names = [
        *(name for name in CONTROLS if name != "unsigned, held"),
        *(name for name in RLSD if "eps_w 1," in name),
    ]
    for row, name in enumerate(names):
        for of, colour, shift in ((gain, "black", -0.1), (leak, "#56B4E9", 0.1)):
            values = of(lines, name, CONTROLLED)
            panel.hlines(row + shift, values.min(), values.max(), color=colour, linewidth=1)
            panel.plot(values.mean(), row + shift, "o", color=colour)
    panel.axvline(0, color="#888888", linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel("gain over RLVR (black), leakage (blue); bars: all seeds")
    panel.set_xlim(None, 1.03)
    leaky = {name for name in names if leak(lines, name, CONTROLLED).mean() > study.LEAKS}
    text = f"Noise {CONTROLLED}: highest leakage is above 0.1 in\n"
    text += "the mean only for RLSD and balanced, held"
    holds = leaky == {"RLSD, eps_w 1, held", "balanced, held"}
    study.claim(panel, text, holds, f"Noise {CONTROLLED}: the controls")


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("drift", flags, plan(flags))
    study.say(table(lines))
    figure, axes = study.panels(1, 1 if flags.quick else 3, height=4.4)
    *doses, controls = axes[0]
    draw_controls(controls, lines)
    if doses:
        left, right = doses
        draw_doses(left, lines, gain, "falling", "gain")
        left.set_ylabel("gain over RLVR, mean over the run")
        draw_doses(right, lines, leak, "held", "leakage")
        right.set_ylabel("highest leakage of the run (share)")
    study.finish(figure, "drift", flags)


if __name__ == "__main__":
    study.command(main)
