"""Does RLSD's gradient differ from RLVR's in its direction? (Exact verifier.)

    python -m plots.direction [--quick]        runs/direction.jsonl and direction.png under --out

Per method, the mean gradient over batches of 4 problems x 8 responses: the cosine of its angle to
RLVR's. It is made of estimates without bias, so it may exceed 1. The same batches for all methods,
at the base and after 40 steps of RLVR; --steps says how many.
"""

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import rlsd
from plots import compare, study

METHODS = {  # the mode, the function, eps_w
    "RLVR": ("rlvr", rlsd.method_loss, 0.0),
    "RLSD, eps_w 0.2": ("rlsd", rlsd.method_loss, 0.2),
    "RLSD, eps_w 1": ("rlsd", rlsd.method_loss, 1.0),
    "RLSD, eps_w 4": ("rlsd", rlsd.method_loss, 4.0),
    "CEPO, eps_w 1": ("cepo", rlsd.method_loss, 1.0),
    "OPSD": ("opsd", rlsd.method_loss, 0.0),
}
PLACES = {"base": 0, "after 40 steps": 40}
COLOURS = dict(zip(PLACES, ("#0072B2", "#D55E00")))


def mean_products(total: Tensor, products: Tensor, count: int) -> Tensor:
    """Unbiased: <mean gradient a, mean gradient b> for each pair of methods. (M, M)

    total (M, parameters) is the sum of the gradients over batches, and products (M, M) that of
    their scalar products. What the sum of all pairs of batches has more than `products` comes of
    two batches each, whose noise is independent.
    """
    return (total @ total.T - products) / (count * (count - 1))


def gradients(batch: rlsd.Batch, weights: list[Tensor]) -> Tensor:
    """The gradient of each method's loss on one batch, (M, parameters)."""
    found = []
    for mode, method, eps_w in METHODS.values():
        loss, _ = method(mode, replace(batch, eps_w=eps_w))
        parts = torch.autograd.grad(loss, weights, retain_graph=True)
        found.append(torch.cat([part.flatten() for part in parts]).double())
    return torch.stack(found)


class Sums:
    """A method in the place of rlsd.method_loss, which sums the gradients of all METHODS."""

    def __init__(self, weights: list[Tensor]):
        self.weights = weights
        self.total = self.products = 0

    def __call__(self, mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
        found = gradients(batch, self.weights)
        self.total = self.total + found
        self.products = self.products + found @ found.T
        return rlsd.method_loss(mode, batch)


def measure(config: rlsd.Config, trained: int) -> dict:
    """After so many steps of RLVR: each mean gradient's product with RLVR's, and with itself."""
    rlvr = rlsd.Config(
        mode="rlvr", seed=config.seed, digits=config.digits, steps=trained, evaluate_every=40
    )
    for _, student, _ in study.training(rlvr):
        pass
    weights = list(student.parameters())
    sums, teacher = Sums(weights), copy.deepcopy(student)
    still = torch.optim.SGD(weights, lr=0.0)
    task = config.make_task()
    for step in range(trained + 1, trained + config.steps + 1):  # problems not trained on
        rlsd.train_step(config, task, student, teacher, still, step, sums)
    signal = mean_products(sums.total, sums.products, config.steps)
    return {"with_rlvr": signal[0].tolist(), "signal": signal.diagonal().tolist()}


def cosines(lines: list[dict], place: str) -> np.ndarray:
    """Cosine with RLVR, (seeds, methods). NaN where too few batches show no signal."""
    product = study.curves(lines, "with_rlvr", place)
    signal = study.curves(lines, "signal", place)
    signal = np.where(signal > 0, signal, np.nan)
    return product / np.sqrt(signal * signal[:, :1])


def table(lines: list[dict]) -> list[str]:
    rows = []
    for place in study.labels_of(lines):
        for name, values in zip(METHODS, cosines(lines, place).T):
            rows.append((place, name, compare.spread(values)))
    return study.markdown(("where", "method", "cosine with RLVR"), rows)


def draw(panel, lines: list[dict]) -> None:
    """The cosine of each method with RLVR; a dot per seed."""
    for shift, place in enumerate(study.labels_of(lines)):
        rows = np.arange(len(METHODS)) + 0.2 * shift - 0.1
        label = f"{place}, a dot per seed"
        for one in cosines(lines, place):
            panel.plot(one, rows, "o", color=COLOURS[place], alpha=0.8, label=label)
            label = None
    panel.set_yticks(range(len(METHODS)), list(METHODS))
    panel.invert_yaxis()
    panel.set_xlabel("cosine of its mean gradient with RLVR's")
    panel.legend(loc="upper left", frameon=False)
    of_rlsd = [name.startswith("RLSD") for name in METHODS]
    study.claim(
        panel,
        "RLSD's mean gradient has nearly RLVR's\ndirection at the base, less so later",
        bool((cosines(lines, "base")[:, of_rlsd] > 0.99).all()),
        "The direction of the mean gradient",
    )


def main() -> None:
    flags = study.arguments(__doc__, steps=150, seeds=3)
    places = {"base": 0} if flags.quick else PLACES
    runs = []
    for seed in study.seeds_of(flags):
        config = rlsd.Config(
            mode="cepo",  # whose teacher sees both keys
            seed=seed,
            digits=flags.digits,
            steps=max(2, study.steps_of(flags)),
            problems=4,
            lam=1.0,
            lam_decay=0,
        )
        runs += [(place, config, trained) for place, trained in places.items()]
    lines = study.run_all("direction", flags, runs, measure)
    study.say(table(lines))
    figure, axes = study.panels(1, 1, width=7.5, height=4.2)
    draw(axes[0, 0], lines)
    study.finish(figure, "direction", flags)


if __name__ == "__main__":
    study.command(main)
