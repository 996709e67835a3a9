"""A stable target, a signal that lasts, no leakage: OPSD's teacher gives at most two of the three (Theorem 3).

    python -m plots.trilemma [--quick]        runs/trilemma.jsonl and trilemma.png under --out

OPSD on `split` as in plots.floor, its teacher frozen, copied every 20 steps, or every step. All answers r and all
well-formed responses of some held-out problems are enumerated, under one fixed weighting: a prefix counts as often as
the base writes it. L(S, T) is then a function of student and teacher alone, and between two evaluations, k and k+1,
L(k+1) - L(k) = Delta_S + Delta_T: first the student's steps, under the old teacher; then the teacher's.
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

EVERY, TEACHERS = 20, {"frozen": 10**6, "copied, 20 steps": 20, "copied, 1 step": 1}  # --teacher-refresh
COLOURS = dict(zip(TEACHERS, ("#0072B2", "#E69F00", "#D55E00")))
AXES = {"loss": "OPSD's loss L, nats per response", "signal": "signal: first term, nats per response",
        "information": "S = I(Y;R|X), nats per response", "rho": "rho = E|delta|^2 / E|g|^2",
        "teacher": "Delta_T since the last dot, nats per response", "leakage": compare.AXIS["leakage"]}


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
    """One run. At each evaluation what AXES names, Delta_S as `student`, and right answers, of the marginal also."""
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
    return {key: [one[key] for one in seen] for key in ("step", "accuracy", *AXES, "student", "right", "marginal")}
