"""More steps: does RLSD's schedule turn it off, and who is still rising?

    python -m plots.baselines [--quick]        runs/baselines.jsonl and baselines.png under --out

Three times the steps. With an exact verifier: RLVR, RLSD, CEPO, RLSD with lam held at its first
value, and RLVR + OPSD, the two losses added. With noise 0.4: RLVR, and two methods that are ahead
of it there.
"""

import argparse

import rlsd
from plots import compare, study, variants

TIMES = 3  # --steps
EXACT = {
    compare.NAMES[mode]: ({"mode": mode}, rlsd.method_loss) for mode in ("rlvr", "rlsd", "cepo")
}
EXACT["RLSD, lam held"] = {"mode": "rlsd", "lam_decay": 0}, rlsd.method_loss
EXACT["RLVR + OPSD, held"] = {"mode": "rlsd", "lam": 1.0, "lam_decay": 0}, variants.plain_sum
NOISY = {
    "RLVR": ({"mode": "rlvr"}, rlsd.method_loss),
    "CEPO, held": ({"mode": "cepo", **study.HELD_AT_1}, rlsd.method_loss),
    "RLVR + OPSD, falling": ({"mode": "rlsd", "lam": 1.0, "lam_decay": 50}, variants.plain_sum),
}
VERIFIERS = {"exact": ({}, EXACT), "noise 0.4": (study.error_rates(0.4), NOISY)}
COLOURS = {compare.NAMES[mode]: compare.COLOURS[mode] for mode in ("rlvr", "rlsd", "cepo")}
COLOURS |= {"RLSD, lam held": "#E69F00", "CEPO, held": COLOURS["CEPO"]}
COLOURS |= {"RLVR + OPSD, held": "#117733", "RLVR + OPSD, falling": "#009E73"}
DRAWN = {
    "exact": ("RLVR", "RLSD", "RLSD, lam held", "RLVR + OPSD, held"),
    "noise 0.4": tuple(NOISY),
}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, noise 0.4, and half of the steps."""
    steps, runs = study.steps_of(flags), []
    length = {"steps": TIMES * steps, "evaluate_every": min(20, steps)}
    for seed in study.seeds_of(flags):
        for verifier, (errors, methods) in VERIFIERS.items():
            if flags.quick and verifier == "exact":
                continue
            for name, (settings, method) in methods.items():
                config = study.config_of(flags, seed, **length, **errors, **settings)
                runs.append((f"{verifier}: {name}", config, method))
    return runs


def after(lines: list[dict], label: str, share: int):
    """The accuracy after `share` of TIMES parts of the steps. (seeds,)"""
    steps = list(study.steps(lines, label))
    return study.curves(lines, "accuracy", label)[:, steps.index(steps[-1] * share // TIMES)]


def table(lines: list[dict]) -> list[str]:
    rows = []
    for label in study.labels_of(lines):
        accuracy = [compare.spread(after(lines, label, n + 1)) for n in range(TIMES)]
        leak = compare.spread(study.leaks(lines, label))
        rows.append((*label.split(": "), *accuracy, leak))
    last = lines[0]["step"][-1]
    parts = [f"after {last * (n + 1) // TIMES} steps" for n in range(TIMES)]
    return study.markdown(("verifier", "method", *parts, "highest leakage"), rows)


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("baselines", flags, plan(flags))
    study.say(table(lines))
    verifiers = [name for name in VERIFIERS if f"{name}: RLVR" in study.labels_of(lines)]
    figure, axes = study.panels(1, len(verifiers), width=6.4)
    for panel, verifier in zip(axes[0], verifiers):
        names = {f"{verifier}: {name}": name for name in DRAWN[verifier]}
        colours = {label: COLOURS[name] for label, name in names.items()}
        study.draw_runs(panel, lines, "accuracy", names, colours)
        if verifier == "exact":
            others = ("RLSD", "RLSD, lam held")
            rlvr = study.ends(lines, "exact: RLVR")
            gaps = [abs(study.ends(lines, f"exact: {name}") - rlvr).max() for name in others]
            both = study.ends(lines, "exact: RLVR + OPSD, held")
            text = "Exact verifier: all seeds of both RLSDs end within 0.01\n"
            text += f"of RLVR; RLVR + OPSD, held, collapses on {(both < 0.5).sum()} of {len(both)}"
            study.claim(panel, text, max(gaps) <= 0.01, "Verifier: exact")
        else:
            leads = []
            for name in ("CEPO, held", "RLVR + OPSD, falling"):
                for n in (1, TIMES):
                    rlvr = after(lines, "noise 0.4: RLVR", n)
                    leads.append((after(lines, f"noise 0.4: {name}", n) - rlvr).mean())
            holds = min(leads[0], leads[2]) > 0.03 and max(abs(leads[1]), abs(leads[3])) <= 0.01
            text = "Noise 0.4: after 160 steps two are ahead of RLVR,\n"
            text += "after 480 both are within 0.01 of it in the mean"
            study.claim(panel, text, holds, "Verifier: noise 0.4")
    study.finish(figure, "baselines", flags)


if __name__ == "__main__":
    study.command(main)
