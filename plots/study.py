"""What the studies share: flags, runs side by side, a log of a line per run, the look of figures.

A study is a list of runs: (label, Config, method). The method is rlsd.method_loss, or a function in
its place. A run's line in runs/NAME.jsonl holds its label, seed, config and curves; tables and
figures are made of these lines. A study that measures something else gives run_all a function of
its own, and then the third part of a run is what this function asks for.
"""

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import rlsd
from plots import compare
from tiny_tasks import SEE_KEY

HELD_AT_1 = {"eps_w": 1.0, "lam": 1.0, "lam_decay": 0}  # settings of many studies
CURVES = ("step", "accuracy", "leakage", "kl", "entropy")
LEAKS = 0.1  # a run has leaked if its leakage exceeds this at some evaluation
WATCHED = ("step", "accuracy", "leakage", "stray_digits", "cite_probability")

# ==== The command line ====


def arguments(doc: str, parents: tuple = (), trains: bool = True, **numbers) -> argparse.Namespace:
    """The flags of every study and those of the `parents`, with the study's defaults `numbers`."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=(doc or "").partition("\n")[0],
        allow_abbrev=False,
        parents=parents,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("plots"), help="folder of the figure and of runs/ [plots]"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed and fewer runs, within two minutes"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the runs that the log already has"
    )
    defaults = {"digits": 4}
    if trains:
        defaults |= {"steps": 160, "seeds": 5}
    for name, default in (defaults | numbers).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[{default}]")
    flags = parser.parse_args()
    for name, value in vars(flags).items():
        least = 0 if name == "seed" else 1
        if type(value) is int and value < least:
            raise rlsd.UserError(f"--{name} is {value}, but must be {least} or more")
    (flags.out / "runs").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return flags


def command(main: Callable) -> None:
    """Runs a study. Bad input is one line on standard error, and exit code 2; so is a full disk."""
    signal.signal(signal.SIGINT, rlsd.stop_at_once)
    try:
        main()
    except (rlsd.UserError, OSError) as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)


def steps_of(flags: argparse.Namespace, quick: int = 2) -> int:
    """--steps; under --quick a half of them, or another fraction, rounded up."""
    return -(-flags.steps // quick) if flags.quick else flags.steps


def seeds_of(flags: argparse.Namespace) -> range:
    """--seeds seeds; under --quick only the first."""
    return range(1 if flags.quick else flags.seeds)


def config_of(
    flags: argparse.Namespace, seed: int, make: Callable = rlsd.Config, **settings
) -> rlsd.Config:
    """The settings of a run that is evaluated at every 20th step, unless they say otherwise."""
    shared = {"digits": flags.digits, "steps": steps_of(flags), "evaluate_every": 20}
    return make(**shared | {"seed": seed} | settings)


# ==== Runs and their log ====


def log_of(name: str, flags: argparse.Namespace) -> Path:
    return flags.out / "runs" / f"{name}.jsonl"


def read_lines(path: Path) -> list[dict]:
    """The lines of a study's log. UserError if it is none."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for line in lines:
            identity(line)
    except (ValueError, TypeError, KeyError) as error:
        raise rlsd.UserError(f"{path} is not the log of a study: move it away") from error
    return lines


def identity(line: dict) -> tuple[str, str]:
    """Lines of the same label and config are of the same run."""
    return line["label"], json.dumps(line["config"])


def run_all(
    name: str, flags: argparse.Namespace, runs: list[tuple], measure: Callable | None = None
) -> list[dict]:
    """The lines of all runs (label, config, given), in their order.

    measure(config, given) -> dict is called once per run, side by side. The log grows by a line
    when a run is done. With --resume the runs that the log already has are kept.
    """
    path = log_of(name, flags)
    kept = read_lines(path) if flags.resume and path.exists() else []
    done = {identity(line): line for line in kept}
    wanted, jobs = [], []
    for label, config, given in runs:
        head = {"label": label, "seed": config.seed, "config": asdict(config)}
        wanted.append(identity(head))
        if wanted[-1] not in done:
            jobs.append((run_one, head, measure or curves_of_run, config, given))

    order = dict.fromkeys([*done, *wanted])
    models = base_jobs([config for _, _, _, config, _ in jobs])
    workers = min(rlsd.cores(), rlsd.MAX_WORKERS, len(jobs))
    for job, result in rlsd.side_by_side([models, jobs], workers):
        if isinstance(result, Exception):
            raise result
        if job[0] is run_one:
            head = job[1]
            done[identity(head)] = {**head, **result}
            text = "".join(json.dumps(done[key]) + "\n" for key in order if key in done)
            rlsd.write_whole(path, lambda part: part.write_text(text, "utf-8"))
            show_progress(sum(key in done for key in wanted), len(wanted))
    return [done[key] for key in wanted]


def show_progress(done: int, total: int) -> None:
    """One line on a terminal, written over."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\033[K{done} of {total} runs", end=end, file=sys.stderr, flush=True)


def base_jobs(configs: list[rlsd.Config]) -> list[tuple]:
    """Jobs that make the base of each config, and OPD's teacher where it is needed, once each."""
    jobs = {}
    for config in configs:
        trained_on = config.task, config.digits, config.slip, config.cite, config.seed
        jobs[trained_on, "base"] = (make_model, config, "base")
        if rlsd.MODES[config.mode].teacher == "larger":
            jobs[trained_on, "larger"] = (make_model, config, "larger")
    return list(jobs.values())


def make_model(config: rlsd.Config, kind: str, report: Callable) -> None:
    """A job."""
    rlsd.cached_model(config, kind)


def run_one(head: dict, measure: Callable, config: rlsd.Config, given, report: Callable) -> dict:
    """A job."""
    return measure(config, given)


def training(
    config: rlsd.Config,
    method: Callable = rlsd.method_loss,
    refresh_teacher: Callable = rlsd.copy_every_n_steps,
    task: rlsd.Task | None = None,
):
    """rlsd.train with the networks that it needs: yields (record, student, teacher)."""
    base = rlsd.cached_model(config, "base")
    larger = None
    if rlsd.MODES[config.mode].teacher == "larger":
        larger = rlsd.cached_model(config, "larger")
    task = task or config.make_task()
    return rlsd.train(config, task, base, larger, method, refresh_teacher)


def curves_of_run(config: rlsd.Config, method: Callable) -> dict:
    """What run_all measures by default."""
    records = [record for record, _, _ in training(config, method)]
    return columns(records, CURVES)


def watch(task: rlsd.Task, run) -> dict:
    """WATCHED at each evaluation of a run of `training`, on a task like Carry."""
    records = []
    for record, student, _ in run:
        strays = {"stray_digits": stray_digits(task, student)}
        records.append(record | strays | {"cite_probability": cite_probability(task, student)})
    return columns(records, WATCHED)


def watched_run(config: rlsd.Config, method: Callable) -> dict:
    """What run_all measures for studies that watch their runs."""
    task = config.make_task()
    return watch(task, training(config, method, task=task))


def stray_digits(task: rlsd.Task, student: rlsd.GPT) -> float | None:
    """The share of stray digits in the workings of sampled responses to the exam, without a key.

    A digit is stray if it is wrong, and no forgotten carry explains it: see count_strays. None if
    no response has a working.
    """
    problems, _ = task.exam()
    prompts = rlsd.encode_prompts(task, problems, student.device)
    texts = rlsd.sample_responses(task, student, prompts, group_size=1, seed=0).texts
    counts = [count_strays(task, problem, text) for problem, text in zip(problems, texts)]
    strays, digits = (sum(column) for column in zip(*counts))
    return round(strays / digits, 6) if digits else None


def count_strays(task: rlsd.Task, problem: tuple, text: str) -> tuple[int, int]:
    """(stray digits, digits) of one working; (0, 0) if the response has none of the proper form.

    Each digit is judged by the carry that the response itself wrote before it. With that carry it
    is right; without it, it is a forgotten carry; every other digit is stray.
    """
    if not re.match(rf"([0-9][c-]){{{task.digits}}}=", text):
        return 0, 0
    strays, carry = 0, 0
    for place, (top, bottom) in enumerate(task.columns(problem)):
        digit, mark = text[2 * place : 2 * place + 2]
        without_carry = int(top) + int(bottom)
        if int(digit) not in ((without_carry + carry) % 10, without_carry % 10):
            strays += 1
        carry = int(mark == "c")
    return strays, task.digits


@torch.no_grad()
def cite_probability(task: rlsd.Task, student: rlsd.GPT) -> float:
    """P_S(<see key>) as the first token, without a key, in the mean over the exam."""
    problems, _ = task.exam()
    logits, _ = student(rlsd.encode_prompts(task, problems, student.device))
    [cite] = task.tokenizer.encode(SEE_KEY)
    return round(float(logits[:, -1].softmax(-1)[:, cite].mean()), 6)


def columns(records: list[dict], names: tuple[str, ...]) -> dict[str, list]:
    """name -> its value at each evaluation."""
    return {name: [record[name] for record in records] for name in names}


@torch.no_grad()
def log_probs_of(
    task: rlsd.Task, model: rlsd.GPT, problem: tuple, tokens: Tensor, key: str | None = None
) -> Tensor:
    """log P(y_t) of responses to one problem; a key is shown if it is given. (B, T) -> (B, T)."""
    keys = None if key is None else [key]
    prompts = rlsd.encode_prompts(task, [problem], model.device, keys)
    log_probs = rlsd.response_log_probs(model, prompts, tokens)
    return rlsd.token_log_probs(log_probs, tokens)


def noisy(name: str, noise: float) -> str:
    """The label of runs with a noisy verifier."""
    return f"{name}, noise {noise:g}"


def error_rates(noise: float) -> dict[str, float]:
    """Settings of a verifier whose every verdict is flipped with probability `noise`."""
    return {"false_negatives": noise, "false_positives": noise}


# ==== What is said of the lines ====
#
# Shapes: (seeds, evaluations) or (seeds,), with the seeds in order.


def labels_of(lines: list[dict]) -> list[str]:
    return list(dict.fromkeys(line["label"] for line in lines))


def curves(lines: list[dict], name: str, label: str) -> np.ndarray:
    """A quantity of the runs of one label, (seeds, evaluations). Where it is None, nan."""
    chosen = [line for line in lines if line["label"] == label]
    chosen = [line[name] for line in sorted(chosen, key=lambda line: line["seed"])]
    return np.array(chosen, dtype=float)


def steps(lines: list[dict], label: str) -> np.ndarray:
    """The steps of the evaluations, (evaluations,); they are the same for all seeds."""
    return curves(lines, "step", label)[0]


def ends(lines: list[dict], label: str) -> np.ndarray:
    """The accuracy at the end."""
    return curves(lines, "accuracy", label)[:, -1]


def means(lines: list[dict], label: str) -> np.ndarray:
    """The mean accuracy over the run."""
    return compare.mean_over_run(steps(lines, label), curves(lines, "accuracy", label))


def leaks(lines: list[dict], label: str) -> np.ndarray:
    """Each seed's highest leakage."""
    return compare.highest(curves(lines, "leakage", label))


def strays(lines: list[dict], label: str) -> np.ndarray:
    """Each seed's highest share of stray digits; without any working it counts as 0."""
    return compare.highest(np.nan_to_num(curves(lines, "stray_digits", label)))


def cites(lines: list[dict], label: str) -> np.ndarray:
    """Each seed's highest probability of a cite at the first token."""
    return compare.highest(curves(lines, "cite_probability", label))


def spreads(lines: list[dict], label: str, *quantities: Callable) -> list[str]:
    """The mean (lowest to highest) of each of the quantities, such as study.ends."""
    return [compare.spread(quantity(lines, label)) for quantity in quantities]


def watched_table(lines: list[dict], order: list[str], names: tuple[str, str]) -> list[str]:
    """A row per label "FIRST: SECOND" of runs that were watched, sorted by the `order` of FIRST."""
    rows = []
    for label in labels_of(lines):
        rows.append((*label.split(": "), *spreads(lines, label, means, ends, leaks, strays)))
    rows.sort(key=lambda row: order.index(row[0]))
    head = (
        *names,
        "accuracy, mean over the run",
        "accuracy at the end",
        "highest leakage",
        "highest share of stray digits",
    )
    return markdown(head, rows)


def noises(lines: list[dict]) -> list[float]:
    """The verifier noises of the runs."""
    return sorted({line["config"]["false_negatives"] for line in lines})


def markdown(head: tuple, rows: list[tuple]) -> list[str]:
    """The lines of a markdown table, with its columns aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|".join("-" * (width + 2) for width in widths)
    return [lines[0], f"|{rule}|", *lines[1:]]


def say(rows: list[str]) -> None:
    print(*rows, sep="\n")


# ==== Figures ====


def panels(rows: int, columns: int, width: float = 5.2, height: float = 3.8):
    """A figure and its panels, (rows, columns)."""
    from matplotlib.figure import Figure

    size = width * columns, height * rows
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, axes


def title(panel, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=12)


def claim(panel, text: str, holds: bool, otherwise: str) -> None:
    """A title that says what was found; if it does not hold of these runs, a plain label."""
    title(panel, text if holds else otherwise)


def draw_dots(panel, columns: dict[str, np.ndarray], colours: dict, shift: float = 0.0) -> None:
    """A column of dots per label, one dot for each seed, and a bar at their mean."""
    for n, (label, values) in enumerate(columns.items()):
        colour = colours[label]
        around = shift + np.linspace(-0.09, 0.09, len(values))
        panel.plot(n + around, values, "o", color=colour, markersize=5, alpha=0.65, linewidth=0)
        panel.plot((n + shift - 0.16, n + shift + 0.16), 2 * [values.mean()], color=colour, lw=2.5)


def draw_leaks(panel, leaks: dict[str, np.ndarray], colours: dict) -> None:
    """draw_dots of each run's highest leakage; above a column, how many seeds leak."""
    draw_dots(panel, leaks, colours)
    for n, values in enumerate(leaks.values()):
        count = f"{(values > LEAKS).sum()} of {len(values)}"
        panel.text(n, 1.09, count, ha="center", va="center")
    panel.axhline(LEAKS, color="#888888", linewidth=1, linestyle=":")
    panel.set(ylabel="highest leakage (dotted: 0.1)", ylim=(-0.03, 1.15))


def draw_curves(panel, curves: dict[str, tuple], names: dict, colours: dict) -> None:
    """label -> (steps, values (seeds, evaluations)): a thin line per seed under a bold mean.

    Curves may coincide. They are drawn from wide and pale to narrow, so that all can be seen.
    """
    panel.set_xlim(0, max(steps[-1] for steps, _ in curves.values()))
    ends = []
    for n, (label, (steps, values)) in enumerate(curves.items()):
        below = len(curves) - 1 - n  # how many are drawn after this one
        mean, colour = values.mean(0), colours[label]
        opacity = 0.6 if below else 1
        panel.plot(steps, mean, color=colour, linewidth=2 + 1.6 * below, alpha=opacity)
        if len(values) > 1:
            panel.plot(steps, values.T, color=colour, linewidth=0.6, alpha=0.5)
        ends.append((names[label], colour, steps[-1], mean[-1]))
    rlsd.name_ends(panel, ends)


def draw_runs(panel, lines: list[dict], name: str, names: dict, colours: dict) -> None:
    """The curves of a quantity that is a share; names: label -> the name in the figure."""
    panel.set(xlabel=rlsd.QUANTITIES["step"], ylabel=rlsd.QUANTITIES[name], ylim=rlsd.SHARE)
    found = {label: (steps(lines, label), curves(lines, name, label)) for label in names}
    draw_curves(panel, found, names, colours)


def finish(figure, name: str, flags: argparse.Namespace) -> None:
    """Writes the figure, and says where it and the log are."""
    path = flags.out / f"{name}.png"
    rlsd.write_whole(path, lambda part: figure.savefig(part, format="png"))
    print(f"figure {path}\nlog    {log_of(name, flags)}")
