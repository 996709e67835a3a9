"""Theorem 4: the running product of P_T / P_S is a belief, the probability of an ending at r.

    python -m plots.belief [--quick]        runs/belief.jsonl and belief.png under --out

For responses of the base, which sees no key, and r the right answer: P(r | x), counted at the empty
prefix, times the product of P_T(y_t) / P_S(y_t) along the response. This stands against the share
of many continuations of the same prefix that end at r, which needs no teacher. The same for a base
whose homework has no cites.
"""

import random
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rlsd
from plots import study

CITES = {"the default base": rlsd.Config.cite, "no cites": 0.0}
COLOURS = dict(zip(CITES, ("#0072B2", "#D55E00")))
RESPONSES, CONTINUATIONS = 4, 256


def count(
    task: rlsd.Task, base: rlsd.GPT, problem: tuple, tokens: Tensor, rng: random.Random
) -> Tensor:
    """The share of continuations that end at the right answer, for prefixes (B, t) -> (B,)."""
    prompt = rlsd.encode_prompts(task, [problem], base.device)
    begun = torch.cat((prompt.expand(len(tokens), -1), tokens), 1)
    prefixes, row = torch.unique(begun, dim=0, return_inverse=True)
    ends = rlsd.sample_responses(task, base, prefixes, CONTINUATIONS, rng.getrandbits(62)).texts
    right = []
    for n, end in enumerate(ends):
        written = prefixes[n // CONTINUATIONS, prompt.shape[1] :].tolist()
        right.append(float(task.verify(problem, task.tokenizer.decode(written) + end)))
    return torch.tensor(right).view(-1, CONTINUATIONS).mean(1)[row]


def beliefs(
    task: rlsd.Task, base: rlsd.GPT, problem: tuple, key: str, rng: random.Random
) -> list[dict]:
    """Both beliefs of some responses at each prefix, from the empty one to the last."""
    prompt = rlsd.encode_prompts(task, [problem], base.device)
    rollout = rlsd.sample_responses(task, base, prompt, RESPONSES, rng.getrandbits(62))
    tokens = rollout.tokens
    lengths = range(tokens.shape[1])
    counted = [count(task, base, problem, tokens[:, :length], rng) for length in lengths]
    counted = torch.stack(counted, 1)

    log_probs = study.log_probs_of(task, base, problem, tokens)
    teacher_log_probs = study.log_probs_of(task, base, problem, tokens, key)
    ratio = F.pad((teacher_log_probs - log_probs).cumsum(1)[:, :-1], (1, 0)).exp()
    product = counted[:, :1] * ratio
    found = []
    for n, text in enumerate(rollout.texts):
        length = int(rollout.mask[n].sum())
        found.append(
            {
                "response": text,
                "right": task.verify(problem, text),
                "cites": task.leaks(text),
                "product": rounded(product[n, :length]),
                "counted": rounded(counted[n, :length]),
            }
        )
    return found


def rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def measure(config: rlsd.Config, count: int) -> dict:
    """The beliefs along responses to so many problems."""
    task = config.make_task()
    base = rlsd.cached_model(config, "base")
    problems, keys = task.exam()
    rng, responses = random.Random(0), []
    for problem, key in zip(problems[:count], keys):
        responses += beliefs(task, base, problem, key, rng)
    return {"responses": responses}


def prefixes_of(line: dict) -> tuple[np.ndarray, np.ndarray]:
    """The counted belief and the product, at every prefix of a base's responses."""
    counted = [response["counted"] for response in line["responses"]]
    product = [response["product"] for response in line["responses"]]
    return np.concatenate(counted), np.concatenate(product)


def table(lines: list[dict]) -> list[str]:
    rows = []
    for line in lines:
        counted, product = prefixes_of(line)
        error = product - counted
        rows.append(
            (
                line["label"],
                str(len(counted)),
                f"{np.abs(error).mean():.3f}",
                f"{np.square(error).mean() ** 0.5:.3f}",
                f"{(product > 1).mean():.1%}",
            )
        )
    head = ("base", "prefixes", "mean absolute error", "root mean square", "product above 1")
    return study.markdown(head, rows)


def draw_examples(panel, responses: list[dict]) -> None:
    """A right and a wrong response whose belief moves."""
    for right, colour, height in ((True, "#0072B2", 0.98), (False, "#D55E00", 0.92)):
        for one in responses:
            moves = min(one["counted"]) < 0.4
            if one["right"] is right and moves and not one["cites"]:
                panel.plot(one["product"], color=colour, linewidth=2)
                panel.plot(one["counted"], "o", color=colour, markerfacecolor="white")
                text = f"{'right' if right else 'wrong'}: {one['response']}"
                at = {"va": "top", "xycoords": "axes fraction", "family": "monospace"}
                panel.annotate(text, (0.03, height), color=colour, **at)
                break
    panel.set(xlabel="tokens written", ylabel="belief that it ends in the key")
    panel.set_ylim(-0.02, 1.35)
    study.title(panel, "Two responses, cites planted.\nLine: the product; circles: the count")


def draw_all(panel, line: dict, name: str) -> None:
    """Every prefix of a base's responses; black: means of bins that hold 20 or more."""
    counted, product = prefixes_of(line)
    panel.plot(product, counted, "o", markersize=3, alpha=0.25, color=COLOURS[name])
    x, y = [], []
    for low, high in pairwise(np.linspace(0, 1, 9)):
        inside = (product >= low) & (product <= high)
        if inside.sum() >= 20:
            x.append(product[inside].mean())
            y.append(counted[inside].mean())
    panel.plot(x, y, marker="o", color="black")
    panel.plot((0, 1), (0, 1), color="#888888", linewidth=0.8)
    panel.set(xlabel="initial belief times product of P_T / P_S (black: bins)", xlim=(-0.02, 1.5))
    panel.set(ylabel="counted over continuations", ylim=(-0.02, 1.02))
    if (product > 1.5).any():
        note = f"{(product > 1.5).sum()} products are further right, up to {product.max():.1f} "
        panel.text(1.48, 0.06, note, ha="right")
    error = np.abs(counted - product).mean()
    where = "No cites planted" if CITES[name] == 0 else "Cites planted"
    study.title(
        panel, f"{where}: mean absolute error {error:.3f}\n(a dot per prefix; grey: no error)"
    )


def main() -> None:
    flags = study.arguments(__doc__, trains=False)
    names = list(CITES)[:1] if flags.quick else list(CITES)
    problems = 12 if flags.quick else 48
    runs = []
    for name in names:
        config = rlsd.Config(digits=flags.digits, cite=CITES[name])
        runs.append((f"{name}, {problems} problems", config, problems))
    lines = study.run_all("belief", flags, runs, measure)
    study.say(table(lines))
    figure, axes = study.panels(1, 1 + len(lines), width=5)
    draw_examples(axes[0, 0], lines[0]["responses"])
    for panel, name, line in zip(axes[0, 1:], names, lines):
        draw_all(panel, line, name)
    study.finish(figure, "belief", flags)


if __name__ == "__main__":
    study.command(main)
