"""Where the time of a training step goes, beside a bare loop of the same matrix products.

    python -m plots.speed        runs/speed.jsonl and speed.png under --out

Sampling, teacher and update of one step of RLSD, on one thread. The yardstick multiplies matrices of the very shapes
that the part multiplies (embedding and attention scores left out) and does nothing else; what a part takes beyond it
is everything that is no matrix product.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

import rlsd
from plots import pool, study

REPEATS = 15


def seconds(work: Callable) -> float:
    """The median of REPEATS calls, after two that warm up."""
    taken = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken[2:])


def products(model: rlsd.GPT, rows: list[int], gradient: bool) -> Callable:
    """A bare loop over the products of every weight with so many rows of tokens per call."""
    work = []
    for weight in [weight.detach() for name, weight in model.named_parameters() if "embedding" not in name]:
        for count in rows:
            x, y = torch.randn(count, weight.shape[1]), torch.randn(count, weight.shape[0])
            work += [(x, weight.T)] + ([(y, weight), (y.T, x)] if gradient else [])
    return lambda: [a @ b for a, b in work]


def measure(config: rlsd.Config, _) -> dict:
    """part -> (seconds, seconds of its matrix products alone)."""
    world, student = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-9, fused=True)
    generator = torch.Generator().manual_seed(0)
    problems, keys = (part[:config.problems] for part in world.task.exam())
    covered, opened = world.prompts(problems), world.prompts(problems, keys)

    def sampling():
        rollout = world.sample(student, covered, config.group_size, generator)
        return rollout, world.reward(problems, rollout.texts)

    def teacher():
        with torch.no_grad():
            return rlsd.response_logp(student, opened, rollout.tokens)

    def update():
        student_logp = rlsd.response_logp(student, covered, rollout.tokens)
        loss, _ = rlsd.method_loss("rlsd", rlsd.Batch(rollout, reward, student_logp, (teacher_logp,), config.group_size,
                                                      config.divergence, config.eps_w, config.lam))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    rollout, reward = sampling()
    teacher_logp, (rows, length) = teacher(), rollout.tokens.shape
    bare = {sampling: products(student, [covered.numel()] + [rows] * (length - 1), False),
            teacher: products(student, [opened.numel(), rows * (length - 1)], False),
            update: products(student, [covered.numel(), rows * (length - 1)], True)}
    return {"parts": {part.__name__: (seconds(part), seconds(alone)) for part, alone in bare.items()}}


def table(lines: list[dict]) -> list[str]:
    parts = lines[0]["parts"]
    step = [sum(column) for column in zip(*parts.values())]
    rows = [(name, f"{whole:.4f}", f"{whole / step[0]:.0%}", f"{whole / alone:.1f}")
            for name, (whole, alone) in {**parts, "the step": step}.items()]
    return study.markdown(("part", "seconds", "share of the step", "ratio to its bare matrix products"), rows)


def main() -> None:
    flags = study.arguments(__doc__, trains=False)
    lines = study.run_all("speed", flags, [("one step", rlsd.Config(digits=flags.digits), None)], measure)
    pool.say("\n".join(table(lines)))
    parts = lines[0]["parts"]
    figure, ((panel,),) = study.panels(1, 1, width=9, height=3.6)
    for height, (whole, alone) in enumerate(parts.values()):
        panel.barh(height, 1e3 * whole, color="#56B4E9")
        panel.barh(height, 1e3 * alone, color="#0072B2")
        panel.text(1e3 * whole, height, f"  {whole / alone:.1f} times its products", va="center")
    panel.set_yticks(range(len(parts)), list(parts))
    whole, alone = (sum(column) for column in zip(*parts.values()))
    panel.set(xlabel="milliseconds per step (dark: the matrix products alone)",
              xlim=(0, 1.4e3 * max(part[0] for part in parts.values())))
    panel.set_title(f"A step takes {1e3 * whole:.0f} ms, {whole / alone:.1f} times its matrix products", loc="left")
    study.finish(figure, flags.out / "speed.png", study.log_of("speed", flags))


if __name__ == "__main__":
    study.command(main)
