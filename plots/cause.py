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


def draw(panel, lines: list[dict], verifier: str, of, ylabel: str) -> dict:
    """A column of dots per method, a dot per seed. Returns method -> (seeds,)."""
    columns = {name: of(lines, f"{verifier}: {name}") for name in METHODS}
    study.draw_dots(panel, columns, COLOURS)
    panel.set_xticks(range(len(columns)), columns)
    panel.set(ylabel=ylabel, ylim=rlsd.SHARE)
    return columns


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("cause", flags, plan(flags), study.watched_run)
    study.say(table(lines))
    verifiers = [name for name in VERIFIERS if f"{name}: RLSD" in study.labels_of(lines)]
    figure, axes = study.panels(2, len(verifiers))
    for (upper, lower), verifier in zip(axes.T, verifiers):
        draw(upper, lines, verifier, study.ends, "right answers at the end (share)")
        leaks = draw(lower, lines, verifier, study.leaks, "highest leakage of a run (share)")
        study.title(upper, f"Verifier: {verifier}")
        counts = [f"{name} {(values > study.LEAKS).sum()}" for name, values in leaks.items()]
        study.title(lower, f"Seeds that leak, of {len(leaks['RLSD'])}:\n{', '.join(counts)}")
    study.finish(figure, "cause", flags)


if __name__ == "__main__":
    study.command(main)
