"""Tables and figures of runs that belong together, from their logs.

    python -m plots.compare [FOLDER ...]        by default the folder is plots
    python -m plots.compare --class FOLDER      a folder with a subfolder for each student

Reads FOLDER/runs/*.jsonl; several folders are the parts of one sweep, such as more seeds. Runs with
the same settings belong together, whatever their names and their steps are. For each group of runs
a table is printed, and a figure is drawn in the first folder.

With --class, FOLDER/NAME/runs/*.jsonl are the runs of one student, who gave --out FOLDER/NAME. The
figure has a dot per run: equal seeds from two machines are two runs, since the machines round
differently.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

import rlsd

NAMES = {mode: row.name for mode, row in rlsd.MODES.items()}
COLOURS = dict(zip(NAMES, rlsd.COLOURS))
# What a log's config tells beside the settings.
MACHINE = ("device", "torch", "threads", "cpu", "source")
MEASURED = ("accuracy", "greedy_accuracy", "leakage", "kl", "entropy", "response_length")


def read_run(path: Path) -> tuple[rlsd.Config, list[dict]] | None:
    """The config and the records of a run. None if the file is anything else, such as a study's."""
    try:
        logged, records = rlsd.read_log(path)
        settings = {name: value for name, value in logged.items() if name not in MACHINE}
        config = rlsd.Config(**settings)
    except (rlsd.UserError, AttributeError, TypeError):
        return None
    if not records or "shown" not in records[0]:
        return None
    return config, records


def groups(folders: Iterable[Path]) -> list[tuple[rlsd.Config, rlsd.Runs]]:
    """For each group of runs: the config of its longest run, and the runs. UserError if none.

    If two runs have the same settings, mode and seed, the longer one is taken.
    """
    found = {}
    for folder in folders:
        for path in sorted((folder / "runs").glob("*.jsonl")):
            run = read_run(path)
            if run is None:
                continue
            config, records = run
            settings = replace(config, mode="rlsd", seed=0, steps=0)
            configs, runs = found.setdefault(settings, ([], {}))
            configs.append(config)
            key = config.mode, config.seed
            if key not in runs or records[-1]["step"] > runs[key][-1]["step"]:
                runs[key] = records
    if not found:
        raise rlsd.UserError(f"no logs of runs in {', '.join(f'{one}/runs' for one in folders)}")
    return [
        (max(configs, key=lambda config: config.steps), in_order(runs))
        for configs, runs in found.values()
    ]


def in_order(runs: rlsd.Runs) -> rlsd.Runs:
    """The same runs: modes in the order of the page, then seeds."""
    order = list(rlsd.MODES)
    return dict(sorted(runs.items(), key=lambda run: (order.index(run[0][0]), run[0][1])))


def curves(runs: rlsd.Runs) -> dict[str, dict[str, np.ndarray]]:
    """mode -> quantity -> (seeds, evaluations). `seed` is (seeds,), and `step` is (evaluations,).

    Seeds are in order, and are cut to the evaluations that all seeds of a mode have reached.
    """
    found = {}
    for mode in dict.fromkeys(mode for mode, _ in runs):
        seeds = sorted(rlsd.of_mode(runs, mode))
        logs = [records for _, records in seeds]
        reached = set.intersection(*(set(values(records, "step")) for records in logs))
        logs = [cut(records, reached) for records in logs]
        found[mode] = {
            "seed": np.array([seed for seed, _ in seeds]),
            "step": np.array(values(logs[0], "step")),
        }
        for name in MEASURED:
            found[mode][name] = np.array([values(records, name) for records in logs])
    return found


def values(records: list[dict], name: str) -> list:
    return [record[name] for record in records]


def cut(records: list[dict], steps: set[int]) -> list[dict]:
    return [record for record in records if record["step"] in steps]


def mean_over_run(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean over the steps 20, 40, 60, ..., (evaluations,), (seeds, evaluations) -> (seeds,).

    Step 0 is the base and not the run. If a run was not evaluated at these steps, all its
    evaluations after step 0 count; if it has none after step 0, then step 0.
    """
    steps, values = np.asarray(steps), np.asarray(values)
    counted = (steps > 0) & (steps % 20 == 0)
    if not counted.any():
        counted = steps > 0
    if not counted.any():
        counted = steps == 0
    return values[..., counted].mean(-1)


def highest(values: np.ndarray) -> np.ndarray:
    """The highest evaluation of each seed. (seeds, evaluations) -> (seeds,)."""
    return np.max(values, axis=-1)


def spread(values: np.ndarray) -> str:
    """The mean, and from the lowest to the highest."""
    return f"{np.mean(values):.3f} ({np.min(values):.3f} to {np.max(values):.3f})"


def table(curves: dict) -> list[str]:
    """The lines of a markdown table, with a row for each mode."""
    rows = [
        "| method | accuracy at the end | mean over the run | leakage, highest |",
        "|---|---|---|---|",
    ]
    for mode, curve in curves.items():
        end = spread(curve["accuracy"][:, -1])
        mean = spread(mean_over_run(curve["step"], curve["accuracy"]))
        leak = spread(highest(curve["leakage"]))
        rows.append(f"| {NAMES[mode]} | {end} | {mean} | {leak} |")
    return rows


def leads(curves: dict, first: str, second: str) -> np.ndarray | None:
    """How far one mode is ahead of another in the mean over the run, per seed. (seeds,)

    None if their logs have not the same seeds and steps.
    """
    one, other = curves[first], curves[second]
    if not all(np.array_equal(one[name], other[name]) for name in ("seed", "step")):
        return None
    return mean_over_run(one["step"], one["accuracy"] - other["accuracy"])


def lead(curves: dict, first: str, second: str) -> str:
    """The same in words."""
    text = f"lead of {NAMES[first]} over {NAMES[second]}, mean over the run: "
    values = leads(curves, first, second)
    if values is None:
        return text + "unknown, since their logs have not the same seeds and steps"
    per_seed = ", ".join(f"{value:+.3f}" for value in values)
    return f"{text}{values.mean():+.3f}; per seed: {per_seed}"


def figure_name(config: rlsd.Config, runs: rlsd.Runs) -> str:
    """carry-all-s0-4-eps_w=1.png"""
    seeds = [seed for _, seed in runs]
    lowest, last = min(seeds), max(seeds)
    told = f"{lowest}" if lowest == last else f"{lowest}-{last}"
    return rlsd.settings_name(config, "all", told) + ".png"


ClassRuns = dict[str, list[tuple[float, float]]]  # mode -> (accuracy at the end, leakage) per run


def class_groups(folder: Path) -> list[tuple[rlsd.Config, ClassRuns]]:
    """For each group of runs of a class: a config, and the runs. UserError if there are none."""
    found = {}
    for student in sorted(folder.glob("*/runs")):
        for config, runs in groups([student.parent]):
            settings = replace(config, mode="rlsd", seed=0)
            _, of_class = found.setdefault(settings, (config, {}))
            for (mode, _), records in in_order(runs).items():
                leak = max(values(records, "leakage"))
                of_class.setdefault(mode, []).append((records[-1]["accuracy"], leak))
    if not found:
        raise rlsd.UserError(f"no logs of runs in {folder}/*/runs")
    return list(found.values())


def draw_class(runs: ClassRuns, path: Path) -> None:
    """A column of dots per mode, a dot per run: accuracy at the end, and highest leakage."""
    from plots import study  # here, because it imports this file

    figure, axes = study.panels(1, 2, width=6)
    titles = "right answers at the end", "highest leakage of a run"
    for n, (panel, title) in enumerate(zip(axes[0], titles)):
        columns = {NAMES[mode]: np.array(pairs)[:, n] for mode, pairs in runs.items()}
        study.draw_dots(panel, columns, {NAMES[mode]: COLOURS[mode] for mode in runs})
        panel.set_xticks(range(len(columns)), columns)
        panel.set(ylim=rlsd.SHARE, ylabel="share")
        count = max(map(len, runs.values()))
        study.title(panel, f"{title}; {count} runs per method, a dot for each")
    figure.suptitle(path.stem)
    rlsd.write_whole(path, lambda part: figure.savefig(part, format="png"))


def show_class(folder: Path) -> None:
    for config, runs in class_groups(folder):
        name = rlsd.settings_name(replace(config, seed=0), "class", "").replace("-s", "", 1)
        path = folder / f"{name}.png"
        draw_class(runs, path)
        print(
            f"figure {path}", "| method | runs | accuracy at the end | highest leakage |", sep="\n"
        )
        print("|---|---|---|---|")
        for mode, pairs in runs.items():
            end, leak = (spread(column) for column in zip(*pairs))
            print(f"| {NAMES[mode]} | {len(pairs)} | {end} | {leak} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description="Tables and figures of runs.", allow_abbrev=False
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("plots")], metavar="FOLDER")
    parser.add_argument("--class", type=Path, dest="of_class", help="a folder of students' folders")
    flags = parser.parse_args()
    if flags.of_class is not None:
        show_class(flags.of_class)
        return
    folders = flags.folders
    for config, runs in groups(folders):
        figure = folders[0] / figure_name(config, runs)
        rlsd.draw_figure(figure, runs, config, reference={})
        found = curves(runs)
        print(f"figure {figure}", *table(found), sep="\n")
        for mode in ("rlsd", "cepo"):
            if mode in found and "rlvr" in found:
                print(lead(found, mode, "rlvr"))


if __name__ == "__main__":
    from plots import study  # here, because it imports this file

    study.command(main)
