"""Does CEPO fall when the reward is a coin? In some draws, and then without citing much.

    python -m plots.coin [--quick]        runs/coin.jsonl and coin.png under --out

Each base with several draws of the coins (and of the problems); eps_w 1, lam 1, held. Held-out
responses are right, cites, out of form (no working of the textbook's form), or wrong in form. A run
has fallen if its accuracy was once 0.1 or more below that of an earlier evaluation.
"""

import re
from dataclasses import replace

import numpy as np

import rlsd
from plots import compare, study

SHARES = {
    "right": "#009E73",
    "cites": "#D55E00",
    "out of form": "#000000",
    "wrong in form": "#56B4E9",
}
FALLEN = 0.1
DRAWS = range(100, 106)


def kind_of(task: rlsd.Task, problem: tuple, text: str) -> str:
    """Which of SHARES a response belongs to."""
    form = rf"([0-9][c-]){{{task.digits}}}=[0-9]{{{task.digits + 1}}}\."
    if task.verify(problem, text):
        return "right"
    if task.leaks(text):
        return "cites"
    if not re.fullmatch(form, text):
        return "out of form"
    return "wrong in form"


def shares(task: rlsd.Task, student: rlsd.GPT) -> list[float]:
    """Of the responses to the exam: each of SHARES."""
    problems, _ = task.exam()
    prompts = rlsd.encode_prompts(task, problems, student.device)
    texts = rlsd.sample_responses(task, student, prompts, group_size=1, seed=0).texts
    kinds = [kind_of(task, problem, text) for problem, text in zip(problems, texts)]
    return [kinds.count(name) / len(kinds) for name in SHARES]


def measure(config: rlsd.Config, draw: int) -> dict:
    """A run from the base of the config's seed, whose steps are drawn by another seed."""
    task = config.make_task()
    base = rlsd.cached_model(config, "base")
    records = []
    for record, student, _ in rlsd.train(replace(config, seed=draw), task, base):
        records.append({**record, "shares": shares(task, student)})
    return study.columns(records, ("step", "accuracy", "leakage", "shares"))


def falls(line: dict) -> np.ndarray:
    """At each evaluation: how far accuracy is below its highest until then."""
    return np.maximum.accumulate(line["accuracy"]) - line["accuracy"]


def fell(line: dict) -> bool:
    return bool(falls(line).max() >= FALLEN)


def lowest(line: dict) -> str:
    """The shares where accuracy is furthest below its peak."""
    at_lowest = line["shares"][falls(line).argmax()]
    return ", ".join(f"{name} {share:.2f}" for name, share in zip(SHARES, at_lowest))


def table(lines: list[dict]) -> list[str]:
    """Each base over its draws."""
    rows = []
    for seed in sorted({line["seed"] for line in lines}):
        runs = [line for line in lines if line["seed"] == seed]
        fallen = [line for line in runs if fell(line)]
        end = compare.spread([line["accuracy"][-1] for line in runs])
        leak = compare.spread([max(line["leakage"]) for line in runs])
        count = f"{len(fallen)} of {len(runs)}"
        rows.append((f"base {seed}", count, end, leak, "; ".join(map(lowest, fallen))))
    head = (
        "base",
        "runs that fell",
        "accuracy at the end",
        "leakage, highest",
        "where it is furthest below its peak",
    )
    return study.markdown(head, rows)


def draw_every(panel, lines: list[dict]) -> None:
    """The accuracy of all runs; red: those that fell."""
    for line in sorted(lines, key=fell):
        colour = "#D55E00" if fell(line) else "#888888"
        panel.plot(line["step"], line["accuracy"], color=colour, alpha=0.7)
    count = sum(map(fell, lines))
    study.title(panel, f"CEPO with a coin: {count} of {len(lines)} runs fall (red)")


def draw_shares(panel, line: dict) -> None:
    """What one run's responses are."""
    ends = []
    for n, (name, colour) in enumerate(SHARES.items()):
        curve = [shares[n] for shares in line["shares"]]
        panel.plot(line["step"], curve, color=colour, linewidth=2)
        ends.append((name, colour, line["step"][-1], curve[-1]))
    rlsd.name_ends(panel, ends)
    title = f"Base {line['seed']}, {line['label']}\n{lowest(line)}"
    study.title(panel, title)


def main() -> None:
    flags = study.arguments(__doc__)
    seeds = range(1, 2) if flags.quick else range(flags.seeds)
    draws = DRAWS[:4] if flags.quick else DRAWS
    runs = []
    for seed in seeds:
        config = study.config_of(
            flags, seed, mode="cepo", **study.HELD_AT_1, **study.error_rates(0.5)
        )
        runs += [(f"draw {draw}", config, draw) for draw in draws]
    lines = study.run_all("coin", flags, runs, measure)
    study.say(table(lines))

    figure, axes = study.panels(1, 3, width=5.6)
    every, *panels = axes[0]
    for panel in axes[0]:
        panel.set(xlabel=rlsd.QUANTITIES["step"], xlim=(0, lines[0]["step"][-1]))
        panel.set(ylabel="responses, no key shown (share)", ylim=rlsd.SHARE)
    every.set_ylabel(rlsd.QUANTITIES["accuracy"])
    draw_every(every, lines)
    deepest = sorted(lines, key=lambda line: -falls(line).max())
    for panel, line in zip(panels, deepest):
        draw_shares(panel, line)
    study.finish(figure, "coin", flags)


if __name__ == "__main__":
    study.command(main)
