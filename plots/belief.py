"""Theorem 4: the running product of P_T / P_S is a belief, the probability that this working will end at r.

    python -m plots.belief [--quick]       runs/belief.jsonl and belief.png under --out

For responses of the base, key covered, and r the reference answer: P(r | x), measured at the empty prefix, times the
product of P_T(y_t) / P_S(y_t) along the response, against the share of many continuations of the same prefix that end
at r. The second needs no teacher. The same for a base whose homework has no cites, and one with hardly any digit slips.
"""

import copy
from itertools import pairwise

import numpy as np
import torch

import rlsd
from plots import study

WORLDS = {"the default base": {}, "no cites": {"cite": 0.0}, "no cites, digit slips 0.05": {"cite": 0.0, "DIGIT_SLIP": 0.05}}
COLOURS = dict(zip(WORLDS, ("#0072B2", "#D55E00", "#009E73")))


@torch.no_grad()
def beliefs(world: rlsd.World, base: rlsd.GPT, problem: tuple, key: str, responses: int, continuations: int,
            generator: torch.Generator) -> list[dict]:
    """Of each response: both beliefs at every prefix, from the empty one to the last but the end."""
    covered, opened = world.prompts([problem]), world.prompts([problem], [key])
    rollout = world.sample(base, covered, responses, generator)
    student, teacher = (rlsd.of_tokens(rlsd.response_logp(base, prompt, rollout.tokens), rollout.tokens) for prompt in (covered, opened))
    counted = []  # (prefixes, responses): the share of continuations that end at the key
    for length in range(rollout.tokens.shape[1]):
        prefixes, row = torch.unique(torch.cat((covered.expand(responses, -1), rollout.tokens[:, :length]), 1), dim=0, return_inverse=True)
        ends = world.sample(base, prefixes, continuations, generator).texts
        begun = [world.tokenizer.decode(prefix[covered.shape[1]:].tolist()) for prefix in prefixes]
        right = world.reward([problem] * len(prefixes), [begun[i // continuations] + text for i, text in enumerate(ends)])
        counted.append(right.view(len(prefixes), continuations).mean(1)[row])
    product = (teacher - student).cumsum(1).exp()
    product = torch.cat((torch.ones(responses, 1), product[:, :-1]), 1) * counted[0][0]
    counted = torch.stack(counted, 1)
    return [{"problem": world.task.show(problem), "response": rollout.texts[i], "right": world.task.verify(problem, rollout.texts[i]),
             "cites": world.task.leaks(rollout.texts[i]), "product": [round(value, 4) for value in product[i, :n].tolist()],
             "counted": [round(value, 4) for value in counted[i, :n].tolist()]}
            for i, n in enumerate(rollout.mask.sum(1).int().tolist())]


def base_of(config: rlsd.Config, knobs: dict) -> tuple[rlsd.World, rlsd.GPT]:
    config = rlsd.replace(config, **{name: value for name, value in knobs.items() if name != "DIGIT_SLIP"})
    world = rlsd.World(config.make_task())
    if "DIGIT_SLIP" not in knobs:
        return world, rlsd.cached_model(config, "base")
    world.task.DIGIT_SLIP = knobs["DIGIT_SLIP"]
    return world, rlsd.pretrain(world, world.new_model(config.seed), config.seed, 600)


def measure(name: str, digits: int, problems: int, continuations: int) -> list[dict]:
    world, base = base_of(rlsd.Config(digits=digits), WORLDS[name])
    generator, (exam, keys) = torch.Generator().manual_seed(0), world.exam()
    return [{"world": name, **line} for problem, key in list(zip(exam, keys))[:problems]
            for line in beliefs(world, copy.deepcopy(base), problem, key, 4, continuations, generator)]


def main() -> None:
    flags = study.arguments(__doc__, problems=48, continuations=256)
    worlds = list(WORLDS)[:1] if flags.quick else list(WORLDS)
    size = (12, 128) if flags.quick else (flags.problems, flags.continuations)
    log = flags.out / "runs" / "belief.jsonl"
    lines = study.read_lines(log) if flags.resume and log.exists() else [
        line for done in study.together("worlds", [(measure, name, flags.digits, *size) for name in worlds]) for line in done]
    study.write_lines(log, lines)

    figure, axes = study.panels(1, 3, width=5)
    errors = {}
    for name in worlds:
        x, y = (np.concatenate([line[key] for line in lines if line["world"] == name]) for key in ("counted", "product"))
        errors[name] = np.abs(x - y).mean()
        print(f"{name}: {len(x)} prefixes, mean absolute error {errors[name]:.3f}, root mean square {np.square(x - y).mean() ** 0.5:.3f}, "
              f"product above 1 at {(y > 1).mean():.1%}")
        if name == worlds[0]:
            axes[0, 1].plot(x, y, "o", markersize=3, alpha=0.3, color="#0072B2")
        edges = np.linspace(0, 1, 9)
        bins = [(x[inside].mean(), y[inside].mean()) for low, high in pairwise(edges)
                if (inside := (y >= low) & (y <= high)).sum() >= 20]  # fewer prefixes say little
        axes[0, 2].plot(*np.array(bins).reshape(-1, 2)[:, ::-1].T, marker="o", color=COLOURS[name], label=f"{name}: error {errors[name]:.3f}")
    shown = [next((line for line in lines if line["world"] == worlds[0] and line["right"] == right and not line["cites"]
                   and min(line["counted"]) < 0.4), None) for right in (True, False)]
    for line, colour in zip(shown, ("#0072B2", "#D55E00")):
        if line:
            steps = range(len(line["product"]))
            axes[0, 0].plot(steps, line["product"], color=colour, linewidth=2)
            axes[0, 0].plot(steps, line["counted"], "o", color=colour, markerfacecolor="white")
            axes[0, 0].annotate(f"{'right' if line['right'] else 'wrong'}: {line['response']}", (0.03, 0.98 if line["right"] else 0.92),
                                xycoords="axes fraction", va="top", color=colour, family="monospace")
    axes[0, 0].set(xlabel="tokens written", ylabel="belief that it ends at the answer", ylim=(-0.02, 1.35))
    axes[0, 0].set_title("Line: product of P_T/P_S; dots: counted", loc="left")
    axes[0, 1].set(xlabel="counted over continuations", ylabel="product of P_T / P_S", xlim=(-0.02, 1.02), ylim=(-0.02, 1.5))
    axes[0, 1].set_title(f"Every prefix: mean absolute error {errors[worlds[0]]:.2f}", loc="left")
    axes[0, 2].set(xlabel="product of P_T / P_S", ylabel="counted (mean of the bin)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes[0, 2].set_title(f"Error {errors[worlds[0]]:.3f}" + (f"; without cites {errors['no cites']:.3f}" if "no cites" in errors else ""), loc="left")
    axes[0, 2].legend(frameon=False, loc="lower right", fontsize=9)
    for panel in axes[0, 1:]:
        panel.plot((0, 1), (0, 1), color="#888888", linewidth=0.8)
    study.finish(figure, flags.out / "belief.png", log)


if __name__ == "__main__":
    study.command(main)
