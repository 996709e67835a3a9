"""What the studies share: their flags, runs side by side, a log of one line per run, and the look of a figure.

A study is a list of runs: (label, Config, method), the method being rlsd.method_loss or a function in its place. A
run's line in runs/NAME.jsonl holds label, seed, config and curves; tables and figures are made of these lines. A study
that measures something else per run gives run_all a function of its own, and the run what that function asks for.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import rlsd
from plots import compare, files, pool

CURVES = ("step", "accuracy", "leakage", "kl", "entropy")


def arguments(doc: str, parents: tuple = (), trains: bool = True, **numbers) -> argparse.Namespace:
    """The flags of every study, those of the `parents` (parsers), and its own defaults of the `numbers`."""
    about = (doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=about, allow_abbrev=False, parents=parents)
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder of the figure and of runs/ [plots]")
    parser.add_argument("--quick", action="store_true", help="one seed and fewer runs, within two minutes")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the log already has")
    for name, default in ({"digits": 4} | ({"steps": 160, "seeds": 5} if trains else {}) | numbers).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default}]")
    flags = parser.parse_args()
    for name, value in vars(flags).items():
        if type(value) is int and value < 1:
            raise rlsd.UserError(f"--{name} is {value}, but must be 1 or more")
    files.probe(flags.out / "runs")
    torch.set_num_threads(1)
    return flags


def log_of(name: str, flags: argparse.Namespace) -> Path:
    return flags.out / "runs" / f"{name}.jsonl"


def make_bases(configs: list[rlsd.Config]) -> None:
    """The base of each config, and OPD's teacher where it is needed, side by side and once each."""
    wanted = {(config.task, config.digits, config.slip, config.cite, config.seed): config for config in configs}
    jobs = [(rlsd.cached_model, config, "base") for config in wanted.values()]
    jobs += [(rlsd.cached_model, config, "teacher") for config in configs if config.mode == "opd"]
    list(pool.side_by_side(jobs, "bases"))


def curves_of_run(config: rlsd.Config, method: Callable) -> dict:
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    teacher = rlsd.cached_model(config, "teacher") if config.mode == "opd" else None
    records = [record for record, _ in rlsd.train(config, world, base, teacher, method=method)]
    return {key: [record[key] for record in records] for key in CURVES}


def run_all(name: str, flags: argparse.Namespace, runs: list[tuple], one: Callable = curves_of_run) -> list[dict]:
    """The lines of all runs (label, config, what `one` needs). The log grows by a line as each is done.

    one(config, what it needs) -> dict. Runs that a resumed log already has, of the same label and config, are kept.
    """
    path = log_of(name, flags)
    kept = files.read_log(path) if flags.resume and path.exists() else []

    def identity(line: dict) -> tuple:
        return line["label"], json.dumps(line["config"])

    with files.distrust(path):
        have = set(map(identity, kept))
    heads = [{"label": label, "seed": config.seed, "config": asdict(config)} for label, config, _ in runs]
    missing = [(head, config, given) for head, (_, config, given) in zip(heads, runs) if identity(head) not in have]
    make_bases([config for _, config, _ in missing])
    results = pool.side_by_side([(one, config, given) for _, config, given in missing], "runs")
    for measured, (head, _, _) in zip(results, missing):  # in this order, so that the results are asked to their end
        kept.append({**head, **measured})
        files.write_log(path, kept)
    wanted = set(map(identity, heads))  # the log may hold others, such as those of --quick
    return [line for line in kept if identity(line) in wanted]


def both_views(world: rlsd.World, model, problem: tuple, key: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log P (B, T) of the tokens of responses to one problem, by one model, with the key covered and open."""
    with torch.no_grad():
        covered, opened = (rlsd.of_tokens(rlsd.response_logp(model, world.prompts([problem], keys), tokens), tokens)
                           for keys in (None, [key]))
    return covered, opened


# ---- What is said of the lines: (seeds, evaluations) or (seeds,), seeds in order.

def curves(lines: list[dict], key: str, label: str) -> np.ndarray:
    return np.array([line[key] for line in sorted(lines, key=lambda line: line["seed"]) if line["label"] == label])


def ends(lines: list[dict], label: str) -> np.ndarray:
    return curves(lines, "accuracy", label)[:, -1]


def means(lines: list[dict], label: str) -> np.ndarray:
    """Mean accuracy over the run, by the one definition."""
    return compare.mean_over_run(curves(lines, "step", label), curves(lines, "accuracy", label))


def leaks(lines: list[dict], label: str) -> np.ndarray:
    """Each seed's highest leakage."""
    return compare.highest(curves(lines, "leakage", label))


def noises(lines: list[dict]) -> list[float]:
    """The verifier noises of the runs."""
    return sorted({line["config"]["verifier_noise"] for line in lines})


def markdown(head: tuple, rows: list[tuple]) -> list[str]:
    """The lines of a markdown table, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in (head, *rows)]
    return [f"| {lines[0]} |", "|" + "|".join("-" * (width + 2) for width in widths) + "|",
            *(f"| {line} |" for line in lines[1:])]


# ---- Figures.

def panels(rows: int, columns: int, width: float = 5.2, height: float = 3.8):
    """A figure and its panels, (rows, columns)."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns, height * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, axes


def draw_curves(panel, curves: dict[str, tuple], names: dict, colours: dict, styles: dict | None = None) -> None:
    """label -> (steps, values (seeds, evaluations)): mean, band from lowest to highest, and the name at the end.

    From wide and pale to thin and dark, so that curves that coincide are all seen.
    """
    for above, (label, (steps, values)) in enumerate(reversed(curves.items())):
        panel.plot(steps, values.mean(0), color=colours[label], linestyle=(styles or {}).get(label, "-"),
                   linewidth=2 + 1.6 * above, alpha=0.6 if above else 1, zorder=2 - above / 9)
        panel.fill_between(steps, values.min(0), values.max(0), color=colours[label], alpha=0.13, linewidth=0)
    panel.set_xlim(0, max(steps[-1] for steps, _ in curves.values()))
    ends = {label: (steps[-1], values.mean(0)[-1]) for label, (steps, values) in curves.items()}
    compare.write_names(panel, ends, names, colours)


def draw_runs(panel, lines: list[dict], key: str, names: dict, colours: dict, styles: dict | None = None) -> None:
    """The curves of a quantity that is a share; names: label -> the name in the figure."""
    panel.set(xlabel=compare.AXIS["step"], ylabel=compare.AXIS[key], ylim=compare.SHARE)
    found = {label: (curves(lines, "step", label)[0], curves(lines, key, label)) for label in names}
    draw_curves(panel, found, names, colours, styles)


def finish(figure, path: Path, log: Path) -> None:
    figure.savefig(buffer := io.BytesIO())
    files.write_whole(path, buffer.getvalue())
    pool.say(f"figure {path}\nlog    {log}")


def command(main: Callable) -> None:
    """Runs a study as rlsd.py runs: bad input is one line and exit code 2, Ctrl-C keeps what was done."""
    name = Path(sys.argv[0]).stem
    pool.stop_in_one_line(name)
    pool.command(name, main, rlsd.UserError)
