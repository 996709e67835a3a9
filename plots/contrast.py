"""What CEPO's contrast cancels, what it keeps, and where it fails.

    python -m plots.contrast [--quick]        runs/contrast.jsonl and contrast.png under --out

Four worlds: a verifier that errs; a key that errs, by which the verifier grades; a verifier that
errs while cites are planted rarely or not at all; and one in which the cite depends on the key that
is shown (Choosy). eps_w and lam are 1 and held; under "falling", lam is 0 after 50 steps.

CEPO chooses the wrong key as its authors' release does: any rejected answer, which under a noisy
verifier may be the right one. "CEPO, filtered" leaves out answers that equal the key. "RLVR,
regraded" grades with the key itself instead of asking the verifier.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

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


METHODS = {  # settings and method
    "RLVR": ({"mode": "rlvr"}, rlsd.method_loss),
    "RLVR, regraded": ({"mode": "rlsd"}, variants.regraded),
    "RLVR + OPSD": ({"mode": "rlsd"}, variants.plain_sum),
    "RLVR + OPSD, falling": ({"mode": "rlsd", "lam_decay": 50}, variants.plain_sum),
    "RLSD": ({"mode": "rlsd"}, rlsd.method_loss),
    "RLSD, wrong only": ({"mode": "rlsd"}, variants.negative_only),
    "RLSD, falling": ({"mode": "rlsd", "lam_decay": 50}, rlsd.method_loss),
    "CEPO": ({"mode": "cepo"}, rlsd.method_loss),
    "CEPO, filtered": ({"mode": "cepo"}, rlsd.method_loss),
}
COLOURS = {
    "RLVR, regraded": "#56B4E9",
    "RLVR + OPSD": "#117733",
    "RLVR + OPSD, falling": "#009E73",
    "RLSD, wrong only": "#E69F00",
    "RLSD, falling": "#999999",
    "CEPO, filtered": "#882255",
}
for mode in ("rlvr", "rlsd", "cepo"):
    COLOURS[compare.NAMES[mode]] = compare.COLOURS[mode]
MAIN = ("RLVR", "RLVR + OPSD, falling", "RLSD", "CEPO")


@dataclass(frozen=True)
class World:
    """Runs with one kind of errors, at several amounts of them."""

    settings: Callable  # amount -> settings
    amounts: tuple[float, ...]
    methods: tuple[str, ...] = MAIN
    config: type[rlsd.Config] = rlsd.Config


def key_noise(amount: float) -> dict[str, float]:
    return {"key_noise": amount}


def rarer_cites(cite: float) -> dict[str, float]:
    return {"cite": cite, **study.error_rates(0.4)}


WORLDS = {
    "verifier noise": World(study.error_rates, (0.4,), tuple(METHODS)),
    "key noise": World(key_noise, (0.4,)),
    "noise 0.4, cite": World(rarer_cites, (0.0, 0.05)),
    "choosy cite, noise": World(study.error_rates, (0.4,), config=ChoosyConfig),
}
SHOWN = {  # the columns of the figure: world, amount, methods
    "Verifier noise 0.4": ("verifier noise", 0.4, (*MAIN, "RLVR, regraded")),
    "Key noise 0.4": ("key noise", 0.4, MAIN),
    "Verifier noise 0.4, choosy cites": ("choosy cite, noise", 0.4, MAIN),
}


def label_of(world: str, amount: float, method: str) -> str:
    return f"{world} {amount:g}: {method}"


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is one seed, one noise, half of the steps, and the main methods."""
    if flags.quick:
        return plan_world(flags, 0, "verifier noise", (0.4,), MAIN)
    runs = []
    for seed in study.seeds_of(flags):
        for name, world in WORLDS.items():
            runs += plan_world(flags, seed, name, world.amounts, world.methods)
    return runs


def plan_world(
    flags: argparse.Namespace, seed: int, name: str, amounts: tuple, methods: tuple
) -> list[tuple]:
    world, runs = WORLDS[name], []
    for amount, method in itertools.product(amounts, methods):
        settings, _ = METHODS[method]
        settings = study.HELD_AT_1 | world.settings(amount) | settings
        config = study.config_of(flags, seed, world.config, **settings)
        runs.append((label_of(name, amount, method), config, method))
    return runs


def measure(config: rlsd.Config, name: str) -> dict:
    task = config.make_task()
    chooses = variants.filtered_wrong_key if name == "CEPO, filtered" else rlsd.choose_wrong_key
    with mock.patch.object(rlsd, "choose_wrong_key", chooses):
        return study.watch(task, study.training(config, METHODS[name][1], task=task))


def table(lines: list[dict]) -> list[str]:
    rows = []
    for label in study.labels_of(lines):
        quantities = (study.means, study.ends, study.leaks, study.strays)
        rows.append((*label.split(": "), *study.spreads(lines, label, *quantities)))
    order = list(WORLDS)
    rows.sort(key=lambda row: order.index(row[0].rpartition(" ")[0]))
    head = (
        "world",
        "method",
        "accuracy, mean over the run",
        "accuracy at the end",
        "highest leakage",
        "highest share of stray digits",
    )
    return study.markdown(head, rows)


def draw(upper, lower, lines: list[dict], shown: str) -> None:
    """Accuracy and leakage in one world, a column of dots per method."""
    world, amount, methods = SHOWN[shown]
    means, leaks = {}, {}
    for method in methods:
        label = label_of(world, amount, method)
        if label in study.labels_of(lines):
            means[method], leaks[method] = study.means(lines, label), study.leaks(lines, label)
    study.draw_dots(upper, means, COLOURS)
    upper.set(ylabel="right answers, mean over the run", ylim=rlsd.SHARE)
    study.draw_leaks(lower, leaks, COLOURS)
    names = [method.replace(" + ", " +\n").replace(", ", ",\n") for method in means]
    for panel in (upper, lower):
        panel.set_xticks(range(len(names)), names)

    ahead = means["CEPO"] > means["RLVR"]
    text = f"{shown}:\nCEPO is ahead of RLVR on {ahead.sum()} of {len(ahead)} seeds"
    if means["CEPO"].mean() < means["RLVR"].mean():
        text += ",\nand behind in the mean"
    if "RLVR, regraded" in means and (means["RLVR, regraded"] > means["CEPO"]).all():
        text += ", of regrading on 0"
    study.title(upper, text)
    counts = [(leaks[name] > study.LEAKS).sum() for name in ("RLSD", "CEPO")]
    study.title(
        lower, f"{shown}:\nRLSD leaks on {counts[0]} of {len(ahead)} seeds, CEPO on {counts[1]}"
    )


def main() -> None:
    flags = study.arguments(__doc__, seeds=8)
    lines = study.run_all("contrast", flags, plan(flags), measure)
    study.say(table(lines))
    columns = list(SHOWN)[:1] if flags.quick else list(SHOWN)
    figure, axes = study.panels(2, len(columns), width=5.8)
    for (upper, lower), shown in zip(axes.T, columns):
        draw(upper, lower, lines, shown)
    study.finish(figure, "contrast", flags)


if __name__ == "__main__":
    study.command(main)
