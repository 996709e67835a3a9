"""Methods that the studies put in the place of rlsd.method_loss: (mode, batch) -> (loss, A_t (B, T))."""

from collections.abc import Callable

from torch import Tensor

import rlsd


def plain_sum(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLVR + OPSD: RLVR's loss and lam times OPSD's. The A_t is RLVR's."""
    (loss, credit), (imitation, _) = (rlsd.method_loss(part, batch) for part in ("rlvr", "opsd"))
    return loss + batch.lam * imitation, credit


# ---- RLSD with other weights. gain, mask: (B, T); advantage: (B,); a weight: (B, T).

def clipped_weight(gain: Tensor, advantage: Tensor, eps_w: float) -> Tensor:
    """Eq 14 with the clip of Eq 15: RLSD's own."""
    return rlsd.evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)


def unsigned_weight(gain: Tensor, eps_w: float) -> Tensor:
    """exp(|Delta_t|), clipped: the same weight for right and wrong responses."""
    return clipped_weight(gain.abs(), gain.new_ones(len(gain)), eps_w)


def balanced_weight(gain: Tensor, advantage: Tensor, mask: Tensor, eps_w: float, group_size: int) -> Tensor:
    """RLSD's weight, divided at each position by its mean over the group's responses of the same sign.

    Of the responses that reach a position sum_i A_i w_it = sum_i A_i: no push in the mean, up to their lengths.
    """
    weight = clipped_weight(gain, advantage, eps_w)
    group, balanced = (-1, group_size, weight.shape[1]), weight.clone()
    for side in (advantage > 0, advantage < 0):
        counted = (mask * side.unsqueeze(-1)).view(group)
        mean = (counted * weight.view(group)).sum(1) / counted.sum(1).clamp(min=1)
        mean = mean.masked_fill(mean == 0, 1).repeat_interleave(group_size, 0)
        balanced[side] = (weight / mean)[side]
    return balanced


def weighted(batch: rlsd.Batch, weigh: Callable) -> tuple[Tensor, Tensor]:
    """RLSD with weigh(gain, advantage) for a weight: A_t = A ((1 - lam) + lam weight)."""
    rollout, views = batch.rollout, (batch.teacher_logp[0], batch.student_logp)
    teacher, logp = (rlsd.of_tokens(view, rollout.tokens) for view in views)
    advantage = rlsd.group_advantage(batch.reward, batch.group_size)
    weight = weigh(rlsd.information_gain(teacher, logp), advantage)
    credit = advantage.unsqueeze(-1) * ((1 - batch.lam) + batch.lam * weight)
    return rlsd.clipped_surrogate(logp, rollout.logp, credit, rollout.mask), credit


def unsigned(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    return weighted(batch, lambda gain, _: unsigned_weight(gain, batch.eps_w))


def balanced(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    settings = batch.rollout.mask, batch.eps_w, batch.group_size
    return weighted(batch, lambda gain, advantage: balanced_weight(gain, advantage, *settings))


def negative_only(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD's weights on wrong responses only, 1 on the others."""
    def weigh(gain, advantage):
        return clipped_weight(gain, advantage, batch.eps_w).masked_fill((advantage >= 0).unsqueeze(-1), 1)

    return weighted(batch, weigh)
