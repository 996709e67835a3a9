"""Where the credit goes: one right and one wrong response, token by token, and the A_t of each method.

    python -m plots.credit "478+356" [--checkpoint FILE]        a table for a problem of yours
    python -m plots.credit                                      credit.png and runs/credit.jsonl, of 4218+3567

The response is the student's, the key covered: that of the base of seed 0, or of a run's checkpoint. P_T is the same
network's with the key open. eps_w and lam are 1. CEPO's wrong key is the answer of the first wrong response.
"""

import argparse
import random
from pathlib import Path

import torch

import rlsd
from plots import compare, files, pool, study

MODES = ("rlvr", "opsd", "rlsd", "cepo")
SAMPLES, EPS_W, LAM = 64, 1.0, 1.0


def load(config: rlsd.Config, checkpoint: Path | None) -> rlsd.GPT:
    """The base, or the student of a checkpoint; UserError if that was made with other settings."""
    if not checkpoint:
        return rlsd.cached_model(config, "base")
    state = files.read_checkpoint(checkpoint)
    with files.distrust(checkpoint):
        made = {name: state["config"][name] for name in ("task", "digits", "slip", "cite")}
    for name, value in made.items():
        if value != getattr(config, name):
            raise rlsd.UserError(f"{checkpoint} was made with --{name} {value}, not {getattr(config, name)}")
    model = rlsd.cached_model(config, "base")
    with files.distrust(checkpoint):
        model.load_state_dict(state["student"])
    return model


def exam(world: rlsd.World, model: rlsd.GPT, opened: bool) -> tuple[float, float]:
    """Shares of the exam that are right, and that cite, with the key covered or open."""
    problems, keys = world.task.exam()
    prompts = world.prompts(problems, keys if opened else None)
    texts = world.sample(model, prompts, 1, torch.Generator().manual_seed(0)).texts
    return float(world.reward(problems, texts).mean()), sum(map(world.task.leaks, texts)) / len(texts)


def measure(config: rlsd.Config, given: tuple[tuple, Path | None]) -> dict:
    """The exam, and of SAMPLES responses to a problem the first right and the first wrong one."""
    (problem, checkpoint), world = given, rlsd.World(config.make_task())
    model, key = load(config, checkpoint), world.task.reference(problem, random.Random(0))
    rollout = world.sample(model, world.prompts([problem]), SAMPLES, torch.Generator().manual_seed(0))
    reward, answers = world.reward([problem], rollout.texts), map(world.task.answer, rollout.texts)
    wrong_key = next((answer for answer, right in zip(answers, reward) if answer and not right), key)
    student, teacher = study.both_views(world, model, problem, key, rollout.tokens)
    _, misled = study.both_views(world, model, problem, wrong_key, rollout.tokens)
    advantage, found = rlsd.group_advantage(reward, SAMPLES), []
    columns = {"P_S": student.exp(), "P_T": teacher.exp()} | {
        mode: rlsd.token_credit(mode, rlsd.information_gain(teacher, misled if mode == "cepo" else student), advantage,
                                EPS_W, LAM) for mode in MODES}
    for row in [reward.tolist().index(verdict) for verdict in (1, 0) if verdict in reward.tolist()]:
        length = int(rollout.mask[row].sum())
        found.append({"verdict": "right" if reward[row] else "wrong", "text": rollout.texts[row],
                      "tokens": [world.tokenizer.decode([token]) for token in rollout.tokens[row, :length].tolist()],
                      **{name: values[row, :length].tolist() for name, values in columns.items()}})
    return {"key": key, "wrong_key": wrong_key, "right": float(reward.mean()), "responses": found,
            "exam": {name: exam(world, model, name == "open") for name in ("covered", "open")}}


def table(lines: list[dict]) -> list[str]:
    rows = [(one["verdict"], token, *(f"{one[name][n]:.2f}" for name in ("P_S", "P_T")),
             *(f"{one[mode][n]:+.2f}" for mode in MODES))
            for one in lines[0]["responses"] for n, token in enumerate(one["tokens"])]
    return study.markdown(("response", "token", "P_S", "P_T", *(compare.NAMES[mode] for mode in MODES)), rows)


def draw(line: dict):
    found = line["responses"]
    figure, axes = study.panels(len(found), 1, width=11, height=2.8)
    for panel, one in zip(axes.flat, found):
        panel.imshow([one[mode] for mode in MODES], aspect="auto", cmap="RdBu", vmin=-3, vmax=3)
        for row, mode in enumerate(MODES):
            for column, value in enumerate(one[mode]):
                panel.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=9,
                           color="white" if abs(value) > 2 else "black")
        panel.set_xticks(range(len(one["tokens"])), [token[-4:] for token in one["tokens"]], family="monospace")
        panel.set_yticks(range(len(MODES)), [compare.NAMES[mode] for mode in MODES])
        panel.set_title(f"{line['label']}, a {one['verdict']} response: A_t of each token", loc="left")
        panel.tick_params(length=0)
        panel.grid(False)
    worst, n = found[-1], min(range(len(found[-1]["tokens"])), key=lambda n: found[-1]["rlsd"][n])
    figure.suptitle(f"RLVR gives all tokens of the {worst['verdict']} response {worst['rlvr'][0]:+.1f}; RLSD (eps_w 1, "
                    f"lam 1) gives token {n + 1}, {worst['tokens'][n]!r}, {worst['rlsd'][n]:+.1f}")
    return figure


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("problem", nargs="?", help="such as 478+356; without it, the figure is drawn")
    own.add_argument("--checkpoint", type=Path, help="a run's runs/*.pt")
    flags = study.arguments(__doc__, (own,), trains=False)
    config = rlsd.Config(digits=flags.digits)
    shown = "+".join(number[-flags.digits:] for number in ("4218", "3567"))
    text = shown if flags.problem is None else flags.problem
    try:
        problem = config.make_task().read(text)
    except ValueError as error:
        raise rlsd.UserError(f"{text!r}: {error}") from error
    label = f"{text}, {flags.checkpoint or 'base of seed 0'}"
    given = problem, flags.checkpoint
    if flags.problem is None:
        lines = study.run_all("credit", flags, [(label, config, given)], measure)
    else:
        lines = [{"label": label, **measure(config, given)}]
    line = lines[0]
    for name, (right, citing) in line["exam"].items():
        pool.say(f"exam, key {name:7}  right {right:.3f}  citing {citing:.3f}")
    pool.say(f"{label}: key {line['key']}, CEPO's wrong key {line['wrong_key']}, {line['right']:.0%} of {SAMPLES} "
             "responses are right, such as")
    pool.say("\n".join(f"  {one['verdict']}  {one['text']}" for one in line["responses"]))
    pool.say("\n".join(table(lines)))
    if flags.problem is None:
        study.finish(draw(line), flags.out / "credit.png", study.log_of("credit", flags))


if __name__ == "__main__":
    study.command(main)
