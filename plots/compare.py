"""The figure of runs and the README's table, from the runs' logs alone: python -m plots.compare [FOLDER ...]

Draws FOLDER/<task>-compare.png from FOLDER/runs/<task>-<mode>-s<seed>.jsonl and prints the table. Several folders are
the parts of one sweep, such as more seeds or a second machine; the figure goes into the first.
"""

import argparse
import io
import re
import sys
import time
from pathlib import Path

import numpy as np

from plots import files

NAMES = {"rlvr": "RLVR", "opd": "OPD", "opsd": "OPSD", "rlsd": "RLSD", "cepo": "CEPO"}
# Okabe and Ito's colours. Curves may coincide: drawn from wide and pale to thin, each is seen beside those above it.
COLOURS = {"rlvr": "#0072B2", "opd": "#009E73", "opsd": "#D55E00", "rlsd": "#000000", "cepo": "#CC79A7"}
WIDTHS = {"rlvr": 10.5, "opd": 7.8, "opsd": 5.4, "rlsd": 3.2, "cepo": 1.4}  # points
OPAQUE = {"rlvr": 0.5, "opd": 0.8}
SHARE = (-0.03, 1.03)  # wide enough for the widest curve at exactly 0 or 1
AXIS = {"step": "training step", "accuracy": "right answers, sampled (share)",
        "leakage": "responses that cite the key (share)", "kl": "KL(student || teacher), nats per token"}
DEFAULTS = {"digits": 4, "slip": 0.6, "cite": 0.3, "eps_w": 0.2, "lam": 0.5, "lam_decay": 50, "verifier_noise": 0,
            "key_noise": 0}  # the figure's heading names what differs from them

# One row per evaluation, as a run prints it.
HEADER = ("accuracy: right, sampled at temperature 1; greedy: right, without sampling; then one sampled response\n"
          "mode  seed  step  accuracy  greedy  leakage     kl")


def row(record: dict) -> str:
    return (f"{record['mode']:4} {record['seed']:5} {record['step']:5} {record['accuracy']:9.3f} "
            f"{record['greedy_accuracy']:7.3f} {record['leakage']:8.3f} {record['kl']:6.3f}  {record['shown']}")


def read(paths: list[Path]) -> list[tuple[dict, list[dict]]]:
    """The runs (config, records). OSError if one was made with other settings than the first."""
    runs = [files.read_run(path) for path in paths]
    first = runs[0][0]
    for path, (config, _) in zip(paths, runs):
        if config["mode"] not in NAMES:
            raise OSError(f"{path} is a log of {config['mode']!r}, which is none of {', '.join(NAMES)}")
        for key in {**first, **config}:  # an older log may lack a setting
            if key not in ("mode", "seed", "steps") and config.get(key) != first.get(key):
                found = f"{key} {config.get(key)!r}, not {first.get(key)!r}"
                raise OSError(f"{path} was made with other settings than {paths[0]}: {found}")
    return runs


def curves(runs: list[tuple[dict, list[dict]]]) -> dict[str, dict[str, np.ndarray]]:
    """mode -> quantity -> (seeds, evaluations): seeds in order, cut to the evaluations that every seed has reached."""
    logs = {mode: [] for mode in NAMES}
    for config, records in sorted(runs, key=lambda run: run[0]["seed"]):
        logs[config["mode"]].append({record["step"]: record for record in records})
    found = {}
    for mode, seeds in logs.items():
        steps = sorted(set.intersection(*map(set, seeds))) if seeds else ()
        if seeds and not steps:
            raise OSError(f"the logs of {NAMES[mode]} have no evaluation in common")
        if seeds:
            found[mode] = {key: np.array([[log[step][key] for step in steps] for log in seeds])
                           for key in files.MEASURED}
    return found


def mean_over_run(steps, accuracy) -> np.ndarray:
    """(seeds, evaluations) -> (seeds,): the mean over steps 20, 40, 60, ...; step 0 is the base, not the run.

    A run without these: the mean of all evaluations after step 0; without any after step 0: of step 0.
    """
    steps = np.atleast_2d(steps)[0]
    choices = ((steps > 0) & (steps % 20 == 0), steps > 0, steps == 0)
    return np.asarray(accuracy)[..., next(chosen for chosen in choices if chosen.any())].mean(-1)


def highest(values) -> np.ndarray:
    """(seeds, evaluations) -> (seeds,): each seed's highest evaluation."""
    return np.max(values, axis=-1)


def spread(values) -> str:
    """Mean (lowest to highest)."""
    return f"{np.mean(values):.3f} ({np.min(values):.3f} to {np.max(values):.3f})"


def table(curves: dict) -> list[str]:
    """The lines of a markdown table, one row per mode."""
    columns = ("method", "accuracy at the end", "mean over the run", "leakage, highest")
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for mode, curve in curves.items():
        cells = curve["accuracy"][:, -1], mean_over_run(curve["step"], curve["accuracy"]), highest(curve["leakage"])
        rows.append(" | ".join([f"| {NAMES[mode]}", *map(spread, cells)]) + " |")
    return rows


def lead(curves: dict, first: str, second: str) -> str:
    """The lead of one mode over another in mean over the run, paired by seed."""
    one, other = curves[first], curves[second]
    text = f"lead of {NAMES[first]} over {NAMES[second]}, mean over the run: "
    if not all(np.array_equal(one[key], other[key]) for key in ("seed", "step")):
        return text + "unknown, since their logs have not the same seeds and steps"
    values = mean_over_run(one["step"], one["accuracy"] - other["accuracy"])
    return f"{text}{values.mean():+.3f}; per seed: " + ", ".join(f"{value:+.3f}" for value in values)


def say(values: dict[str, float], form: str) -> str:
    """Each mode's value; those within 0.05 of the median as "the others"; only the ends where there is no room."""
    texts = {mode: f"{NAMES[mode]} {values[mode]:{form}}" for mode in sorted(values, key=values.get)}
    middle = np.median(list(values.values()))
    near = [f"{values[mode]:{form}}" for mode in texts if abs(values[mode] - middle) <= 0.05]
    parts = [text for mode, text in texts.items() if len(near) < 2 or abs(values[mode] - middle) > 0.05]
    if len(near) > 1:
        parts.append(("the others " if parts else "all ") + " to ".join(dict.fromkeys((near[0], near[-1]))))
    return ", ".join(parts) if len(parts) < 4 else " to ".join([*texts.values()][::len(texts) - 1])


def findings(mean: dict, leak: dict) -> list[str]:
    """The panels' titles, from the means over seeds (mode -> quantity -> (evaluations,)) and of the highest leakage."""
    right, kl = ({mode: curve[key] for mode, curve in mean.items()} for key in ("accuracy", "kl"))
    lost = [f"{NAMES[mode]} {y.max():.2f} to {y[-1]:.2f}" for mode, y in right.items() if y.max() - y[-1] > 0.1]
    lost = lost if len(lost) < 2 else [text.split()[0] for text in lost]  # no room for more
    learned = [NAMES[mode] for mode, y in right.items() if y[-1] - y[0] > 0.1 and leak[mode] < 0.02]
    return ["Right at the end: " + say({mode: y[-1] for mode, y in right.items()}, ".2f"),
            "Highest leakage: " + say(leak, ".0%"),
            "KL at the end: " + say({mode: y[-1] for mode, y in kl.items()}, ".2f"),
            "Right answers learned, then lost: " + ", ".join(lost) if lost else
            "Learned without leaking: " + (", ".join(learned) or "none")]


def write_names(axes, ends: dict[str, tuple], names: dict = NAMES, colours: dict = COLOURS, low=-np.inf) -> None:
    """Each name right of its curve's end (x, y) and tied to it, moved up or down so that names do not overlap."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    order = sorted(ends, key=lambda mode: -ends[mode][1])[::-1]  # from below; at the same height, the first is on top
    line = 0.075 * (top - bottom)
    room = line * np.arange(len(order))
    height = np.array([ends[mode][1] for mode in order]) - room
    moved = (np.maximum.accumulate(height) + np.minimum.accumulate(height[::-1])[::-1]) / 2  # least up and least down
    for mode, y in zip(order, np.clip(moved, max(low, bottom), top - line / 2 - room[-1]) + room):
        x = ends[mode][0] + 0.05 * (right - left)
        axes.plot((ends[mode][0], x), (ends[mode][1], y), color=colours[mode], linewidth=1, clip_on=False)
        axes.text(x, y, " " + names[mode], color=colours[mode], va="center", fontsize=11, fontweight="bold")


def draw(paths: list[Path], figure: Path, every: float = 0.0) -> None:
    """Draws the runs whose logs exist, unless the figure is younger than `every` seconds. OSError: there is no log."""
    if every and figure.exists() and 0 <= time.time() - figure.stat().st_mtime < every:
        return
    runs = read([path for path in paths if path.exists()] or paths[:1])
    from matplotlib.figure import Figure  # takes a second

    found, config = curves(runs), runs[0][0]
    mean = {mode: {key: value.mean(0) for key, value in curve.items()} for mode, curve in found.items()}
    kl = max(0.1, *(curve["kl"].max() for curve in found.values()))
    limits = {"step": (0, max(1, *(config["steps"] for config, _ in runs))), "accuracy": SHARE, "leakage": SHARE,
              "kl": (kl * SHARE[0], kl * SHARE[1])}
    sheet = Figure(figsize=(10.8, 7.2), dpi=110)  # small, so that the letters are large on a slide
    sheet.subplots_adjust(left=0.07, right=0.93, top=0.87, bottom=0.07, wspace=0.34, hspace=0.3)  # automatic is slow
    panels = (("step", "accuracy"), ("step", "leakage"), ("step", "kl"), ("accuracy", "leakage"))
    leak = {mode: highest(curve["leakage"]).mean() for mode, curve in found.items()}
    for axes, (across, up), title in zip(sheet.subplots(2, 2).flat, panels, findings(mean, leak)):
        legend = "" if across == "step" else "; open dot: base, full: end"
        axes.set(xlim=limits[across], ylim=limits[up], xlabel=AXIS[across] + legend, ylabel=AXIS[up])
        axes.set_title(title, loc="left", fontsize=11, y=1.01)  # to let it be placed is slow
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.locator_params(nbins=6, steps=(1, 2, 4, 5, 10))  # few, since each costs time
        for mode, curve in found.items():
            x, y = mean[mode][across], mean[mode][up]
            width, opaque = (WIDTHS[mode], OPAQUE.get(mode, 1)) if len(found) > 1 else (3, 1)
            colour = (COLOURS[mode], opaque)
            axes.plot(x, y, color=colour, linewidth=width)
            axes.plot(x[-1], y[-1], "o", color=colour, markersize=width + 3, clip_on=False)
            if across == "step":
                low, high = curve[up].min(0), curve[up].max(0)
                axes.fill_between(x, low, high, color=COLOURS[mode], alpha=0.12, linewidth=0, zorder=1)
            else:
                axes.plot(x[0], y[0], "o", color=colour, markersize=width + 4, markerfacecolor="white", clip_on=False)
        write_names(axes, {mode: (curve[across][-1], curve[up][-1]) for mode, curve in mean.items()},
                    low=-np.inf if across == "step" else 0.09)  # above the trajectories that run along 0
    counts = sorted({len(set(curve["seed"][:, 0])) for curve in found.values()})
    seeds = " to ".join(map(str, {counts[0]: 0, counts[-1]: 0}))
    heading = f"{config['task']}: {', '.join(NAMES[mode] for mode in found)}; "
    heading += f"{seeds} seeds (line: mean, band: lowest to highest)" if counts[-1] > 1 else "one seed"
    changed = [f"{key} {config[key]}" for key, value in DEFAULTS.items() if config.get(key, value) != value]
    sheet.suptitle(heading + ("\nsettings: " + ", ".join(changed) if changed else ""), fontsize=13, parse_math=False)
    sheet.savefig(buffer := io.BytesIO(), format="png")
    files.write_whole(figure, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("plots")], metavar="FOLDER", help="[plots]")
    folders, tasks = parser.parse_args().folders, {}
    for folder in folders:
        for path in sorted((folder / "runs").glob("*.jsonl")):
            if match := re.fullmatch(rf"(\w+)-({'|'.join(NAMES)})-s\d+\.jsonl", path.name):
                tasks.setdefault(match[1], []).append(path)
    if not tasks:
        raise OSError(f"{folders[0] / 'runs'} has no log of a run: run rlsd.py first")
    for task, paths in tasks.items():
        draw(paths, figure := folders[0] / f"{task}-compare.png")
        found = curves(read(paths))
        leads = [lead(found, mode, "rlvr") for mode in ("rlsd", "cepo") if {mode, "rlvr"} <= set(found)]
        print(f"figure {figure}", *table(found), *leads, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(2)
