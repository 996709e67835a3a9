"""Which push of RLSD makes it leak: that on a sampled cite, or that on the tokens around it?

    python -m plots.cause [--quick]        runs/cause.jsonl and cause.png under --out

Held at 1, RLSD differs from RLVR in two ways that could start a leak. A sampled <see key> has a
weight of its own: it is praised more and blamed less. And where the teacher would rather cite, the
other tokens weigh more when they are blamed than when they are praised, so that they sink. Each is
taken away alone, and then both ("neither push"). "Plain cites" gives a sampled <see key> the weight
1, as under RLVR; "balanced" divides the weights at each position by their mean over the responses
of the same sign.
"""

import argparse

import rlsd
from plots import study, variants

METHODS = {
    "RLSD": rlsd.method_loss,
    "plain cites": variants.plain_cites,
    "balanced": variants.balanced,
    "neither push": variants.balanced_plain_cites,
}
COLOURS = dict(zip(METHODS, ("#000000", "#882255", "#117733", "#999999")))
VERIFIERS = {  # settings
    "noise 0.4": study.error_rates(0.4),
    "false negatives 0.5": {"false_negatives": 0.5, "steps": 480, "evaluate_every": 40},
}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, noise 0.4, and half of the steps."""
    runs = []
    for seed in study.seeds_of(flags):
        for verifier, errors in VERIFIERS.items():
            if flags.quick and "steps" in errors:
                continue
            for name, method in METHODS.items():
                settings = {"mode": "rlsd", **study.HELD_AT_1, **errors}
                config = study.config_of(flags, seed, **settings)
                runs.append((f"{verifier}: {name}", config, method))
    return runs


def table(lines: list[dict]) -> list[str]:
    return study.watched_table(lines, list(VERIFIERS), ("verifier", "method"))


TOLD = {"plain cites": "plain cites\n(no cite push)", "balanced": "balanced\n(no shared push)"}


def draw(panel, lines: list[dict], verifier: str) -> None:
    """The highest leakage, a column of dots per method."""
    leaks = {name: study.leaks(lines, f"{verifier}: {name}") for name in METHODS}
    study.draw_leaks(panel, leaks, COLOURS)
    panel.set_xticks(range(len(leaks)), [TOLD.get(name, name) for name in leaks])
    highest = {name: values.max() for name, values in leaks.items()}
    label = f"{verifier[0].upper()}{verifier[1:]}"
    cured = [name for name in METHODS if highest[name] <= study.LEAKS]
    if len(cured) == 3:
        study.title(panel, f"{label}: no seed leaks\nif either push is switched off")
    elif cured == ["neither push"]:
        study.title(panel, f"{label}: some seeds leak\nunless both pushes are switched off")
    else:
        study.title(panel, label)


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("cause", flags, plan(flags), study.watched_run)
    study.say(table(lines))
    verifiers = [name for name in VERIFIERS if f"{name}: RLSD" in study.labels_of(lines)]
    figure, axes = study.panels(1, len(verifiers))
    for panel, verifier in zip(axes[0], verifiers):
        draw(panel, lines, verifier)
    study.finish(figure, "cause", flags)


if __name__ == "__main__":
    study.command(main)
