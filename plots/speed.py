"""Where a step's time goes, beside a bare loop of the same matrix products: python -m plots.speed [--out plots].

The arithmetic of a part is 2 x parameters x tokens FLOP forward, three times that with the gradient; embedding and
attention scores are left out. The yardstick multiplies matrices of the very shapes that the part multiplies, and does
nothing else. What a part takes above its yardstick is everything that is no matrix product.
"""

import os
import time
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

import rlsd
from plots import study

REPEATS = 15
KINDS = {"matrix products": ("::mm",), "attention": ("scaled_dot_product_flash",), "joining the cache": ("::cat",), "GELU": ("gelu",),
         "layer norm": ("layer_norm",), "copies, sums, products by element": ("::copy_", "::mul", "::add", "::sum", "softmax")}


def seconds(work) -> float:
    """The median of REPEATS calls, after two that warm up."""
    taken = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken[2:])


def products(model: rlsd.GPT, rows: list[int], gradient: bool):
    """A bare loop over the products of every weight with `rows` tokens a call, and the FLOP in it."""
    work, flop = [], 0
    for weight in [parameter.detach() for name, parameter in model.named_parameters() if "embedding" not in name]:
        for count in rows:
            x, y = torch.randn(count, weight.shape[1]), torch.randn(count, weight.shape[0])
            work.append((x, weight.T))
            work += [(y, weight), (y.T, x)] if gradient else []
            flop += 2 * weight.numel() * count * (3 if gradient else 1)
    return lambda: [a @ b for a, b in work], flop


def by_kind(work) -> dict[str, list]:
    """The milliseconds and the calls of each kind of operation, the last being whatever is left."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    rest = "everything else, most of it views"
    found = {kind: [0.0, 0] for kind in (*KINDS, rest)}
    for event in profile.key_averages():
        names = (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        kind = found[next(names, rest)]
        kind[0] += event.self_cpu_time_total / 1e3
        kind[1] += event.count
    return found


def main() -> None:
    parser = rlsd.Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("plots"))
    parser.add_argument("--digits", type=int, default=4)
    flags = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own remarks
    torch.set_num_threads(1)
    config = rlsd.Config(mode="rlsd", digits=flags.digits)
    world = rlsd.World(config.make_task())
    student = rlsd.cached_model(config, "base")
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-9, fused=True)
    exam_problems, exam_keys = world.exam()
    problems, keys = exam_problems[:config.problems], exam_keys[:config.problems]
    covered, opened = world.prompts(problems), world.prompts(problems, keys)
    generator = torch.Generator().manual_seed(0)
    rollout = world.sample(student, covered, config.group_size, generator)
    reward, tokens = world.reward(problems, rollout.texts), rollout.tokens
    rows, length = tokens.shape

    def teacher():
        with torch.no_grad():
            return rlsd.response_logp(student, opened, tokens)

    teacher_logp = teacher()

    def update():
        student_logp = rlsd.response_logp(student, covered, tokens)
        loss, _ = rlsd.method_loss("rlsd", rollout, reward, student_logp, teacher_logp, config.group_size, "reverse_kl", 0.2, 0.5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    def text():
        world.reward(problems, world.sample(student, covered, config.group_size, generator).texts)

    asked, answered = covered.numel(), rows * (length - 1)
    parts = {"sampling": (text, products(student, [asked] + [rows] * (length - 1), False)),
             "teacher": (teacher, products(student, [opened.numel(), answered], False)),
             "update": (update, products(student, [asked, answered], True))}
    square = torch.randn(1024, 1024)
    peak = 2 * 1024**3 / seconds(lambda: square @ square) / 1e9
    took = {name: (seconds(work), seconds(bare), flop) for name, (work, (bare, flop)) in parts.items()}
    evaluation = seconds(lambda: rlsd.evaluate("rlsd", world, student, student)) / config.evaluate_every
    step = sum(part[0] for part in took.values())
    print(f"a 1024-square product: {peak:.0f} GFLOP/s on one thread")
    print(f"sampling: {rollout.mask.sum() / took['sampling'][0]:.0f} tokens a second")
    print("part      seconds  of a step  bare products  ratio  GFLOP  of the 1024 rate")
    for name, (whole, bare, flop) in took.items():
        print(f"{name:8} {whole:8.4f} {whole / step:10.0%} {bare:14.4f} {whole / bare:6.1f} {flop / 1e9:6.2f} {flop / whole / 1e9 / peak:9.0%}")
    bare = sum(part[1] for part in took.values())
    print(f"step     {step:8.4f} {1:10.0%} {bare:14.4f} {step / bare:6.1f}")
    print(f"evaluation: {evaluation:.4f} s a step, {evaluation / (step + evaluation):.0%} of all")

    print("operations: their own time in ms, the profiler's cost included / calls")
    print(f"{'':36}" + "".join(f"{name:>14}" for name in parts))
    found = [by_kind(work) for work, _ in parts.values()]
    for kind in found[0]:
        print(f"{kind:36}" + "".join(f"{part[kind][0]:8.2f} /{part[kind][1]:4}" for part in found))

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for height, (name, (whole, bare_part, _)) in enumerate(took.items()):
        axes.barh(height, 1e3 * whole, color="#56B4E9")
        axes.barh(height, 1e3 * bare_part, color="#0072B2")
        axes.text(1e3 * whole, height, f"  {whole / bare_part:.1f} x its products", va="center")
    axes.set_yticks(range(len(took)), list(took))
    axes.set(xlabel="milliseconds a step (dark: the matrix products alone)", xlim=(0, 1.35e3 * max(part[0] for part in took.values())))
    axes.set_title(f"A step takes {1e3 * step:.0f} ms, {step / bare:.1f} times its matrix products", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    rlsd.save_figure(figure, flags.out / "speed.png")
    print(f"figure {flags.out / 'speed.png'}")


if __name__ == "__main__":
    study.command(main)
