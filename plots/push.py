"""The push itself: what one small step of SGD does to each token when the reward is a coin.

    python -m plots.push [--quick]        runs/push.jsonl and push.png under --out

Eq 15 leaves a push in the mean even then (the README's proposition). The measured rise of log P_S of many (problem,
prefix, token) stands beside what the formula's coefficient predicts.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F

import rlsd
from plots import pool, study

COINS, RATE = 64, 1e-3  # tosses per group; step size


def push(world: rlsd.World, base: rlsd.GPT, problem: tuple, key: str, generator: torch.Generator) -> list[dict]:
    """One small step of SGD on a group whose rewards are coins, A_t averaged over them: what is left is the push.

    For every prefix and token that was sampled: how much log P_S rose per step size, and what the formula says. Its
    coefficient c is the mean of A_t over the group where the token was written; through the softmax of that prefix
    log P_S(v) rises by <e_v - P, sum_u c_u (e_u - P)>, up to what the weights behind the logits add.
    """
    group, student, covered = rlsd.Config.group_size, copy.deepcopy(base), world.prompts([problem])
    tokens, old_logp, mask, _ = world.sample(base, covered, group, generator)
    before, opened = study.both_views(world, base, problem, key, tokens)
    gain, credit = rlsd.information_gain(opened, before), 0
    for _ in range(COINS):
        advantage = rlsd.group_advantage((torch.rand(group, generator=generator) < 0.5).float(), group)
        credit = credit + rlsd.rlsd_token_advantage(gain, advantage, 1.0, 1.0) / COINS
    logp = rlsd.response_logp(student, covered, tokens)
    rlsd.clipped_surrogate(rlsd.of_tokens(logp, tokens), old_logp, credit, mask).backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= RATE * parameter.grad
    rise = (study.both_views(world, student, problem, key, tokens)[0] - before) / RATE
    unit = F.one_hot(tokens, logp.shape[-1]) - logp.detach().exp()  # e_v - P of each token
    points = {}
    for row, position in mask.nonzero().tolist():
        same = (tokens[:, :position] == tokens[row, :position]).all(1)
        direction = (same * mask[:, position] * credit[:, position] / group) @ unit[:, position]
        points[tuple(tokens[row, :position + 1].tolist())] = {
            "formula": round(float(unit[row, position] @ direction), 5), "rise": round(float(rise[row, position]), 4)}
    return list(points.values())


def measure(config: rlsd.Config, problems: int) -> dict:
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    generator, pairs = torch.Generator().manual_seed(0), list(zip(*world.task.exam()))[:problems]
    return {"tokens": [point for pair in pairs for point in push(world, base, *pair, generator)]}


def seen(lines: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Push by the formula, measured rise, which pushes are over 0.05, and the share of these whose sign agrees."""
    x, y = (np.array([point[key] for point in lines[0]["tokens"]]) for key in ("formula", "rise"))
    strong = np.abs(x) > 0.05
    return x, y, strong, (np.sign(x) == np.sign(y))[strong].mean() if strong.any() else np.nan


def table(lines: list[dict]) -> list[str]:
    x, y, strong, agree = seen(lines)
    row = str(len(x)), f"{np.corrcoef(x, y)[0, 1]:.2f}", str(strong.sum()), f"{agree:.1%}"
    return study.markdown(("tokens", "correlation", "with a push over 0.05", "of these the sign agrees in"), [row])


def main() -> None:
    flags = study.arguments(__doc__, trains=False)
    problems = 12 if flags.quick else 48
    lines = study.run_all("push", flags, [(f"{problems} groups", rlsd.Config(digits=flags.digits), problems)], measure)
    pool.say("\n".join(table(lines)))
    x, y, _, agree = seen(lines)
    figure, ((panel,),) = study.panels(1, 1, width=6.5, height=4.2)
    panel.plot(x, y, "o", markersize=3, color="#0072B2", alpha=0.5)
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.axvline(0, color="#888888", linewidth=0.8)
    panel.set_yscale("symlog", linthresh=10)  # of a rare token log P_S may move a hundred times as far
    panel.set(xlabel="push on the token by the formula (nats per unit of step size)",
              ylabel="measured rise of log P_S (same unit)")
    panel.set_title(f"A coin for a reward still pushes: {agree:.0%} of the signs as predicted", loc="left", fontsize=11)
    study.finish(figure, flags.out / "push.png", study.log_of("push", flags))


if __name__ == "__main__":
    study.command(main)
