"""The gain and the leak are one term: RLSD distils in the mean, whatever the reward says.

    python -m plots.drift [--quick]       runs/drift.jsonl and drift.png under --out

By the README's proposition, a token that all of a group share gets no push from RLVR, nor from an unsigned weight, but
lam sqrt(p (1 - p)) (w+ - w-) from Eq 15. Here: dose (verifier noise, eps_w, lambda) and response (accuracy over the
run, leakage); a control, RLVR + a decaying OPSD term; and two cures. plots.push measures the push itself.
"""

import numpy as np

import rlsd
from plots import study, variants

NOISES, CLIPS = (0.0, 0.3, 0.4, 0.5), (0.2, 1.0, 4.0)
COLOURS = {0.0: "#0072B2", 0.3: "#009E73", 0.4: "#D55E00", 0.5: "#000000"}
SCHEDULES = {"constant": 0, "falling": 60}
OTHERS = {"RLVR + OPSD, falling": (variants.plain_sum, 60), "unsigned, constant": (variants.unsigned, 0),
          "balanced, constant": (variants.balanced, 0), "balanced, falling": (variants.balanced, 60)}


def plan(flags) -> list[tuple]:
    """All runs; --quick is one seed, one noise, one clip, two of the others, and half of the steps."""
    runs, steps = [], flags.steps // (2 if flags.quick else 1)
    for seed in range(1 if flags.quick else flags.seeds):
        for noise in (0.4,) if flags.quick else NOISES:
            settings = {"seed": seed, "digits": flags.digits, "steps": steps, "evaluate_every": 20, "verifier_noise": noise}
            runs.append((f"RLVR, noise {noise}", rlsd.Config(mode="rlvr", **settings), rlsd.method_loss))
            for schedule, decay in SCHEDULES.items():
                for eps_w in (1.0,) if flags.quick else CLIPS:
                    config = rlsd.Config(mode="rlsd", eps_w=eps_w, lam=1.0, lam_decay=decay, **settings)
                    runs.append((f"RLSD, eps_w {eps_w}, {schedule}, noise {noise}", config, rlsd.method_loss))
            for name, (method, decay) in list(OTHERS.items())[:2 if flags.quick else None]:
                config = rlsd.Config(mode="rlsd", eps_w=1.0, lam=1.0, lam_decay=decay, **settings)
                runs.append((f"{name}, noise {noise}", config, method))
    return runs


def gain_and_leak(lines: list[dict], label: str, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each seed: mean accuracy over the run above RLVR's at the same noise, and the highest leakage."""
    label, rlvr = f"{label}, noise {noise}", study.curves(lines, "accuracy", f"RLVR, noise {noise}").mean(1)
    return study.curves(lines, "accuracy", label).mean(1) - rlvr, study.curves(lines, "leakage", label).max(1)


def table(lines: list[dict]) -> list[str]:
    """The README's rows: gain and leakage, means over seeds, a column a noise."""
    labels = dict.fromkeys(line["label"].rpartition(", noise ")[0] for line in lines)
    noises = sorted({line["config"]["verifier_noise"] for line in lines})
    return [f"| {label} | " + " | ".join("{:+.3f}; {:.3f}".format(*(values.mean() for values in gain_and_leak(lines, label, noise)))
                                         for noise in noises) + " |" for label in labels if label != "RLVR"]


def doses(axes, lines: list[dict]) -> None:
    """Gain and leakage against eps_w, a colour a noise; solid where lambda falls."""
    ends = {}, {}
    for noise in NOISES:
        for schedule, style in (("constant", "--"), ("falling", "-")):
            both = [gain_and_leak(lines, f"RLSD, eps_w {eps_w}, {schedule}", noise) for eps_w in CLIPS]
            across = [clip * (0.94 + 0.04 * NOISES.index(noise)) for clip in CLIPS]  # side by side, or the bars would hide each other
            for which, panel in enumerate(axes):
                values = np.array([pair[which] for pair in both])
                panel.plot(across, values.mean(1), style, marker="o", color=COLOURS[noise])
                panel.vlines(across, values.min(1), values.max(1), color=COLOURS[noise], linewidth=0.8, linestyle=style)
                if schedule == ("falling", "constant")[which]:
                    ends[which][f"noise {noise:g}"] = across[-1], values[-1].mean()
    for panel, where, text in zip(axes, ends, ("gain over RLVR, mean accuracy over the run", "highest leakage of the run (share)")):
        panel.set(xscale="log", xlabel="eps_w, the weights' clip (log scale)", ylabel=text)
        panel.set_xticks(CLIPS, [f"{clip:g}" for clip in CLIPS])
        panel.minorticks_off()
        rlsd.write_names(panel, where, {name: name for name in where}, {name: COLOURS[float(name.split()[1])] for name in where})
    axes[0].axhline(0, color="#888888", linewidth=0.8)
    gained = [gain_and_leak(lines, f"RLSD, eps_w {CLIPS[-1]}, falling", noise)[0].mean() for noise in (NOISES[0], NOISES[-1])]
    leaked = [gain_and_leak(lines, f"RLSD, eps_w {CLIPS[-1]}, {schedule}", NOISES[-1])[1].mean() for schedule in ("constant", "falling")]
    axes[0].set_title(f"Gain {gained[0]:+.2f} at noise 0, {gained[1]:+.2f} at {NOISES[-1]:g} (solid: lam falls)", loc="left", fontsize=11)
    axes[1].set_title(f"Leak at noise {NOISES[-1]:g}: {leaked[0]:.2f}, {leaked[1]:.2f} if lam falls (solid)", loc="left", fontsize=11)


def cures(panel, lines: list[dict], noise: float = 0.4) -> None:
    """Gain against leakage of RLSD, the control and the cures, at one noise."""
    shown, where = {f"RLSD, {schedule}": f"RLSD, eps_w 1.0, {schedule}" for schedule in SCHEDULES} | {name: name for name in OTHERS}, {}
    for name, label in shown.items():
        if any(line["label"] == f"{label}, noise {noise}" for line in lines):
            gain, leak = gain_and_leak(lines, label, noise)
            where[name] = leak.mean(), gain.mean()
            panel.plot(leak, gain, "o", markersize=3, color="#888888")
            panel.plot(leak.mean(), gain.mean(), "o", color="#D55E00" if "RLSD" in name else "#0072B2")
    panel.set(xlabel="highest leakage of the run (share)", ylabel="gain over RLVR", xlim=(-0.02, 1))
    rlsd.write_names(panel, where, {name: name for name in where}, {name: "#D55E00" if "RLSD" in name else "#0072B2" for name in where})
    panel.set_title(f"Controls and cures, noise {noise}, eps_w 1 (grey: a seed)", loc="left", fontsize=11)


def main() -> None:
    flags = study.arguments(__doc__, seeds=5)
    lines = study.run_all("drift", flags, plan(flags))
    print("gain over RLVR in mean accuracy over the run; highest leakage; a column a noise")
    print("\n".join(table(lines)))
    figure, axes = study.panels(1, 1 if flags.quick else 3, height=4.4)
    cures(axes[0, -1], lines)
    if not flags.quick:
        doses(axes[0, :2], lines)
    study.finish(figure, flags.out / "drift.png", flags.out / "runs" / "drift.jsonl")


if __name__ == "__main__":
    study.command(main)
