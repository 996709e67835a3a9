"""Theorem 1 by brute force: OPSD's loss has a floor that no training removes, the information the key gives.

    python -m plots.floor [--quick]       runs/floor.jsonl and floor.png under --out

The task is `split`, where a problem x has many right answers r and the key shows one of them at random. Forward KL, a
teacher that is never copied, homework without cites (--cite 0.3 brings them back). At each evaluation every r and every
well-formed response are enumerated, so that nothing is estimated. In `carry`, where x alone determines r, the floor is 0.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

import rlsd
from plots import study
from tiny_tasks import SEE_KEY

COLOURS = {"loss": "#D55E00", "first": "#0072B2", "information": "#000000", "opd": "#009E73"}
NAMES = {"loss": "OPSD's loss", "first": "first term", "information": "floor I(Y;R|X)", "opd": "OPD's loss"}


def theorem_1(teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Theorem 1, r uniform: E_r KL(P_T(.|r) || P_S) = KL(mean_r P_T || P_S) + I(Y_t; R). (R, ..., V), (..., V) -> (...) x 3.

    The three are returned in this order, in nats, each computed from its own definition.
    """
    def kl(p_logp, q_logp):
        return (p_logp.exp() * (p_logp - q_logp)).sum(-1)

    mean_logp = torch.logsumexp(teacher_logp, 0) - torch.tensor(float(len(teacher_logp))).log()
    return kl(teacher_logp, student_logp).mean(0), kl(mean_logp, student_logp), kl(teacher_logp, mean_logp).mean(0)


def gradient_deviation(teacher: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Proposition 1, r uniform: d_r = -sum_v (P_T(v|r) - mean_r P_T(v)) grad log P_S(v). (R, V), (V, parameters) -> (R, parameters).

    With it, what the mean of |d_r|^2 is by the covariances: sum_vv' Cov_r(P_T(v), P_T(v')) <grad log P_S(v), grad log P_S(v')>.
    """
    centred = teacher - teacher.mean(0)
    return -centred @ score, ((centred.T @ centred / len(teacher)) * (score @ score.T)).sum()


class Enumeration:
    """All answers r to a problem, all its well-formed responses up to the last digit, and the teacher's word on each.

    Two lists of responses: those that work the answer out, and those that cite, which begin after the token they share.
    """

    def __init__(self, world: rlsd.World, problem: tuple, teacher: rlsd.GPT, opd_teacher: rlsd.GPT | None):
        task, self.covered, self.lists = world.task, world.prompts([problem]), []
        digits = list(product(range(10), repeat=task.digits - 1))  # the last digit is scored, but need not be listed
        keys = ["+".join(map(str, parts)) for parts in product(range(10), repeat=task.digits) if sum(parts) == problem[0] - problem[1]]
        worked = [task.write(problem, [*parts, 0]) for parts in digits], 2 + 6 * (task.digits - 1) + 2, 0
        cited = [SEE_KEY + "".join(f"-{part}" for part in [*parts, 0]) for parts in digits], 2 * task.digits + 1, 1
        for texts, length, begins in (worked, cited):
            tokens = torch.tensor([world.tokenizer.encode(text)[:length] for text in texts])
            same = (tokens.unsqueeze(1) == tokens).cumprod(-1).sum(1)  # how many of the listed agree up to and with a token
            shared = torch.cat((torch.full((len(texts), 1), len(texts)), same[:, :-1]), 1)
            with torch.no_grad():
                by_key = torch.stack([rlsd.response_logp(teacher, world.prompts([problem], [key]), tokens) for key in keys]).double()
                opd = rlsd.response_logp(opd_teacher, self.covered, tokens).double() if opd_teacher else None
            self.lists.append((tokens, shared, begins, by_key, opd))

    @torch.no_grad()
    def terms(self, student: rlsd.GPT) -> dict:
        """Each term summed over the response, in nats, in the mean over the student's own prefixes; and what share they are."""
        total = dict.fromkeys(("loss", "first", "information", "opd", "mass"), 0.0)
        for tokens, shared, begins, by_key, opd in self.lists:
            logp = rlsd.response_logp(student, self.covered, tokens).double()
            before = F.pad(rlsd.of_tokens(logp, tokens).cumsum(1)[:, :-1], (1, 0))
            weight = (before.exp() / shared)[:, begins:]
            values = [*theorem_1(by_key[:, :, begins:], logp[:, begins:])]
            values.append(rlsd.divergence(logp, opd, "forward_kl")[:, begins:] if opd is not None else torch.zeros(()))
            for name, value in zip(total, values):
                total[name] += float((weight * value).sum())
            total["mass"] += float(weight[:, -1].sum())
        return total


def one(config: rlsd.Config, problems: int) -> list[dict]:
    """One training run, with the mean of the terms over some held-out problems at each evaluation."""
    world, base = rlsd.World(config.make_task()), rlsd.cached_model(config, "base")
    # One larger teacher for all seeds: making one takes two minutes.
    opd_teacher = rlsd.cached_model(rlsd.replace(config, seed=0), "teacher") if config.mode == "opd" else None
    listed = [Enumeration(world, problem, base, opd_teacher) for problem in world.exam()[0][:problems]]
    student, lines = world.new_model(config.seed), []
    for record, state in rlsd.train(config, world, base, opd_teacher):
        student.load_state_dict(state["student"])
        terms = [enumeration.terms(student) for enumeration in listed]
        mean = {name: sum(term[name] for term in terms) / problems for name in terms[0]}
        lines.append({"mode": config.mode, "seed": config.seed, "step": record["step"], **mean,
                      "accuracy": record["accuracy"], "leakage": record["leakage"]})
    return lines


def main() -> None:
    flags = study.arguments(__doc__, digits=3, steps=320, seeds=3, problems=16, cite=0.0)
    digits, steps, every = (2, flags.steps // 4, 20) if flags.quick else (flags.digits, flags.steps, 40)
    configs = [rlsd.Config(mode=mode, task="split", digits=digits, seed=seed, cite=flags.cite, steps=steps, evaluate_every=every,
                           divergence="forward_kl", teacher_refresh=10**6)
               for seed in range(1 if flags.quick else flags.seeds) for mode in (("opsd",) if flags.quick else ("opsd", "opd"))]
    log = flags.out / "runs" / "floor.jsonl"
    if flags.resume and log.exists():
        lines = study.read_lines(log)
    else:
        list(study.together("bases", [(rlsd.cached_model, config, "base" if config.mode == "opsd" else "teacher")
                                      for config in configs if config.mode == "opsd" or config.seed == 0]))
        lines = [line for done in study.together("runs", [(one, config, flags.problems) for config in configs]) for line in done]
    study.write_lines(log, lines)

    figure, axes = study.panels(1, 1, width=7.5, height=4.4)
    axes, ends = axes[0, 0], {}
    for name in NAMES if not flags.quick else list(NAMES)[:3]:
        mode = "opd" if name == "opd" else "opsd"
        runs = [[line for line in lines if line["mode"] == mode and line["seed"] == seed] for seed in sorted({c.seed for c in configs})]
        steps = [line["step"] for line in runs[0]]
        values = torch.tensor([[line[name] for line in run] for run in runs])
        axes.plot(steps, values.mean(0), color=COLOURS[name], linewidth=2, linestyle="--" if name == "information" else "-")
        axes.fill_between(steps, values.amin(0), values.amax(0), color=COLOURS[name], alpha=0.15, linewidth=0)
        ends[name] = (steps[-1], float(values.mean(0)[-1]))
        print(f"{NAMES[name]:16} step 0: {study.spread(values[:, 0].numpy())}   step {steps[-1]}: {study.spread(values[:, -1].numpy())} nats")
    opsd = [line for line in lines if line["mode"] == "opsd"]
    gap = max(abs(line["loss"] - line["first"] - line["information"]) for line in opsd)
    print(f"largest |loss - first term - information|: {gap:.1e}; least mass of the listed prefixes: {min(line['mass'] for line in lines):.4f}")
    axes.set(xlabel="training step", ylabel="nats a response", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"OPSD's loss cannot go below {ends['information'][1]:.2f} nats, what the key tells", loc="left")
    rlsd.write_names(axes, ends, NAMES, COLOURS)
    study.finish(figure, flags.out / "floor.png", log)


if __name__ == "__main__":
    study.command(main)
