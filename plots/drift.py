"""RLSD's gain and its leak have one source: its weights distil in the mean, whatever the reward says.

    python -m plots.drift [--quick]        runs/drift.jsonl and drift.png under --out

In the mean over a group, RLVR does not push a token that all share; Eq 15 does, by lam sqrt(p (1 - p)) (w+ - w-) (the
README's proposition). Measured: the dose (the verifier's noise, eps_w, lam of 1 held or falling to 0 in 50 steps)
against accuracy and leakage; and controls at noise 0.4, eps_w 1: RLVR + a falling OPSD term, a weight without the sign,
and one balanced so that no position gets a push in the mean. plots.push measures the push itself.
"""

import argparse
from itertools import product

import numpy as np

import rlsd
from plots import compare, pool, study, variants

NOISES, CLIPS, SCHEDULES, CONTROLLED = (0.0, 0.3, 0.4, 0.5), (0.2, 1.0, 4.0), {"held": 0, "falling": 50}, 0.4
RLSD = {f"RLSD, eps_w {eps_w:g}, {schedule}": (rlsd.method_loss, {"eps_w": eps_w, "lam_decay": decay})
        for (schedule, decay), eps_w in product(SCHEDULES.items(), CLIPS)}
CONTROLS = {f"{name}, {schedule}": (method, {"lam_decay": SCHEDULES[schedule]}) for name, method, schedule in (
    ("RLVR + OPSD", variants.plain_sum, "falling"), ("unsigned", variants.unsigned, "held"),
    ("balanced", variants.balanced, "held"), ("balanced", variants.balanced, "falling"))}
METHODS = {"RLVR": (rlsd.method_loss, {"mode": "rlvr"}), **RLSD, **CONTROLS}
COLOURS = dict(zip(NOISES, ("#0072B2", "#009E73", "#D55E00", "#000000")))


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, one noise, one eps_w and half of the steps."""
    runs, noises, seeds, steps = [], NOISES, range(flags.seeds), flags.steps
    if flags.quick:
        noises, seeds, steps = (CONTROLLED,), range(1), -(-steps // 2)
    for seed, noise, (name, (method, settings)) in product(seeds, noises, METHODS.items()):
        settings = {"eps_w": 1.0, "lam": 1.0, **settings}
        if (name in CONTROLS and noise != CONTROLLED) or (flags.quick and settings["eps_w"] != 1):
            continue
        config = rlsd.Config(seed=seed, digits=flags.digits, steps=steps, evaluate_every=20, verifier_noise=noise,
                             **settings)
        runs.append((f"{name}, noise {noise:g}", config, method))
    return runs


def seen(lines: list[dict], name: str, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per seed: gain, accuracy at the end, highest leakage. Gain: in mean over the run, on RLVR; RLVR's on the base."""
    label, rlvr = (f"{method}, noise {noise:g}" for method in (name, "RLVR"))
    below = study.curves(lines, "accuracy", rlvr)[:, 0] if name == "RLVR" else study.means(lines, rlvr)
    return study.means(lines, label) - below, study.ends(lines, label), study.leaks(lines, label)


def table(lines: list[dict]) -> list[str]:
    """Means over seeds; one column per noise."""
    labels, rows = {line["label"] for line in lines}, []
    noises = study.noises(lines)
    for name in METHODS:
        cells = ["{:+.3f}; {:.3f}; {:.3f}".format(*(values.mean() for values in seen(lines, name, noise)))
                 if f"{name}, noise {noise:g}" in labels else "" for noise in noises]
        if any(cells):
            rows.append((f"{name} (gain over the base)" if name == "RLVR" else name, *cells))
    return study.markdown(("gain over RLVR; end; leak", *(f"noise {noise:g}" for noise in noises)), rows)


def draw_doses(panels, lines: list[dict]) -> None:
    """Gain and highest leakage against eps_w, one colour per noise; dashed where lam is held. Bars: all seeds."""
    named = "falling", "held"  # whose ends have the names
    texts = "gain over RLVR, accuracy in the mean over the run", "highest leakage of the run (share)"
    for panel, which, ending, text in zip(panels, (0, 2), named, texts):
        where = {}
        for noise, (schedule, style) in product(NOISES, zip(SCHEDULES, ("--", "-"))):
            values = np.array([seen(lines, f"RLSD, eps_w {eps_w:g}, {schedule}", noise)[which] for eps_w in CLIPS])
            across = np.arange(len(CLIPS)) + 0.04 * NOISES.index(noise)  # or the bars would hide each other
            panel.plot(across, values.mean(1), style, marker="o", color=COLOURS[noise])
            panel.vlines(across, values.min(1), values.max(1), color=COLOURS[noise], linewidth=0.8, linestyle=style)
            if schedule == ending:
                where[noise] = across[-1], values[-1].mean()
        panel.set(xlabel="eps_w, the weights' clip (dashed: lam held)", ylabel=text)
        panel.set_xticks(range(len(CLIPS)), [f"{clip:g}" for clip in CLIPS])
        panel.axhline(0, color="#888888", linewidth=0.8)
        compare.write_names(panel, where, {noise: f"noise {noise:g}" for noise in NOISES}, COLOURS)
        told = (f"{noise:g}: {where[noise][1]:+.2f}" for noise in (NOISES[0], NOISES[-1]))
        panel.set_title(f"{'Gain' if which == 0 else 'Leak'}, lam {ending}, eps_w 4, at noise {', '.join(told)}",
                        loc="left", fontsize=11)


def draw_controls(panel, lines: list[dict]) -> None:
    """Gain and highest leakage at one noise and eps_w 1, one row per method; bars: all seeds."""
    names = [*CONTROLS, *(name for name in RLSD if "eps_w 1," in name)]
    for row, name in enumerate(names):
        gain, _, leak = seen(lines, name, CONTROLLED)
        for values, colour, shift in ((gain, "#0072B2", -0.1), (leak, "#D55E00", 0.1)):
            panel.hlines(row + shift, values.min(), values.max(), color=colour, linewidth=1)
            panel.plot(values.mean(), row + shift, "o", color=colour)
    panel.axvline(0, color="#888888", linewidth=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlabel=f"noise {CONTROLLED}: gain over RLVR (blue), highest leakage (red)", xlim=(None, 1.03))
    held = {short: seen(lines, name, CONTROLLED)[2].mean() for short, name in (
        ("RLSD", "RLSD, eps_w 1, held"), ("balanced", "balanced, held"), ("unsigned", "unsigned, held"))}
    told = ", ".join(f"{short} {leak:.2f}" for short, leak in held.items())
    panel.set_title(f"Leak, held: {told}", loc="left", fontsize=10)


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("drift", flags, plan(flags))
    pool.say("\n".join(table(lines)))
    figure, ((*doses, controls),) = study.panels(1, 1 if flags.quick else 3, height=4.4)
    draw_controls(controls, lines)
    draw_doses(doses, lines)
    study.finish(figure, flags.out / "drift.png", study.log_of("drift", flags))


if __name__ == "__main__":
    study.command(main)
