"""Where the credit goes: one right and one wrong response, a row a method, a cell a token.

    python -m plots.credit                  the figure, from the base of seed 0
    python rlsd.py --explain "478+356"      the same for a problem of yours, in the terminal

The response is the student's, the key covered; P_T is the same network's with the key open. A_t is what Eq 17 puts before
grad log P_S(y_t): for RLVR the advantage, for OPSD the information gain, for RLSD Eq 15 with the run's eps_w and lambda.
"""

import os
import random
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import rlsd
from plots import study
from rlsd import NAMES, UserError, World

SHOWN = ("rlvr", "opsd", "rlsd")
SAMPLES = 64


def painted(credit: float) -> str:
    """A_t in five characters; on a terminal blue-green where the token is pushed up, yellow where it is pushed down."""
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or abs(credit) < 0.05
    return f"{credit:+5.1f}" if plain else f"\033[30;{46 if credit > 0 else 43}m{credit:+5.1f}\033[0m"


def watched(world: World, problems: list, rollout: rlsd.Rollout, reward: torch.Tensor, credit: torch.Tensor) -> str:
    """A step's first response, its reward and A_t, as --watch shows it, 15 tokens a line."""
    lines = [f"{world.task.show(problems[0])}, reward {reward[0]:.0f}; tokens, and A_t below"]
    tokens = [world.tokenizer.decode([token])[-5:] for token in rollout.tokens[0].tolist()]
    cells = list(zip(tokens, credit[0].tolist()))[:int(rollout.mask[0].sum())]
    for row in (cells[i:i + 15] for i in range(0, len(cells), 15)):
        lines += ["".join(f"{token:>5}" for token, _ in row), "".join(painted(value) for _, value in row)]
    return "\n".join(lines)


def model_of(config: rlsd.Config, out: Path, world: World) -> tuple[rlsd.GPT, str]:
    """The run's checkpoint, or the base if there is none, and what to call it."""
    checkpoint = rlsd.run_path(out, config, ".pt")
    model = rlsd.cached_model(config, "base", world.device)
    if not checkpoint.exists():
        return model, f"the base of seed {config.seed} (no {checkpoint})"
    with rlsd.distrust(checkpoint):
        saved = rlsd.read_checkpoint(checkpoint)
        model.load_state_dict(saved["student"])
        return model, f"{checkpoint} at step {int(saved['step'])}"


def credits(config: rlsd.Config, world: World, model: rlsd.GPT, problem: tuple) -> list[dict]:
    """The first right and the first wrong of SAMPLES responses: tokens, P_S, P_T and A_t of each method."""
    generator = torch.Generator(world.device).manual_seed(config.seed)
    covered, opened = world.prompts([problem]), world.prompts([problem], [world.task.reference(problem, random.Random(config.seed))])
    rollout = world.sample(model, covered, SAMPLES, generator)
    reward = world.reward([problem], rollout.texts)
    with torch.no_grad():
        student, teacher = (rlsd.of_tokens(rlsd.response_logp(model, prompt, rollout.tokens), rollout.tokens)
                            for prompt in (covered, opened))
    gain, advantage = rlsd.information_gain(teacher, student), rlsd.group_advantage(reward, SAMPLES)
    found = []
    for verdict in (1, 0):
        rows = (reward == verdict).nonzero().flatten().tolist()[:1]
        for row in rows:
            length = int(rollout.mask[row].sum())
            found.append({
                "verdict": "right" if verdict else "wrong", "share": float((reward == verdict).float().mean()),
                "text": rollout.texts[row],
                "tokens": [world.tokenizer.decode([token]) for token in rollout.tokens[row, :length].tolist()],
                "P_S": student[row, :length].exp().tolist(), "P_T": teacher[row, :length].exp().tolist(),
                **{mode: rlsd.token_credit(mode, gain, advantage, config.eps_w, config.lam)[row, :length].tolist() for mode in SHOWN},
            })
    return found


def read_problem(world: World, flag: str, text: str) -> tuple:
    try:
        return world.task.read(text)
    except ValueError as error:
        raise UserError(f"{flag} {text!r}: {error}") from error


def explain(text: str, config: rlsd.Config, out: Path, device: str) -> str:
    world = World(config.make_task(), device)
    problem = read_problem(world, "--explain", text)
    model, name = model_of(config, out, world)
    key = world.task.reference(problem, random.Random(config.seed))
    with_key = world.sample(model, world.prompts([problem], [key]), 4, torch.Generator(device).manual_seed(config.seed))
    lines = [name, f"{text}, key {key}; with the key open it answers {with_key.texts[0]}"]
    for response in credits(config, world, model, problem):
        lines += ["", f"key covered, {response['verdict']} ({response['share']:.0%} of {SAMPLES} are): {response['text']}",
                  "  token      P_S    P_T   " + "  ".join(f"{NAMES[mode]:>5}" for mode in SHOWN)]
        for i, token in enumerate(response["tokens"]):
            lines.append(f"  {token:9} {response['P_S'][i]:5.2f}  {response['P_T'][i]:5.2f}   "
                         + "  ".join(painted(response[mode][i]) for mode in SHOWN))
    return "\n".join(lines)


def main() -> None:
    parser = rlsd.Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("plots"))
    parser.add_argument("--problem", default="4218+3567")
    parser.add_argument("--digits", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="as in the other studies; this one takes seconds as it is")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    config = rlsd.Config(digits=flags.digits, eps_w=1.0, lam=1.0)
    world = World(config.make_task())
    problem = read_problem(world, "--problem", flags.problem)
    found = credits(config, world, rlsd.cached_model(config, "base"), problem)
    figure = Figure(figsize=(11, 5), dpi=110, layout="constrained")
    for axes, response in zip(figure.subplots(2, 1), found):
        for row, mode in enumerate(SHOWN):
            values = response[mode]
            axes.imshow([values], aspect="auto", cmap="RdBu", vmin=-3, vmax=3, extent=(-0.5, len(values) - 0.5, row + 0.5, row - 0.5))
            for column, value in enumerate(values):
                axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=9, color="white" if abs(value) > 2 else "black")
        axes.set(xlim=(-0.5, len(values) - 0.5), ylim=(len(SHOWN) - 0.5, -0.5))
        axes.set_xticks(range(len(values)), [token.strip("<>")[-3:] for token in response["tokens"]], family="monospace")
        axes.set_yticks(range(len(SHOWN)), [NAMES[mode] for mode in SHOWN])
        axes.set_title(f"{flags.problem}, a {response['verdict']} response: A_t of each token", loc="left")
        axes.tick_params(length=0)
    worst = found[-1]  # the wrong one, where the base has made a mistake
    token = min(range(len(worst["tokens"])), key=lambda i: worst["rlsd"][i])
    figure.suptitle(f"RLVR gives all tokens of the {worst['verdict']} response {worst['rlvr'][0]:+.1f}; RLSD (eps_w 1, lambda 1) gives its "
                    f"{token + 1}th, {worst['tokens'][token]!r}, {worst['rlsd'][token]:+.1f}")
    log = flags.out / "runs" / "credit.jsonl"
    study.write_lines(log, [{"problem": flags.problem, **response} for response in found])
    study.finish(figure, flags.out / "credit.png", log)


if __name__ == "__main__":
    study.command(main)
