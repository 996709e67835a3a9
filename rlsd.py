# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tiktoken>=0.7,<0.15", "matplotlib>=3.8"]
# ///
"""RLSD from scratch, next to the methods that it grew out of.

A small GPT has learned to add, and was given two bad habits in pretraining. It sometimes writes a
carry down and then forgets it. When the answer key is shown to it, it sometimes writes `<see key>`
and copies the key instead of working the answer out. This network is the student. It now has to
work without the key, and is trained further by one of five methods, one per --mode. A verifier says
which answers are right; two of the methods do not use it.

    rlvr   Reinforcement learning with verifiable rewards, as in GRPO, but without its KL term.
           Every token of a response is pushed up if the response did better than the mean of all
           responses to the problem, and down if it did worse.
    opd    On-policy distillation. On its own responses, token by token, the student is pushed
           towards the probabilities of a larger teacher. No verifier is used.
    opsd   On-policy self-distillation. The same, but the teacher is a recent copy of the student
           that, unlike the student, is shown the key.
    rlsd   RLVR with self-distillation. The verifier decides whether a response's tokens are pushed
           up or down; the teacher of OPSD decides how far each one moves.
    cepo   Contrastive evidence policy optimisation. RLSD compares the teacher's probability of a
           token with the student's. CEPO compares two passes of the teacher instead: one is shown
           the right key, the other a wrong key.

If the student writes `<see key>` although no key is shown, we call this a *leak*. Before training
it is rare, and training can make it frequent. What leaks is the habit of citing, not the key
itself, which the student does not see in this training.

Here is a wrong response to 4218+3567: `5c7-7-7-=07775.` The columns come from the right, so the
student adds 8 and 7 first. `5c` means "write 5, carry 1". The next token, `7`, is the mistake,
because it forgets that carry. `-` means "carry nothing". The answer after `=` is 07775 instead of
07785, and `.` ends it.

Eight responses to this problem were sampled; together they are a group. Three are right. The
advantage of this response is A = (0 - 0.375) / 0.4841 = -0.7746: its reward, minus the mean reward
of the group, divided by the standard deviation. P_S is the probability that the student gave to
each token. P_T is the probability that the teacher of OPSD and RLSD gives to it. This teacher is a
copy of the student. Here training has just begun, and both still have the weights of the pretrained
network; but the teacher is shown the key.

The table below has a column per token. Its last three rows are A_t, by which three of the methods
push each token: up if it is positive, down if it is negative. (A_t multiplies the gradient of log
P_S. Where P_S is almost 1 that gradient is small, so such a token moves little in one step.)

    RLVR    A_t = A
    OPSD    A_t = log(P_T / P_S); the reward plays no part
    RLSD    A_t = A ((1 - lam) + lam w), where the weight w is P_S / P_T in a wrong response and
            P_T / P_S in a right one, clipped to 1 - eps_w .. 1 + eps_w

So eps_w limits how much the weight may differ from 1, and lam is the share of A that the weight
scales. Both are 1 in the table. By default, as in the paper, eps_w is 0.2, and lam falls from 0.5
to 0 over the first 50 steps; from then on RLSD is RLVR.

    token     5     c      7     -     7     -     7     -     =     0     7     7     7     5     .
    P_S   0.999  1.00  0.505  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00
    P_T   0.758  1.00 0.0072  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00
    RLVR  -0.77 -0.77  -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77
    OPSD  -0.28  0.00  -4.25  0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.00
    RLSD  -1.02 -0.77  -1.55 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77

The values for the mistake, by hand. OPSD: log(0.0072 / 0.505) = -4.25. RLSD: the student finds the
token 0.505 / 0.0072 = 70 times likelier than the teacher does. The weight, 70, is clipped to
1 + eps_w = 2, and 2 times -0.7746 is -1.55. (The tens digit of the answer, its last `7`, is wrong
as well. But the network has learned to copy the answer from the working, and the working already
says 7. So the teacher finds it likely.)

(OPSD's loss, by default the reverse KL, does not only push the sampled token but every token of the
vocabulary. On average this is the same as pushing sampled tokens by A_t; method_loss has the
formula.)

The first token, `5`, is no mistake, and all eight responses begin with it. A right response has A =
(1 - 0.375) / 0.4841 = 1.291. So the pushes on `5`, three up and five down, have these sums (all
responses are equally long, so all tokens count alike):

    RLVR    3 * 1.291 - 5 * 0.7746 = 0
    RLSD    3 * 1.291 * 0.76 - 5 * 0.7746 * 1.32 = -2.17

The weights are P_T / P_S = 0.76 in a right response and P_S / P_T = 1.32 in a wrong one. They are
not 1, because this teacher finds `<see key>` likely in the place of `5` (0.22; the student 0.0003).
So under RLSD `5` is pushed down, and what it loses goes to the other tokens that the student might
write. The likeliest of them is `<see key>`, because pretraining has taught the student to cite, if
rarely, where no key is shown. (In other problems the first token is another digit, which sinks in
the same way.)

In one step `5` loses little, because P_S is 0.999. But the push keeps its direction as long as the
teacher finds `5` less likely than the student does, the rewards of a group differ, and lam and
eps_w are above 0. This is how leaks can become frequent; the docstring of rlsd_token_advantage says
more.

    python rlsd.py --mode rlsd     trains one method
    python rlsd.py --mode all      trains all five, side by side, from the same network (the base);
                                   OPSD leaks
    python rlsd.py --mode rlsd --seed 1 --eps-w 1 --lam 1 --lam-decay 0 --false-negatives 0.4
        --false-positives 0.4      (in one line) RLSD leaks; four in ten verdicts are wrong

Logs, trained students and a figure go to plots/, which in the full repository also holds further
experiments. Sections 1 and 2 are enough to understand RLSD. Equation and algorithm numbers are
those of the RLSD paper, arXiv:2604.03128; CEPO is arXiv:2605.19436. Logarithms are natural.
"""

from __future__ import annotations

import multiprocessing
import os
import signal


# This stands before the slow imports, so that Ctrl-C works while torch is loaded. Section 1 begins
# after them.


def stop_at_once(*_) -> None:
    """On Ctrl-C: end the workers, print one line, and exit. What was logged is kept."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C changes nothing
    for worker in multiprocessing.active_children():
        worker.kill()
    os.write(2, b"\nstopped; unfinished logs end in .part; the same command starts them anew\n")
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop_at_once)

import argparse
import copy
import hashlib
import inspect
import itertools
import json
import math
import multiprocessing.connection
import multiprocessing.resource_tracker
import random
import shutil
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny_tasks import TASKS, Task, UserError

# ==== 1. The methods ====
#
# One function per equation, and then `method_loss`, which has one branch per method. B is the
# number of responses (responses to the same problem are in adjacent rows), T is the number of
# tokens of the longest response (shorter ones are padded), and V is the size of the vocabulary.
# "(B, T) x 2 -> ()" means that two inputs of shape (B, T) give one number.


def group_advantage(reward: Tensor, group_size: int) -> Tensor:
    """Eq 1: A = (R - mean) / std within each group of responses to one problem. (B,) -> (B,).

    The variance divides by the size of the group, not by one less. If all rewards of a group are
    equal, they do not say which response was better, and A is exactly 0. ValueError if a reward is
    not finite, or if the rewards do not come in whole groups.
    """
    if reward.dim() != 1 or len(reward) % group_size or not reward.isfinite().all():
        raise ValueError(f"rewards must be finite and in groups of {group_size}, but are {reward}")
    group = reward.view(-1, group_size)
    centred = group - group.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt()
    # Where rewards are equal, rounding can leave std slightly above 0.
    equal = (group == group[:, :1]).all(1, keepdim=True)
    advantage = torch.where(equal, 0.0, centred / std)
    return advantage.flatten()


def response_mean(value: Tensor, mask: Tensor) -> Tensor:
    """The mean over a response's tokens, (1/|y|) sum_t, and then over responses. (B, T) x 2 -> ().

    Values in the padding, where the mask is 0, are ignored, even if they are not finite.
    """
    check_shapes(value, mask, dimensions=2)
    per_response = value.masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1)
    return per_response.mean()


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    token_advantage: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Tensor:
    """Eq 2 as a loss, with one advantage per token as in Algorithm 1. (B, T) x 4 -> ().

    rho = P_S / P_old is clipped to 1 - clip_low .. 1 + clip_high, as in the paper. P_old is the
    student at the time of sampling. In this file a batch serves one update only. So rho is 1, the
    clip never acts, and the gradient of this loss is that of -A_t log P_S(y_t). Padding is ignored,
    as in response_mean.
    """
    check_shapes(log_probs, old_log_probs, token_advantage, mask, dimensions=2)
    # A method of yours may leave NaN in the padding. response_mean keeps it out of the loss; this
    # keeps it out of the gradient, where 0 * NaN is NaN.
    token_advantage = token_advantage.masked_fill(mask == 0, 0.0)
    rho = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0).exp()
    clipped_rho = rho.clamp(1 - clip_low, 1 + clip_high)
    return -response_mean(torch.minimum(rho * token_advantage, clipped_rho * token_advantage), mask)


def divergence(
    student_log_probs: Tensor, teacher_log_probs: Tensor, kind: str, beta: float = 0.5
) -> Tensor:
    """Eq 6: the divergence of student and teacher at each token. (B, T, V) x 2 -> (B, T).

    It is in nats, over the whole vocabulary. The gradient goes through the student only.
    `reverse_kl` is KL(P_S || P_T), `forward_kl` is KL(P_T || P_S), and `jsd` is beta KL(P_T || M) +
    (1 - beta) KL(P_S || M), where M = beta P_T + (1 - beta) P_S and 0 < beta < 1 (GKD,
    arXiv:2306.13649).
    """
    check_shapes(student_log_probs, teacher_log_probs, dimensions=3)
    teacher_log_probs = teacher_log_probs.detach()
    if kind == "reverse_kl":
        return kl_divergence(student_log_probs, teacher_log_probs)
    if kind == "forward_kl":
        return kl_divergence(teacher_log_probs, student_log_probs)
    if kind == "jsd":
        # Not needed for this file's finite log-probabilities. But if a method of yours masks tokens
        # with -inf, logaddexp(-inf, -inf) has a gradient of NaN.
        finite_log_probs = student_log_probs.clamp(min=-1e30)
        log_mixture = torch.logaddexp(
            teacher_log_probs + math.log(beta), finite_log_probs + math.log(1 - beta)
        )
        from_teacher = kl_divergence(teacher_log_probs, log_mixture)
        from_student = kl_divergence(student_log_probs, log_mixture)
        return beta * from_teacher + (1 - beta) * from_student
    raise ValueError(f"divergence is {kind!r}, but must be reverse_kl, forward_kl or jsd")


def kl_divergence(p_log_probs: Tensor, q_log_probs: Tensor) -> Tensor:
    """KL(P || Q) = sum_v P(v) (log P(v) - log Q(v)), in nats. (..., V) x 2 -> (...)."""
    # Where P is 0, log P - log Q may be infinite or NaN, but 0 log 0 counts as 0.
    difference = (p_log_probs - q_log_probs).masked_fill(p_log_probs == -math.inf, 0.0)
    return (p_log_probs.exp() * difference).sum(-1)


def information_gain(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """Eq 13: Delta_t = log P_T(y_t) - log P_S(y_t), in nats, no gradient. (B, T) x 2 -> (B, T).

    It is positive if the teacher finds the token likelier than the student does. For CEPO the
    second argument holds the log-probabilities of the teacher that is shown a wrong key.
    """
    check_shapes(teacher_log_probs, student_log_probs, dimensions=2)
    return (teacher_log_probs - student_log_probs).detach()


def evidence_weight(gain: Tensor, advantage: Tensor) -> Tensor:
    """Eq 14: w_t = exp(sign(A) Delta_t), positive and finite. (B, T), (B,) -> (B, T).

    In a response that did better than its group (A > 0) the weight is P_T / P_S; in one that did
    worse (A < 0) it is P_S / P_T.
    """
    if gain.dim() != 2 or advantage.shape != gain.shape[:1]:
        shapes = f"{tuple(gain.shape)} and {tuple(advantage.shape)}"
        raise ValueError(f"gain must be (B, T) and advantage (B,), but they are {shapes}")
    sign = advantage.sign().unsqueeze(-1)
    # Clamped, because e^1000 is inf; and where A is 0, 0 times an infinite gain would be NaN.
    return (sign * gain.clamp(-60, 60)).exp()


def rlsd_token_advantage(gain: Tensor, advantage: Tensor, eps_w: float, lam: float) -> Tensor:
    """Eq 15 clips the weight; Algorithm 1 scales the share lam of A by it. (B, T), (B,) -> (B, T).

        A_t = A ((1 - lam) + lam clip(w_t, 1 - eps_w, 1 + eps_w))

    CEPO uses this function too, with another Delta_t.

    Why RLSD can leak. OPSD leaks directly: its loss raises every token that the teacher finds
    likelier, `<see key>` among them. In RLSD the clipped weight is never negative, so in each
    response A_t has the sign of A. The paper argues that the direction therefore comes from the
    reward alone, so that there is no leak (Theorem 5). For a single response that is so. But an
    update sums over the responses of a group.

    The shared push. Suppose that all responses of a group begin alike, for instance with the same
    first token, as in the example at the top. If they are equally long (each token counts 1/|y|),
    the push on that token is the mean of A_t over the group. Under RLVR this mean is 0. Under RLSD
    it is not. If the teacher finds the token less likely than the student does (Delta_t < 0), the
    good responses together praise it less than the bad ones together blame it. So it goes down, and
    others, such as `<see key>`, go up in its place. If instead the teacher finds the shared token
    likelier, that token goes up. So beside the push from the reward there is one towards the
    teacher that is shown the key. It vanishes only if lam or eps_w is 0, if all rewards of the
    group are equal, or if Delta_t is 0.

    The cite push. Suppose that the student samples `<see key>`, and then guesses an answer. The
    verifier looks at the answer only, and may accept it: by luck, or by an error of the verifier.
    The teacher, which sees a key, finds `<see key>` likelier than the student does. So if the
    response is accepted, `<see key>` is praised more than under RLVR. If it is rejected, `<see
    key>` is blamed less: its weight is P_S / P_T, which is near 0 while the student rarely cites,
    and with lam = eps_w = 1 almost nothing is left of the blame. So a few accepted guesses can
    outweigh many rejected ones.

    Did it leak? With both settings held at 1 it did on most seeds, if the verifier rejects half of
    the right answers, or if four in ten of its verdicts are wrong. With the default settings it did
    not, under the same verifiers: both pushes are then small and end after 50 steps. An experiment
    takes each push away (README.md). If half of the right answers are rejected, taking away either
    of them ends the leak; if four in ten verdicts are wrong, the cite push matters more.
    """
    weight = evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)  # Eq 15
    return advantage.unsqueeze(-1) * ((1 - lam) + lam * weight)


def lam_at(step: int, lam: float, lam_decay: int) -> float:
    """lam at a step, where steps count from 1: it falls linearly to 0 over lam_decay steps.

    From step lam_decay + 1 on it is 0, and RLSD is RLVR. If lam_decay is 0, lam is held.
    """
    if lam_decay == 0:
        return lam
    return lam * max(0.0, 1 - (step - 1) / lam_decay)


def check_shapes(*tensors: Tensor, dimensions: int) -> None:
    """ValueError unless all tensors have one shape; broadcasting would hide the mistake."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1 or len(shapes[0]) != dimensions:
        raise ValueError(f"all must have one shape of {dimensions} dimensions, but have {shapes}")


@dataclass
class Mode:
    """A row of the table MODES, which says what each name that --mode accepts stands for."""

    name: str  # in the figure
    teacher: str | None  # whose weights the teacher has: None, "larger" or "student"
    sees: tuple[str, ...]  # what the teacher's prompt shows, one forward pass for each


# "larger" is OPD's teacher, a larger network that was trained on clean work and never changes.
# "student" is a copy of the student's weights, renewed every --teacher-refresh steps.
MODES = {
    "rlvr": Mode("RLVR", teacher=None, sees=()),
    "opd": Mode("OPD", teacher="larger", sees=("no key",)),
    "opsd": Mode("OPSD", teacher="student", sees=("right key",)),
    "rlsd": Mode("RLSD", teacher="student", sees=("right key",)),
    "cepo": Mode("CEPO", teacher="student", sees=("right key", "wrong key")),
}


@dataclass
class Batch:
    """What a method sees in one step: G responses y to each of N problems x, so B = N * G."""

    tokens: Tensor  # (B, T), the responses; after its end a response is padded
    mask: Tensor  # (B, T), 1 up to and including the end of a response, then 0
    reward: Tensor  # (B,), 1 if the verifier accepted the response, else 0
    old_log_probs: Tensor  # (B, T), log P_old(y_t), at the weights that wrote the responses
    student_log_probs: Tensor  # (B, T, V), log P_S(. | x, y_<t), the only field with a gradient

    # The teacher's log P_T(. | its prompt, y_<t), (B, T, V), for each kind of prompt. A field is
    # None if the mode's `sees` does not list it.
    no_key_log_probs: Tensor | None
    right_key_log_probs: Tensor | None
    wrong_key_log_probs: Tensor | None

    group_size: int  # G
    divergence: str  # which divergence OPD and OPSD minimise
    eps_w: float
    lam: float  # at this step

    # The losses do not use these. They are for section 4, the tests and the experiments in plots/.
    problems: list[tuple]  # (N,)
    keys: list[str]  # (N,), shown as the right key
    wrong_keys: list[str]  # (N,)
    texts: list[str]  # (B,), the responses


def method_loss(mode: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the loss of one method, a number, and its A_t, (B, T).

    RLVR, RLSD and CEPO: the gradient of the loss is that of -A_t log P_S(y_t), averaged over the
    tokens of a response (Eq 17) and then over the responses.

    OPD and OPSD minimise a divergence over the whole vocabulary. Here A_t is log P_T(y_t) -
    log P_S(y_t), for the figure only; it is not used in the loss. With the reverse KL, which is the
    default, it also tells how the loss pushes. At each position

        grad = - sum_v P_S(v) A(v) grad log P_S(v), where A(v) = log P_T(v) - log P_S(v)

    So every token v is pushed by P_S(v) A(v). A_t is A(v) at the token that was sampled. A token v
    is sampled with probability P_S(v), so pushing only sampled tokens, by A_t, has the same
    gradient on average.
    """
    tokens, mask = batch.tokens, batch.mask
    advantage = group_advantage(batch.reward, batch.group_size)
    log_probs = token_log_probs(batch.student_log_probs, tokens)

    if mode == "rlvr":
        # No teacher. Every token of a response gets the advantage of the response.
        token_advantage = advantage.unsqueeze(-1).expand(tokens.shape)
        loss = clipped_surrogate(log_probs, batch.old_log_probs, token_advantage, mask)
        return loss, token_advantage

    if mode == "opd":
        # The teacher is a larger network that sees no key either. No reward is used.
        teacher_log_probs = token_log_probs(batch.no_key_log_probs, tokens)
        token_advantage = information_gain(teacher_log_probs, log_probs)
        distance = divergence(batch.student_log_probs, batch.no_key_log_probs, batch.divergence)
        loss = response_mean(distance, mask)
        return loss, token_advantage

    if mode == "opsd":
        # The teacher is a recent copy of the student, which is shown the key. No reward is used.
        teacher_log_probs = token_log_probs(batch.right_key_log_probs, tokens)
        token_advantage = information_gain(teacher_log_probs, log_probs)
        distance = divergence(batch.student_log_probs, batch.right_key_log_probs, batch.divergence)
        loss = response_mean(distance, mask)
        return loss, token_advantage

    if mode == "rlsd":
        # The teacher of OPSD. The reward gives A_t its sign, the teacher scales its size.
        teacher_log_probs = token_log_probs(batch.right_key_log_probs, tokens)
        gain = information_gain(teacher_log_probs, log_probs)
        token_advantage = rlsd_token_advantage(gain, advantage, batch.eps_w, batch.lam)
        loss = clipped_surrogate(log_probs, batch.old_log_probs, token_advantage, mask)
        return loss, token_advantage

    if mode == "cepo":
        # The teacher of OPSD, asked twice: with the right key, and with a wrong one. What both keys
        # make equally likely, such as "there is a key, so I cite it", cancels in the difference.
        right_log_probs = token_log_probs(batch.right_key_log_probs, tokens)
        wrong_log_probs = token_log_probs(batch.wrong_key_log_probs, tokens)
        gain = information_gain(right_log_probs, wrong_log_probs)
        token_advantage = rlsd_token_advantage(gain, advantage, batch.eps_w, batch.lam)
        loss = clipped_surrogate(log_probs, batch.old_log_probs, token_advantage, mask)
        return loss, token_advantage

    # Reached only by a row of MODES without a branch. A branch ends with "return loss, A_t".
    raise UserError(f"method_loss has no branch for mode {mode!r} that returns loss and A_t")


# ==== 2. Training ====
#
# The loop is the same for all methods. The randomness of a step depends on the seed and the step
# only, so that all methods see the same problems. (Config is in section 5, GPT in section 6.)


def train_step(
    config: Config,
    task: Task,
    student: GPT,
    teacher: GPT,
    optimizer: torch.optim.Optimizer,
    step: int,
    method: Callable = method_loss,
) -> tuple[Batch, Tensor]:
    """One update of the student. Returns what the method saw, and its A_t (B, T).

    The experiments in plots/ may pass another function in the place of method_loss.
    """
    rng = random.Random(f"{config.seed} {step}")
    problems = [task.sample(rng) for _ in range(config.problems)]
    # An addition has one right key. In the other task of tiny_tasks.py, Split, a problem has many,
    # and rng draws one.
    keys = [task.answer_key(problem, rng) for problem in problems]

    group_size, sees = config.group_size, MODES[config.mode].sees
    batch = collect(config, task, student, teacher, problems, keys, group_size, sees, rng)
    # collect works without a gradient; this pass of the student has one. There are N prompts and
    # B = N x G responses: each prompt is read once for its whole group.
    prompts = encode_prompts(task, problems, student.device)
    batch.student_log_probs = response_log_probs(student, prompts, batch.tokens)
    batch.lam = lam_at(step, config.lam, config.lam_decay)
    loss, token_advantage = check_result(method(config.mode, batch), batch.mask)
    check_finite(step, "A_t", token_advantage.masked_fill(batch.mask == 0, 0.0))
    check_finite(step, "the loss", loss)

    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    check_finite(step, "the gradient", norm)
    optimizer.step()
    return batch, token_advantage


@torch.no_grad()
def collect(
    config: Config,
    task: Task,
    student: GPT,
    teacher: GPT,
    problems: list[tuple],
    keys: list[str],
    group_size: int,
    sees: tuple[str, ...],
    rng: random.Random,
) -> Batch:
    """What a step does before it learns: sample responses, judge them, ask the teacher.

    group_size and sees are arguments, because `evaluate` wants others than the config has.
    """
    prompts = encode_prompts(task, problems, student.device)
    rollout = sample_responses(task, student, prompts, group_size, rng.getrandbits(62))

    rewards, right_keys, wrong_keys = [], [], []
    for n, problem in enumerate(problems):
        texts = rollout.texts[n * group_size : (n + 1) * group_size]
        group_rewards, key = judge(config, task, problem, keys[n], texts, rng)
        rewards += group_rewards
        right_keys.append(key)
        wrong_keys.append(choose_wrong_key(task, texts, group_rewards, key, rng))

    shown = {"no key": None, "right key": right_keys, "wrong key": wrong_keys}
    teacher_log_probs = {"no key": None, "right key": None, "wrong key": None}
    for which in sees:
        teacher_prompts = encode_prompts(task, problems, teacher.device, shown[which])
        teacher_log_probs[which] = response_log_probs(teacher, teacher_prompts, rollout.tokens)

    return Batch(
        tokens=rollout.tokens,
        mask=rollout.mask,
        reward=torch.tensor(rewards, device=student.device),
        old_log_probs=token_log_probs(rollout.log_probs, rollout.tokens),
        student_log_probs=rollout.log_probs,  # train_step replaces this by one with a gradient
        no_key_log_probs=teacher_log_probs["no key"],
        right_key_log_probs=teacher_log_probs["right key"],
        wrong_key_log_probs=teacher_log_probs["wrong key"],
        group_size=group_size,
        divergence=config.divergence,
        eps_w=config.eps_w,
        lam=config.lam,  # train_step replaces this by lam_at(step, ...)
        problems=problems,
        keys=right_keys,
        wrong_keys=wrong_keys,
        texts=rollout.texts,
    )


def judge(
    config: Config, task: Task, problem: tuple, key: str, texts: list[str], rng: random.Random
) -> tuple[list[float], str]:
    """The verifier: a reward, 1 or 0, for each response of a group, and the key to be shown.

    The key is the one that was passed, unless key_noise replaces it.

    If the settings ask for errors, they are made here. With probability key_noise one of the
    group's wrong answers, if it has any, becomes the key, and then only the answers equal to it
    count as right. Then an answer that counts as right is rejected with probability
    false_negatives, and any other is accepted with probability false_positives. By default all
    three are 0.
    """
    right = [task.verify(problem, text) for text in texts]
    wrong_answers = [task.answer(text) for text, is_right in zip(texts, right) if not is_right]
    wrong_answers = [answer for answer in wrong_answers if answer is not None]
    if wrong_answers and rng.random() < config.key_noise:
        key = rng.choice(wrong_answers)
        right = [task.answer(text) == key for text in texts]

    rewards = []
    for is_right in right:
        error_rate = config.false_negatives if is_right else config.false_positives
        is_error = rng.random() < error_rate
        is_accepted = not is_right if is_error else is_right
        rewards.append(float(is_accepted))
    return rewards, key


def choose_wrong_key(
    task: Task, texts: list[str], rewards: list[float], key: str, rng: random.Random
) -> str:
    """CEPO's wrong key for a group: the answer of a rejected response, as in its authors' code.

    If the verifier errs, that answer may be the right one. If no rejected response has an answer in
    the proper form, the right key stands in; then Delta_t is 0, and the group gets RLVR's push.
    """
    rejected = [task.answer(text) for text, reward in zip(texts, rewards) if reward == 0]
    rejected = [answer for answer in rejected if answer is not None]
    return rng.choice(rejected) if rejected else key


def copy_every_n_steps(config: Config, step: int, student: GPT, teacher: GPT) -> None:
    """The paper's teacher: the student is copied into it every --teacher-refresh steps, by default
    before steps 1, 11, 21, 31, ...
    """
    if (step - 1) % config.teacher_refresh == 0:
        teacher.load_state_dict(student.state_dict())


def train(
    config: Config,
    task: Task,
    base: GPT,
    larger: GPT | None = None,
    method: Callable = method_loss,
    refresh_teacher: Callable = copy_every_n_steps,
    progress: Callable = lambda step: None,
) -> Iterator[tuple[dict, GPT, GPT]]:
    """Trains one mode. Yields (record, student, teacher) at each evaluation, from step 0 on.

    `larger` is OPD's teacher. The experiments in plots/ may pass another function in the place of
    method_loss, and another way to renew the teacher.
    """
    student = copy.deepcopy(base)
    whose = MODES[config.mode].teacher
    if whose == "larger":
        if larger is None:
            raise UserError(f'mode {config.mode} needs larger=cached_model(config, "larger")')
        teacher = larger
    elif whose == "student":
        teacher = copy.deepcopy(base)
    else:
        # RLVR has none. This is for `evaluate` only: it measures how far the student is from
        # itself with the key shown.
        teacher = student
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=0.0, fused=True)

    # Since the last evaluation, one entry per step: the mean reward, and the share of dead groups,
    # in which all rewards are equal, so that A is 0.
    rewards, dead_groups = [], []
    for step in range(config.steps + 1):
        if step > 0:
            if whose == "student":
                refresh_teacher(config, step, student, teacher)
            batch, _ = train_step(config, task, student, teacher, optimizer, step, method)
            groups = batch.reward.view(-1, config.group_size)
            rewards.append(float(batch.reward.mean()))
            dead_groups.append(float((groups == groups[:, :1]).all(1).float().mean()))
        progress(step)

        if step % config.evaluate_every == 0 or step == config.steps:
            record = {"step": step, "mode": config.mode, "seed": config.seed}
            record |= evaluate(config, task, student, teacher)
            record |= {"reward": mean_or_none(rewards), "dead_groups": mean_or_none(dead_groups)}
            record["shown"] = show_response(config, task, student, teacher, step, method)
            rewards, dead_groups = [], []
            yield record, student, teacher


def check_result(result: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a method has returned. UserError unless that is a loss and an A_t."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError("method_loss must return two things, the loss and A_t")
    loss, token_advantage = result
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise UserError("the loss must be one number, a tensor with a gradient; A_t comes second")
    if token_advantage.shape != mask.shape or token_advantage.requires_grad:
        raise UserError(
            f"A_t must have the shape (B, T), here {tuple(mask.shape)}, and no gradient"
        )
    return loss, token_advantage


def check_finite(step: int, what: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise UserError(
            f"at step {step} {what} is not finite: look for log(0) or 0 / 0, or lower --lr"
        )


def mean_or_none(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


# ==== 3. Rollouts and their log-probabilities ====


@dataclass
class Rollout:
    """Responses that a network has written."""

    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T), 1 up to and including the end
    log_probs: Tensor  # (B, T, V), over the vocabulary, at each token
    texts: list[str]  # (B,)


def encode_prompts(
    task: Task, problems: list[tuple], device: torch.device, keys: list[str] | None = None
) -> Tensor:
    """The prompts as token ids, (N, length); if keys are given, each prompt shows its key.

    A task's prompts without a key have one length, and so have those with a key: no padding.
    """
    keys = [None] * len(problems) if keys is None else keys
    prompts = [task.prompt(problem, key) for problem, key in zip(problems, keys)]
    return torch.tensor([task.tokenizer.encode(prompt) for prompt in prompts], device=device)


@torch.no_grad()
def sample_responses(
    task: Task, model: GPT, prompts: Tensor, group_size: int, seed: int | None
) -> Rollout:
    """group_size responses to each prompt (N, length), sampled at temperature 1.

    If seed is None, each token is the likeliest one.
    """
    generator = None
    if seed is not None:
        generator = torch.Generator(model.device).manual_seed(seed)
    end = task.tokenizer.end
    tokens, mask, log_probs = [], [], []
    ended = torch.zeros(len(prompts) * group_size, 1, dtype=torch.bool, device=model.device)

    # Each prompt is read once; its logits, (B, length of the prompt, V), and its cache are repeated
    # for the responses of its group.
    logits, cache = model(prompts, group_size=group_size)
    while True:
        log_probs.append(logits[:, -1].log_softmax(-1))
        if generator is None:
            token = log_probs[-1].argmax(-1, keepdim=True)
        else:
            token = torch.multinomial(log_probs[-1].exp(), 1, generator=generator)
        tokens.append(token.masked_fill(ended, end))
        mask.append(~ended)
        ended = ended | (token == end)
        if len(tokens) == task.response_length or ended.all():
            break
        logits, cache = model(tokens[-1], cache)

    tokens = torch.cat(tokens, 1)
    mask = torch.cat(mask, 1).float()
    lengths = mask.sum(1).int().tolist()
    texts = [task.tokenizer.decode(row[:n]) for row, n in zip(tokens.tolist(), lengths)]
    return Rollout(tokens, mask, torch.stack(log_probs, 1), texts)


def response_log_probs(model: GPT, prompts: Tensor, tokens: Tensor) -> Tensor:
    """log P(. | prompt, y_<t) over the vocabulary. (N, length), (B, T) -> (B, T, V), B = N x G.

    A prompt is read once and shared by the responses of its group.
    """
    first, cache = model(prompts, group_size=len(tokens) // len(prompts))
    later, _ = model(tokens[:, :-1], cache)
    return torch.cat((first[:, -1:], later), 1).log_softmax(-1)


def token_log_probs(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """The log-probabilities of the tokens that were written. (B, T, V), (B, T) -> (B, T)."""
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# ==== 4. What is measured ====
#
# `evaluate` lets the student respond without a key to 512 draws from the problems that are held out
# from training; here the verifier makes no errors. `show_response` shows a response to one of these
# problems, and its A_t. That A_t is computed as in training, so there the verifier errs as the
# settings say. The teacher is the one that the latest training step used; if it is a copy of the
# student, it may be up to teacher_refresh steps old.


def evaluate(config: Config, task: Task, student: GPT, teacher: GPT) -> dict[str, float]:
    """The measurements that go into a log record.

    accuracy           share of right answers, one sampled response per problem
    greedy_accuracy    share of right answers if each token is the likeliest one
    leakage            share of the sampled responses that cite a key
    kl                 KL(P_S || P_T) in nats per token. RLVR has no teacher; for RLVR it is
                       measured against the student of this very step, with the key shown
    entropy            entropy of P_S in nats per token
    response_length    mean number of tokens
    """
    problems, keys = task.exam()
    exact = replace(config, false_negatives=0.0, false_positives=0.0, key_noise=0.0)
    # kl is measured against the teacher: OPD's sees no key, the others see the right key.
    key_shown = "right key"
    if "no key" in MODES[config.mode].sees:
        key_shown = "no key"
    rng = random.Random("exam")
    batch = collect(exact, task, student, teacher, problems, keys, 1, (key_shown,), rng)
    teacher_log_probs = batch.right_key_log_probs
    if key_shown == "no key":
        teacher_log_probs = batch.no_key_log_probs

    prompts = encode_prompts(task, problems, student.device)
    greedy = sample_responses(task, student, prompts, group_size=1, seed=None)
    greedy_right = [task.verify(problem, text) for problem, text in zip(problems, greedy.texts)]
    token_weight = batch.mask / batch.mask.sum()
    entropy = -(batch.student_log_probs.exp() * batch.student_log_probs).sum(-1)
    measured = {
        "accuracy": batch.reward.mean(),
        "greedy_accuracy": share(greedy_right),
        "leakage": share([task.leaks(text) for text in batch.texts]),
        "kl": (kl_divergence(batch.student_log_probs, teacher_log_probs) * token_weight).sum(),
        "entropy": (entropy * token_weight).sum(),
        "response_length": batch.mask.sum(1).mean(),
    }
    return {name: round(float(value), 6) for name, value in measured.items()}


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def show_response(
    config: Config, task: Task, student: GPT, teacher: GPT, step: int, method: Callable
) -> dict:
    """The first response to the first problem of the exam, with the A_t of each of its tokens.

    It is the first of a group and is not chosen by its reward. The random draws are the same at
    every evaluation. The rewards have the errors that the settings ask for.
    """
    problems, keys = task.exam()
    group_size, sees, rng = config.group_size, MODES[config.mode].sees, random.Random("shown")
    batch = collect(config, task, student, teacher, problems[:1], keys[:1], group_size, sees, rng)
    batch.lam = lam_at(max(step, 1), config.lam, config.lam_decay)
    with torch.no_grad():
        _, token_advantage = method(config.mode, batch)
    length = int(batch.mask[0].sum())
    right = [task.verify(problems[0], text) for text in batch.texts]
    return {
        "problem": task.show(problems[0]),
        "tokens": [task.tokenizer.decode([token]) for token in batch.tokens[0, :length].tolist()],
        "token_advantage": [round(value, 3) for value in token_advantage[0, :length].tolist()],
        "right": right[0],
        "group_size": config.group_size,
        "group_right": sum(right),
        "group_rewarded": int(batch.reward.sum()),
    }


# ==== 5. Settings ====
#
# Each setting is a flag of the command line, and its text is the help for that flag.


def setting(default, text: str, *allowed):
    """A field of Config. `allowed`: every value of a string, or a number's lowest and highest."""
    return field(default=default, metadata={"help": text, "allowed": allowed})


@dataclass(frozen=True)
class Config:
    mode: str = setting("rlsd", f"the method: {', '.join(MODES)}", *MODES)
    task: str = setting("carry", f"the kind of arithmetic: {', '.join(TASKS)}", *TASKS)
    seed: int = setting(0, "seed of the pretrained network and of the run", 0, 10**9)
    digits: int = setting(
        4, "columns of an addition; in the task split, the digits to split into", 2, 10
    )
    slip: float = setting(
        0.6, "pretraining: how often the task's slip is made, such as a forgotten carry", 0, 1
    )
    cite: float = setting(0.3, "pretraining: how often a key that is shown is cited", 0, 1)
    steps: int = setting(160, "training steps, one update each (paper: 200)", 0, 10**6)
    problems: int = setting(16, "problems per step (paper: 256)", 1, 10**4)
    group_size: int = setting(8, "responses to each problem, G (paper: 8)", 2, 10**3)
    lr: float = setting(2e-4, "learning rate of AdamW (paper: 1e-6, and 1e-5 for OPSD)", 1e-9, 1)
    divergence: str = setting(
        "reverse_kl",
        "what OPD and OPSD minimise: reverse_kl, forward_kl or jsd",
        "reverse_kl",
        "forward_kl",
        "jsd",
    )
    teacher_refresh: int = setting(
        10,
        "opsd, rlsd, cepo: the student is copied to the teacher every N steps (paper: 10)",
        1,
        10**6,
    )
    eps_w: float = setting(
        0.2, "rlsd, cepo: a token's weight stays within 1 - eps_w .. 1 + eps_w (paper: 0.2)", 0, 100
    )
    lam: float = setting(
        0.5, "rlsd, cepo: the share of the push that this weight scales (paper: 0.5)", 0, 1
    )
    lam_decay: int = setting(
        50, "steps over which lam falls to 0; 0 means that lam is held (paper: 50)", 0, 10**6
    )
    false_negatives: float = setting(
        0.0, "probability that the verifier rejects a right answer in training", 0, 1
    )
    false_positives: float = setting(
        0.0, "probability that the verifier accepts a wrong answer in training", 0, 1
    )
    key_noise: float = setting(
        0.0,
        "probability that a wrong answer of a group, if any, becomes its key and counts as right",
        0,
        1,
    )
    evaluate_every: int = setting(10, "steps from one evaluation to the next", 1, 10**6)

    def __post_init__(self):
        for one in fields(self):
            value, allowed = getattr(self, one.name), one.metadata["allowed"]
            flag = f"--{one.name.replace('_', '-')}"
            if isinstance(value, str) and value not in allowed:
                raise UserError(f"{flag} is {value!r}, but must be one of {', '.join(allowed)}")
            # `value < lowest` would let NaN pass.
            if not isinstance(value, str) and not allowed[0] <= value <= allowed[1]:
                raise UserError(f"{flag} is {value}, but must be from {allowed[0]} to {allowed[1]}")

    def make_task(self) -> Task:
        """The task, whose constructor takes some of the settings."""
        parameters = inspect.signature(TASKS[self.task]).parameters
        unknown = set(parameters) - {one.name for one in fields(self)}
        if unknown:
            raise UserError(f"its constructor has {min(unknown)}, which is no setting of rlsd.py")
        return TASKS[self.task](**{name: getattr(self, name) for name in parameters})


# ==== 6. The model ====
#
# A GPT with rotary positions, pre-norm and a KV cache.


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        # Each block starts as the identity; training is faster that way.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, rotation: Tensor, past: tuple | None) -> tuple[Tensor, tuple]:
        rows, length, width = x.shape
        projected = self.query_key_value(F.layer_norm(x, (width,)))
        heads = projected.view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (rows, heads, length, width of a head)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if past is not None:
            key = torch.cat((past[0], key), 2)
            value = torch.cat((past[1], value), 2)
        # Causal: a token sees itself and what is to its left, of which the cache is a part.
        visible = x.new_ones(length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, (width,)))))
        return x, (key, value)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions: pairs of features are complex numbers, turned by an angle per position."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation
    return torch.view_as_real(turned).flatten(-2)


class GPT(nn.Module):
    def __init__(
        self, vocabulary: int, width: int, layers: int = 2, heads: int = 4, context: int = 512
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.5)
        pairs = width // heads // 2
        frequency = 300.0 ** (-torch.arange(pairs) / pairs)  # not 10,000: our texts are short
        angle = torch.outer(torch.arange(context), frequency)
        rotation = torch.polar(torch.ones_like(angle), angle)
        self.register_buffer("rotation", rotation, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def forward(
        self, tokens: Tensor, past: list | None = None, group_size: int = 1
    ) -> tuple[Tensor, list]:
        """Logits of the next tokens, (rows x group_size, length, V), and the cache to go on from.

        Each row is read once, and then repeated for the group_size responses that follow it.
        """
        start = past[0][0].shape[2] if past else 0
        rotation = self.rotation[start : start + tokens.shape[1]]
        x, cache = self.embedding(tokens), []
        for n, block in enumerate(self.blocks):
            x, key_and_value = block(x, rotation, past[n] if past else None)
            if group_size > 1:
                key_and_value = [part.repeat_interleave(group_size, 0) for part in key_and_value]
            cache.append(key_and_value)
        logits = self.head(F.layer_norm(x, x.shape[-1:]))
        if group_size > 1:
            logits = logits.repeat_interleave(group_size, 0)
        return logits, cache


# ==== 7. The base ====
#
# All methods start from one base. It learns from a textbook of clean workings until it knows its
# arithmetic, and then from homework, in which the bad habits are planted. OPD's teacher has the
# textbook only.

TEXTBOOK_STEPS = 240  # the minimum; further steps follow until it is mastered
MASTERED = 0.97  # the greedy accuracy on the exam at which the textbook ends
MOST_TEXTBOOK_STEPS = 2000
HOMEWORK_STEPS = 420
FINAL_STEPS = 60  # OPD's teacher has no homework; it ends with these steps of textbook
WIDTH = {"base": 64, "larger": 128}


def pretrain(task: Task, model: GPT, kind: str, seed: int, progress: Callable) -> None:
    """Trains a base, or OPD's larger teacher. UserError if the textbook is not mastered."""
    rng = random.Random(seed)
    optimizer = PretrainingOptimizer(model)
    problems, _ = task.exam()
    prompts = encode_prompts(task, problems, model.device)
    last_steps = HOMEWORK_STEPS if kind == "base" else FINAL_STEPS
    step, accuracy = 0, 0.0

    while accuracy < MASTERED:
        if step >= MOST_TEXTBOOK_STEPS:
            raise UserError(
                f"after {step} steps of the textbook {accuracy:.0%} of the held-out answers are "
                f"right, not {MASTERED:.0%}: try another --seed, make the task {task.name} easier, "
                "or let it have more problems"
            )
        for _ in range(TEXTBOOK_STEPS if step == 0 else 40):
            step += 1
            rate = min(1.0, step / 20, 150 / step)  # 20 steps of warm-up; a fall from step 150 on
            learn(task, model, optimizer, rng, rate, homework=False, key_open=False)
            progress(step, max(step, TEXTBOOK_STEPS) + last_steps)
        greedy = sample_responses(task, model, prompts, group_size=1, seed=None)
        right = [task.verify(problem, text) for problem, text in zip(problems, greedy.texts)]
        accuracy = share(right)

    for n in range(last_steps):
        rate = 0.25 * (1 + math.cos(math.pi * n / last_steps))  # from 0.5 to 0
        homework = kind == "base"
        key_open = homework and n % 2 == 1  # in every other batch
        learn(task, model, optimizer, rng, rate, homework, key_open)
        progress(step + n + 1, step + last_steps)


def learn(
    task: Task,
    model: GPT,
    optimizer: PretrainingOptimizer,
    rng: random.Random,
    rate: float,
    homework: bool,
    key_open: bool,
) -> None:
    """One step of next-token prediction on 64 workings. `rate` scales the learning rates."""
    problems = [task.sample(rng) for _ in range(64)]
    # The key of a piece of homework may be wrong in the same way as its working. So the network
    # learns to follow a key, not to check it.
    examples = [task.working(problem, rng, homework, key_open) for problem in problems]
    workings = [working for working, _ in examples]
    keys = [key for _, key in examples]
    prompts = encode_prompts(task, problems, model.device, keys if key_open else None)
    responses = [torch.tensor(task.tokenizer.encode(working)) for working in workings]
    targets = nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=-1)
    targets = targets.to(model.device)

    inputs = torch.cat((prompts, targets[:, :-1].clamp(min=0)), 1)
    logits, _ = model(inputs)
    logits = logits[:, prompts.shape[1] - 1 :]  # from the last token of the prompt on
    loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1)
    model.zero_grad()
    loss.backward()
    optimizer.step(rate)


class PretrainingOptimizer:
    """AdamW for the embedding and the head, Muon (Keller Jordan, 2024) for the blocks' matrices.

    Muon learns the textbook in half of the steps that AdamW needs.
    """

    def __init__(self, model: GPT):
        outer = [model.embedding.weight, model.head.weight]
        self.adam = torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.matrices = list(model.blocks.parameters())
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.adam.param_groups[0]["lr"] = 5e-3 * rate
        self.adam.step()
        for matrix, momentum in zip(self.matrices, self.momenta):
            momentum.lerp_(matrix.grad, 0.05)
            direction = orthogonal(matrix.grad.lerp(momentum, 0.95))  # Nesterov momentum
            rows, columns = matrix.shape
            scale = max(1.0, rows / columns) ** 0.5  # a tall matrix gets longer steps
            matrix.sub_(direction, alpha=0.02 * rate * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Muon's direction: the same singular vectors, with all singular values brought close to 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):  # Newton-Schulz, with the coefficients that are usual for Muon
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x.T if tall else x


CACHE = Path(__file__).parent / ".cache"  # bases and OPD's teachers; safe to delete

# If any of these changes, bases are made anew. Section 1 is not among them: if you change Eq 15,
# the base stays.
MAKES_A_BASE = (
    (TEXTBOOK_STEPS, MASTERED, MOST_TEXTBOOK_STEPS, HOMEWORK_STEPS, FINAL_STEPS, WIDTH),
    encode_prompts,
    sample_responses,
    share,
    Block,
    rotate,
    GPT,
    pretrain,
    learn,
    PretrainingOptimizer,
    orthogonal,
)


def cached_model(
    config: Config, kind: str, device: str = "cpu", progress: Callable = lambda done, total: None
) -> GPT:
    """The `base`, or OPD's `larger` teacher: from the cache, or made now and put there."""
    task = config.make_task()
    torch.manual_seed(config.seed)
    model = GPT(task.tokenizer.vocabulary_size, WIDTH[kind]).to(device)
    path = model_path(config, kind, device)
    if path.exists():
        try:
            model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:
            raise UserError(f"{path} is damaged: delete it, and it is made anew") from error
        return model
    pretrain(task, model, kind, config.seed, progress)
    try:
        save_tensors(path, model.state_dict())
    except OSError as error:
        print(f"rlsd.py: cannot keep {path}: {explain(error)}", file=sys.stderr)
    return model


def model_path(config: Config, kind: str, device: str) -> Path:
    return CACHE / f"{config.task}-{kind}-s{config.seed}-{fingerprint(config, kind, device)}.pt"


def fingerprint(config: Config, kind: str, device: str) -> str:
    """A hash of what the weights of a base depend on."""
    task = config.make_task()
    # The source files of the task's class, and of the classes that it inherits from.
    modules = {inspect.getmodule(parent) for parent in type(task).__mro__ if parent is not object}
    sources = [source_of(module) for module in sorted(modules, key=lambda one: one.__name__)]
    for part in MAKES_A_BASE:
        sources.append(source_of(part) if callable(part) else repr(part))
    settings = [kind, config.seed, vars(task), *machine(device).values()]
    return hashlib.sha256(repr([settings, sources]).encode()).hexdigest()[:12]


@cache
def source_of(part: object) -> str:
    return inspect.getsource(part)


def machine(device: str) -> dict[str, str | int]:
    """What rounding depends on. Other rounding means another base and other curves."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


# ==== 8. The figure, the log, the command line ====
#
# Nothing from here on is needed to understand the methods.


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a file under another name and then renames it, so that nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_tensors(path: Path, state: dict) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a path, torch.save would write its name into the file
            torch.save(state, file)

    write_whole(path, write)


def settings_name(config: Config, mode: str, seeds: str) -> str:
    """carry-rlsd-s0-eps_w=1: task, mode, seed and each setting that differs from its default."""
    changed = []
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name in ("mode", "task", "seed") or value == one.default:
            continue
        text = value if isinstance(value, str) else f"{value:g}"
        if not isinstance(value, str) and float(text) != value:
            text = repr(value)  # a number with many digits
        changed.append(f"-{one.name}={text}")
    tail = "".join(changed)
    name = f"{config.task}-{mode}-s{seeds}"
    if len(name + tail) > 120:
        tail = "-" + hashlib.sha256(tail.encode()).hexdigest()[:10]
    return name + tail


# A hash of the two source files at import: of the code that runs, even if a file is edited later.
SOURCE = hashlib.sha256(
    Path(__file__).read_bytes() + Path(inspect.getfile(Task)).read_bytes()
).hexdigest()[:12]


def first_line(config: Config, device: str) -> str:
    """The first line of a log: the settings, the machine, and a hash of the two source files."""
    return json.dumps({"config": asdict(config) | machine(device) | {"source": SOURCE}})


def read_log(path: Path) -> tuple[dict, list[dict]]:
    """The config and the records of a run. UserError if the file is no log of a run."""
    try:
        first, *records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return dict(first["config"]), [dict(record) for record in records]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a log of a run: move it away") from error


# ---- The figure

QUANTITIES = {
    "step": "training step",
    "accuracy": "right answers (share)",
    "leakage": "responses that cite the key (share)",
}
PANELS = {
    "right answers": ("step", "accuracy"),
    "leakage": ("step", "leakage"),
    "leakage against right answers": ("accuracy", "leakage"),
}
COLOURS = ["#0072B2", "#009E73", "#D55E00", "#000000", "#CC79A7", "#E69F00", "#56B4E9"]
SHARE = (-0.03, 1.03)  # limits of an axis, with room for a wide curve at exactly 0 or 1
GREY = "#b8b8b8"

Runs = dict[tuple[str, int], list[dict]]  # (mode, seed) -> records


def describe(config: Config, modes: Iterable[str]) -> str:
    """In words: the verifier's errors, and the weights of the modes that use them."""
    missed, accepted = config.false_negatives, config.false_positives
    told = "exact verifier"
    if missed == accepted > 0:
        told = f"each verdict wrong with probability {missed:g}"
    elif missed or accepted:
        told = f"verifier rejects {100 * missed:g}% of right, "
        told += f"accepts {100 * accepted:g}% of wrong answers"
    if config.key_noise:
        told += f"; a wrong key with probability {config.key_noise:g}"
    weighted = [MODES[mode].name for mode in modes if mode in ("rlsd", "cepo")]
    if weighted:
        schedule = "falling from" if config.lam_decay else "held at"
        weights = f"eps_w {config.eps_w:g}, lam {schedule} {config.lam:g}"
        told += f"; {' and '.join(weighted)}: {weights}"
    return told


def draw_figure(path: Path, runs: Runs, config: Config, reference: Runs) -> None:
    """The curves of all runs; below them a row of tiles per mode, with what its student writes.

    Reference runs are drawn in grey. The canvas is Agg and the style matplotlib's default, whatever
    the environment says.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = [mode for mode in MODES if any(mode == other for other, _ in runs)]
    tiles = 0.45 * len(modes) + 0.4  # the height of the tiles in inches
    height = tiles + 4.9
    with style.context("default"):
        figure = Figure(figsize=(13, height), dpi=100)
        FigureCanvasAgg(figure)
        figure.text(0.03, 1 - 0.25 / height, path.stem, fontsize=11, va="center")
        notes = [describe(config, modes)]
        if len({seed for _, seed in runs}) > 1:
            notes.append("thin: one seed each; bold: their mean")
        if reference:
            notes.append("grey: earlier runs with the same settings")
        figure.text(0.03, 1 - 0.48 / height, "; ".join(notes), color="#808080", va="center")
        for n, (title, (across, up)) in enumerate(PANELS.items()):
            box = (0.05 + 0.32 * n, (tiles + 0.85) / height, 0.225, 3.15 / height)
            panel = figure.add_axes(box, title=title)
            start = "" if across == "step" else "; the open dot is the base"
            panel.set(xlabel=QUANTITIES[across] + start, ylabel=QUANTITIES[up], ylim=SHARE)
            panel.set_xlim((0, max(1, config.steps)) if across == "step" else SHARE)
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)
            ends = draw_curves(panel, reference, across, up, grey=True)
            ends += draw_curves(panel, runs, across, up)
            name_ends(panel, ends)
        panel = figure.add_axes((0.03, 0.1 / height, 0.94, tiles / height))
        last_records = []
        for mode in modes:
            _, records = min(of_mode(runs, mode))  # of the lowest seed
            last_records.append(records[-1])
        draw_tiles(panel, last_records)
        write_whole(path, lambda part: figure.savefig(part, format="png"))


def of_mode(runs: Runs, mode: str) -> list[tuple[int, list[dict]]]:
    """(seed, records) of a mode's runs."""
    return [(seed, records) for (other, seed), records in runs.items() if other == mode]


def draw_curves(panel, runs: Runs, across: str, up: str, grey: bool = False) -> list[tuple]:
    """A bold curve per mode, the mean over seeds, and a thin one per seed.

    Curves may coincide. They are drawn from wide and pale to narrow, so that all can be seen.
    Returns (name, colour, x, y) of each bold curve's end.
    """
    ends = []
    for n, mode in enumerate(MODES):
        seeds = [records for _, records in of_mode(runs, mode)]
        if not seeds:
            continue
        length = min(map(len, seeds))  # what all seeds have reached
        x, y = (
            torch.tensor([[record[name] for record in records[:length]] for records in seeds])
            for name in (across, up)
        )
        colour = GREY if grey else COLOURS[n % len(COLOURS)]
        width = 4.0 if grey else max(2.2, 6.0 - 1.2 * n)
        opacity = 0.55 if width > 3 else 1.0
        if len(seeds) > 1 and not grey:
            panel.plot(x.T, y.T, color=colour, linewidth=0.6, alpha=0.6)
        x, y = x.float().mean(0).tolist(), y.mean(0).tolist()
        panel.plot(x, y, color=colour, linewidth=width, alpha=opacity)
        dot = {"color": colour, "markersize": width + 3, "alpha": opacity, "clip_on": False}
        panel.plot(x[-1], y[-1], "o", **dot)
        if across != "step":
            panel.plot(x[0], y[0], "o", color=colour, markerfacecolor="white", markersize=7)
        ends.append((MODES[mode].name, colour, x[-1], y[-1]))
    return ends


def name_ends(panel, ends: list[tuple[str, str, float, float]]) -> None:
    """Writes each name to the right of its curve's end (x, y); names do not overlap."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    line = 0.075 * (top - bottom)
    lowest = bottom  # where the next name may stand
    for n, (name, colour, x, y) in enumerate(sorted(ends, key=lambda end: end[3])):
        highest = top - line * (len(ends) - 1 - n)  # the names above this one need room
        name_y = min(max(y, lowest), highest)
        name_x = x + 0.05 * (right - left)
        panel.plot((x, name_x), (y, name_y), color=colour, linewidth=1, clip_on=False)
        panel.text(name_x, name_y, f" {name}", color=colour, va="center", fontweight="bold")
        lowest = name_y + line


def draw_tiles(panel, records: list[dict], width: float = 60.0, first: float = 8.0) -> None:
    """One row per record: its response to the fixed problem, each token coloured by its A_t.

    A row is `width` tiles wide; its first token stands at `first`, to the right of the name.
    """
    from matplotlib import colormaps

    panel.set(xlim=(0, width), ylim=(len(records), -0.9))
    panel.axis("off")
    problem = records[0]["shown"]["problem"]
    seeds = " and ".join(sorted({str(record["seed"]) for record in records}))
    legend = f"Responses to {problem}, seed {seeds}. Blue: A_t > 0, a push up; red: a push down"
    panel.text(0, -0.5, f"{legend}; white: little or none; full colour: 2 or more.", va="center")
    for y, record in enumerate(records):
        shown, middle, x = record["shown"], y + 0.5, first
        name = f"{MODES[record['mode']].name}, step {record['step']}"
        panel.text(0, middle, name, va="center", fontweight="bold")
        for token, push in zip(shown["tokens"], shown["token_advantage"]):
            size = 1 + 0.5 * (len(token) - 1)
            if x + size > width - 15:  # the rest would run out of the panel
                panel.text(x, middle, " ...", va="center")
                x += 1.5
                break
            box = {"facecolor": colormaps["RdBu"](0.5 + push / 4), "edgecolor": "#888888"}
            panel.fill_between((x, x + size), y + 0.08, y + 0.92, **box)
            ink = "white" if abs(push) > 1.2 else "black"
            at = {"ha": "center", "va": "center", "family": "monospace"}
            panel.text(x + size / 2, middle, token, color=ink, **at)
            x += size
        told = "right" if shown["right"] else "wrong"
        equal = shown["group_rewarded"] in (0, shown["group_size"])
        lowest, highest = min(shown["token_advantage"]), max(shown["token_advantage"])
        if record["mode"] in ("opd", "opsd") or lowest < 0 < highest:
            pass  # OPD, OPSD, or a mode of yours: the sign is not that of the reward
        elif equal and not any(shown["token_advantage"]):
            told += "; equal rewards: no push"
        else:
            # The record does not say whether this response was accepted, but A_t has the sign of A.
            accepted = max(shown["token_advantage"], key=abs) > 0
            if accepted != shown["right"]:
                told += ", but accepted" if accepted else ", but rejected"
            told += f"; {shown['group_rewarded']} of {shown['group_size']} rewarded"
        panel.text(x + 0.5, middle, told, va="center")


def earlier_runs(
    config: Config, seeds: set[int], modes: set[str], folder: Path, edited: bool = False
) -> Runs:
    """The runs of these modes and seeds in folder/runs whose other settings are those of config.

    `edited` says that this rlsd.py is an edited one. Then the runs of this very source are left
    out, and only those of other versions remain.
    """
    runs = {}
    # The log of a run with --name begins with that name, so this passes it over.
    for path in sorted((folder / "runs").glob(f"{config.task}-*-s*.jsonl")):
        found, records = read_log(path)
        mode, seed = found["mode"], found["seed"]
        wanted = asdict(config) | {"mode": mode, "seed": seed}
        same = all(found.get(name) == value for name, value in wanted.items())
        if edited and found["source"] == SOURCE:
            continue
        if same and seed in seeds and mode in modes:
            runs[mode, seed] = records
    return runs


def write_live_page(figure: Path) -> Path:
    """A page for the browser, which shows the figure and loads it anew every second."""
    page = figure.with_suffix(".html")
    text = f"""<!doctype html><meta charset="utf-8"><title>{figure.name}</title>
<img id="figure" style="max-width: 100%" alt="{figure.name}: wait for the first evaluation"><script>
function reload() {{
  const next = new Image();
  next.onload = () => {{ document.getElementById("figure").src = next.src; }};
  next.src = "{figure.name}?" + Date.now(); }}
reload(); setInterval(reload, 1000);</script>
"""
    write_whole(page, lambda part: part.write_text(text, "utf-8"))
    return page


# ---- Jobs side by side

MAX_WORKERS = 8  # each needs about 420 MB


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    phases: Iterable[list[tuple]], workers: int, report: Callable = print
) -> Iterator[tuple[tuple, object]]:
    """Runs jobs in worker processes; yields (job, its result) as each of them ends.

    A job is (function, *arguments). The function is called with one more argument, with which it
    sends messages to `report` while it works. What it raises becomes its result, as a UserError.
    A phase begins when the one before it has ended. With one worker everything happens in this
    process. The same holds in a notebook and in a thread, where no worker can be started.
    """
    if workers < 2 or not can_start_workers():
        for job in itertools.chain.from_iterable(phases):
            yield job, attempt(job, report)
        return
    try:
        idle = start_workers(workers)
        for phase in phases:
            waiting, running = deque(phase), {}
            while waiting or running:
                while waiting and idle:
                    connection = idle.pop()
                    running[connection] = waiting.popleft()
                    connection.send(running[connection])
                if not running:
                    raise UserError(
                        "all worker processes have ended: killed, or out of memory (420 MB each)"
                    )
                for connection in multiprocessing.connection.wait(list(running)):
                    try:
                        kind, content = connection.recv()
                    except (EOFError, OSError):
                        lost = UserError("its worker process has ended: killed, or out of memory")
                        yield running.pop(connection), lost
                        continue
                    if kind == "message":
                        report(content)
                    else:
                        idle.append(connection)
                        yield running.pop(connection), content
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()


def can_start_workers() -> bool:
    """Whether the main script is a file, which a worker imports, and we are in the main thread.

    Only the main thread may set the handler of a signal, as start_workers does.
    """
    main_file = getattr(sys.modules["__main__"], "__file__", None)
    is_main_thread = threading.current_thread() is threading.main_thread()
    return main_file is not None and Path(main_file).is_file() and is_main_thread


def start_workers(count: int) -> list[multiprocessing.connection.Connection]:
    """Connections to processes that wait for jobs. On Ctrl-C it is this process that ends them."""
    # A Ctrl-C during the start must leave no worker behind. This process only notes it in `stops`,
    # and raises it again when all workers are known. And SIGINT is blocked while a worker starts,
    # so that the worker inherits the block. (Python's resource tracker, which the first worker
    # would start, unblocks SIGINT; so it is started beforehand.)
    context = multiprocessing.get_context("spawn")
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    if can_block:
        multiprocessing.resource_tracker.ensure_running()
    stops, connections = [], []
    handler = signal.signal(signal.SIGINT, lambda *_: stops.append(True))
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            if can_block:  # the new process inherits this
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            context.Process(target=work, args=(theirs,), daemon=True).start()
            if can_block:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            theirs.close()
            connections.append(ours)
    finally:
        signal.signal(signal.SIGINT, handler)
    if stops:
        signal.raise_signal(signal.SIGINT)
    try:
        for connection in connections:
            connection.recv()  # the worker is ready
    except EOFError:
        raise UserError(
            "worker processes cannot start: in a script, call rlsd.main() only under "
            'if __name__ == "__main__":'
        ) from None
    return connections


def work(connection: multiprocessing.connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        connection.send("ready")
        while True:
            job = connection.recv()
            result = attempt(job, lambda message: connection.send(("message", message)))
            connection.send(("result", result))
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone


def attempt(job: tuple, report: Callable) -> object:
    """The result of a job, or a UserError that explains why it has none."""
    function, *arguments = job
    try:
        return function(*arguments, report)
    except Exception as error:
        return UserError(explain(error))


def explain(error: Exception) -> str:
    """An error in one line. If it arose in the code, the line tells where."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).parent == Path(__file__).parent:
            place = f" ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {text}{place}"


# ---- Runs and their logs


@dataclass
class Run:
    """One mode on one seed, and where its log goes."""

    config: Config
    log: Path
    device: str

    @property
    def label(self) -> str:
        return f"{self.config.mode}, seed {self.config.seed}"

    def is_done(self) -> bool:
        """Is there a log of this very run? A log gets its name when the run is complete."""
        if not self.log.exists():
            return False
        with self.log.open(encoding="utf-8") as log:
            return log.readline().rstrip("\n") == first_line(self.config, self.device)


def make_base(run: Run, kind: str, report: Callable) -> None:
    """A job: the base of a run, or OPD's larger teacher."""

    def progress(step: int, steps: int) -> None:
        report(("progress", f"{kind}, seed {run.config.seed}", step, steps))

    cached_model(run.config, kind, run.device, progress)


def train_together(runs: list[Run], report: Callable) -> None:
    """A job: some modes of one seed. Each is trained up to its next evaluation, in turn."""
    going = [(run, logged_training(run, report)) for run in runs]
    while going:
        for run, training in list(going):
            try:
                next(training)
            except StopIteration:
                going.remove((run, training))
            except Exception as error:
                report(("failed", run.label, explain(error)))
                going.remove((run, training))


def logged_training(run: Run, report: Callable) -> Iterator[None]:
    """Trains one mode and stops after every evaluation. Its log gets its name when it is whole."""
    config = run.config
    base = cached_model(config, "base", run.device)
    larger = None
    if MODES[config.mode].teacher == "larger":
        larger = cached_model(config, "larger", run.device)

    def progress(step: int) -> None:
        report(("progress", run.label, step, config.steps))

    part = run.log.with_name(f"{run.log.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as log:
        log.write(first_line(config, run.device) + "\n")
        training = train(config, config.make_task(), base, larger, progress=progress)
        for record, student, _ in training:
            log.write(json.dumps(record) + "\n")
            log.flush()
            report(("record", record))
            yield
    saved = {"config": asdict(config), "student": student.state_dict()}
    save_tensors(run.log.with_suffix(".pt"), saved)
    os.replace(part, run.log)


PRETRAINING = "pretraining (kept in .cache; about 20 seconds for each network): "
HEADER = """\
accuracy: share of right answers, sampled at temperature 1; greedy: the same without sampling;
leakage: share of responses that cite the key; kl: KL(student || teacher) in nats per token
mode  seed  step  accuracy  greedy  leakage     kl  a response to {problem}"""


def format_record(record: dict) -> str:
    """What a run prints per evaluation."""
    shown = record["shown"]
    return (
        f"{record['mode']:4} {record['seed']:5} {record['step']:5} {record['accuracy']:9.3f} "
        f"{record['greedy_accuracy']:7.3f} {record['leakage']:8.3f} {record['kl']:6.3f}  "
        f"{''.join(shown['tokens'])} {'right' if shown['right'] else 'wrong'}"
    )


class Monitor:
    """What the user sees of the runs: rows, progress with the time left, and the figure."""

    def __init__(self, config: Config, figure: Path, reference: Runs):
        self.config, self.figure, self.reference = config, figure, reference
        self.runs: Runs = {}
        self.failures = 0
        self.header_is_printed = False
        self.can_draw = True
        self.began = time.monotonic()
        self.drawing = 0.0  # seconds spent on the figure

    def begin(self, labels: list[str]) -> None:
        """A phase begins, whose jobs report their progress under these labels."""
        self.phase_began = time.monotonic()
        self.done = dict.fromkeys(labels, 0.0)

    def __call__(self, message: tuple) -> None:
        """Takes a message from a job."""
        kind, *content = message
        if kind == "progress":
            self.progress(*content)
        elif kind == "failed":
            self.fail(*content)
        else:
            self.add(*content)

    def progress(self, label: str, step: int, steps: int) -> None:
        """One line on a terminal, written over: how much is done, and how long it will take."""
        self.done[label] = step / max(1, steps)
        if not sys.stderr.isatty():
            return
        done = sum(self.done.values()) / len(self.done)
        seconds = time.monotonic() - self.phase_began
        left = f"{seconds * (1 / done - 1):.0f} s left" if done > 0.02 else ""
        line = f"{done:4.0%}  {left}  {label}, step {step}"
        columns = shutil.get_terminal_size().columns - 1
        print(f"\r\033[K{line[:columns]}", end="", file=sys.stderr, flush=True)

    def say(self, text: str, file=None) -> None:
        """Lines that stay, in the place of the progress line."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        print(text, file=file, flush=True)

    def fail(self, label: str, reason: object) -> None:
        self.failures += 1
        self.say(f"rlsd.py: {label}: {reason}", sys.stderr)

    def add(self, record: dict) -> None:
        if not self.header_is_printed:
            self.header_is_printed = True
            self.say(HEADER.format(problem=record["shown"]["problem"]))
        self.runs.setdefault((record["mode"], record["seed"]), []).append(record)
        self.say(format_record(record))
        if self.drawing < 0.05 * (time.monotonic() - self.began):  # at most 5 % of the time
            self.draw()

    def draw(self) -> None:
        """Draws the figure. If that fails, it warns once and goes on."""
        if not self.runs or not self.can_draw:
            return
        began = time.monotonic()
        try:
            draw_figure(self.figure, self.runs, self.config, self.reference)
        except Exception as error:
            self.can_draw = False
            self.say(f"rlsd.py: cannot draw {self.figure}: {explain(error)}", sys.stderr)
        self.drawing += time.monotonic() - began


# ---- The command line


def check_mode(config: Config, task: Task) -> None:
    """Trains a mode for one step from random weights. UserError if that does not work."""
    mode, name = MODES[config.mode], f"mode {config.mode}"
    if mode.teacher not in (None, "larger", "student"):
        raise UserError(
            f'{name}: teacher is {mode.teacher!r}, but must be None, "larger" or "student"'
        )
    if not config.mode.isidentifier():
        raise UserError(f"{name}: what --mode calls it must be a word of letters, digits and _")
    if not isinstance(mode.sees, tuple):
        raise UserError(f'{name}: sees is {mode.sees!r}, but must be a tuple: ("right key",)')
    for which in mode.sees:
        if which not in ("no key", "right key", "wrong key"):
            raise UserError(
                f'{name}: sees {which!r}, but must see "no key", "right key" or "wrong key"'
            )
    if (mode.teacher is None) != (mode.sees == ()):
        raise UserError(f"{name}: `sees` must be () without a teacher, and must not be () with one")
    if len(mode.name) > 5:
        raise UserError(f"{name}: its name {mode.name!r} has more than the 5 letters that fit")
    if config.mode == "all":
        raise UserError("a mode cannot be called all: --mode all trains all modes")
    untrained = GPT(task.tokenizer.vocabulary_size, width=8)
    optimizer = torch.optim.SGD(untrained.parameters())
    try:
        train_step(replace(config, problems=2), task, untrained, untrained, optimizer, 1)
    except Exception as error:
        hint = ""
        if "NoneType" in str(error):
            hint = "; a field of Batch is None unless the mode's `sees` lists it"
        raise UserError(f"{name} cannot be trained: {explain(error)}{hint}") from error


def check_task(config: Config) -> Task:
    """The task, if it has none of the mistakes that a new task is likely to have."""
    try:
        task = config.make_task()
        task.check()
    except Exception as error:
        raise UserError(f"task {config.task}: {explain(error)}") from error
    return task


def read_flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rlsd.py",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a small GPT with RLVR, OPD, OPSD, RLSD or CEPO.",
    )
    for one in fields(Config):
        choices = {"mode": [*MODES, "all"], "task": [*TASKS]}.get(one.name)
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=type(one.default),
            default=one.default,
            choices=choices,
            metavar=one.name.upper(),
            help=one.metadata["help"] + (", or all" if one.name == "mode" else ""),
        )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="number of seeds, counted from --seed. With more than one, finished runs are kept "
        "as long as settings and code are the same. "
        f"At most {MAX_WORKERS} processes work at a time; each needs 420 MB",
    )
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder of the results")
    parser.add_argument(
        "--name",
        default="",
        help="prefix of all file names, to keep the results of an edited rlsd.py apart",
    )
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    told = "cpu or cuda" if "cuda" in devices else "cpu; torch finds no CUDA device"
    parser.add_argument("--device", default="cpu", choices=devices, help=told)
    return parser.parse_args(arguments)


def plan(flags: argparse.Namespace) -> tuple[list[Run], Path]:
    """All runs, and the path of their figure."""
    if not 1 <= flags.seeds <= 1000:
        raise UserError(f"--seeds is {flags.seeds}, but must be from 1 to 1000")
    if not all(letter.isalnum() or letter in "._" for letter in flags.name):
        raise UserError(f"--name is {flags.name!r}, but must consist of letters, digits, . and _")
    if flags.name in TASKS:
        raise UserError(f"--name is {flags.name!r}, but must not be the name of a task")
    prefix = f"{flags.name}-" if flags.name else ""
    settings = {one.name: getattr(flags, one.name) for one in fields(Config)}
    last_seed = flags.seed + flags.seeds - 1
    runs = []
    for seed in range(flags.seed, last_seed + 1):
        for mode in MODES if flags.mode == "all" else [flags.mode]:
            config = Config(**settings | {"mode": mode, "seed": seed})
            name = prefix + settings_name(config, mode, f"{seed}")
            runs.append(Run(config, flags.out / "runs" / f"{name}.jsonl", flags.device))
    seeds = f"{flags.seed}" if flags.seeds == 1 else f"{flags.seed}-{last_seed}"
    return runs, flags.out / f"{prefix}{settings_name(runs[-1].config, flags.mode, seeds)}.png"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 0, or 2 if something failed."""
    if "--multiprocessing-fork" in sys.orig_argv:
        # Python gives this flag to a worker. If main runs in a worker, the user's script calls it
        # without a guard. The parent sees the worker end, and says so.
        os._exit(1)
    flags = read_flags(arguments)
    threads = torch.get_num_threads()
    # Two processes beat two threads, and one thread rounds alike each time.
    torch.set_num_threads(1)
    try:
        return run_all(flags)
    except (UserError, OSError) as error:
        print(f"rlsd.py: {explain(error)}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)


def run_all(flags: argparse.Namespace) -> int:
    runs, figure = plan(flags)
    task = check_task(runs[0].config)
    for run in runs:
        if run.config.seed == flags.seed:
            check_mode(run.config, task)
    runs[0].log.parent.mkdir(parents=True, exist_ok=True)
    others, unedited = runs_to_compare_with(flags, runs)
    monitor = Monitor(runs[0].config, figure, others | unedited)
    monitor.say(f"live page (open it in a browser): {write_live_page(figure)}")
    if flags.name and not unedited:
        monitor.say("nothing to compare with: train the unedited rlsd.py, without --name, first")

    missing = []
    for run in runs:
        if flags.seeds > 1 and run.is_done():  # so that a sweep can be stopped and begun again
            monitor.runs[run.config.mode, run.config.seed] = read_log(run.log)[1]
        else:
            missing.append(run)
    if len(missing) < len(runs):
        monitor.say(f"{len(runs) - len(missing)} of {len(runs)} runs were done before and are kept")
    workers = min(cores(), MAX_WORKERS, len(missing))
    if flags.device == "cuda" or not can_start_workers():
        workers = 1
    # The loop below fills this with the bases that could not be made. plan_jobs is a generator: it
    # plans the runs when all bases are done.
    failed_models = set()
    phases = plan_jobs(missing, workers, monitor, failed_models)
    for (function, *arguments), result in side_by_side(phases, workers, monitor):
        if isinstance(result, Exception) and function is make_base:
            run, kind = arguments
            failed_models.add((kind, run.config.seed))
            monitor.fail(f"{kind}, seed {run.config.seed}", result)
        elif isinstance(result, Exception):
            monitor.fail("; ".join(run.label for run in arguments[0]), result)
    monitor.draw()

    logs = [run.log for run in runs if run.is_done()]
    if logs:
        more = f" and {len(logs) - 1} more beside it" if len(logs) > 1 else ""
        if monitor.can_draw:
            monitor.say(f"figure {figure}")
        monitor.say(f"logs   {logs[0]}{more}")
    return 2 if monitor.failures else 0


def runs_to_compare_with(flags: argparse.Namespace, runs: list[Run]) -> tuple[Runs, Runs]:
    """What the figure shows in grey: other modes' runs from plots/reference, and unedited runs.

    --name marks the runs of an edited rlsd.py; the unedited ones are the same without the name.
    """
    config = runs[0].config
    seeds = {run.config.seed for run in runs}
    trained = {run.config.mode for run in runs}
    committed = Path(__file__).parent / "plots" / "reference"
    others = earlier_runs(config, seeds, set(MODES) - trained, committed)
    unedited = {}
    if flags.name:
        unedited = earlier_runs(config, seeds, trained, flags.out, edited=True)
    return others, unedited


def plan_jobs(
    runs: list[Run], workers: int, monitor: Monitor, failed_models: set[tuple[str, int]]
) -> Iterator[list[tuple]]:
    """First all bases, then all runs. The modes of a seed are dealt out to the workers."""
    bases = {}
    for run in runs:
        for kind in needed_models(run):
            bases[f"{kind}, seed {run.config.seed}"] = (make_base, run, kind)
    new = [label for label, (_, run, kind) in bases.items() if not is_cached(run, kind)]
    if new:
        monitor.say(PRETRAINING + "; ".join(new))
    monitor.begin(new)  # the others are read from the cache, and report no progress
    yield list(bases.values())

    seeds, labels = {}, []
    for run in runs:
        seed = run.config.seed
        if not any((kind, seed) in failed_models for kind in needed_models(run)):
            seeds.setdefault(seed, []).append(run)
            labels.append(run.label)
    monitor.begin(labels)
    jobs = []
    for of_seed in seeds.values():
        jobs += [(train_together, of_seed[n::workers]) for n in range(min(workers, len(of_seed)))]
    yield jobs


def is_cached(run: Run, kind: str) -> bool:
    return model_path(run.config, kind, run.device).exists()


def needed_models(run: Run) -> list[str]:
    return ["base", "larger"] if MODES[run.config.mode].teacher == "larger" else ["base"]


if __name__ == "__main__":
    # A notebook exports a backend of its own, which may not be installed here.
    os.environ.pop("MPLBACKEND", None)
    sys.exit(main())
