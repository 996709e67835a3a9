"""CEPO's contrast cures the leak and keeps the gain; and the habit that it does not cancel.

    python -m plots.contrast [--quick]        runs/contrast.jsonl and contrast.png under --out

A verifier that errs, and a key that does; eps_w 1, lam 1, held but for "RLSD, falling", whose lam is 0 after 50 steps.

The README's proposition says why: a token that is equally likely with both keys, such as "I copy the key", has
Delta_t = 0 under CEPO, and no push in the mean over a group; under RLSD it has one.

Its limit is a habit that depends on which key is open, and is likelier with a right key than with a wrong one: Choosy.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

import rlsd
from plots import compare, pool, study, variants
from tiny_tasks import SEE_KEY, Carry


class Choosy(Carry):
    """Carry, but with the key open only a key that fits the problem is cited, twice as often.

    A large model can see whether a key fits. This one cannot before it has done the sum, so the prompt says it: a key
    that fits is written [4 3 8 0=, another one [4 3 8 0].
    """

    name = "carry-choosy"

    def __init__(self, digits, slip, cite):
        super().__init__(digits, slip, cite=0.0)
        self.fitting_cite = min(1.0, 2 * cite)

    def prompt(self, problem, key=None):
        text = super().prompt(problem, key)
        return text.replace("]", "=") if key == self.reference(problem) else text

    def working(self, problem, rng, homework, key_open):
        text, key = super().working(problem, rng, homework, key_open)
        fits = homework and key_open and key == self.reference(problem)
        return (SEE_KEY + text[text.index("="):] if fits and rng.random() < self.fitting_cite else text), key


@dataclass(frozen=True)
class ChoosyConfig(rlsd.Config):
    """Config of that task, which rlsd.py itself does not know."""

    task: str = rlsd.setting(Choosy.name, "the arithmetic", Choosy.name)

    def make_task(self) -> Choosy:
        return Choosy(self.digits, self.slip, self.cite)


METHODS = {"RLVR": ("rlvr", rlsd.method_loss, 0), "RLSD": ("rlsd", rlsd.method_loss, 0),
           "RLSD, wrong only": ("rlsd", variants.negative_only, 0), "RLSD, falling": ("rlsd", rlsd.method_loss, 50),
           "CEPO": ("cepo", rlsd.method_loss, 0)}
COLOURS = {"RLSD, wrong only": "#E69F00", "RLSD, falling": "#56B4E9"} | {
    name: compare.COLOURS[mode] for name, (mode, _, _) in METHODS.items() if name == compare.NAMES[mode]}
TOLD = {"rlvr": "RLVR", "rlsd": "RLSD", "cepo": "CEPO"}  # in the titles
WORLDS = {"verifier noise": (rlsd.Config, "verifier_noise", {0.0: METHODS, 0.3: METHODS, 0.4: METHODS, 0.5: METHODS}),
          "key noise": (rlsd.Config, "key_noise", {0.2: METHODS, 0.4: METHODS}),
          "choosy cite, noise": (ChoosyConfig, "verifier_noise", dict.fromkeys((0.4, 0.5), TOLD.values()))}


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, a verifier noise of 0.4, half of the steps and the three methods of the titles."""
    runs, seeds, steps = [], range(1 if flags.quick else flags.seeds), flags.steps
    for seed, (world, (make, setting, amounts)) in product(seeds, WORLDS.items()):
        for amount, name in [(amount, name) for amount, names in amounts.items() for name in names]:
            mode, method, decay = METHODS[name]
            if flags.quick and ((setting, amount) != ("verifier_noise", 0.4) or name not in TOLD.values()):
                continue
            config = make(mode=mode, seed=seed, digits=flags.digits, steps=-(-steps // 2) if flags.quick else steps,
                          evaluate_every=20, eps_w=1.0, lam=1.0, lam_decay=decay, **{setting: amount})
            runs.append((f"{world} {amount:g}: {name}", config, method))
    return runs


def table(lines: list[dict]) -> list[str]:
    """Mean (lowest to highest) over seeds."""
    rows = [(*label.split(": "), *(compare.spread(of(lines, label)) for of in (study.ends, study.means, study.leaks)))
            for label in dict.fromkeys(line["label"] for line in lines)]
    head = "world", "method", "accuracy at the end", "mean over the run", "leakage, highest"
    return study.markdown(head, sorted(rows, key=lambda row: [*WORLDS].index(row[0].rpartition(" ")[0])))


def draw(panel, lines: list[dict], world: str, of: Callable, short: str, quantity: str) -> None:
    """One quantity against the noise, one colour per method; bars from the lowest seed to the highest."""
    labels, where = {line["label"] for line in lines}, {}
    amounts = [amount for amount in WORLDS[world][2] if any(f"{world} {amount:g}: " in label for label in labels)]
    for shift, name in enumerate(METHODS):  # or the bars would hide each other
        seen = {n + 0.06 * (shift - 2): of(lines, label) for n, amount in enumerate(amounts)
                if (label := f"{world} {amount:g}: {name}") in labels}
        if seen:
            mean = [values.mean() for values in seen.values()]
            panel.plot([*seen], mean, "-o", color=COLOURS[name], markersize=5)
            panel.vlines([*seen], *([ends(values) for values in seen.values()] for ends in (np.min, np.max)),
                         color=COLOURS[name], linewidth=1)
            where[name] = len(amounts) - 0.88, mean[-1]  # right of all bars
            panel.plot(([*seen][-1], where[name][0]), (mean[-1], mean[-1]), color=COLOURS[name], linewidth=1)
    panel.set(xlim=(-0.2, len(amounts) - 0.8), ylim=compare.SHARE, xlabel=f"{world}; bars: all seeds", ylabel=quantity)
    panel.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
    compare.write_names(panel, where, {name: name for name in where}, COLOURS)
    told = [amount for amount in amounts if f"{world} {amount:g}: RLVR" in labels][-1]
    values = {mode: of(lines, f"{world} {told:g}: {name}").mean() for mode, name in TOLD.items()}
    panel.set_title(f"{short}, {world} {told:g}: {compare.say(values, '.2f')}", loc="left", fontsize=10)


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("contrast", flags, plan(flags))
    pool.say("\n".join(table(lines)))
    worlds = [world for world in WORLDS if any(line["label"].startswith(world) for line in lines)]
    figure, axes = study.panels(2, len(worlds), width=6.4)
    rows = ((study.ends, "Right", "right answers at the end (share)"),
            (study.leaks, "Leak", "highest leakage of the run (share)"))
    for panels, shown in zip(axes, rows):
        for panel, world in zip(panels, worlds):
            draw(panel, lines, world, *shown)
    study.finish(figure, flags.out / "contrast.png", study.log_of("contrast", flags))


if __name__ == "__main__":
    study.command(main)
