"""What the studies share: their flags, runs side by side, a log of one line a run, and the look of a figure.

A study is a list of runs. Each run has a label, a Config, and a method: rlsd.method_loss, or a function in its place.
Its line in runs/NAME.jsonl holds the label, the seed, the config and the curves; the figure is drawn from these lines.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import rlsd

CURVES = ("step", "accuracy", "leakage", "kl", "entropy")


def arguments(doc: str, **more) -> argparse.Namespace:
    """The flags of every study; `more` are further numbers, or other defaults. Refuses what would fail only later."""
    parser = rlsd.Parser(description=doc.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder of the figure and of runs/ [plots]")
    parser.add_argument("--quick", action="store_true", help="one seed and fewer runs, for a classroom")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the log already has")
    defaults = {"digits": 4, "steps": 160, **more}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default}]")
    flags = parser.parse_args()
    for name, default in defaults.items():
        if isinstance(default, int) and getattr(flags, name) < 1:
            raise rlsd.UserError(f"--{name} is {getattr(flags, name)}, but must be 1 or more")
    rlsd.write_whole(probe := flags.out / "runs" / ".writable", b"")
    probe.unlink()
    torch.set_num_threads(1)
    return flags


def one_run(label: str, config: rlsd.Config, method: Callable) -> dict:
    world = rlsd.World(config.make_task())
    teacher = rlsd.cached_model(config, "teacher") if config.mode == "opd" else None
    records = [record for record, _ in rlsd.train(config, world, rlsd.cached_model(config, "base"), teacher, method=method)]
    return {"label": label, "seed": config.seed, **{key: [record[key] for record in records] for key in CURVES},
            "config": asdict(config)}


def read_lines(path: Path) -> list[dict]:
    with rlsd.distrust(path):
        return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[dict]) -> None:
    rlsd.write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def together(label: str, jobs: list[tuple]) -> Iterator:
    """The results of all jobs, side by side, with a line that says how many are done and how long the rest will take."""
    console = rlsd.Console([], Path(), Path(), 0)
    console.progress(label, 0, len(jobs))
    for done, result in enumerate(rlsd.side_by_side(jobs) if jobs else ()):
        console.progress(label, done + 1, len(jobs))
        yield result


def run_all(name: str, flags: argparse.Namespace, runs: list[tuple]) -> list[dict]:
    """Every run (label, config, method) that the log does not have yet; the log grows by a line as each is done."""
    path = flags.out / "runs" / f"{name}.jsonl"
    kept = read_lines(path) if flags.resume and path.exists() else []
    have = {(line["label"], json.dumps(line["config"])) for line in kept}
    runs = [run for run in runs if (run[0], json.dumps(asdict(run[1]))) not in have]
    seeds = {config.seed: config for _, config, _ in runs}
    bases = [(rlsd.introduce, config, "cpu") for config in seeds.values()]
    bases += [(rlsd.cached_model, config, "teacher") for _, config, _ in runs if config.mode == "opd"]
    list(together("bases", bases))
    for line in together("runs", [(one_run, *run) for run in runs]):
        kept.append(line)
        write_lines(path, kept)
    return kept


def curves(lines: list[dict], key: str, label: str) -> np.ndarray:
    """(seeds, evaluations) of one label, seeds in order."""
    return np.array([line[key] for line in sorted(lines, key=lambda line: line["seed"]) if line["label"] == label])


def spread(values: np.ndarray) -> str:
    return f"{np.mean(values):.3f} ({np.min(values):.3f} to {np.max(values):.3f})"


def panels(rows: int, columns: int, width: float = 5.2, height: float = 3.8) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * columns, height * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def finish(figure: Figure, path: Path, log: Path) -> None:
    rlsd.save_figure(figure, path)
    print(f"figure {path}\nlog    {log}")


def command(main: Callable) -> None:
    """Runs a study as rlsd.py runs: bad input is one line and exit code 2, Ctrl-C keeps what was done."""
    try:
        main()
    except rlsd.UserError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; finished runs are in the log, and --resume keeps them", file=sys.stderr)
        sys.exit(130)
