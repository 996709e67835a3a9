"""Does it matter which way the teacher pushes? Towards what the key makes likely, or away from it.

    python -m plots.sign [--quick]        runs/sign.jsonl and sign.png under --out

Towards: RLSD. Away: the ratio is reversed, exp(-sign(A) Delta_t). Away when right: reversed on
accepted responses only; on the others the weight is 1. eps_w and lam are 1, held.
"""

import argparse

import rlsd
from plots import compare, study, variants

METHODS = {  # mode, method, colour
    "RLVR": ("rlvr", rlsd.method_loss, compare.COLOURS["rlvr"]),
    "towards (RLSD)": ("rlsd", rlsd.method_loss, compare.COLOURS["rlsd"]),
    "away": ("rlsd", variants.away, "#E69F00"),
    "away when accepted": ("rlsd", variants.away_when_accepted, "#CC79A7"),
}
COLOURS = {name: colour for name, (_, _, colour) in METHODS.items()}
VERIFIERS = {
    "exact": {},
    "false negatives 0.5": {"false_negatives": 0.5},
    "noise 0.4": study.error_rates(0.4),
}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is noise 0.4, one seed, and half of the steps."""
    runs = []
    for seed in study.seeds_of(flags):
        for verifier, errors in VERIFIERS.items():
            if flags.quick and verifier != "noise 0.4":
                continue
            for name, (mode, method, _) in METHODS.items():
                config = study.config_of(flags, seed, mode=mode, **study.HELD_AT_1, **errors)
                runs.append((f"{verifier}: {name}", config, method))
    return runs


def table(lines: list[dict]) -> list[str]:
    return study.watched_table(lines, list(VERIFIERS), ("verifier", "the teacher's push"))


def entitle(panel, lines: list[dict], verifier: str) -> None:
    """What is found in the upper panel, if it holds of every seed."""
    start = study.curves(lines, "accuracy", f"{verifier}: RLVR")[:, 0]
    ends = {name: study.ends(lines, f"{verifier}: {name}") for name in METHODS}
    sinks = [name for name in METHODS if (ends[name] < start).all()]
    label = f"Verifier: {verifier}"
    if sinks:
        text = f"{label}. Below the base at the end, of {len(start)} seeds:\n"
        counts = [f"{name} {(values < start).sum()}" for name, values in ends.items()]
        study.title(panel, text + ", ".join(counts))
        return
    text = f"{label}. Pushed away on all responses,\n"
    text += "every seed ends below RLVR's; the others end level"
    level = all(
        abs(ends[name].mean() - ends["RLVR"].mean()) < 0.01 for name in METHODS if name != "away"
    )
    study.claim(panel, text, level and bool((ends["away"] < ends["RLVR"]).all()), label)


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("sign", flags, plan(flags), study.watched_run)
    study.say(table(lines))
    verifiers = [name for name in VERIFIERS if f"{name}: RLVR" in study.labels_of(lines)]
    figure, axes = study.panels(2, len(verifiers), width=5.6)
    for (upper, lower), verifier in zip(axes.T, verifiers):
        names = {f"{verifier}: {name}": name for name in METHODS}
        colours = {label: COLOURS[name] for label, name in names.items()}
        study.draw_runs(upper, lines, "accuracy", names, colours)
        study.draw_runs(lower, lines, "leakage", names, colours)
        entitle(upper, lines, verifier)
        leaks = {name: study.leaks(lines, f"{verifier}: {name}") for name in METHODS}
        away = max(leaks["away"].max(), leaks["away when accepted"].max())
        count = (leaks["towards (RLSD)"] > study.LEAKS).sum()
        study.claim(
            lower,
            f"{verifier[0].upper()}{verifier[1:]}. Pushed towards the key, {count} of "
            f"{len(leaks['away'])} seeds\nleak; pushed away, none does",
            away < study.LEAKS,
            f"Verifier: {verifier}",
        )
    study.finish(figure, "sign", flags)


if __name__ == "__main__":
    study.command(main)
