"""Theorem 1 by brute force: OPSD's loss has a floor, the information that the key gives.

    python -m plots.floor [--quick]        runs/floor.jsonl and floor.png under --out

The task is `split`: many answers r are right, and the key shows one at random. Forward KL, a
teacher that stays the base, homework without cites. At each evaluation all r and all well-formed
responses are enumerated, so that nothing is estimated. In `carry`, where the problem alone
determines r, the floor is 0.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rlsd
from plots import compare, study
from tiny_tasks import SEE_KEY

NAMES = {
    "loss": "OPSD's loss",
    "first": "signal",
    "information": "floor: what the key tells",
    "opd": "OPD's loss",
}
COLOURS = {"loss": "#D55E00", "first": "#0072B2", "information": "#000000", "opd": "#009E73"}


def theorem_1(
    teacher_log_probs: Tensor, student_log_probs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Theorem 1, r uniform: E_r KL(P_T(.|r) || P_S) = KL(mean_r P_T || P_S) + I(Y_t; R), in nats.

    (R, ..., V), (..., V) -> the three in this order, (...), each from its own definition.
    """

    def kl(p_log_probs: Tensor, q_log_probs: Tensor) -> Tensor:
        return (p_log_probs.exp() * (p_log_probs - q_log_probs)).sum(-1)

    mean_log_probs = log_mean(teacher_log_probs)
    loss = kl(teacher_log_probs, student_log_probs).mean(0)
    first = kl(mean_log_probs, student_log_probs)
    information = kl(teacher_log_probs, mean_log_probs).mean(0)
    return loss, first, information


def log_mean(log_probs: Tensor) -> Tensor:
    """log of the mean over r. (R, ...) -> (...)."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def gradient_deviation(teacher: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Proposition 1, r uniform. (R, V), (V, n) -> (R, n), ().

    d_r = -sum_v (P_T(v|r) - mean_r P_T(v)) grad log P_S(v); and the mean of |d_r|^2 by covariances,
    sum_vv' Cov_r(P_T(v), P_T(v')) <grad log P_S(v), grad log P_S(v')>.
    """
    centred = teacher - teacher.mean(0)
    covariance = centred.T @ centred / len(teacher)
    return -centred @ score, (covariance * (score @ score.T)).sum()


@dataclass
class Listed:
    """Responses (N, T) to one problem, and what teachers say of them."""

    tokens: Tensor  # (N, T)
    shared: Tensor  # (N, T), how many of the N have the same tokens before this one
    begins: int  # the first position that belongs to this list alone
    by_key: Tensor  # (R, N, T, V), OPSD's teacher for each key
    opd: Tensor | None  # (N, T, V), OPD's teacher


class Enumeration:
    """All answers r to a problem, and all its well-formed responses up to the last digit.

    Two lists of responses: those that work the answer out, and those that cite, which begin after a
    token that both have. The last digit is scored, but need not be listed.
    """

    def __init__(
        self, task: rlsd.Task, problem: tuple, teacher: rlsd.GPT, larger: rlsd.GPT | None = None
    ):
        self.prompt = rlsd.encode_prompts(task, [problem], teacher.device)
        key_prompts = []
        for parts in product(range(10), repeat=task.digits):
            if sum(parts) == problem[0] - problem[1]:
                key = "+".join(map(str, parts))
                key_prompts.append(rlsd.encode_prompts(task, [problem], teacher.device, [key]))

        worked, cited = [], []
        for parts in product(range(10), repeat=task.digits - 1):
            worked.append(task.write(problem, [*parts, 0]))
            cited.append(SEE_KEY + "".join(f"-{part}" for part in (*parts, 0)))
        self.lists = []
        for texts, length, begins in (
            (worked, 6 * task.digits - 2, 0),
            (cited, 2 * task.digits + 1, 1),
        ):
            tokens = torch.tensor([task.tokenizer.encode(text)[:length] for text in texts])
            same = (tokens.unsqueeze(1) == tokens).cumprod(-1).sum(1)  # up to and with a token
            shared = F.pad(same[:, :-1], (1, 0), value=len(texts))
            with torch.no_grad():
                by_key = [rlsd.response_log_probs(teacher, one, tokens) for one in key_prompts]
                opd = None
                if larger is not None:
                    opd = rlsd.response_log_probs(larger, self.prompt, tokens).double()
            by_key = torch.stack(by_key).double()
            self.lists.append(Listed(tokens, shared, begins, by_key, opd))

    def student_log_probs(self, student: rlsd.GPT) -> list[Tensor]:
        """log P_S (N, T, V) of each list."""
        found = []
        for one in self.lists:
            log_probs = rlsd.response_log_probs(student, self.prompt, one.tokens)
            found.append(log_probs.double())
        return found

    @torch.no_grad()
    def terms(self, student: rlsd.GPT) -> dict[str, float]:
        """Each term, summed over the response, in nats; and the `mass` of what is listed.

        A prefix counts as often as the student writes it.
        """
        total = dict.fromkeys((*NAMES, "mass"), 0.0)
        for one, log_probs in zip(self.lists, self.student_log_probs(student)):
            weight = prefix_weight(one, log_probs)
            values = dict(zip(NAMES, theorem_1(one.by_key, log_probs)))
            values["opd"] = torch.zeros(())
            if one.opd is not None:
                values["opd"] = rlsd.divergence(log_probs, one.opd, "forward_kl")
            for name, value in values.items():
                total[name] += float((weight * value).sum())
            total["mass"] += float(weight[:, -1].sum())
        return total


def prefix_weight(one: Listed, log_probs: Tensor) -> Tensor:
    """The probability of what stands before each token, shared by those that have it. (N, T)"""
    written = rlsd.token_log_probs(log_probs, one.tokens)
    before = F.pad(written.cumsum(1)[:, :-1], (1, 0))
    weight = before.exp() / one.shared
    weight[:, : one.begins] = 0
    return weight


def measure(config: rlsd.Config, problems: int) -> dict:
    """A run; at each evaluation the mean of the terms over held-out problems."""
    task, base = config.make_task(), rlsd.cached_model(config, "base")
    larger = rlsd.cached_model(config, "larger") if config.mode == "opd" else None
    chosen = task.exam()[0][:problems]
    listed = [Enumeration(task, problem, base, larger) for problem in chosen]
    records = []
    for record, student, _ in rlsd.train(config, task, base, larger):
        terms = [enumeration.terms(student) for enumeration in listed]
        for name in terms[0]:
            record[name] = sum(term[name] for term in terms) / problems
        records.append(record)
    return study.columns(records, ("step", "accuracy", "leakage", *terms[0]))


def terms_of(lines: list[dict]) -> dict[str, tuple]:
    """term -> (steps, values (seeds, evaluations))."""
    labels, found = study.labels_of(lines), {}
    for name in NAMES:
        mode = "opd" if name == "opd" else "opsd"
        if mode in labels:
            found[name] = study.steps(lines, mode), study.curves(lines, name, mode)
    return found


def table(lines: list[dict]) -> list[str]:
    """The terms; and the share of both methods' responses that begin with what is listed."""
    shown = {NAMES[name]: values for name, (_, values) in terms_of(lines).items()}
    shown["enumerated (share)"] = np.array([line["mass"] for line in lines])
    rows = []
    for name, values in shown.items():
        rows.append((name, compare.spread(values[:, 0]), compare.spread(values[:, -1])))
    return study.markdown(("nats per response", "at step 0", "at the end"), rows)


def main() -> None:
    flags = study.arguments(__doc__, digits=3, steps=320, seeds=3)
    modes = ("opsd",) if flags.quick else ("opsd", "opd")
    problems = 4 if flags.quick else 16
    runs = []
    for seed, mode in product(study.seeds_of(flags), modes):
        config = rlsd.Config(
            mode=mode,
            task="split",
            seed=seed,
            digits=flags.digits,
            cite=0.0,
            steps=study.steps_of(flags, quick=4),
            evaluate_every=20,
            divergence="forward_kl",
            teacher_refresh=10**6,
        )
        runs.append((mode, config, problems))
    lines = study.run_all("floor", flags, runs, measure)
    study.say(table(lines))
    terms = terms_of(lines)
    loss = terms["loss"][1][:, -1].mean()
    information = terms["information"][1][:, -1].mean()
    figure, axes = study.panels(1, 1, width=7.5, height=4.4)
    panel = axes[0, 0]
    top = 1.1 * max(values.max() for _, values in terms.values())
    panel.set(xlabel=rlsd.QUANTITIES["step"], ylabel="nats per response", ylim=(0, top))
    gap = terms["first"][1][:, -1]
    text = f"On each seed OPSD's loss ends {gap.min():.2f} to {gap.max():.2f} above its floor;\n"
    text += "OPD's falls far lower"
    opd = terms["opd"][1][:, -1].max() if "opd" in terms else information
    holds = bool(loss - information < 0.2 and opd < information)
    study.claim(panel, text, holds, "The parts of the loss")
    study.draw_curves(panel, terms, NAMES, COLOURS)
    study.finish(figure, "floor", flags)


if __name__ == "__main__":
    study.command(main)
