"""A stable target, a signal that lasts, no leakage: OPSD's teacher gives at most two of the three (Theorem 3).

    python -m plots.trilemma [--quick]        runs/trilemma.jsonl and trilemma.png under --out

OPSD on `split` as in plots.floor, its teacher frozen, copied every 20 steps, or every step; a base that never cites,
and one that does. All answers r and all well-formed responses of some held-out problems are enumerated, under one fixed
weighting: a prefix counts as often as the base writes it. L(S, T) is then a function of student and teacher alone, and
between two evaluations, k and k+1, L(k+1) - L(k) = Delta_S + Delta_T: first the student's steps, under the old teacher;
then the teacher's. Every "holds" in the table of claims is computed, by the rule that stands beside it in claims().
"""

import copy
import math
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rlsd
from plots import compare, pool, study
from plots.floor import Enumeration, theorem_1

TEACHERS, CITES, EVERY = {"frozen": 10**6, "copied, 20 steps": 20, "copied, 1 step": 1}, (0.0, 0.3), 20
COLOURS = dict(zip(TEACHERS, ("#0072B2", "#E69F00", "#D55E00")))
MEASURED = ("step", "accuracy", "leakage", "loss", "signal", "information", "rho", "student", "teacher", "right",
            "marginal")  # student, teacher: Delta_S and Delta_T; right, marginal: right answers (share)
SHOWN = {"signal": "signal: first term, nats per response", "teacher": "Delta_T, nats per response",
         "leakage": compare.AXIS["leakage"]}


class Problem(Enumeration):
    """An enumeration whose prefixes count as often as `writer` writes them; digits (N,): the sum but for the last."""

    def __init__(self, world: rlsd.World, problem: tuple, teacher: rlsd.GPT, writer: rlsd.GPT):
        super().__init__(world, problem, teacher, None)
        places = world.task.digits - 1
        needed = problem[0] - problem[1] - torch.tensor([sum(parts) for parts in product(range(10), repeat=places)])
        self.last, self.has_last = needed.clamp(0, 9).unsqueeze(1), (needed >= 0) & (needed <= 9)  # digits are tokens
        self.weights = []
        with torch.no_grad():
            for logp, (tokens, shared, begins, _, _) in zip(self.of_student(writer), self.lists):
                before = F.pad(rlsd.of_tokens(logp, tokens).cumsum(1)[:, :-1], (1, 0))
                self.weights.append((before.exp() / shared).index_fill(1, torch.arange(begins), 0))

    def of_student(self, student: rlsd.GPT) -> list[Tensor]:
        """Its log P (B, T, V) of each list."""
        return [rlsd.response_logp(student, self.covered, tokens).double() for tokens, *_ in self.lists]

    @torch.no_grad()
    def losses(self, student: rlsd.GPT) -> Tensor:
        """Theorem 1: loss, first term, information, nats per response, (3,)."""
        lists = zip(self.of_student(student), self.lists, self.weights)
        return sum(torch.stack([(weight * term).sum() for term in theorem_1(by_key, logp)])
                   for logp, (_, _, _, by_key, _), weight in lists)

    def deviation(self, student: rlsd.GPT) -> Tensor:
        """E|g_r - mean g|^2 and E|g_r|^2, (2,): g_r is the loss's gradient for the key r, by all parameters."""
        logp, parameters, total, squares = self.of_student(student), list(student.parameters()), 0, 0
        count = len(self.lists[0][3])
        for key in range(count):
            pull = [-weight.unsqueeze(-1) * by_key[key].exp() for weight, (*_, by_key, _) in zip(self.weights, self.lists)]
            parts = torch.autograd.grad(logp, parameters, pull, retain_graph=True)
            gradient = torch.cat([part.flatten() for part in parts]).double()
            total, squares = total + gradient / count, squares + gradient.square().sum() / count
        return torch.stack((squares - total.square().sum(), squares))

    @torch.no_grad()
    def right(self, lists: list[Tensor]) -> Tensor:
        """The share of right answers that log P (B, T, V) of each list gives, ()."""
        first = [rlsd.of_tokens(logp, tokens)[:, :-1].sum(1) for logp, (tokens, *_) in zip(lists, self.lists)]
        last = [logp[:, -1].gather(1, self.last).squeeze(1) for logp in lists]
        return sum(((one + other).exp() * self.has_last).sum() for one, other in zip(first, last))

    def marginal(self) -> list[Tensor]:
        """log mean_r P_T (B, T, V) of each list: the best that a student can do."""
        return [by_key.logsumexp(0) - math.log(len(by_key)) for *_, by_key, _ in self.lists]


def measure(config: rlsd.Config, problems: int) -> dict:
    """One run, with what MEASURED names at each evaluation."""
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    student, chosen, seen, loss = copy.deepcopy(base), world.task.exam()[0][:problems], [], None
    targets = [Problem(world, problem, base, base) for problem in chosen]

    def mean(of) -> Tensor:
        return sum(of(target) for target in targets) / problems

    for record, state in rlsd.train(config, world, base):
        student.load_state_dict(state["student"])
        old_teacher = float(mean(lambda target: target.losses(student))[0])
        if record["step"] % config.teacher_refresh == 0:  # the next step's teacher
            targets = [Problem(world, problem, student, base) for problem in chosen]
        before, (loss, signal, information) = loss, mean(lambda target: target.losses(student)).tolist()
        deviation, square = mean(lambda target: target.deviation(student)).tolist()
        seen.append({**record, "loss": loss, "signal": signal, "information": information, "rho": deviation / square,
                     "student": 0.0 if before is None else old_teacher - before, "teacher": loss - old_teacher,
                     "right": float(mean(lambda target: target.right(target.of_student(student)))),
                     "marginal": float(mean(lambda target: target.right(target.marginal())))})
    return {key: [one[key] for one in seen] for key in MEASURED}


def first_and_last(lines: list[dict], label: str, key: str) -> tuple[float, float]:
    values = study.curves(lines, key, label).mean(0)
    return values[0], values[-1]


def table(lines: list[dict]) -> list[str]:
    """Means over seeds, at step 0 and at the end."""
    keys = {"signal": "signal, nats", "information": "S, nats", "rho": "rho", "right": "right, student",
            "marginal": "right, marginal", "accuracy": "accuracy", "leakage": "leakage"}
    rows = [(label, *("{:.3f} to {:.3f}".format(*first_and_last(lines, label, key)) for key in keys))
            for label in dict.fromkeys(line["label"] for line in lines)]
    return study.markdown(("teacher", *keys.values()), rows)


def claims(lines: list[dict]) -> list[str]:
    """What the paper says, what is seen, and whether it holds. Intervals: between two evaluations, all seeds."""
    labels = list(dict.fromkeys(line["label"] for line in lines))
    frozen, copied = ([label for label in labels if label.startswith(kind)] for kind in ("frozen", "copied"))

    def steps(key: str, of: list[str]) -> np.ndarray:  # without step 0
        return np.concatenate([study.curves(lines, key, label)[:, 1:].ravel() for label in of])

    def change(key: str) -> np.ndarray:
        return np.concatenate([np.diff(study.curves(lines, key, label)).ravel() for label in labels])

    def said(key: str, of: list[str]) -> str:
        return "; ".join("{:.2f} to {:.2f}".format(*first_and_last(lines, label, key)) for label in of)

    left = {label: np.divide(*first_and_last(lines, label, "signal")[::-1]) for label in labels}
    has = {label: [name for name, held in (("stable", not steps("teacher", [label]).any()), ("signal", left[label] > 0.25),
                                           ("no leak", study.leaks(lines, label).max() < 0.02)) if held]
           for label in labels}
    error = np.abs(change("loss") - steps("student", labels) - steps("teacher", labels)).max()
    above = [np.subtract(*(first_and_last(lines, label, key)[1] for key in ("right", "marginal"))) for label in frozen]
    student, teacher, falls = (steps("student", labels) > 0).sum(), steps("teacher", copied), change("information") < -1e-6
    larger = (teacher > np.abs(steps("student", copied))).sum()
    rows = [("L(k+1) - L(k) = Delta_S + Delta_T", f"largest error {error:.0e}", error < 1e-6),
            ("Proposition 2: a frozen teacher's signal vanishes", said("signal", frozen), max(left[one] for one in frozen) < 0.25),
            ("Proposition 2: no better than its marginal", ", ".join(f"{one:+.3f}" for one in above), max(above) <= 0),
            ("Theorem 2: Delta_S <= 0", f"positive in {student} of {len(change('loss'))} intervals", student == 0),
            ("Theorem 2: Delta_T may be positive", f"is in {(teacher > 0).sum()} of {len(teacher)} intervals of copied "
             f"teachers, and over |Delta_S| in {larger}", (teacher > 0).any()),
            ("Proposition 3: S never falls", f"falls in {falls.sum()} of {len(falls)} intervals", not falls.any()),
            ("Proposition 3: rho goes to 1", f"copied teachers: {said('rho', copied)}",
             min(first_and_last(lines, label, "rho")[1] for label in copied) > 0.95),
            ("Theorem 3: at most two of three", "; ".join(f"{label}: {', '.join(has[label]) or 'none'}" for label in labels),
             max(map(len, has.values())) < 3)]
    return study.markdown(("claim", "seen", "holds"), [(*row, "yes" if holds else "no") for *row, holds in rows])


def title(lines: list[dict], key: str, cite: float) -> str:
    values = {teacher: study.curves(lines, key, f"{teacher}, cite {cite:g}") for teacher in TEACHERS
              if any(line["label"] == f"{teacher}, cite {cite:g}" for line in lines)}
    if key == "teacher":
        moves = np.concatenate([value[:, 1:].ravel() for name, value in values.items() if name != "frozen"])
        return f"Delta_T is positive in {(moves > 0).sum()} of {len(moves)} intervals of copied teachers"
    told = {"signal": lambda value: f"{value[:, -1].mean() / value[:, 0].mean():.0%}",
            "leakage": lambda value: f"{value.max(1).mean():.0%}"}[key]
    return ("Signal left: " if key == "signal" else "Highest leakage: ") + ", ".join(map(told, values.values()))


def main() -> None:
    flags = study.arguments(__doc__, digits=3, seeds=3)
    seeds, cites, teachers, problems, steps = range(flags.seeds), CITES, list(TEACHERS), 4, flags.steps
    if flags.quick:
        seeds, cites, teachers, problems, steps = range(1), CITES[1:], teachers[:2], 2, -(-steps // 4)
    settings = {"mode": "opsd", "task": "split", "digits": flags.digits, "steps": steps, "evaluate_every": EVERY,
                "divergence": "forward_kl"}
    runs = [(f"{teacher}, cite {cite:g}", rlsd.Config(seed=seed, cite=cite, teacher_refresh=TEACHERS[teacher], **settings),
             problems) for seed in seeds for cite in cites for teacher in teachers]
    lines = study.run_all("trilemma", flags, runs, measure)
    pool.say("\n".join([*table(lines), *claims(lines)]))
    figure, axes = study.panels(len(cites), len(SHOWN), width=5.6)
    for panels, cite in zip(axes, cites):
        for panel, (key, text) in zip(panels, SHOWN.items()):
            shown = {teacher: tuple(study.curves(lines, name, f"{teacher}, cite {cite:g}") for name in ("step", key))
                     for teacher in teachers}
            panel.set(xlabel=f"training step; homework with cites of {cite:g}", ylabel=text)
            panel.set_title(title(lines, key, cite), loc="left", fontsize=11)
            study.draw_curves(panel, {name: (step[0], values) for name, (step, values) in shown.items()},
                              {name: name for name in TEACHERS}, COLOURS)
    study.finish(figure, flags.out / "trilemma.png", study.log_of("trilemma", flags))


if __name__ == "__main__":
    study.command(main)
