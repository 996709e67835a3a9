"""Does it matter which way the teacher pushes? Towards what the key makes likely, or away from it.

    python -m plots.sign [--quick]        runs/sign.jsonl and sign.png under --out

Towards: RLSD. Away: the ratio is reversed, exp(-sign(A) Delta_t). Away when accepted: reversed
on accepted responses only; on the others the weight is 1. eps_w and lam are 1, held.
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
    """What is found with a verifier, if it holds of every seed."""
    start = study.curves(lines, "accuracy", f"{verifier}: RLVR")[:, 0]
    ends = {name: study.ends(lines, f"{verifier}: {name}") for name in METHODS}
    away, some, rlvr = ends["away"], ends["away when accepted"], ends["RLVR"]
    level = abs(some.mean() - rlvr.mean()) < 0.01
    label = f"{verifier[0].upper()}{verifier[1:]}"
    if max(away.max(), some.max()) < 0.01:
        study.title(panel, f'{label}: both "away" methods\nend at 0 on all seeds')
    elif level and (away < start).all():
        study.title(panel, f"{label}: pushed away on all\nresponses, all seeds end below the base")
    elif level and (away < rlvr).all():
        study.title(panel, f"{label}: pushed away on all responses,\nall seeds end below RLVR")
    else:
        study.title(panel, label)


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("sign", flags, plan(flags), study.watched_run)
    study.say(table(lines))
    verifiers = [name for name in VERIFIERS if f"{name}: RLVR" in study.labels_of(lines)]
    figure, axes = study.panels(1, len(verifiers), width=5.8)
    for panel, verifier in zip(axes[0], verifiers):
        names = {f"{verifier}: {name}": name for name in METHODS}
        colours = {label: COLOURS[name] for label, name in names.items()}
        study.draw_runs(panel, lines, "accuracy", names, colours)
        entitle(panel, lines, verifier)
    study.finish(figure, "sign", flags)


if __name__ == "__main__":
    study.command(main)
