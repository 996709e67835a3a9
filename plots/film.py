"""A moving picture of runs: the curves grow, and below them each method writes its response.

    python -m plots.film [FOLDER] [--out FILE.gif]        by default the folder is plots

It is made from FOLDER/runs/*.jsonl alone. There is one film for each group of runs with the same
settings, FOLDER/film-SETTINGS.gif; it shows the lowest seed. Beside each film lies a PNG of the
first frame in which the methods differ clearly. --out names the film if the folder has one group of
runs.

A thick frame marks a wrong digit of a working; a carry that was written before it counts.
"""

import argparse
import io
from pathlib import Path

import rlsd
from plots import compare

CAPTIONS = {
    "rlvr": "the verifier pushes all tokens alike",
    "opd": "imitates a larger teacher",
    "opsd": "imitates a teacher that sees the key",
    "rlsd": "verifier: the sign; teacher: the size",
    "cepo": "as RLSD, right key against wrong key",
}
PANELS = {"right answers": "accuracy", "leakage: <see key> without a key": "leakage"}
SLOW, FAST = 1000, 500  # milliseconds per frame: of the first five, and of the others
PAUSE = 2500  # at the last frame
WIDTH = 46.0  # of a row, in tiles


def frames(runs: rlsd.Runs) -> list[rlsd.Runs]:
    """The runs of the lowest seed, cut after each of their evaluations."""
    lowest = min(seed for _, seed in runs)
    chosen = {run: records for run, records in runs.items() if run[1] == lowest}
    length = min(map(len, chosen.values()))
    return [{run: records[:n] for run, records in chosen.items()} for n in range(1, length + 1)]


def wrong_digits(shown: dict) -> list[int]:
    """The places of wrong digits, if the response has a working like Carry's."""
    top, _, bottom = shown["problem"].partition("+")
    if not bottom:
        return []
    digits, found, carry = len(max(top, bottom, key=len)), [], 0
    pairs = list(zip(reversed(top.zfill(digits)), reversed(bottom.zfill(digits))))
    for column, (one, other) in enumerate(pairs):
        written = shown["tokens"][2 * column : 2 * column + 2]
        if len(written) < 2 or not written[0].isdigit() or written[1] not in "c-":
            return []
        if int(written[0]) != (int(one) + int(other) + carry) % 10:
            found.append(2 * column)
        carry = int(written[1] == "c")
    return found


def draw(figure, runs: rlsd.Runs, steps: int, told: str) -> None:
    """One frame."""
    modes = [mode for mode, _ in runs]
    height = figure.get_figheight()
    tiles = 0.5 * len(modes) + 0.5  # in inches
    records = [records[-1] for records in runs.values()]
    told = f"step {records[0]['step']} of {steps}; {told}"
    figure.text(0.02, 1 - 0.2 / height, told, fontsize=9, va="center", color="#444444")
    for n, (title, quantity) in enumerate(PANELS.items()):
        box = (0.07 + 0.49 * n, (tiles + 0.65) / height, 0.34, 1 - (tiles + 1.35) / height)
        panel = figure.add_axes(box)
        panel.set_title(title, loc="left", fontsize=12, fontweight="bold")
        panel.set(xlabel=rlsd.QUANTITIES["step"], ylim=rlsd.SHARE, xlim=(0, max(1, steps)))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        rlsd.name_ends(panel, rlsd.draw_curves(panel, runs, "step", quantity))

    panel = figure.add_axes((0.02, 0.05 / height, 0.96, tiles / height))
    rlsd.draw_tiles(panel, records, WIDTH, first=13.0)
    for row, record in enumerate(records):
        caption = CAPTIONS.get(record["mode"], "")
        panel.text(0, row + 0.83, caption, va="center", fontsize=8, color="#444444")
        for place in wrong_digits(record["shown"]):
            x = 13.0 + place  # all tokens before it are single characters
            panel.plot(
                (x, x + 1, x + 1, x, x),
                [row + y for y in (0.05, 0.05, 0.95, 0.95, 0.05)],
                "k",
                lw=2.5,
            )


def picture(runs: rlsd.Runs, steps: int, told: str):
    """One frame as an image of 900 pixels in width."""
    from matplotlib import style
    from matplotlib.figure import Figure
    from PIL import Image

    with style.context("default"):
        figure = Figure(figsize=(9, 3.6 + 0.5 * len(runs)), dpi=100)
        draw(figure, runs, steps, told)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def most_telling(shots: list[rlsd.Runs]) -> int:
    """The number of the first frame in which accuracies differ nearly as much as ever."""

    def difference(runs: rlsd.Runs) -> float:
        accuracies = [records[-1]["accuracy"] for records in runs.values()]
        return max(accuracies) - min(accuracies)

    differences = [difference(shot) for shot in shots]
    return next(n for n, found in enumerate(differences) if found >= 0.9 * max(differences))


def make(config: rlsd.Config, runs: rlsd.Runs, path: Path) -> None:
    """Writes a film, and the PNG beside it."""
    from PIL import Image

    shots = frames(runs)
    seed = min(seed for _, seed in runs)
    told = f"seed {seed}; {rlsd.describe(config, [mode for mode, _ in shots[0]])}"
    pictures = [picture(shot, config.steps, told) for shot in shots]
    # One palette for all frames, so that equal pixels stay equal, which makes the file small.
    every = Image.new("RGB", (pictures[0].width, pictures[0].height * len(pictures)))
    for n, one in enumerate(pictures):
        every.paste(one, (0, n * one.height))
    palette = every.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    quantized = [one.quantize(palette=palette, dither=0) for one in pictures]
    durations = [SLOW if n < 5 else FAST for n in range(len(pictures))]
    durations[-1] = PAUSE

    def write(part: Path) -> None:
        rest = {"append_images": quantized[1:], "duration": durations, "loop": 0}
        quantized[0].save(part, format="GIF", save_all=True, optimize=True, **rest)

    rlsd.write_whole(path, write)
    still = path.with_suffix(".png")
    telling = pictures[most_telling(shots)]
    rlsd.write_whole(still, lambda part: telling.save(part, format="PNG"))
    print(f"film   {path}\nframe  {still}")


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description="A moving picture of runs.", allow_abbrev=False
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("plots"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, help="the film [FOLDER/film-SETTINGS.gif]")
    flags = parser.parse_args()
    found = compare.groups([flags.folder])
    if flags.out is not None and len(found) > 1:
        raise rlsd.UserError(
            f"{flags.folder}/runs has runs with {len(found)} different settings; without --out "
            "each of them gets a film of its own"
        )
    for config, runs in found:
        name = f"film-{compare.figure_name(config, runs)}"
        make(config, runs, flags.out or (flags.folder / name).with_suffix(".gif"))


if __name__ == "__main__":
    from plots import study

    study.command(main)
