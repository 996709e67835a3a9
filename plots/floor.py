"""Theorem 1 by brute force: OPSD's loss has a floor that no training removes, the information that the key gives.

    python -m plots.floor [--quick]        runs/floor.jsonl and floor.png under --out

The task is `split`: many answers r are right, and the key shows one at random. Forward KL, a teacher that stays the
base, homework without cites. At each evaluation all r and all well-formed responses are enumerated, so that nothing is
estimated. In `carry`, where the problem alone determines r, the floor is 0.
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
from tiny_tasks import SEE_KEY

NAMES = {"loss": "OPSD's loss", "first": "first term", "information": "floor (information)", "opd": "OPD's loss"}
COLOURS = {"loss": "#D55E00", "first": "#0072B2", "information": "#000000", "opd": "#009E73"}


def theorem_1(teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Theorem 1, r uniform: E_r KL(P_T(.|r) || P_S) = KL(mean_r P_T || P_S) + I(Y_t; R), nats.

    (R, ..., V), (..., V) -> the three in this order, (...), each computed from its own definition.
    """
    def kl(p_logp, q_logp):
        return (p_logp.exp() * (p_logp - q_logp)).sum(-1)

    mean_logp = torch.logsumexp(teacher_logp, 0) - math.log(len(teacher_logp))
    return kl(teacher_logp, student_logp).mean(0), kl(mean_logp, student_logp), kl(teacher_logp, mean_logp).mean(0)


def gradient_deviation(teacher: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Proposition 1, r uniform: d_r = -sum_v (P_T(v|r) - mean_r P_T(v)) grad log P_S(v), (R, V), (V, n) -> (R, n).

    With it, the mean of |d_r|^2 by covariances: sum_vv' Cov_r(P_T(v), P_T(v')) <grad log P_S(v), grad log P_S(v')>.
    """
    centred = teacher - teacher.mean(0)
    return -centred @ score, ((centred.T @ centred / len(teacher)) * (score @ score.T)).sum()


class Enumeration:
    """All answers r to a problem, all its well-formed responses up to the last digit, and the teacher's word on each.

    Two lists of responses: those that work the answer out, and those that cite, which begin after a token they share.
    The last digit is scored, but need not be listed.
    """

    def __init__(self, world: rlsd.World, problem: tuple, teacher: rlsd.GPT, opd_teacher: rlsd.GPT | None):
        task, self.covered, self.lists = world.task, world.prompts([problem]), []
        splits = [parts for parts in product(range(10), repeat=task.digits) if sum(parts) == problem[0] - problem[1]]
        keys = [world.prompts([problem], ["+".join(map(str, parts))]) for parts in splits]
        digits = [[*parts, 0] for parts in product(range(10), repeat=task.digits - 1)]
        worked = [task.write(problem, parts) for parts in digits], 6 * task.digits - 2, 0
        cited = [SEE_KEY + "".join(f"-{part}" for part in parts) for parts in digits], 2 * task.digits + 1, 1
        for texts, length, begins in (worked, cited):
            tokens = torch.tensor([world.tokenizer.encode(text)[:length] for text in texts])
            same = (tokens.unsqueeze(1) == tokens).cumprod(-1).sum(1)  # how many agree up to and with a token
            shared = F.pad(same[:, :-1], (1, 0), value=len(texts))
            with torch.no_grad():
                by_key = torch.stack([rlsd.response_logp(teacher, key, tokens) for key in keys]).double()
                opd = rlsd.response_logp(opd_teacher, self.covered, tokens).double() if opd_teacher else None
            self.lists.append((tokens, shared, begins, by_key, opd))

    @torch.no_grad()
    def terms(self, student: rlsd.GPT) -> dict[str, float]:
        """Each term, summed over the response, nats, in the mean over the student's own prefixes; and their `mass`."""
        total = dict.fromkeys((*NAMES, "mass"), 0.0)
        for tokens, shared, begins, by_key, opd in self.lists:
            logp = rlsd.response_logp(student, self.covered, tokens).double()
            before = F.pad(rlsd.of_tokens(logp, tokens).cumsum(1)[:, :-1], (1, 0))
            weight = (before.exp() / shared)[:, begins:]
            values = [*theorem_1(by_key[:, :, begins:], logp[:, begins:])]
            values.append(torch.zeros(()) if opd is None else rlsd.divergence(logp, opd, "forward_kl")[:, begins:])
            for name, value in zip(NAMES, values):
                total[name] += float((weight * value).sum())
            total["mass"] += float(weight[:, -1].sum())
        return total


def measure(config: rlsd.Config, problems: int) -> dict:
    """One run; at each evaluation the mean of the terms over held-out problems."""
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    opd_teacher = rlsd.cached_model(config, "teacher") if config.mode == "opd" else None
    listed = [Enumeration(world, problem, base, opd_teacher) for problem in world.task.exam()[0][:problems]]
    student, seen = copy.deepcopy(base), []
    for record, state in rlsd.train(config, world, base, opd_teacher):
        student.load_state_dict(state["student"])
        terms = [enumeration.terms(student) for enumeration in listed]
        seen.append(record | {name: sum(term[name] for term in terms) / problems for name in terms[0]})
    return {key: [record[key] for record in seen] for key in ("step", "accuracy", "leakage", *terms[0])}


def terms_of(lines: list[dict]) -> dict[str, tuple]:
    """term -> (steps, values (seeds, evaluations))."""
    modes = {name: "opd" if name == "opd" else "opsd" for name in NAMES}
    has = {line["label"] for line in lines}
    return {name: (study.curves(lines, "step", mode)[0], study.curves(lines, name, mode))
            for name, mode in modes.items() if mode in has}


def table(lines: list[dict]) -> list[str]:
    """The terms; and the share of the student's responses, of both methods, that begin with what is listed."""
    shown = {NAMES[name]: values for name, (_, values) in terms_of(lines).items()}
    shown["enumerated (share)"] = np.array([line["mass"] for line in lines])
    rows = [(name, compare.spread(values[:, 0]), compare.spread(values[:, -1])) for name, values in shown.items()]
    return study.markdown(("nats per response", "at step 0", "at the end"), rows)


def main() -> None:
    flags = study.arguments(__doc__, digits=3, steps=320, seeds=3)
    seeds, modes, problems, steps = range(flags.seeds), ("opsd", "opd"), 16, flags.steps
    if flags.quick:
        seeds, modes, problems, steps = range(1), ("opsd",), 4, -(-steps // 4)
    settings = {"task": "split", "digits": flags.digits, "cite": 0.0, "steps": steps, "evaluate_every": 20,
                "divergence": "forward_kl", "teacher_refresh": 10**6}
    runs = [(mode, rlsd.Config(mode=mode, seed=seed, **settings), problems) for seed in seeds for mode in modes]
    lines = study.run_all("floor", flags, runs, measure)
    pool.say("\n".join(table(lines)))
    terms = terms_of(lines)
    loss, information = (terms[name][1][:, -1].mean() for name in ("loss", "information"))
    figure, ((panel,),) = study.panels(1, 1, width=7.5, height=4.4)
    top = 1.1 * max(values.max() for _, values in terms.values())
    panel.set(xlabel=compare.AXIS["step"], ylabel="nats per response", ylim=(0, top))
    panel.set_title(f"OPSD's loss ends at {loss:.2f} nats; the key alone tells {information:.2f}", loc="left")
    study.draw_curves(panel, terms, NAMES, COLOURS, {"information": "--"})
    study.finish(figure, flags.out / "floor.png", study.log_of("floor", flags))


if __name__ == "__main__":
    study.command(main)
