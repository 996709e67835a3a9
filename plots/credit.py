"""Where the credit goes: a right and a wrong response, token by token, and the A_t of each method.

    python -m plots.credit "478+356" [--weights FILE]        a table for a problem of yours
    python -m plots.credit                       credit.png and runs/credit.jsonl, of 4218+3567

The response is the student's, without a key. It is that of the base of seed 0 or --seed N, or of
the weights that a run has left in runs/NAME.pt. P_T is the same network's when it sees the key.
eps_w and lam are 1.
"""

import argparse
import random
import re
from dataclasses import replace
from pathlib import Path

import torch

import rlsd
from plots import compare, study

MODES = ("rlvr", "opsd", "rlsd", "cepo")
SAMPLES = 64


def load(path: Path) -> tuple[rlsd.Config, rlsd.GPT]:
    """The config and the student of a run's runs/NAME.pt."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config = rlsd.Config(**saved["config"])
        model = rlsd.GPT(config.make_task().tokenizer.vocabulary_size, rlsd.WIDTH["base"])
        model.load_state_dict(saved["student"])
    except OSError as error:
        raise rlsd.UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        raise rlsd.UserError(f"{path} does not hold the weights of a run") from error
    return config, model


def read_problem(task: rlsd.Task, text: str) -> tuple[int, ...]:
    """The problem that a person has written. UserError unless the task would write it like that."""
    usual = task.exam()[0][0]
    problem = tuple(int(number) for number in re.findall(r"\d{1,20}", text))
    if (
        len(problem) != len(usual)
        or task.show(problem) != text
        or len(task.prompt(problem)) != len(task.prompt(usual))
    ):
        raise rlsd.UserError(f"{text!r} is no problem; write it like {task.show(usual)}")
    return problem


def exam(task: rlsd.Task, model: rlsd.GPT, shows_key: bool) -> tuple[float, float]:
    """Shares of the exam that are right, and that cite."""
    problems, keys = task.exam()
    prompts = rlsd.encode_prompts(task, problems, model.device, keys if shows_key else None)
    texts = rlsd.sample_responses(task, model, prompts, group_size=1, seed=0).texts
    right = [task.verify(problem, text) for problem, text in zip(problems, texts)]
    citing = [task.leaks(text) for text in texts]
    return rlsd.share(right), rlsd.share(citing)


def measure(config: rlsd.Config, given: tuple[tuple, Path | None]) -> dict:
    """The exam; and of SAMPLES responses to a problem the first right and the first wrong one."""
    problem, weights = given
    model = load(weights)[1] if weights else rlsd.cached_model(config, "base")
    task, rng = config.make_task(), random.Random(0)
    key = task.answer_key(problem, rng)
    shown = ("right key", "wrong key")
    batch = rlsd.collect(config, task, model, model, [problem], [key], SAMPLES, shown, rng)
    log_probs = rlsd.token_log_probs(batch.student_log_probs, batch.tokens)
    teacher_log_probs = rlsd.token_log_probs(batch.right_key_log_probs, batch.tokens)
    columns = {"P_S": log_probs.exp(), "P_T": teacher_log_probs.exp()}
    for mode in MODES:
        _, columns[mode] = rlsd.method_loss(mode, batch)

    rewards, responses = batch.reward.tolist(), []
    for reward, verdict in ((1.0, "right"), (0.0, "wrong")):
        if reward not in rewards:
            continue
        row = rewards.index(reward)
        length = int(batch.mask[row].sum())
        tokens = batch.tokens[row, :length].tolist()
        one = {"verdict": verdict, "text": batch.texts[row]}
        one["tokens"] = [task.tokenizer.decode([token]) for token in tokens]
        for name, values in columns.items():
            one[name] = values[row, :length].tolist()
        responses.append(one)
    return {
        "key": key,
        "wrong_key": batch.wrong_keys[0],
        "right": float(batch.reward.mean()),
        "responses": responses,
        "exam": {"covered": exam(task, model, False), "open": exam(task, model, True)},
    }


def table(lines: list[dict]) -> list[str]:
    rows = []
    for one in lines[0]["responses"]:
        for n, token in enumerate(one["tokens"]):
            probabilities = [f"{one[name][n]:.2f}" for name in ("P_S", "P_T")]
            token_advantage = [f"{one[mode][n]:+.2f}" for mode in MODES]
            rows.append((one["verdict"], token, *probabilities, *token_advantage))
    names = [compare.NAMES[mode] for mode in MODES]
    return study.markdown(("response", "token", "P_S", "P_T", *names), rows)


def draw(panel, one: dict, label: str) -> None:
    """A_t of each token of a response, one row per method."""
    panel.imshow([one[mode] for mode in MODES], aspect="auto", cmap="RdBu", vmin=-3, vmax=3)
    for row, mode in enumerate(MODES):
        for column, value in enumerate(one[mode]):
            look = {"ha": "center", "va": "center", "fontsize": 8}
            ink = "white" if abs(value) > 2 else "black"
            told = f"{value:+.2f}" if abs(value) >= 0.005 else "0"
            panel.text(column, row, told, color=ink, **look)
    tokens = [token[-4:] for token in one["tokens"]]
    panel.set_xticks(range(len(tokens)), tokens, family="monospace")
    panel.set_yticks(range(len(MODES)), [compare.NAMES[mode] for mode in MODES])
    text = f"A_t of each token of a {one['verdict']} response ({label})"
    hardest = set()  # the token that OPSD, RLSD and CEPO push hardest on
    for mode in MODES[1:]:
        sizes = [abs(value) for value in one[mode]]
        hardest.add(sizes.index(max(sizes)) + 1)
    if one["verdict"] == "wrong" and len(hardest) == 1:
        text = f"A wrong response: OPSD, RLSD and CEPO push hardest on token {hardest.pop()}"
    study.title(panel, text)
    panel.tick_params(length=0)
    panel.grid(False)


def draw_all(line: dict):
    responses = line["responses"]
    figure, axes = study.panels(len(responses), 1, width=11, height=2.8)
    for panel, one in zip(axes.flat, responses):
        draw(panel, one, line["label"])
    return figure


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("problem", nargs="?", help="such as 478+356; without it, the figure is drawn")
    own.add_argument("--weights", type=Path, help="a run's runs/NAME.pt, instead of the base")
    own.add_argument("--seed", type=int, default=0, help="of the base (default: %(default)s)")
    flags = study.arguments(__doc__, (own,), trains=False)
    config = rlsd.Config(digits=flags.digits, seed=flags.seed)
    if flags.weights:
        config, _ = load(flags.weights)
    config = replace(config, eps_w=1.0, lam=1.0, false_negatives=0.0, false_positives=0.0)
    config = replace(config, key_noise=0.0)
    task = config.make_task()
    text = flags.problem
    if text is None:
        usual = "+".join(number[-config.digits :] for number in ("4218", "3567"))
        text = usual if task.name == "carry" else task.show(task.exam()[0][0])
    given = read_problem(task, text), flags.weights
    label = f"{text}, {flags.weights or f'base of seed {config.seed}'}"
    if flags.problem is None:
        lines = study.run_all("credit", flags, [(label, config, given)], measure)
    else:
        lines = [{"label": label, **measure(config, given)}]

    line = lines[0]
    for name, (right, citing) in line["exam"].items():
        print(f"exam, key {name:7}  right {right:.3f}  citing {citing:.3f}")
    print(
        f"{label}: key {line['key']}, CEPO's wrong key {line['wrong_key']}, "
        f"{line['right']:.0%} of {SAMPLES} responses are right, such as"
    )
    for one in line["responses"]:
        print(f"  {one['verdict']}  {one['text']}")
    study.say(table(lines))
    if flags.problem is None:
        study.finish(draw_all(line), "credit", flags)


if __name__ == "__main__":
    study.command(main)
