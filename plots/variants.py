"""Methods that the studies put in the place of rlsd.method_loss, and another choice of a wrong key.

A method is a function (mode, batch) -> (loss (), A_t (B, T)).
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

import rlsd


def plain_sum(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLVR + OPSD: the loss of RLVR and lam times that of OPSD. The A_t is RLVR's."""
    loss, token_advantage = rlsd.method_loss("rlvr", batch)
    imitation, _ = rlsd.method_loss("opsd", batch)
    return loss + batch.lam * imitation, token_advantage


def regraded(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLVR whose rewards are not the verifier's: an answer is right if it equals the key. Carry."""
    keys = [key for key in batch.keys for _ in range(batch.group_size)]
    right = [bool(re.fullmatch(rf"[^=]*={key}\.", text)) for key, text in zip(keys, batch.texts)]
    return rlsd.method_loss("rlvr", replace(batch, reward=batch.reward.new_tensor(right)))


# ==== RLSD with other weights ====
#
# gain, mask, and a weight: (B, T); advantage: (B,).


def clipped_weight(gain: Tensor, advantage: Tensor, eps_w: float) -> Tensor:
    """RLSD's own weight: Eq 14 with the clip of Eq 15."""
    return rlsd.evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)


def unsigned_weight(gain: Tensor, eps_w: float) -> Tensor:
    """exp(|Delta_t|), clipped: the same weight for right and wrong responses."""
    positive = gain.new_ones(len(gain))
    return clipped_weight(gain.abs(), positive, eps_w)


def balanced_weight(
    gain: Tensor, advantage: Tensor, mask: Tensor, eps_w: float, group_size: int
) -> Tensor:
    """RLSD's weight, divided at each position by its mean over responses of the same sign.

    The mean is over the responses of a group that reach this position. Over these,
    sum_i A_i w_it = sum_i A_i: there is no push in the mean, up to their lengths.
    """
    weight = clipped_weight(gain, advantage, eps_w)
    balanced = weight.clone()
    by_group = (-1, group_size, weight.shape[1])
    for side in (advantage > 0, advantage < 0):
        counted = (mask * side.unsqueeze(-1)).view(by_group)
        mean = (counted * weight.view(by_group)).sum(1) / counted.sum(1).clamp(min=1)
        mean = mean.masked_fill(mean == 0, 1).repeat_interleave(group_size, 0)
        balanced[side] = (weight / mean)[side]
    return balanced


def weighted(batch: rlsd.Batch, weigh: Callable) -> tuple[Tensor, Tensor]:
    """RLSD with weigh(gain, advantage) for a weight: A_t = A ((1 - lam) + lam weight)."""
    log_probs = rlsd.token_log_probs(batch.student_log_probs, batch.tokens)
    teacher_log_probs = rlsd.token_log_probs(batch.right_key_log_probs, batch.tokens)
    gain = rlsd.information_gain(teacher_log_probs, log_probs)
    advantage = rlsd.group_advantage(batch.reward, batch.group_size)
    weight = weigh(gain, advantage)
    token_advantage = advantage.unsqueeze(-1) * ((1 - batch.lam) + batch.lam * weight)
    loss = rlsd.clipped_surrogate(log_probs, batch.old_log_probs, token_advantage, batch.mask)
    return loss, token_advantage


def unsigned(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with the unsigned weight."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        return unsigned_weight(gain, batch.eps_w)

    return weighted(batch, weigh)


def balanced(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with the balanced weight."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        return balanced_weight(gain, advantage, batch.mask, batch.eps_w, batch.group_size)

    return weighted(batch, weigh)


def without_cites(weight: Tensor, batch: rlsd.Batch) -> Tensor:
    """The weight, but 1 for a sampled <see key>: its praise and blame are those of RLVR."""
    cite = batch.student_log_probs.shape[-1] - 1  # the tokenizer's last token
    return weight.masked_fill(batch.tokens == cite, 1)


def plain_cites(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD in which a cite is praised and blamed as under RLVR."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        return without_cites(clipped_weight(gain, advantage, batch.eps_w), batch)

    return weighted(batch, weigh)


def balanced_plain_cites(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """Both: the balanced weight, and cites as under RLVR."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        args = gain, advantage, batch.mask, batch.eps_w, batch.group_size
        return without_cites(balanced_weight(*args), batch)

    return weighted(batch, weigh)


def negative_only(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with its weight on wrong responses only; on the others it is 1."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        weight = clipped_weight(gain, advantage, batch.eps_w)
        return weight.masked_fill((advantage >= 0).unsqueeze(-1), 1)

    return weighted(batch, weigh)


def away(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """RLSD with the reversed ratio, exp(-sign(A) Delta_t): away from what the teacher prefers."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        return clipped_weight(-gain, advantage, batch.eps_w)

    return weighted(batch, weigh)


def away_when_accepted(mode: str, batch: rlsd.Batch) -> tuple[Tensor, Tensor]:
    """The reversed ratio on accepted responses only; on the others the weight is 1."""

    def weigh(gain: Tensor, advantage: Tensor) -> Tensor:
        weight = clipped_weight(-gain, advantage, batch.eps_w)
        return weight.masked_fill((advantage <= 0).unsqueeze(-1), 1)

    return weighted(batch, weigh)


# ==== CEPO with another wrong key ====


def filtered_wrong_key(
    task: rlsd.Task, texts: list[str], rewards: list[float], key: str, rng: random.Random
) -> str:
    """A rejected answer that is not the key; if there is none, the key.

    A study's job puts it in the place of rlsd.choose_wrong_key, around its training:
    `with mock.patch.object(rlsd, "choose_wrong_key", variants.filtered_wrong_key):`
    """
    rejected = []
    for text, reward in zip(texts, rewards):
        answer = task.answer(text)
        if reward == 0 and answer is not None and answer != key:
            rejected.append(answer)
    return rng.choice(rejected) if rejected else key
