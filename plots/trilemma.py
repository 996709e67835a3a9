"""A stable target, a lasting signal, no leakage: OPSD has at most two of the three (Theorem 3).

    python -m plots.trilemma [--quick]        runs/trilemma.jsonl and trilemma.png under --out

OPSD on `split` as in plots.floor, its teacher frozen, copied every 20 steps, or every step; a base
that never cites, and one that does. All answers r and all well-formed responses of some held-out
problems are enumerated, under one fixed weighting: a prefix counts as often as the base writes it.
L(S, T) is then a function of student and teacher alone, and between two evaluations, k and k+1,
L(k+1) - L(k) = Delta_S + Delta_T: first the student's steps, under the old teacher; then the
teacher's. A signal lasts if more than a quarter is left at the end; a run leaks if it ever cites
0.02 or more.
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor

import rlsd
from plots import study
from plots.floor import Enumeration, log_mean, prefix_weight, theorem_1

TEACHERS = {"frozen": 10**6, "copied every 20 steps": 20, "copied every step": 1}
CITES = (0.0, 0.3)
EVERY = 20  # steps between evaluations
PROPERTIES = ("a stable target", "a lasting signal", "no leakage")
NAMES = {name: name for name in TEACHERS}
COLOURS = dict(zip(TEACHERS, ("#0072B2", "#009E73", "#D55E00")))
# student, teacher: Delta_S and Delta_T; right, marginal: right answers (share)
MEASURED = (
    *("step", "accuracy", "leakage", "loss", "signal", "information", "rho"),
    *("student", "teacher", "right", "marginal"),
)
SHOWN = (  # the panels: quantity, cite
    ("signal", 0.0),
    ("signal", 0.3),
    ("leakage", 0.3),
)
LABELS = {"signal": "signal, nats per response", "leakage": rlsd.QUANTITIES["leakage"]}


class Problem(Enumeration):
    """An enumeration whose prefixes count as often as `writer` writes them."""

    def __init__(self, task: rlsd.Task, problem: tuple, teacher: rlsd.GPT, writer: rlsd.GPT):
        super().__init__(task, problem, teacher)
        needed = []  # the last digit that each response needs to be right
        for parts in product(range(10), repeat=task.digits - 1):
            needed.append(problem[0] - problem[1] - sum(parts))
        needed = torch.tensor(needed)
        self.last = needed.clamp(0, 9).unsqueeze(1)  # a digit is its own token
        self.has_last = (needed >= 0) & (needed <= 9)
        with torch.no_grad():
            written = zip(self.lists, self.student_log_probs(writer))
            self.weights = [prefix_weight(one, log_probs) for one, log_probs in written]

    @torch.no_grad()
    def losses(self, student: rlsd.GPT) -> Tensor:
        """Theorem 1: loss, first term and information, in nats per response, (3,)."""
        total = torch.zeros(3, dtype=torch.float64)
        for one, weight, log_probs in zip(
            self.lists, self.weights, self.student_log_probs(student)
        ):
            terms = torch.stack(theorem_1(one.by_key, log_probs))
            total += (weight * terms).sum((1, 2))
        return total

    def deviation(self, student: rlsd.GPT) -> Tensor:
        """E|g_r - mean g|^2 and E|g_r|^2, (2,); g_r is the loss's gradient for the key r."""
        log_probs, parameters = self.student_log_probs(student), list(student.parameters())
        gradients = []
        for key in range(len(self.lists[0].by_key)):
            pull = []
            for one, weight in zip(self.lists, self.weights):
                pull.append(-weight.unsqueeze(-1) * one.by_key[key].exp())
            parts = torch.autograd.grad(log_probs, parameters, pull, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]).double())
        gradients = torch.stack(gradients)
        square = gradients.square().sum(1).mean()
        return torch.stack((square - gradients.mean(0).square().sum(), square))

    @torch.no_grad()
    def right(self, log_probs: list[Tensor]) -> float:
        """The share of right answers that log P (N, T, V) of each list gives."""
        total = 0.0
        for one, of_list in zip(self.lists, log_probs):
            before = rlsd.token_log_probs(of_list, one.tokens)[:, :-1].sum(1)
            last = of_list[:, -1].gather(1, self.last).squeeze(1)
            total += float(((before + last).exp() * self.has_last).sum())
        return total

    def marginal(self) -> list[Tensor]:
        """log mean_r P_T (N, T, V) of each list: the best that a student can do."""
        return [log_mean(one.by_key) for one in self.lists]


def measure(config: rlsd.Config, count: int) -> dict:
    """A run, with what MEASURED names at each evaluation."""
    task, base = config.make_task(), rlsd.cached_model(config, "base")
    problems = task.exam()[0][:count]
    targets = [Problem(task, problem, base, base) for problem in problems]
    records, loss = [], None

    def mean_losses(student: rlsd.GPT) -> list[float]:
        return (sum(target.losses(student) for target in targets) / count).tolist()

    for record, student, _ in rlsd.train(config, task, base):
        before, old_teacher = loss, mean_losses(student)[0]
        if record["step"] % config.teacher_refresh == 0:  # the teacher of the next step
            targets = [Problem(task, problem, student, base) for problem in problems]
        loss, signal, information = mean_losses(student)
        deviation, square = sum(target.deviation(student) for target in targets).tolist()
        right, marginal = 0.0, 0.0
        for target in targets:
            right += target.right(target.student_log_probs(student)) / count
            marginal += target.right(target.marginal()) / count
        record |= {"loss": loss, "signal": signal, "information": information}
        record |= {"rho": deviation / square, "right": right, "marginal": marginal}
        record["student"] = 0.0 if before is None else old_teacher - before
        record["teacher"] = loss - old_teacher
        records.append(record)
    return study.columns(records, MEASURED)


def seen(lines: list[dict]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The labels; and quantity -> (labels, seeds, evaluations)."""
    labels, found = study.labels_of(lines), {}
    for name in MEASURED:
        found[name] = np.array([study.curves(lines, name, label) for label in labels])
    return labels, found


def table(lines: list[dict]) -> list[str]:
    """What the paper says, what is seen, and whether it holds; "to": from the start to the end."""
    labels, values = seen(lines)
    start = {name: value[..., 0].mean(1) for name, value in values.items()}
    end = {name: value[..., -1].mean(1) for name, value in values.items()}
    frozen = np.array([label.startswith("frozen") for label in labels])
    twenty = np.array([label.startswith("copied every 20") for label in labels])
    student, teacher = values["student"][..., 1:], values["teacher"][..., 1:]
    left = end["signal"] / start["signal"]
    leak = values["leakage"].max((1, 2))

    def told(name: str, n: int) -> str:
        return f"from {start[name][n]:.2f} to {end[name][n]:.2f}"

    rows = []

    def add(claim: str, what: str, holds: bool, otherwise: str = "no") -> None:
        rows.append((claim, what, "yes" if holds else otherwise))

    above = end["right"] - end["marginal"]
    for n in frozen.nonzero()[0]:
        of_seeds = values["signal"][n, :, -1] / values["signal"][n, :, 0]
        seeds = ", ".join(f"{one:.0%}" for one in of_seeds)
        what = f"{told('signal', n)} nats, {left[n]:.0%} (seeds {seeds})"
        add(f"Prop. 2: the signal falls below a quarter: {labels[n]}", what, left[n] < 0.25)
    for n in frozen.nonzero()[0]:
        of_seeds = (values["right"] - values["marginal"])[n, :, -1]
        seeds = ", ".join(f"{one:+.3f}" for one in of_seeds)
        what = f"right answers minus the marginal's: {above[n]:+.3f} (seeds {seeds})"
        claim = f"Prop. 2: right answers end at the marginal's, in the mean: {labels[n]}"
        add(claim, what, abs(above[n]) < 0.05)

    # A teacher that is copied at every step is another one within 20 steps.
    worked, moved = student[frozen | twenty], teacher[twenty]
    what = f"above 0 in {(worked > 0).sum()} of {worked.size}, up to {worked.max():.2f}"
    add(
        "Theorem 2: Delta_S <= 0 (here on held-out problems)", what, (worked <= 0).all(), "untested"
    )
    larger = (moved > np.abs(student[twenty])).sum()
    what = f"positive in {(moved > 0).sum()} of {moved.size}, up to {moved.max():.2f}"
    what += f"; in {larger} of these it is larger than Delta_S in size"
    add("Theorem 2: Delta_T may be positive", what, (moved > 0).any())

    falls = np.diff(values["information"])[~frozen] < -1e-6
    what = f"falls in {falls.sum()} of {falls.size}, copied"
    add("Prop. 3: S never falls", what, not falls.any())
    for n, label in enumerate(labels):
        seeds = ", ".join(f"{last:.2f}" for last in values["rho"][n, :, -1])
        what = f"{told('rho', n)}; seeds end at {seeds}"
        add(f"Prop. 3: rho is over 0.95 in the mean: {label}", what, end["rho"][n] > 0.95)

    for n, label in enumerate(labels):
        has = (not teacher[n].any(), left[n] > 0.25, leak[n] < 0.02)
        named = [name for name, holds in zip(PROPERTIES, has) if holds]
        shares = f"signal left {left[n]:.0%}, leakage {leak[n]:.1%}"
        what = f"{shares}, accuracy {end['accuracy'][n]:.3f}: {' and '.join(named) or 'none'}"
        of_seeds = values["signal"][n, :, -1] / values["signal"][n, :, 0]
        otherwise = "no" if (of_seeds > 0.25).all() else "undecided"  # seeds are on both sides
        if not has[0]:  # at most two of the three can hold
            otherwise = "not tested"
        holds = has[0] and not all(has)
        add(f"Theorem 3: {label}", what, holds, otherwise)
    head = ("claim", "seen, between evaluations 20 steps apart", "holds")
    return study.markdown(head, rows)


def draw(panel, lines: list[dict], quantity: str, cite: float, teachers: list[str]) -> None:
    """One quantity of the runs of one base, a curve per teacher."""
    found = {}
    for name in teachers:
        label = f"{name}, cite {cite:g}"
        found[name] = study.steps(lines, label), study.curves(lines, quantity, label)
    panel.set(xlabel=rlsd.QUANTITIES["step"], ylabel=LABELS[quantity])
    values = {name: value for name, (_, value) in found.items()}
    where = "Cites planted" if cite else "No cites planted"
    if quantity == "signal":
        left = {name: one[:, -1].mean() for name, one in values.items()}
        text = f"{where}: in the mean, the frozen\nteacher's signal ends lowest"
        study.claim(panel, text, min(left, key=left.get) == "frozen", f"{where}: signal")
    else:
        panel.set_ylim(rlsd.SHARE)
        lowest = min(one.max(1).min() for one in values.values())
        text = f"{where}: every run leaks;\nwith a frozen teacher leakage ends lowest"
        highest = {name: one.max() for name, one in values.items()}
        holds = lowest > study.LEAKS and min(highest, key=highest.get) == "frozen"
        study.claim(panel, text, holds, f"{where}: leakage")
    study.draw_curves(panel, found, NAMES, COLOURS)


def main() -> None:
    flags = study.arguments(__doc__, digits=3, seeds=3)
    cites = CITES[1:] if flags.quick else CITES
    teachers = list(TEACHERS)[:2] if flags.quick else list(TEACHERS)
    problems = 2 if flags.quick else 4
    runs = []
    for seed, cite, name in product(study.seeds_of(flags), cites, teachers):
        config = rlsd.Config(
            mode="opsd",
            task="split",
            seed=seed,
            digits=flags.digits,
            cite=cite,
            steps=study.steps_of(flags, quick=4),
            evaluate_every=EVERY,
            divergence="forward_kl",
            teacher_refresh=TEACHERS[name],
        )
        runs.append((f"{name}, cite {cite:g}", config, problems))
    lines = study.run_all("trilemma", flags, runs, measure)
    study.say(table(lines))
    shown = [(quantity, cite) for quantity, cite in SHOWN if cite in cites]
    figure, axes = study.panels(1, len(shown), width=5.8)
    for panel, (quantity, cite) in zip(axes[0], shown):
        draw(panel, lines, quantity, cite, teachers)
    study.finish(figure, "trilemma", flags)


if __name__ == "__main__":
    study.command(main)
