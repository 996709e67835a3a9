"""CEPO's contrast cures the leak and keeps the gain; and the habit that it does not cancel.

    python -m plots.contrast [--quick]        runs/contrast.jsonl and contrast.png under --out

A verifier that errs, and a key that does; eps_w 1, lam 1, held but for "RLSD, falling", whose lam
is 0 after 50 steps.

The proposition in plots/README.md says why. A token that is equally likely with both keys, such as
"I copy the key", has Delta_t = 0 under CEPO, and no push in the mean over a group; under RLSD it
has one.

Its limit is a habit that depends on which key is shown, and is likelier with a right key than with
a wrong one: Choosy.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import rlsd
from plots import compare, study, variants
from tiny_tasks import SEE_KEY, Carry


class Choosy(Carry):
    """Carry, but only a key that fits the problem is cited when it is shown, twice as often.

    A large model can see whether a key fits. This one cannot before it has done the sum, so the
    prompt says it: a key that fits is written [4 3 8 0=, another one [4 3 8 0].
    """

    name = "carry-choosy"

    def __init__(self, digits: int, slip: float, cite: float):
        super().__init__(digits, slip, cite=0.0)
        self.fitting_cite = min(1.0, 2 * cite)

    def prompt(self, problem, key=None):
        text = super().prompt(problem, key)
        return text.replace("]", "=") if key == self.answer_key(problem) else text

    def working(self, problem, rng, homework, key_open):
        text, key = super().working(problem, rng, homework, key_open)
        fits = homework and key_open and key == self.answer_key(problem)
        if fits and rng.random() < self.fitting_cite:
            text = SEE_KEY + text[text.index("=") :]
        return text, key


@dataclass(frozen=True)
class ChoosyConfig(rlsd.Config):
    """The settings of that task, which rlsd.py itself does not know."""

    task: str = rlsd.setting(Choosy.name, "the arithmetic", Choosy.name)

    def make_task(self) -> Choosy:
        return Choosy(self.digits, self.slip, self.cite)


METHODS = {  # mode, method, lam_decay
    "RLVR": ("rlvr", rlsd.method_loss, 0),
    "RLSD": ("rlsd", rlsd.method_loss, 0),
    "RLSD, wrong only": ("rlsd", variants.negative_only, 0),
    "RLSD, falling": ("rlsd", rlsd.method_loss, 50),
    "CEPO": ("cepo", rlsd.method_loss, 0),
}
COLOURS = {"RLSD, wrong only": "#E69F00", "RLSD, falling": "#56B4E9"}
TOLD = ("RLVR", "RLSD", "CEPO")
for mode in ("rlvr", "rlsd", "cepo"):
    COLOURS[compare.NAMES[mode]] = compare.COLOURS[mode]


@dataclass
class World:
    """Runs with one kind of errors, at several amounts of them."""

    config: type[rlsd.Config]
    settings: Callable  # amount -> settings
    amounts: tuple[float, ...]
    methods: tuple[str, ...]


def key_noise(amount: float) -> dict[str, float]:
    return {"key_noise": amount}


WORLDS = {
    "verifier noise": World(rlsd.Config, study.error_rates, (0.0, 0.3, 0.4, 0.5), tuple(METHODS)),
    "key noise": World(rlsd.Config, key_noise, (0.2, 0.4), tuple(METHODS)),
    "choosy cite, noise": World(ChoosyConfig, study.error_rates, (0.4, 0.5), TOLD),
}


def label_of(world: str, amount: float, method: str) -> str:
    return f"{world} {amount:g}: {method}"


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, one noise, half of the steps and three methods."""
    runs = []
    for seed in study.seeds_of(flags):
        if flags.quick:
            runs += plan_world(flags, seed, "verifier noise", (0.4,), TOLD)
            continue
        for name, world in WORLDS.items():
            runs += plan_world(flags, seed, name, world.amounts, world.methods)
    return runs


def plan_world(
    flags: argparse.Namespace, seed: int, name: str, amounts: tuple, methods: tuple
) -> list[tuple]:
    world, runs = WORLDS[name], []
    for amount in amounts:
        for method in methods:
            mode, function, decay = METHODS[method]
            settings = study.HELD_AT_1 | {"mode": mode, "lam_decay": decay}
            settings |= world.settings(amount)
            config = study.config_of(flags, seed, world.config, **settings)
            runs.append((label_of(name, amount, method), config, function))
    return runs


def table(lines: list[dict]) -> list[str]:
    """Mean (lowest to highest) over seeds."""
    rows = []
    for label in study.labels_of(lines):
        shares = study.spreads(lines, label, study.ends, study.means, study.leaks)
        rows.append((*label.split(": "), *shares))
    order = list(WORLDS)
    rows.sort(key=lambda row: order.index(row[0].rpartition(" ")[0]))
    head = ("world", "method", "accuracy at the end", "mean over the run", "leakage, highest")
    return study.markdown(head, rows)


def draw(panel, lines: list[dict], world: str, of: Callable, short: str, quantity: str) -> None:
    """One quantity against the noise, a colour per method; bars from lowest to highest seed."""
    labels = study.labels_of(lines)
    amounts = []
    for amount in WORLDS[world].amounts:
        if label_of(world, amount, "RLVR") in labels:
            amounts.append(amount)
    panel.set(xlim=(-0.2, len(amounts) - 0.8), ylim=rlsd.SHARE)
    panel.set(xlabel=f"{world}; bars: all seeds", ylabel=quantity)
    panel.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])

    ends = []
    for shift, method in enumerate(METHODS):
        if label_of(world, amounts[0], method) not in labels:
            continue
        values = [of(lines, label_of(world, amount, method)) for amount in amounts]
        x = np.arange(len(amounts)) + 0.06 * (shift - 2)  # or the bars would hide each other
        mean = [seeds.mean() for seeds in values]
        low, high = [seeds.min() for seeds in values], [seeds.max() for seeds in values]
        end = len(amounts) - 0.88  # right of all bars
        panel.plot(x, mean, "-o", color=COLOURS[method], markersize=5)
        panel.plot((x[-1], end), (mean[-1], mean[-1]), color=COLOURS[method], linewidth=1)
        panel.vlines(x, low, high, color=COLOURS[method], linewidth=1)
        ends.append((method, COLOURS[method], end, mean[-1]))
    rlsd.name_ends(panel, ends)

    study.title(panel, f"{short}, against the error rate")


def main() -> None:
    flags = study.arguments(__doc__)
    lines = study.run_all("contrast", flags, plan(flags))
    study.say(table(lines))
    worlds = ["verifier noise"] if flags.quick else list(WORLDS)
    figure, axes = study.panels(2, len(worlds), width=6.4)
    for (upper, lower), world in zip(axes.T, worlds):
        draw(upper, lines, world, study.ends, "Right answers", "right answers at the end (share)")
        draw(lower, lines, world, study.leaks, "Leakage", "highest leakage of the run (share)")
    study.finish(figure, "contrast", flags)


if __name__ == "__main__":
    study.command(main)
