"""Theorem 4: the running product of P_T / P_S is a belief, the probability that this working will end at r.

    python -m plots.belief [--quick]        runs/belief.jsonl and belief.png under --out

For responses of the base, the key covered, and r the right answer: P(r | x), counted at the empty prefix, times the
product of P_T(y_t) / P_S(y_t) along the response, against the share of many continuations of the same prefix that end
at r. The second needs no teacher. The same for a base whose homework has no cites.
"""

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

import rlsd
from plots import pool, study

WORLDS = {"the default base": rlsd.Config.cite, "no cites": 0.0}
COLOURS = dict(zip(WORLDS, ("#0072B2", "#D55E00")))
RESPONSES, CONTINUATIONS = 4, 256


def beliefs(world: rlsd.World, base: rlsd.GPT, problem: tuple, key: str, generator: torch.Generator) -> list[dict]:
    """Per response: both beliefs at every prefix, from the empty one to the last before the end."""
    covered = world.prompts([problem])
    tokens, _, mask, texts = world.sample(base, covered, RESPONSES, generator)
    student, teacher = study.both_views(world, base, problem, key, tokens)
    counted = []  # per length: (responses,), the share of continuations that end at the key
    for length in range(tokens.shape[1]):
        begun = torch.cat((covered.expand(len(tokens), -1), tokens[:, :length]), 1)
        prefixes, row = torch.unique(begun, dim=0, return_inverse=True)
        ends = world.sample(base, prefixes, CONTINUATIONS, generator).texts
        written = [world.tokenizer.decode(prefix) for prefix in prefixes[:, covered.shape[1]:].tolist()]
        right = world.reward([problem], [written[n // CONTINUATIONS] + end for n, end in enumerate(ends)])
        counted.append(right.view(-1, CONTINUATIONS).mean(1)[row])
    product = counted[0][0] * F.pad((teacher - student).cumsum(1)[:, :-1], (1, 0)).exp()
    counted, lengths = torch.stack(counted, 1), mask.sum(1).int().tolist()
    return [{"response": texts[i], "right": world.task.verify(problem, texts[i]), "cites": world.task.leaks(texts[i]),
             "product": [round(value, 4) for value in product[i, :n].tolist()],
             "counted": [round(value, 4) for value in counted[i, :n].tolist()]} for i, n in enumerate(lengths)]


def measure(config: rlsd.Config, problems: int) -> dict:
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    generator, pairs = torch.Generator().manual_seed(0), list(zip(*world.task.exam()))[:problems]
    return {"responses": [line for pair in pairs for line in beliefs(world, base, *pair, generator)]}


def prefixes_of(line: dict) -> tuple[np.ndarray, np.ndarray]:
    """Counted belief and product at every prefix of a world's responses."""
    return tuple(np.concatenate([response[key] for response in line["responses"]]) for key in ("counted", "product"))


def table(lines: list[dict]) -> list[str]:
    rows = []
    for line in lines:
        counted, product = prefixes_of(line)
        rows.append((line["label"], str(len(counted)), f"{np.abs(product - counted).mean():.3f}",
                     f"{np.square(product - counted).mean() ** 0.5:.3f}", f"{(product > 1).mean():.1%}"))
    return study.markdown(("base", "prefixes", "mean absolute error", "root mean square", "product above 1"), rows)


def draw_examples(panel, responses: list[dict]) -> None:
    """A right and a wrong response whose belief moves."""
    for right, colour, height in ((True, "#0072B2", 0.98), (False, "#D55E00", 0.92)):
        for line in [one for one in responses
                     if one["right"] is right and not one["cites"] and min(one["counted"]) < 0.4][:1]:
            panel.plot(line["product"], color=colour, linewidth=2)
            panel.plot(line["counted"], "o", color=colour, markerfacecolor="white")
            panel.annotate(f"{'right' if right else 'wrong'}: {line['response']}", (0.03, height), va="top",
                           xycoords="axes fraction", color=colour, family="monospace")
    panel.set(xlabel="tokens written", ylabel="belief that it ends at the answer", ylim=(-0.02, 1.35))
    panel.set_title("Line: product of P_T / P_S; dots: counted", loc="left", fontsize=11)


def main() -> None:
    flags = study.arguments(__doc__, trains=False)
    worlds, problems = ([*WORLDS][:1], 12) if flags.quick else (WORLDS, 48)
    runs = [(f"{world}, {problems} problems", rlsd.Config(digits=flags.digits, cite=WORLDS[world]), problems)
            for world in worlds]
    lines = study.run_all("belief", flags, runs, measure)
    pool.say("\n".join(table(lines)))
    figure, ((examples, *panels),) = study.panels(1, 1 + len(lines), width=5)
    draw_examples(examples, lines[0]["responses"])
    for panel, world, line in zip(panels, worlds, lines):
        counted, product = prefixes_of(line)
        panel.plot(product, counted, "o", markersize=3, alpha=0.25, color=COLOURS[world])
        inside = [(product >= low) & (product <= high) for low, high in pairwise(np.linspace(0, 1, 9))]
        means = [(product[bin].mean(), counted[bin].mean()) for bin in inside if bin.sum() >= 20]  # fewer say little
        panel.plot(*np.reshape(means, (-1, 2)).T, marker="o", color="black")
        panel.plot((0, 1), (0, 1), color="#888888", linewidth=0.8)
        panel.set(xlabel="product of P_T / P_S (black: means of bins)", ylabel="counted over continuations",
                  xlim=(-0.02, 1.5), ylim=(-0.02, 1.02))
        panel.set_title(f"{world}: mean absolute error {np.abs(counted - product).mean():.3f}", loc="left", fontsize=11)
    study.finish(figure, flags.out / "belief.png", study.log_of("belief", flags))


if __name__ == "__main__":
    study.command(main)
