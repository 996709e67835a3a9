"""Why RLSD is level with an exact verifier: its gradients point where RLVR's do, and are hardly less noisy.

    python -m plots.direction [--quick]        runs/direction.jsonl and direction.png under --out

Per method, the mean gradient over batches of 4 problems x 8 responses: the cosine of its angle to RLVR's, and signal
per noise, |mean|^2 / trace of the variance of a batch. Both are estimates without bias of what they are made of, so a
cosine may exceed 1. The same batches for all methods, at the base and after 40 steps of RLVR; --steps: how many.
"""

import copy

import numpy as np
import torch
from torch import Tensor

import rlsd
from plots import compare, pool, study, variants

METHODS = {  # the mode, whose teacher it has; the function; eps_w
    "RLVR": ("rlvr", rlsd.method_loss, 0.0), "RLSD, eps_w 0.2": ("rlsd", rlsd.method_loss, 0.2),
    "RLSD, eps_w 1": ("rlsd", rlsd.method_loss, 1.0), "RLSD, eps_w 4": ("rlsd", rlsd.method_loss, 4.0),
    "unsigned, eps_w 1": ("rlsd", variants.unsigned, 1.0), "CEPO, eps_w 1": ("cepo", rlsd.method_loss, 1.0),
    "OPSD": ("opsd", rlsd.method_loss, 0.0)}
PLACES = {"base": 0, "after 40 steps": 40}
COLOURS = dict(zip(PLACES, ("#0072B2", "#D55E00")))


def signal_and_noise(total: Tensor, products: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Unbiased: <mean gradient a, mean gradient b> (M, M), and each method's trace of the variance (M,).

    total (M, parameters): the sum of the gradients over batches; products (M, M): that of their scalar products. What
    the sum of all pairs of batches has more than `products` comes of two batches each, whose noise is independent.
    """
    signal = (total @ total.T - products) / (count * (count - 1))
    return signal, (products / count - signal).diagonal()


def measure(config: rlsd.Config, trained: int) -> dict:
    """At a checkpoint of RLVR: scalar product with RLVR's mean gradient, signal and noise, each per method."""
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    rlvr = rlsd.Config(mode="rlvr", seed=config.seed, digits=config.digits, steps=trained, evaluate_every=40)
    *_, (_, state) = rlsd.train(rlvr, world, base)
    student, total, products = copy.deepcopy(base), 0, 0
    student.load_state_dict(state["student"])
    weights = list(student.parameters())

    def all_methods(_: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
        nonlocal total, products
        gradients = []
        for mode, method, eps_w in METHODS.values():
            views = batch.teacher_logp[:len(rlsd.MODES[mode].sees)]
            result = method(mode, batch._replace(teacher_logp=views, eps_w=eps_w))
            parts = torch.autograd.grad(result[0], weights, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]).double())
        gradients = torch.stack(gradients)
        total, products = total + gradients, products + gradients @ gradients.T
        return result

    teacher, still = copy.deepcopy(student), torch.optim.SGD(weights, lr=0.0)
    for step in range(trained + 1, trained + config.steps + 1):  # problems that were not trained on
        rlsd.train_step(config, world, student, teacher, still, step, all_methods)
    signal, noise = signal_and_noise(total, products, config.steps)
    return {"with_rlvr": signal[0].tolist(), "signal": signal.diagonal().tolist(), "noise": noise.tolist()}


def seen(lines: list[dict], place: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosine with RLVR, and signal per noise, (seeds, methods). NaN where too few batches show no signal."""
    product, signal, noise = (study.curves(lines, key, place) for key in ("with_rlvr", "signal", "noise"))
    signal = np.where(signal > 0, signal, np.nan)
    return product / np.sqrt(signal * signal[:, :1]), signal / noise


def table(lines: list[dict]) -> list[str]:
    rows = []
    for place in dict.fromkeys(line["label"] for line in lines):
        cosine, ratio = seen(lines, place)
        rows += [(place, name, *map(compare.spread, (cosine[:, n], ratio[:, n], ratio[:, n] / ratio[:, 0])))
                 for n, name in enumerate(METHODS)]
    return study.markdown(("where", "method", "cosine with RLVR", "signal per noise", "relative to RLVR"), rows)


def titles(lines: list[dict]) -> tuple[str, str]:
    """Over all places and seeds."""
    both = [seen(lines, place) for place in dict.fromkeys(line["label"] for line in lines)]
    cosine, ratio = np.vstack([cosine for cosine, _ in both]), np.vstack([ratio / ratio[:, :1] for _, ratio in both])
    of_rlsd, opsd = [name.startswith("RLSD") for name in METHODS], [*METHODS].index("OPSD")
    return (f"Cosine with RLVR: RLSD {cosine[:, of_rlsd].min():.2f} or more, OPSD {cosine[:, opsd].mean():.2f}",
            f"Signal per noise: RLSD {ratio[:, of_rlsd].mean():.1f}, OPSD {ratio[:, opsd].mean():.1f} times RLVR's")


def main() -> None:
    flags = study.arguments(__doc__, steps=150, seeds=3)
    seeds, places, batches = range(flags.seeds), PLACES, flags.steps
    if flags.quick:
        seeds, places, batches = range(1), {"base": 0}, -(-batches // 2)
    settings = {"mode": "cepo", "digits": flags.digits, "steps": max(2, batches), "problems": 4, "lam": 1.0,
                "lam_decay": 0}  # the teacher sees the key, and a wrong one
    runs = [(place, rlsd.Config(seed=seed, **settings), trained) for seed in seeds for place, trained in places.items()]
    lines = study.run_all("direction", flags, runs, measure)
    pool.say("\n".join(table(lines)))
    figure, (panels,) = study.panels(1, 2, width=6)
    texts = "cosine of its mean gradient with RLVR's", "signal per noise of its gradient, RLVR's is 1"
    for which, (panel, text, title) in enumerate(zip(panels, texts, titles(lines))):
        for shift, place in enumerate(places):
            values = seen(lines, place)[which]
            values = values / values[:, :1]  # a cosine's is 1
            for n, one in enumerate(values):
                panel.plot(one, np.arange(len(METHODS)) + 0.2 * shift - 0.1, "o", color=COLOURS[place], alpha=0.8,
                           label=None if n else f"{place}, a dot per seed")
        panel.set_yticks(range(len(METHODS)), list(METHODS))
        panel.invert_yaxis()
        panel.set_xlabel(text)
        panel.set_title(title, loc="left", fontsize=11)
    panels[0].legend(frameon=False)
    study.finish(figure, flags.out / "direction.png", study.log_of("direction", flags))


if __name__ == "__main__":
    study.command(main)
