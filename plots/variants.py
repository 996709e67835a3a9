"""Losses that the studies put in the place of rlsd.method_loss, each with the same arguments and results."""

from torch import Tensor

import rlsd
from rlsd import (
    evidence_weight,
    group_advantage,
    information_gain,
    of_tokens,
    response_mean,
)


def plain_sum(mode, rollout, reward, student_logp, teacher_logp, group_size, kind, eps_w, lam):
    """GRPO + OPSD: RLVR's loss and lam times OPSD's."""
    loss, credit = rlsd.method_loss("rlvr", rollout, reward, student_logp, teacher_logp, group_size, kind, eps_w, lam)
    return loss + lam * response_mean(rlsd.divergence(student_logp, teacher_logp, kind), rollout.mask), credit


def weighted(rollout, reward, student_logp, teacher_logp, group_size, lam, weigh):
    """RLSD with another weight: A_t = A ((1 - lam) + lam weigh(gain, A, mask))."""
    logp = of_tokens(student_logp, rollout.tokens)
    gain = information_gain(of_tokens(teacher_logp, rollout.tokens), logp)
    advantage = group_advantage(reward, group_size)
    credit = advantage.unsqueeze(-1) * ((1 - lam) + lam * weigh(gain, advantage, rollout.mask))
    return rlsd.clipped_surrogate(logp, rollout.logp, credit, rollout.mask), credit


def unsigned_weight(gain: Tensor, eps_w: float) -> Tensor:
    """exp(|Delta_t|), clipped as in Eq 15: the same weight for right and wrong responses."""
    return gain.abs().clamp(max=60).exp().clamp(1 - eps_w, 1 + eps_w)


def balanced_weight(gain: Tensor, advantage: Tensor, mask: Tensor, eps_w: float, group_size: int) -> Tensor:
    """Eq 14, clipped, divided at each position by its mean over the group's responses of the same sign.

    So that sum_i A_i w_it = sum_i A_i over the responses that reach position t, up to their lengths: no push in the mean.
    """
    weight = evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)
    length, balanced = weight.shape[1], weight.clone()
    for side in (advantage > 0, advantage < 0):
        counted = (mask * side.unsqueeze(-1)).view(-1, group_size, length)
        mean = (counted * weight.view(-1, group_size, length)).sum(1) / counted.sum(1).clamp(min=1)
        mean = mean.masked_fill(mean == 0, 1).repeat_interleave(group_size, 0)
        balanced[side] = (weight / mean)[side]
    return balanced


def unsigned(mode, rollout, reward, student_logp, teacher_logp, group_size, kind, eps_w, lam):
    return weighted(rollout, reward, student_logp, teacher_logp, group_size, lam,
                    lambda gain, advantage, mask: unsigned_weight(gain, eps_w))


def balanced(mode, rollout, reward, student_logp, teacher_logp, group_size, kind, eps_w, lam):
    return weighted(rollout, reward, student_logp, teacher_logp, group_size, lam,
                    lambda gain, advantage, mask: balanced_weight(gain, advantage, mask, eps_w, group_size))
