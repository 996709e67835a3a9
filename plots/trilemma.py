"""A stable target, a signal that lasts, no leakage: OPSD's teacher gives at most two of the three (Theorem 3).

    python -m plots.trilemma [--quick]        runs/trilemma.jsonl and trilemma.png under --out

OPSD on `split` as in plots.floor, its teacher frozen, copied every 20 steps, or every step; a base that never cites,
and one that does. All answers r and all well-formed responses of some held-out problems are enumerated, under one fixed
weighting: a prefix counts as often as the base writes it. L(S, T) is then a function of student and teacher alone, and
between two evaluations, k and k+1, L(k+1) - L(k) = Delta_S + Delta_T: first the student's steps, under the old teacher;
then the teacher's. A signal lasts if more than a quarter is left at the end; a run leaks if it ever cites 0.02 or more.
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

TEACHERS, CITES = {"frozen": 10**6, "copied every 20 steps": 20, "copied every step": 1}, (0.0, 0.3)
NAMES, PROPERTIES = {name: name for name in TEACHERS}, ("a stable target", "a lasting signal", "no leakage")
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
            pull = [-weight.unsqueeze(-1) * by_key[key].exp()
                    for weight, (*_, by_key, _) in zip(self.weights, self.lists)]
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


def seen(lines: list[dict]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The labels; and key -> (labels, seeds, evaluations)."""
    labels = list(dict.fromkeys(line["label"] for line in lines))
    return labels, {key: np.array([study.curves(lines, key, label) for label in labels]) for key in MEASURED}


def table(lines: list[dict]) -> list[str]:
    """What the paper says, what is seen (means over seeds; "to": at the end), and whether it holds."""
    labels, all_of = seen(lines)
    start, end = ({key: values[..., at].mean(1) for key, values in all_of.items()} for at in (0, -1))
    change = {key: np.diff(all_of[key]) for key in ("loss", "information")}
    student, teacher = (all_of[key][..., 1:] for key in ("student", "teacher"))
    frozen, twenty = (np.array([label.startswith(name) for label in labels]) for name in [*TEACHERS][:2])
    left, leak, above = end["signal"] / start["signal"], all_of["leakage"].max((1, 2)), end["right"] - end["marginal"]
    has = np.stack(((teacher == 0).all((1, 2)), left > 0.25, leak < 0.02), 1)
    error = np.abs(change["loss"] - student - teacher).max()
    worked, moved = student[frozen | twenty], teacher[twenty]  # a teacher copied every step is another within 20 steps
    larger, falls = (moved > np.abs(student[twenty])).sum(), change["information"][~frozen] < -1e-6
    positive = f"is in {(moved > 0).sum()} of {moved.size}, up to {moved.max():.2f}; larger than Delta_S in {larger}"

    def told(key: str, which: np.ndarray) -> str:
        return "; ".join(f"{one:.2f} to {other:.2f}" for one, other in zip(start[key][which], end[key][which]))

    rows = [("L(k+1) - L(k) = Delta_S + Delta_T", f"largest error {error:.0e}", error < 1e-6),
            ("Prop. 2: a frozen teacher's signal vanishes", told("signal", frozen), (left[frozen] < 0.25).all()),
            ("Prop. 2: its student stops at its marginal", "right answers above it "
             + "; ".join(f"{one:+.3f}" for one in above[frozen]), (np.abs(above[frozen]) < 0.05).all()),
            ("Theorem 2: Delta_S <= 0", f"above 0 in {(worked > 0).sum()} of {worked.size}, up to {worked.max():.2f}",
             (worked <= 0).all()),
            ("Theorem 2: Delta_T may be positive", positive, (moved > 0).any()),
            ("Prop. 3: S never falls", f"falls in {falls.sum()} of {falls.size} by copies", not falls.any()),
            ("Prop. 3: rho goes to 1", f"by copies {told('rho', ~frozen)}; frozen {told('rho', frozen)}",
             (end["rho"][~frozen] > 0.95).all())]
    for n, label in enumerate(labels):
        properties = " and ".join(np.array(PROPERTIES)[has[n]]) or "none"
        what = f"signal left {left[n]:.0%}, leakage {leak[n]:.1%}, accuracy {end['accuracy'][n]:.3f}: {properties}"
        rows.append((f"Theorem 3: {label}", what, not has[n].all()))
    return study.markdown(("claim", "seen, between evaluations 20 steps apart", "holds"),
                          [(claim, what, "yes" if holds else "no") for claim, what, holds in rows])


def title(key: str, values: dict[str, np.ndarray]) -> str:
    if key == "teacher":
        moved = values[[*TEACHERS][1]][:, 1:]
        return f"Delta_T is positive in {(moved > 0).sum()} of {moved.size} copies"
    of = {"signal": lambda one: one[:, -1].mean() / one[:, 0].mean(), "leakage": lambda one: one.max(1).mean()}[key]
    told = ", ".join(f"{name.removeprefix('copied ')} {of(one):.0%}" for name, one in values.items())
    return f"{'Signal left' if key == 'signal' else 'Leakage'}: {told}"


def main() -> None:
    flags = study.arguments(__doc__, digits=3, seeds=3)
    seeds, cites, teachers, problems, steps = range(flags.seeds), CITES, list(TEACHERS), 4, flags.steps
    if flags.quick:
        seeds, cites, teachers, problems, steps = range(1), CITES[1:], teachers[:2], 2, -(-steps // 4)
    settings = {"mode": "opsd", "task": "split", "digits": flags.digits, "steps": steps, "evaluate_every": 20,
                "divergence": "forward_kl"}
    runs = [(f"{name}, cite {cite:g}", rlsd.Config(seed=seed, cite=cite, teacher_refresh=TEACHERS[name], **settings),
             problems) for seed, cite, name in product(seeds, cites, teachers)]
    lines = study.run_all("trilemma", flags, runs, measure)
    pool.say("\n".join(table(lines)))
    figure, axes = study.panels(len(cites), len(SHOWN), width=5.6)
    for (row, cite), (column, (key, text)) in product(enumerate(cites), enumerate(SHOWN.items())):
        drawn = [name for name in teachers if key != "teacher" or TEACHERS[name] >= settings["evaluate_every"]]
        step, values = ({name: study.curves(lines, which, f"{name}, cite {cite:g}") for name in drawn}
                        for which in ("step", key))
        panel = axes[row, column]
        panel.set(xlabel=f"training step; homework with a share {cite:g} of cites", ylabel=text)
        panel.set_title(title(key, values), loc="left", fontsize=10)
        if key == "leakage":
            panel.set_ylim(compare.SHARE)
        study.draw_curves(panel, {name: (step[name][0], values[name]) for name in drawn}, NAMES, COLOURS)
    study.finish(figure, flags.out / "trilemma.png", study.log_of("trilemma", flags))


if __name__ == "__main__":
    study.command(main)
