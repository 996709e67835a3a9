"""The push itself: what one small step of SGD does to each token when the reward is a coin.

    python -m plots.push [--quick]        runs/push.jsonl and push.png under --out

Eq 15 leaves a push in the mean even then (the proposition in plots/README.md). The measured rise of
log P_S of many (problem, prefix, token) stands beside a prediction.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rlsd
from plots import study

COINS = 64  # tosses per group
RATE = 1e-3  # the step size
CLEAR = 0.003  # a prediction larger than this is clear


def mean_token_advantage(gain: Tensor, generator: torch.Generator) -> Tensor:
    """RLSD's A_t where the rewards of a group are coins, in the mean over COINS tosses. (B, T)"""
    total = torch.zeros_like(gain)
    for _ in range(COINS):
        reward = (torch.rand(len(gain), generator=generator) < 0.5).float()
        advantage = rlsd.group_advantage(reward, len(gain))
        total += rlsd.rlsd_token_advantage(gain, advantage, eps_w=1.0, lam=1.0)
    return total / COINS


def push(
    task: rlsd.Task, base: rlsd.GPT, problem: tuple, key: str, generator: torch.Generator
) -> list[dict]:
    """One small step of SGD on a group whose A_t are means over coins: what is left is the push.

    For every prefix and token that was sampled: how much log P_S rose per step size, and how
    much it would rise if the logits of each prefix were free parameters. Then log P_S(v) rises by
    <e_v - P, sum_u c_u (e_u - P)>, where c_u is the mean over the group of A_t / |y| of the
    responses that write u there.
    """
    student = copy.deepcopy(base)
    prompt = rlsd.encode_prompts(task, [problem], base.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    rollout = rlsd.sample_responses(task, base, prompt, rlsd.Config.group_size, seed)
    tokens, mask = rollout.tokens, rollout.mask
    before = study.log_probs_of(task, base, problem, tokens)
    teacher_log_probs = study.log_probs_of(task, base, problem, tokens, key)
    gain = rlsd.information_gain(teacher_log_probs, before)
    token_advantage = mean_token_advantage(gain, generator)

    log_probs = rlsd.response_log_probs(student, prompt, tokens)
    written = rlsd.token_log_probs(log_probs, tokens)
    rlsd.clipped_surrogate(written, before, token_advantage, mask).backward()
    torch.optim.SGD(student.parameters(), lr=RATE).step()
    rise = (study.log_probs_of(task, student, problem, tokens) - before) / RATE

    unit = F.one_hot(tokens, log_probs.shape[-1]) - log_probs.detach().exp()  # e_v - P
    coefficient = mask * token_advantage / mask.sum(1, keepdim=True) / len(tokens)
    points = {}
    for row, position in mask.nonzero().tolist():
        same = (tokens[:, :position] == tokens[row, :position]).all(1)
        direction = (same * coefficient[:, position]) @ unit[:, position]
        prefix = tuple(tokens[row, : position + 1].tolist())
        points[prefix] = {
            "position": position,
            "predicted": round(float(unit[row, position] @ direction), 6),
            "rise": round(float(rise[row, position]), 4),
        }
    return list(points.values())


def measure(config: rlsd.Config, count: int) -> dict:
    """The points of one group to each of so many problems."""
    task, base = config.make_task(), rlsd.cached_model(config, "base")
    generator = torch.Generator().manual_seed(0)
    problems, keys = task.exam()
    points = []
    for problem, key in zip(problems[:count], keys):
        points += push(task, base, problem, key, generator)
    return {"tokens": points}


def seen(lines: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the measured rise. (tokens,) x 2"""
    points = lines[0]["tokens"]
    predicted = np.array([point["predicted"] for point in points])
    return predicted, np.array([point["rise"] for point in points])


def agreement(predicted: np.ndarray, rise: np.ndarray, over: float) -> tuple[int, float]:
    """How many tokens have a push larger than `over` in size, and for which share signs agree."""
    pushed = np.abs(predicted) > over
    agree = np.sign(predicted[pushed]) == np.sign(rise[pushed])
    return int(pushed.sum()), float(agree.mean()) if pushed.any() else np.nan


def table(lines: list[dict]) -> list[str]:
    predicted, rise = seen(lines)
    cells = [str(len(predicted)), f"{np.corrcoef(predicted, rise)[0, 1]:.2f}"]
    for over in (0.0, CLEAR):
        count, agree = agreement(predicted, rise, over)
        cells += [str(count), f"{agree:.1%}"]
    clear = np.abs(predicted) > CLEAR
    first = np.array([point["position"] == 0 for point in lines[0]["tokens"]])
    ratio = np.median(rise[clear] / predicted[clear]) if clear.any() else math.nan
    cells += [str((clear & first).sum()), f"{ratio:.0f}"]
    head = (
        "tokens",
        "correlation",
        "prediction not 0",
        "of these the sign agrees in",
        f"clear: larger than {CLEAR} in size",
        "of the clear ones the sign agrees in",
        "first tokens among them",
        "median of rise / prediction",
    )
    return study.markdown(head, [tuple(cells)])


def main() -> None:
    flags = study.arguments(__doc__, trains=False)
    problems = 12 if flags.quick else 48
    runs = [(f"{problems} groups", rlsd.Config(digits=flags.digits), problems)]
    lines = study.run_all("push", flags, runs, measure)
    study.say(table(lines))
    x, y = seen(lines)
    _, agree = agreement(x, y, CLEAR)
    figure, axes = study.panels(1, 1, width=6.5, height=4.2)
    panel = axes[0, 0]
    panel.plot(x, y, "o", markersize=3, color="#0072B2", alpha=0.5)
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.axvspan(-CLEAR, CLEAR, color="#eeeeee")
    panel.set_yscale("symlog", linthresh=10)  # log P_S of a rare token may move far
    ticks = (-40, -20, -10, -5, 0, 5, 10, 20, 40)
    panel.set_yticks(ticks, map(str, ticks))
    panel.set_ylim(-75, 75)
    panel.set_xlabel("predicted rise of log P_S per unit of step size")
    panel.set_ylabel("measured rise of log P_S per unit of\nstep size (log scale beyond 10)")
    text = (
        "The reward is a coin: nearly all tokens outside\nthe grey move in the predicted direction"
    )
    study.claim(panel, text, agree > 0.95, "Predicted and measured rise, with a coin for a reward")
    study.finish(figure, "push", flags)


if __name__ == "__main__":
    study.command(main)
