"""Does RLSD leak if the verifier never accepts a wrong answer, but misses right ones?

    python -m plots.strict [--quick]        runs/strict.jsonl and strict.png under --out

The verifier rejects a right answer with probability q, its rate of false negatives, and never
accepts a wrong one. So a cite, whose answer is a guess, should hardly ever be rewarded. The runs
are long, 480 steps. In "held", eps_w and lam are 1 throughout, unless the label says otherwise.

Hidden is another world with the same effect: the verifier is exact, but the student cannot earn
the reward reliably, because the answer has a digit that it cannot know.
"""

import argparse
import zlib
from dataclasses import dataclass

import numpy as np

import rlsd
from plots import compare, study, variants
from tiny_tasks import END, Carry

METHODS = {  # settings and method
    "RLVR": ({"mode": "rlvr"}, rlsd.method_loss),
    "RLSD, held": ({"mode": "rlsd", **study.HELD_AT_1}, rlsd.method_loss),
    "RLSD, paper": ({"mode": "rlsd"}, rlsd.method_loss),
    "CEPO, held": ({"mode": "cepo", **study.HELD_AT_1}, rlsd.method_loss),
    "RLVR + OPSD": ({"mode": "rlsd", **study.HELD_AT_1}, variants.plain_sum),
}
COLOURS = {
    "RLVR": compare.COLOURS["rlvr"],
    "RLSD, held": compare.COLOURS["rlsd"],
    "RLSD, paper": "#999999",
    "CEPO, held": compare.COLOURS["cepo"],
    "RLVR + OPSD": "#117733",
}
DRAWN = ("RLVR", "RLSD, held", "CEPO, held", "RLSD, paper")  # at a rate of 0.5
RATES = (0.0, 0.3, 0.5)  # of false negatives, for all methods
MORE_RATES = (0.1, 0.2, 0.4)  # for RLSD, held
WEIGHTS = ((0.2, 1.0), (0.5, 1.0), (1.0, 0.5), (0.8, 1.0))  # smaller eps_w, lam; at 0.5
NEW_BASES = 8  # the first seed of as many bases more, on which nothing was chosen


class Hidden(Carry):
    """Carry, but the answer has one more digit, 0 or 1, that does not follow from the sum.

    The key tells it, if `told`. A hash of the problem decides it, so a student can only guess, and
    half of its right sums are rejected. Pretraining ends when the sums are right; the study then
    sets `graded`, and the hidden digit counts.
    """

    name = "carry_hidden"
    told = True
    graded = False

    def __init__(self, digits: int, slip: float, cite: float):
        super().__init__(digits, slip, cite)
        self.response_length += 1

    def hidden_digit(self, problem):
        return zlib.crc32(f"hidden {self.held_out_group(problem)}".encode()) // 8 % 2

    def prompt(self, problem, key=None):
        shown = key if key is None or self.told else key[:-1]
        return super().prompt(problem, shown)

    def working(self, problem, rng, homework, key_open):
        text, key = super().working(problem, rng, homework, key_open)
        digit = rng.randrange(2) if homework else self.hidden_digit(problem)
        return f"{text.removesuffix(END)}{digit}{END}", f"{key}{digit}"

    def answer_key(self, problem, rng=None):
        return f"{super().answer_key(problem)}{self.hidden_digit(problem)}"

    def answer(self, response):
        body, last = response[:-2], response[-2:]
        answer = super().answer(body + END)
        return f"{answer}{last[0]}" if answer and last in (f"0{END}", f"1{END}") else None

    def verify(self, problem, response):
        answer, key = self.answer(response), self.answer_key(problem)
        return answer is not None and (answer == key if self.graded else answer[:-1] == key[:-1])


class Untold(Hidden):
    """Hidden, but the key does not show the hidden digit either."""

    name = "carry_untold"
    told = False


@dataclass(frozen=True)
class HiddenConfig(rlsd.Config):
    task: str = rlsd.setting(Hidden.name, "the arithmetic", Hidden.name)

    def make_task(self) -> Hidden:
        return Hidden(self.digits, self.slip, self.cite)


@dataclass(frozen=True)
class UntoldConfig(rlsd.Config):
    task: str = rlsd.setting(Untold.name, "the arithmetic", Untold.name)

    def make_task(self) -> Untold:
        return Untold(self.digits, self.slip, self.cite)


WORLDS = {
    "hidden digit, shown in the key": HiddenConfig,
    "hidden digit, shown to no one": UntoldConfig,
}


def label_of(rate: float, method: str) -> str:
    return f"false negatives {rate:g}: {method}"


def weights_label(eps_w: float, lam: float) -> str:
    return label_of(0.5, f"RLSD, held, eps_w {eps_w:g}, lam {lam:g}")


def plan(flags: argparse.Namespace) -> list[tuple]:
    """All runs; --quick is RLVR and RLSD at 0.5, one seed, and half of the steps."""
    runs = []

    def add(label, seed, make=rlsd.Config, method=rlsd.method_loss, **settings):
        settings = {"evaluate_every": 40} | settings
        runs.append((label, study.config_of(flags, seed, make, **settings), method))

    for seed in study.seeds_of(flags):
        for rate in (0.5,) if flags.quick else RATES:
            for name in ("RLVR", "RLSD, held") if flags.quick else METHODS:
                settings, method = METHODS[name]
                add(label_of(rate, name), seed, method=method, false_negatives=rate, **settings)
        if flags.quick:
            continue
        held = METHODS["RLSD, held"][0]
        for rate in MORE_RATES:
            add(label_of(rate, "RLSD, held"), seed, false_negatives=rate, **held)
        for eps_w, lam in WEIGHTS:
            weights = held | {"eps_w": eps_w, "lam": lam}
            add(weights_label(eps_w, lam), seed, false_negatives=0.5, **weights)
        add(new_bases_label(), NEW_BASES + seed, false_negatives=0.5, **held)
        for world, make in WORLDS.items():
            add(f"{world}: RLSD, held", seed, make, **held)
        add(f"{next(iter(WORLDS))}: RLVR", seed, HiddenConfig, mode="rlvr")
    return runs


def new_bases_label() -> str:
    return label_of(0.5, "RLSD, held, new bases")


def measure(config: rlsd.Config, method) -> dict:
    task = config.make_task()
    if isinstance(task, Hidden):
        task.graded = True
    return study.watch(task, study.training(config, method, task=task))


def leaked(lines: list[dict], label: str) -> int:
    """In how many runs leakage was above study.LEAKS."""
    return int((study.leaks(lines, label) > study.LEAKS).sum())


def table(lines: list[dict]) -> list[str]:
    rows = []
    for label in study.labels_of(lines):
        leaks = study.leaks(lines, label)
        count = f"{leaked(lines, label)} of {len(leaks)}"
        quantities = (study.ends, study.leaks, study.strays, study.cites)
        found = study.spreads(lines, label, *quantities)
        rows.append((*label.split(": "), found[0], found[1], count, *found[2:]))
    rows.sort(key=lambda row: (not row[0].startswith("false"), row[0]))
    head = (
        "world",
        "method",
        "accuracy at the end",
        "highest leakage",
        f"runs that leaked over {study.LEAKS:g}",
        "highest share of stray digits",
        "highest P(cite) at the first token",
    )
    return study.markdown(head, rows)


def draw_strictest(panel, lines: list[dict], quantity: str) -> None:
    """Curves at a rate of 0.5."""
    names = {}
    for method in DRAWN:
        if label_of(0.5, method) in study.labels_of(lines):
            names[label_of(0.5, method)] = method
    colours = {label: COLOURS[method] for label, method in names.items()}
    study.draw_runs(panel, lines, quantity, names, colours)


def draw_by_rate(panel, lines: list[dict]) -> None:
    """The highest leakage of RLSD, held, per rate."""
    rates = sorted((*RATES, *MORE_RATES))
    leaks = {f"{rate:g}": study.leaks(lines, label_of(rate, "RLSD, held")) for rate in rates}
    study.draw_leaks(panel, leaks, dict.fromkeys(leaks, COLOURS["RLSD, held"]))
    panel.set_xticks(range(len(leaks)), leaks)
    panel.set(xlabel="right answers that the verifier rejects (share)")
    counts = [leaked(lines, label_of(rate, "RLSD, held")) for rate in rates]
    study.claim(
        panel,
        "RLSD, held: no seed leaks if at most 0.2 of the\n"
        "right answers are rejected; from 0.3 on most do",
        counts[:3] == [0, 0, 0] and min(counts[3:]) > len(leaks["0"]) / 2,
        "RLSD, held: leakage against the rate of false negatives",
    )


def draw_by_weights(panel, lines: list[dict]) -> None:
    """The highest leakage per eps_w and lam, at a rate of 0.5."""
    columns = {"paper": study.leaks(lines, label_of(0.5, "RLSD, paper"))}
    for eps_w, lam in WEIGHTS:
        columns[f"{eps_w:g}, {lam:g}"] = study.leaks(lines, weights_label(eps_w, lam))
    columns["1, 1"] = study.leaks(lines, label_of(0.5, "RLSD, held"))
    study.draw_leaks(panel, columns, dict.fromkeys(columns, COLOURS["RLSD, held"]))
    names = [name.replace(", ", ",\n") for name in columns]
    panel.set_xticks(range(len(columns)), names)
    panel.set(xlabel="eps_w, lam (constant; paper: 0.2, 0.5 falling)")
    small = [columns["paper"]]
    small += [columns[f"{eps_w:g}, {lam:g}"] for eps_w, lam in WEIGHTS if eps_w * lam <= 0.5]
    small = np.concatenate(small)
    study.claim(
        panel,
        "RLSD, half of the right answers rejected:\n"
        "no seed leaks if lam times eps_w is 0.5 or less",
        small.max() <= study.LEAKS < columns["1, 1"].max(),
        "RLSD, half of the right answers rejected: leakage against the weights",
    )


def entitle(left, right, ends: dict, leaks: dict) -> None:
    """What is found at a rate of 0.5."""
    below, seeds = (ends["RLSD, held"] < ends["RLVR"]).sum(), len(ends["RLVR"])
    text = "Half of the right answers rejected: RLSD, held,\n"
    study.title(left, text + f"ends below RLVR on {below} of {seeds} seeds")
    count = leaks.pop("RLSD, held")
    text = f"The same runs: RLSD, held, leaks on {count} of {seeds} seeds,\n"
    text += "each of the others on none"
    study.claim(right, text, not any(leaks.values()), "The same runs: leakage")


def main() -> None:
    flags = study.arguments(__doc__, steps=480, seeds=8)
    lines = study.run_all("strict", flags, plan(flags), measure)
    study.say(table(lines))

    rows = 1 if flags.quick else 2
    figure, axes = study.panels(rows, 2, width=6.2)
    draw_strictest(axes[0, 0], lines, "accuracy")
    draw_strictest(axes[0, 1], lines, "leakage")
    ends, leaks = {}, {}
    for method in DRAWN:
        label = label_of(0.5, method)
        if label in study.labels_of(lines):
            ends[method], leaks[method] = study.ends(lines, label), leaked(lines, label)
    if not flags.quick:
        entitle(axes[0, 0], axes[0, 1], ends, leaks)
        draw_by_rate(axes[1, 0], lines)
        draw_by_weights(axes[1, 1], lines)
    study.finish(figure, "strict", flags)


if __name__ == "__main__":
    study.command(main)
