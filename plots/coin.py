"""Does CEPO fall when the reward is a coin? In some draws; and its responses then go wrong without citing much.

    python -m plots.coin [--quick]        runs/coin.jsonl and coin.png under --out

Each base with several draws of the coins (and of the problems); eps_w 1, lam 1, held. Held-out responses are right,
cites, out of form (no working of the textbook's form), or wrong in form. A run has fallen if its accuracy was once 0.1
or more below an earlier evaluation's.
"""

import copy
import re
from dataclasses import replace

import numpy as np
import torch

import rlsd
from plots import compare, pool, study

SHARES = {"right": "#009E73", "cites": "#D55E00", "out of form": "#000000", "wrong in form": "#56B4E9"}
FALLEN, DRAWS = 0.1, range(100, 106)


def shares(world: rlsd.World, student: rlsd.GPT) -> list[float]:
    """Of the responses to the exam: each of SHARES."""
    problems, _ = world.task.exam()
    texts = world.sample(student, world.prompts(problems), 1, torch.Generator().manual_seed(0)).texts
    form = rf"([0-9][c-]){{{world.task.digits}}}=[0-9]{{{world.task.digits + 1}}}\."
    right = world.reward(problems, texts).bool().tolist()
    cites = [world.task.leaks(text) and not fine for text, fine in zip(texts, right)]
    out = [not (fine or cite or re.fullmatch(form, text)) for text, fine, cite in zip(texts, right, cites)]
    counts = sum(right), sum(cites), sum(out)
    return [count / len(texts) for count in (*counts, len(texts) - sum(counts))]


def measure(config: rlsd.Config, draw: int) -> dict:
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    student, seen = copy.deepcopy(base), []
    for record, state in rlsd.train(replace(config, seed=draw), world, base):
        student.load_state_dict(state["student"])
        seen.append({**record, "shares": shares(world, student)})
    return {key: [one[key] for one in seen] for key in ("step", "accuracy", "leakage", "shares")}


def falls(line: dict) -> np.ndarray:
    """At each evaluation: how far accuracy is below its highest until then."""
    return np.maximum.accumulate(line["accuracy"]) - line["accuracy"]


def fell(line: dict) -> bool:
    return falls(line).max() >= FALLEN


def lowest(line: dict) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in zip(SHARES, line["shares"][falls(line).argmax()]))


def table(lines: list[dict]) -> list[str]:
    """Per base over its draws; of those that fell, the shares where accuracy is furthest below its peak."""
    rows = []
    for seed in sorted({line["seed"] for line in lines}):
        runs = [line for line in lines if line["seed"] == seed]
        ends, leaks = [run["accuracy"][-1] for run in runs], [compare.highest(run["leakage"]) for run in runs]
        rows.append((f"base {seed}", f"{sum(map(fell, runs))} of {len(runs)}", compare.spread(ends),
                     compare.spread(leaks), "; ".join(lowest(run) for run in runs if fell(run))))
    head = "base", "runs that fell", "accuracy at the end", "leakage, highest", "where it is furthest below its peak"
    return study.markdown(head, rows)


def main() -> None:
    flags = study.arguments(__doc__)
    seeds, draws, steps = range(flags.seeds), DRAWS, flags.steps
    if flags.quick:
        seeds, draws, steps = range(1, 2), draws[:4], -(-steps // 2)
    runs = [(f"draw {draw}", rlsd.Config(mode="cepo", seed=seed, digits=flags.digits, steps=steps, evaluate_every=20,
                                         verifier_noise=0.5, eps_w=1.0, lam=1.0, lam_decay=0), draw)
            for seed in seeds for draw in draws]
    lines = study.run_all("coin", flags, runs, measure)
    pool.say("\n".join(table(lines)))
    figure, ((every, *panels),) = study.panels(1, 3, width=5.6)
    for line in sorted(lines, key=fell):
        every.plot(line["step"], line["accuracy"], color="#D55E00" if fell(line) else "#888888", alpha=0.7)
    every.set_title(f"CEPO with a coin: {sum(map(fell, lines))} of {len(lines)} runs fall (red)", loc="left")
    for panel, line in zip(panels, sorted(lines, key=lambda line: -falls(line).max())):
        for name, curve in zip(SHARES, np.array(line["shares"]).T):
            panel.plot(line["step"], curve, color=SHARES[name], linewidth=2)
        ends = {name: (line["step"][-1], share) for name, share in zip(SHARES, line["shares"][-1])}
        compare.write_names(panel, ends, {name: name for name in SHARES}, SHARES)
        panel.set_title(f"Base {line['seed']}, {line['label']}: {lowest(line)}", loc="left", fontsize=9)
    for panel, text in zip((every, *panels), (compare.AXIS["accuracy"], *2 * ["responses, key covered (share)"])):
        panel.set(xlabel=compare.AXIS["step"], ylabel=text, ylim=compare.SHARE, xlim=(0, lines[0]["step"][-1]))
    study.finish(figure, flags.out / "coin.png", study.log_of("coin", flags))


if __name__ == "__main__":
    study.command(main)
