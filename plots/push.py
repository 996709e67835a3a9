"""The push itself: what one small step of SGD does to each token when the reward is a coin.

    python -m plots.push [--quick]        runs/push.jsonl and push.png under --out

Eq 15 leaves a push in the mean even then (the README's proposition). Here the measured rise of log P_S of many (problem,
prefix, token) is set beside what the formula's coefficient predicts.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F

import rlsd
from plots import study


def push(digits: int, problems: int, coins: int) -> list[dict]:
    """One small step of SGD on groups whose rewards are coins, A_t averaged over the coins: all that is left is the push.

    For every prefix and token that was sampled: how much log P_S rose per step size, and what the formula says of it. Its
    coefficient c is the mean of A_t over the group where the token was written; through the softmax of that prefix
    log P_S(v) rises by <e_v - P, sum_u c_u (e_u - P)>, up to what the weights behind the logits add.
    """
    config, rate, points = rlsd.Config(digits=digits, eps_w=1.0, lam=1.0), 1e-3, []
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    generator, (exam, keys), group = torch.Generator().manual_seed(0), world.exam(), config.group_size
    for problem, key in list(zip(exam, keys))[:problems]:
        covered, opened = world.prompts([problem]), world.prompts([problem], [key])
        rollout = world.sample(base, covered, group, generator)
        tokens, student = rollout.tokens, copy.deepcopy(base)
        whole = rlsd.response_logp(student, covered, tokens)
        logp = rlsd.of_tokens(whole, tokens)
        with torch.no_grad():
            gain = rlsd.information_gain(rlsd.of_tokens(rlsd.response_logp(base, opened, tokens), tokens), logp)
        flips = [rlsd.group_advantage((torch.rand(group, generator=generator) < 0.5).float(), group) for _ in range(coins)]
        credit = sum(rlsd.rlsd_token_advantage(gain, advantage, 1.0, 1.0) for advantage in flips) / coins
        rlsd.clipped_surrogate(logp, rollout.logp, credit, rollout.mask).backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= rate * parameter.grad
            rise = (rlsd.of_tokens(rlsd.response_logp(student, covered, tokens), tokens) - logp) / rate
        unit = F.one_hot(tokens, whole.shape[-1]) - whole.detach().exp()  # e_v - P of each token
        for position in range(tokens.shape[1]):
            prefixes, same = torch.unique(F.pad(tokens, (1, 0))[:, :position + 1], dim=0, return_inverse=True)
            written = rollout.mask[:, position] * credit[:, position] / group
            direction = torch.zeros(len(prefixes), whole.shape[-1]).index_add(0, same, written.unsqueeze(-1) * unit[:, position])
            formula = (unit[:, position] * direction[same]).sum(-1)
            for row in {(int(prefix), int(token)): row for row, (prefix, token) in enumerate(zip(same, tokens[:, position]))
                        if rollout.mask[row, position]}.values():
                points.append({"formula": round(float(formula[row]), 5), "rise": round(float(rise[row, position]), 4)})
    return points


def main() -> None:
    flags = study.arguments(__doc__, problems=48, coins=64)
    log = flags.out / "runs" / "push.jsonl"
    points = study.read_lines(log) if flags.resume and log.exists() else push(flags.digits, 8 if flags.quick else flags.problems, flags.coins)
    study.write_lines(log, points)
    x, y = (np.array([point[key] for point in points]) for key in ("formula", "rise"))
    correlation = np.corrcoef(x, y)[0, 1] if len(points) > 2 else float("nan")
    strong = np.abs(x) > 0.05
    agree = (np.sign(x) == np.sign(y))[strong].mean() if strong.any() else float("nan")
    print(f"{len(points)} tokens, correlation {correlation:.2f}; of {strong.sum()} with a push over 0.05, the sign agrees in {agree:.1%}")
    figure, axes = study.panels(1, 1, width=6.5, height=4.2)
    axes = axes[0, 0]
    axes.plot(x, y, "o", markersize=3, color="#0072B2", alpha=0.5)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.set(xlabel="the formula's push on the token (nats per unit of step size)", ylabel="measured rise of log P_S (same unit)")
    axes.set_title(f"A coin for a reward still pushes: {agree:.0%} of the signs as predicted", loc="left")
    study.finish(figure, flags.out / "push.png", log)


if __name__ == "__main__":
    study.command(main)
