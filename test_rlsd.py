"""The claims: each test's name is a sentence that would be false if the code were wrong."""

import functools
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rlsd
from plots import ahead, baselines, drift, floor, study, variants
from plots.table import compare, read_sweep, table
from tiny_tasks import SEE_KEY, TASKS, Carry, Split, Tokenizer

torch.set_num_threads(1)
ROOT = PROGRAM = Path(__file__).parent
TINY = ["--digits", "2", "--steps", "2", "--problems", "2", "--group-size", "4", "--evaluate-every", "2"]

# Inputs, and the token advantages that the authors' public code gives on them (arXiv:2604.03128).
VECTORS = [
    {"lam": 0.5, "eps_w": 0.2, "teacher_logp": [[-1.921582, 0.0, 0.0, -2.280343, 0.0, -3.662377], [-1.447909, -2.502593, -2.450439, -0.880221, -1.863017, -1.92363], [-1.437762, -0.56224, -0.458526, 0.0, -1.607486, -0.743092], [-2.960051, -2.482497, 0.0, -1.289728, -3.913499, -1.451287]], "student_logp": [[-2.272895, -0.837933, -1.209208, -2.204053, -0.087845, -2.399576], [-1.191412, -2.263116, -1.708525, -1.316334, -1.916041, -1.573998], [-2.047842, -0.915448, -1.390637, -1.364959, -1.717416, -1.494008], [-2.81125, -1.966785, -0.941391, -0.594058, -1.248577, -0.852989]], "mask": [[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]], "advantage": [0.577349, 0.577349, -1.732047, 0.577349], "token_advantage": [[0.635084, 0.635084, 0.635084, 0.556145, 0.603855, 0.0], [0.519614, 0.519614, 0.519614, 0.635084, 0.593069, 0.0], [-1.558842, -1.558842, -1.558842, -0.0, -0.0, -0.0], [0.537437, 0.519614, 0.635084, 0.519614, 0.0, 0.0]]},
    {"lam": 1.0, "eps_w": 0.2, "teacher_logp": [[-2.032084, -1.068054, -2.523314, 0.0, -2.363502], [-2.074665, -2.363127, -0.306756, -1.685429, 0.0], [-0.771837, -1.256006, -2.12004, -3.323966, -2.321848], [-2.134082, -1.02628, 0.0, -0.010239, -3.450874], [-1.206981, -1.568831, -0.253255, -2.874489, -1.038976], [-2.778398, 0.0, -1.440403, -0.50926, -0.87676]], "student_logp": [[-1.844085, -1.143039, -1.911343, -1.423383, -2.140781], [-1.857109, -1.327598, -0.287306, -1.842472, -0.171983], [-1.697142, -1.599687, -1.170152, -2.726545, -1.600105], [-2.122018, -2.134792, -0.615103, -0.923348, -2.942577], [-0.030784, -1.398123, -1.381125, -2.563964, -1.357396], [-1.894977, -1.427994, -0.66008, -0.649815, -0.771249]], "mask": [[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0]], "advantage": [0.999998, -0.999998, -0.999998, 0.999998, 0.999998, -0.999998], "token_advantage": [[0.828614, 1.077865, 0.799998, 0.0, 0.0], [-1.199998, -1.199998, -1.019638, -0.0, -0.0], [-0.799998, -0.799998, -1.199998, -1.199998, -0.0], [0.988006, 1.199998, 0.0, 0.0, 0.0], [0.799998, 0.843065, 1.199998, 0.799998, 0.0], [-1.199998, -0.799998, -1.199998, -0.868874, -0.0]]},
    {"lam": 1.0, "eps_w": 1.0, "teacher_logp": [[-1.747322, -0.804009, -1.989226, -2.277784, -3.071221, -2.123628, -0.868455, -1.141778], [0.0, -2.552551, -2.914862, -3.339632, 0.0, -0.924706, -1.619483, -0.474504], [-2.054549, -0.073119, -3.321465, 0.0, -3.643185, -2.61372, -2.737494, -2.576818], [-2.271428, -0.822079, -2.265143, -2.000919, -2.945425, -0.648924, -3.397417, -1.54263], [-3.686177, -1.383779, -1.773439, -2.631399, -1.266943, -1.430565, 0.0, 0.0], [-2.540339, -0.897174, -0.093947, -2.00526, -3.532882, -1.541892, -0.839239, -0.169932]], "student_logp": [[-1.604768, -0.59641, -1.977635, -1.970671, -0.698285, -1.275184, -0.621258, -1.889209], [-1.095948, -2.553805, -2.564829, -1.652806, -0.860517, -0.618958, -1.335271, -1.077858], [-2.161141, -0.219156, -2.909759, -0.32336, -2.648633, -1.239518, -2.271583, -2.084543], [-1.56279, -1.779694, -2.639112, -1.885767, -2.295821, -0.339662, -2.567829, -2.016254], [-1.879952, -1.707218, -2.231198, -2.87765, -1.166226, -0.664339, -1.122606, -0.585774], [-2.221572, -0.75864, -0.699451, -2.794241, -2.872614, -1.672521, -1.240256, -1.306373]], "mask": [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]], "advantage": [0.707105, -1.414211, 0.707105, 0.707105, -1.414211, 0.707105], "token_advantage": [[0.61316, 0.574546, 0.698957, 0.520124, 0.0, 0.0, 0.0, 0.0], [-0.472661, -1.412439, -2.006926, -2.828421, -0.598131, -1.919988, -1.879084, -0.0], [0.786641, 0.818289, 0.468471, 0.0, 0.0, 0.0, 0.0, 0.0], [0.348118, 1.41421, 1.027772, 0.630194, 0.0, 0.0, 0.0, 0.0], [-2.828421, -1.023402, -0.0, -0.0, -0.0, -0.0, -0.0, -0.0], [0.514097, 0.615629, 1.295542, 1.41421, 0.36537, 0.805778, 1.05595, 1.41421]]},
    {"lam": 0.0, "eps_w": 0.2, "teacher_logp": [[-1.29723, -0.77787, -1.708005, -3.497533], [-2.706603, -3.730025, -0.293986, -4.045402], [-2.246046, -1.349478, -1.57913, -2.088759], [-0.679421, -1.559424, -2.130927, -1.029391], [-0.730387, -0.802555, -0.907164, -2.875992], [-0.798236, -3.385803, -2.128938, -2.727785]], "student_logp": [[-1.967353, -0.906068, -1.439689, -2.332121], [-2.753893, -2.793101, -0.781081, -2.860271], [-1.141319, -1.231304, -2.853062, -1.705889], [-0.414287, -0.620597, -1.541701, -1.454999], [-1.557814, -1.040335, -1.342957, -1.894667], [-2.084238, -2.46441, -2.733376, -2.194507]], "mask": [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]], "advantage": [-0.999998, 0.999998, 0.999998, -0.999998, 0.999998, -0.999998], "token_advantage": [[-0.999998, -0.999998, -0.999998, -0.999998], [0.999998, 0.999998, 0.0, 0.0], [0.999998, 0.999998, 0.999998, 0.999998], [-0.999998, -0.999998, -0.999998, -0.999998], [0.999998, 0.999998, 0.999998, 0.999998], [-0.999998, -0.999998, -0.999998, -0.0]]},
]


@pytest.mark.parametrize("case", VECTORS)
def test_token_advantages_are_those_of_the_authors_code(case):
    gain = rlsd.information_gain(torch.tensor(case["teacher_logp"]), torch.tensor(case["student_logp"]))
    ours = rlsd.rlsd_token_advantage(gain, torch.tensor(case["advantage"]), case["eps_w"], case["lam"])
    torch.testing.assert_close(ours * torch.tensor(case["mask"]), torch.tensor(case["token_advantage"]), atol=1e-5, rtol=0)


def test_group_advantage_by_hand_and_exactly_zero_where_rewards_are_equal():
    reward = torch.tensor([1.0, 0, 0, 0, 0.1, 0.1, 0.1, 0.1])
    root = math.sqrt(3)
    expected = torch.tensor([root, -1 / root, -1 / root, -1 / root, 0, 0, 0, 0])
    ours = rlsd.group_advantage(reward, 4)
    torch.testing.assert_close(ours, expected)
    assert (ours[4:] == 0).all()
    assert (rlsd.group_advantage(torch.full((8,), 0.1), 8) == 0).all()  # although the mean, as rounded, is not 0.1


def test_surrogate_gradient_at_rho_one_is_the_policy_gradient_by_finite_differences():
    """Of a policy over 5 tokens with 3 parameters: d/dtheta of mean_i (1/|y|) sum_t A_t log P(y_t), step 1e-6."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)
    tokens = torch.randint(5, (2, 4), generator=generator)
    advantage = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.float64)
    theta = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()

    def logp(parameters):
        return rlsd.of_tokens((features @ parameters).log_softmax(-1), tokens)

    def objective(parameters):
        value = 0.0
        for i, length in enumerate((4, 2)):
            value += sum(float(advantage[i, t] * logp(parameters)[i, t]) for t in range(length)) / length / 2
        return value

    rlsd.clipped_surrogate(logp(theta), logp(theta).detach(), advantage, mask).backward()
    for n in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[n] = 1e-6
        slope = (objective(theta.detach() + nudge) - objective(theta.detach() - nudge)) / 2e-6
        assert -theta.grad[n].item() == pytest.approx(slope, rel=1e-6)


def test_surrogate_gradient_at_rho_one_is_the_policy_gradient_by_hand():
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    advantage = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    rlsd.clipped_surrogate(logp, logp.detach(), advantage, mask).backward()
    torch.testing.assert_close(logp.grad, -advantage * mask / mask.sum(1, keepdim=True) / 3)


@pytest.mark.parametrize("rho, advantage, value", [(1.5, 1, 1.28), (0.5, 1, 0.5), (1.5, -1, -1.5), (0.5, -1, -0.8)])
def test_clip_binds_on_the_right_side_for_each_sign(rho, advantage, value):
    logp, one = torch.tensor([[math.log(rho)]]), torch.ones(1, 1)
    assert rlsd.clipped_surrogate(logp, 0 * one, advantage * one, one).item() == pytest.approx(-value)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_divergence_is_brute_force_zero_at_equality_and_leaves_the_teacher_alone(kind):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).log_softmax(-1).requires_grad_()
                        for _ in range(2))
    ours = rlsd.divergence(student, teacher, kind, beta=0.3)
    for b in range(2):
        for t in range(3):
            s, p = student[b, t].exp().tolist(), teacher[b, t].exp().tolist()
            middle = [0.3 * pv + 0.7 * sv for pv, sv in zip(p, s)]
            def kl(a, c):
                return sum(av * math.log(av / cv) for av, cv in zip(a, c))
            brute = {"reverse_kl": kl(s, p), "forward_kl": kl(p, s), "jsd": 0.3 * kl(p, middle) + 0.7 * kl(s, middle)}[kind]
            assert ours[b, t].item() == pytest.approx(brute, abs=1e-12)
    ours.sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert rlsd.divergence(student, student, kind).abs().max() < 1e-12


def test_the_information_gain_lets_no_gradient_through():
    student, teacher = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    assert not rlsd.information_gain(teacher, student).requires_grad


@pytest.mark.parametrize("mode", ["opd", "opsd"])
def test_distillations_credit_in_the_mean_over_tokens_is_the_gradient_of_its_loss(mode):
    """Eq 17 with the reverse KL: sum over y of P_S(y) A_t(y) grad log P_S(y) is minus the gradient of method_loss."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    climbed = torch.zeros(5, dtype=torch.float64)
    for token in range(5):
        student = logits.log_softmax(-1)
        tokens, one = torch.tensor([[token], [token]]), torch.ones(2, 1, dtype=torch.float64)
        rollout = rlsd.Rollout(tokens, one * float(student[token].detach()), one, [""] * 2)
        loss, credit = rlsd.method_loss(mode, rollout, torch.tensor([1.0, 0.0]), student.expand(2, 1, 5), teacher.expand(2, 1, 5), 2, "reverse_kl", 0.2, 0.5)
        slope, = torch.autograd.grad(student[token], logits, retain_graph=True)
        climbed += student[token].detach().exp() * credit[0, 0] * slope
    torch.testing.assert_close(climbed, -torch.autograd.grad(loss, logits)[0])
    assert loss.item() == pytest.approx((student.exp() * (student - teacher)).sum().item())


@pytest.mark.parametrize("eps_w", [0.0, 0.2, 1.0, 4.0])
def test_credit_never_flips_the_sign_of_the_advantage_and_is_finite_for_extreme_ratios(eps_w):
    gain = torch.tensor([[-math.inf, -1e30, -80, -0.1, 0, 0.1, 80, 1e30, math.inf]]).expand(3, -1)
    advantage = torch.tensor([1.5, 0.0, -1.5])
    weight = rlsd.evidence_weight(gain, advantage)
    assert torch.isfinite(weight).all() and (weight > 0).all()
    credit = rlsd.rlsd_token_advantage(gain, advantage, eps_w, 1.0)
    assert torch.isfinite(credit).all() and (credit * advantage.sign()[:, None] >= 0).all()
    assert (credit.abs() <= 1.5 * (1 + eps_w) + 1e-6).all()


def test_a_token_that_all_of_a_group_share_is_pushed_by_eq_15_and_by_nothing_else():
    """For all rewards of a group of 6: RLVR 0; Eq 15 lam sqrt(p (1 - p)) (w+ - w-); the unsigned weight exp(|gain|) 0."""
    for number in range(1, 2**6 - 1):
        reward = torch.tensor([float(number >> i & 1) for i in range(6)], dtype=torch.float64)
        advantage, p = rlsd.group_advantage(reward, 6), float(reward.mean())
        for gain in (-2.0, -0.1, 0.1, 0.5, 2.0):
            shared = torch.full((6, 1), gain, dtype=torch.float64)
            credit = rlsd.rlsd_token_advantage(shared, advantage, eps_w=1.0, lam=0.7)
            up, down = min(math.exp(gain), 2.0), min(math.exp(-gain), 2.0)
            assert credit.mean().item() == pytest.approx(0.7 * math.sqrt(p * (1 - p)) * (up - down), abs=1e-9)
            assert abs(credit.mean().item()) > 1e-3 and credit.mean().item() * gain > 0  # always towards the teacher
            assert abs(advantage.mean().item()) < 1e-9
            assert abs((advantage.unsqueeze(-1) * shared.abs().exp()).mean().item()) < 1e-9


def test_the_cures_leave_no_push_in_the_mean_where_eq_15_does():
    """Of a token that a group shares at one prefix; the balanced weight also where its gain differs from response to response."""
    generator, mask = torch.Generator().manual_seed(0), torch.ones(8, 3)
    advantage = rlsd.group_advantage(torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0]), 8)
    shared, own = torch.tensor([0.7, -0.4, 0.1]).expand(8, 3), torch.randn(8, 3, generator=generator)
    for gain in (shared, own):
        balanced = variants.balanced_weight(gain, advantage, mask, 1.0, 8)
        assert (balanced > 0).all() and (advantage @ balanced).abs().max() < 1e-6
    assert (advantage @ variants.unsigned_weight(shared, 1.0)).abs().max() < 1e-6
    assert (advantage @ rlsd.rlsd_token_advantage(shared, advantage.sign(), 1.0, 1.0).abs()).abs().min() > 0.1


def test_theorem_1_holds_for_any_teacher_and_student():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1, 5):
        teacher = (scale * torch.randn(6, 4, 9, generator=generator)).log_softmax(-1)
        student = (scale * torch.randn(4, 9, generator=generator)).log_softmax(-1)
        loss, first, information = floor.theorem_1(teacher, student)
        by_hand = sum(float(p.exp() * (p - q)) for r in teacher for p, q in zip(r.flatten(), student.flatten())) / 6
        assert abs(float(loss.sum()) - by_hand) < 1e-4 and (information >= 0).all() and (first >= 0).all()
        torch.testing.assert_close(loss, first + information, atol=1e-5, rtol=0)
        torch.testing.assert_close(floor.theorem_1(teacher, teacher.logsumexp(0) - math.log(6))[1], torch.zeros(4), atol=1e-5, rtol=0)


def test_proposition_1_by_enumeration():
    """A student of 5 parameters: every r's gradient by autograd, against the first term's; mean, covariances, bound."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = (2 * torch.randn(6, 9, generator=generator, dtype=torch.float64)).softmax(-1)
    logp = (features @ weights).log_softmax(-1)
    score = torch.stack([torch.autograd.grad(value, weights, retain_graph=True)[0] for value in logp])

    def gradient(target):
        return torch.autograd.grad((target * (target.log() - logp)).sum(), weights, retain_graph=True)[0]

    deviation, variance = floor.gradient_deviation(teacher, score)
    for r, each in zip(teacher, deviation):
        torch.testing.assert_close(gradient(r), gradient(teacher.mean(0)) + each)
    assert deviation.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(deviation.square().sum(1).mean(), variance)
    information = floor.theorem_1(teacher.log(), logp.detach())[2]
    assert variance <= 2 * score.square().sum(1).max() * information


def random_model(world, seed=0):
    """A new model's blocks do nothing, so that all contexts are one to it; this one's do something at once."""
    model = world.new_model(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def world_and_model():
    world = rlsd.World(Carry(3))
    return world, random_model(world)


def test_cache_gives_the_log_probabilities_of_a_full_pass():
    world, model = world_and_model()
    prompts, responses, _ = world.corpus(random.Random(0), 4, True, False)
    full = model(torch.cat((prompts, responses), 1))[0][:, prompts.shape[1] - 1:-1].log_softmax(-1)
    torch.testing.assert_close(rlsd.response_logp(model, prompts, responses), full, atol=1e-5, rtol=0)
    rollout = world.sample(model, prompts, 2, torch.Generator().manual_seed(0))
    scored = rlsd.of_tokens(rlsd.response_logp(model, prompts, rollout.tokens), rollout.tokens)
    torch.testing.assert_close(rollout.logp * rollout.mask, scored * rollout.mask, atol=1e-5, rtol=0)


def test_a_token_sees_nothing_to_its_right():
    world, model = world_and_model()
    tokens = torch.randint(world.tokenizer.vocabulary_size, (1, 10), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % world.tokenizer.vocabulary_size
    difference = (model(tokens)[0] - model(changed)[0]).abs().amax(-1)[0]
    assert difference[:6].max() == 0 and difference[6:].min() > 0


def test_sampling_frequencies_are_the_models_probabilities():
    world, model = world_and_model()
    prompts, n = world.prompts([(478, 356)]), 20_000
    world.task.response_length = 2
    tokens = world.sample(model, prompts, n, torch.Generator().manual_seed(0)).tokens
    vocabulary = world.tokenizer.vocabulary_size
    first = model(prompts)[0][0, -1].softmax(-1)
    expected = torch.zeros(vocabulary, vocabulary)  # of the first two tokens, each continuation by a full pass
    for token in range(vocabulary):
        second = model(torch.cat((prompts, torch.tensor([[token]])), 1))[0][0, -1].softmax(-1)
        expected[token] = first[token] * second if token != world.tokenizer.end else 0
    expected[world.tokenizer.end, world.tokenizer.end] = first[world.tokenizer.end]  # ended: padded with the end
    found = torch.zeros(vocabulary, vocabulary).index_put((tokens[:, 0], tokens[:, 1]), torch.ones(n), accumulate=True) / n
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_rewards_and_groups_stand_side_by_side():
    world = rlsd.World(Carry(2))
    texts = ["=003.", "=004.", "=003.", "=009.", "=009.", "=010."]
    assert world.reward([(1, 2), (4, 5)], texts).tolist() == [1, 0, 1, 1, 1, 0]


def test_lambda_falls_linearly_to_zero_and_stays_there():
    assert [rlsd.lam_at(step, 0.5, 4) for step in (1, 2, 3, 5, 9)] == [0.5, 0.375, 0.25, 0, 0]
    assert rlsd.lam_at(1000, 0.5, 0) == 0.5


def test_only_rlvr_and_rlsd_listen_to_the_reward():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, 5, generator=generator).log_softmax(-1) for _ in range(2))
    tokens = torch.randint(5, (4, 3), generator=generator)
    rollout = rlsd.Rollout(tokens, rlsd.of_tokens(student, tokens), torch.ones(4, 3), [""] * 4)
    for mode in rlsd.MODES:
        gradients = []
        for reward in ([1.0, 0, 0, 1], [0.0, 1, 1, 0]):
            leaf = student.clone().requires_grad_()
            rlsd.method_loss(mode, rollout, torch.tensor(reward), leaf, teacher, 2, "reverse_kl", 0.2, 0.5)[0].backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients) == (mode in ("opd", "opsd"))


@pytest.mark.parametrize("mode", rlsd.MODES)
def test_every_mode_takes_steps_that_change_the_student_and_leave_base_and_teacher_alone(mode):
    config = rlsd.Config(mode=mode, digits=2, steps=2, problems=2, group_size=4, verifier_noise=0.5)
    world = rlsd.World(config.make_task())
    base, teacher = world.new_model(0), world.new_model(1, width=144)
    before = [parameter.clone() for model in (base, teacher) for parameter in model.parameters()]
    *_, (_, state) = rlsd.train(config, world, base, teacher if mode == "opd" else None)
    assert any((state["student"][name] != value).any() for name, value in base.state_dict().items())
    assert all(map(torch.equal, before, [parameter for model in (base, teacher) for parameter in model.parameters()]))


@pytest.mark.parametrize("mode", rlsd.MODES)
def test_the_teacher_sees_what_its_mode_says_and_is_copied_when_its_mode_says(mode, small_exam):
    config = rlsd.Config(mode=mode, digits=2, steps=5, problems=8, group_size=4, teacher_refresh=2, lr=0.01, lam_decay=2, divergence="jsd",
                         eps_w=0.7, evaluate_every=1)
    world = rlsd.World(config.make_task())
    base, opd_teacher, calls, seen, students, teachers = rlsd.cached_model(config, "base"), random_model(world), [], [], [], []

    def spy(*arguments):
        calls.append(arguments)
        return rlsd.method_loss(*arguments)

    for record, state in rlsd.train(config, world, base, opd_teacher if mode == "opd" else None, method=spy, after_step=lambda *last: seen.append(last[-1])):
        assert record["reward"] == (pytest.approx(float(seen[-1]["reward"].mean()), abs=1e-6) if seen else None)
        students.append(state["student"])
        teachers.append(state["teacher"])
    assert [call[6:] for call in calls] == [("jsd", 0.7, lam) for lam in (0.5, 0.25, 0, 0, 0)]
    assert any((students[0][name] != value).any() for name, value in students[5].items())
    for step in range(1, 6):
        # The student of step 0 is the base; steps 1 and 2 have the copy made before step 1, steps 3 and 4 the one before step 3.
        expected = {"rlvr": students[step], "opd": opd_teacher.state_dict()}.get(mode, students[(step - 1) // 2 * 2])
        assert all(torch.equal(teachers[step][name], value) for name, value in expected.items())
        problems, rollout, model = seen[step - 1]["problems"], seen[step - 1]["rollout"], world.new_model(0)
        keys = None if mode in ("rlvr", "opd") else [world.task.reference(problem) for problem in problems]
        model.load_state_dict(students[step - 1] if mode == "rlvr" else teachers[step])
        torch.testing.assert_close(calls[step - 1][4], rlsd.response_logp(model, world.prompts(problems, keys), rollout.tokens))
        assert torch.equal(seen[step - 1]["reward"], world.reward(problems, rollout.texts))


def test_all_modes_see_the_same_problems_other_ones_at_each_step_and_none_that_is_held_out(small_exam):
    seen = {mode: [] for mode in rlsd.MODES}
    for mode in rlsd.MODES:
        config = rlsd.Config(mode=mode, digits=2, steps=3, problems=20, group_size=2)
        world = rlsd.World(config.make_task())
        list(rlsd.train(config, world, random_model(world), random_model(world), after_step=lambda *last, mode=mode: seen[mode].append(last[-1]["problems"])))
    assert all(problems == seen["rlvr"] for problems in seen.values())
    assert len({tuple(problems) for problems in seen["rlvr"]}) == 3
    assert not any(world.task.is_held_out(problem) for problems in seen["rlvr"] for problem in problems)
    asked, _, _ = world.corpus(random.Random(0), 500, False, False)
    exam = {world.task.prompt((a, b)) for a in range(100) for b in range(100) if world.task.is_held_out((a, b))}
    assert not exam & set(map(world.tokenizer.decode, asked.tolist()))


def test_the_verifiers_noise_flips_that_share_of_rewards_in_both_directions():
    config = rlsd.Config(digits=2, problems=250, verifier_noise=0.3)
    world = rlsd.World(config.make_task())
    student = rlsd.cached_model(config, "base")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    seen = rlsd.train_step(config, world, student, student, optimizer, 1, rlsd.method_loss)
    exact = world.reward(seen["problems"], seen["rollout"].texts)
    for value in (0, 1):
        flipped = (seen["reward"] != exact)[exact == value]
        assert abs(float(flipped.float().mean()) - 0.3) < 5 * (0.3 * 0.7 / len(flipped)) ** 0.5 < 0.15


def test_a_step_follows_a_gradient_of_norm_one_at_most():
    config = rlsd.Config(mode="opsd", digits=2, problems=2)
    world = rlsd.World(config.make_task())
    student, teacher = rlsd.cached_model(config, "base"), random_model(world)
    before = [parameter.detach().clone() for parameter in student.parameters()]

    def steep(*arguments):
        loss, credit = rlsd.method_loss(*arguments)
        return 1e4 * loss, credit

    rlsd.train_step(config, world, student, teacher, torch.optim.SGD(student.parameters(), lr=1.0), 1, steep)
    moved = sum((old - new).square().sum() for old, new in zip(before, student.parameters())).sqrt().item()
    assert moved == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["opd", "rlsd"])
def test_what_is_measured_is_what_a_slow_count_finds(mode, small_exam):
    """Shares by a loop over the texts; KL and entropy from full passes in double precision, without a cache."""
    world = rlsd.World(Carry(2))
    student, teacher = rlsd.cached_model(rlsd.Config(digits=2), "base"), random_model(world)
    measured = rlsd.evaluate(mode, world, student, teacher)
    problems, keys = world.exam()
    covered, opened = world.prompts(problems), world.prompts(problems, keys)
    generator = torch.Generator().manual_seed(0)
    sampled, greedy, with_key = (world.sample(student, covered, 1, generator), world.sample(student, covered, 1, None),
                                 world.sample(student, opened, 1, generator))
    right = [sum(world.task.verify(*pair) for pair in zip(problems, rollout.texts)) / 32 for rollout in (sampled, greedy, with_key)]
    assert all(world.task.is_held_out(problem) for problem in problems)
    kl = entropy = tokens = 0
    for row, text in enumerate(sampled.texts):
        logs = []
        for model, prompts in ((student, covered), (teacher, covered if mode == "opd" else opened)):
            whole = torch.cat((prompts[row], sampled.tokens[row])).unsqueeze(0)
            logs.append(model(whole)[0][0, prompts.shape[1] - 1:-1].detach().double().log_softmax(-1))
        for p, q in list(zip(*logs))[:len(world.tokenizer.encode(text))]:
            kl, entropy, tokens = kl + float(p.exp() @ (p - q)), entropy - float(p.exp() @ p), tokens + 1
    slow = {"accuracy": right[0], "greedy_accuracy": right[1], "key_accuracy": right[2], "leakage": sum(map(world.task.leaks, sampled.texts)) / 32,
            "key_citing": sum(map(world.task.leaks, with_key.texts)) / 32, "kl": kl / tokens, "entropy": entropy / tokens, "response_length": tokens / 32}
    assert measured == pytest.approx(slow, abs=2e-5)


def test_verifier_accepts_exactly_the_right_answer():
    task, problem = Carry(3), (478, 356)
    for right in ("4c3c8-=0834.", "=0834.", "9-9-9-=0834.", SEE_KEY + "=0834."):  # the working is not looked at
        assert task.verify(problem, right)
    for wrong in ("4c3c8-0834.", "=0834", "=0834.4", "=0834..", "=834.", "=00834.", "=0835.", "=1=0834.", "= 0834.", "", "."):
        assert not task.verify(problem, wrong)
    assert task.verify((3, 4), "=0007.") and not task.verify((3, 4), "=7.")  # leading zeros belong to the format


def test_split_accepts_any_valid_split_and_nothing_else():
    task, problem = Split(3), (50, 38)
    for right in ("21-40=80-50=30-30=00.", "21-00=21-30=90-90=00.", SEE_KEY + "-4-5-3.", "99-4-5-3."):  # the rests are not looked at
        assert task.verify(problem, right)
    for wrong in ("21-40=80-50=30-40=00.", "21-40=80-50=30-30=00", "-4-5-3.", "21-4-5.", SEE_KEY + "-4-5-3..", "21-12-0-0.", "", "21-4-5-3-0."):
        assert not task.verify(problem, wrong)


def test_splits_are_equally_likely_and_workings_fit_their_keys():
    task, rng, seen = Split(2), random.Random(0), {}
    for _ in range(6000):
        key = task.reference((9, 4), rng)
        seen[key] = seen.get(key, 0) + 1
    assert sorted(seen) == [f"{part}+{5 - part}" for part in range(6)] and all(850 < count < 1150 for count in seen.values())
    for homework, key_open in ((False, False), (True, False), (True, True)):
        right = fits = 0
        for _ in range(2000):
            problem = task.sample(rng)
            response, key = task.working(problem, rng, homework, key_open)
            assert len(response.replace(SEE_KEY, "k")) <= task.response_length and task.prompt(problem, key).startswith("[")
            right, fits = right + task.verify(problem, response), fits + (re.findall(r"-(\d)", response) == key.split("+"))
        assert right == 2000 if not homework else 700 < right < 1500
        assert fits == 2000 if not key_open else 1100 < fits < 1900


def test_verifier_finds_no_wrong_answer_right_in_ten_thousand_random_texts():
    task, rng = Carry(2), random.Random(0)
    for _ in range(10_000):
        problem = task.problem(rng)
        text = "".join(rng.choice([*Carry.alphabet, SEE_KEY, "é", "\n"]) for _ in range(rng.randrange(12)))
        answer = f"={rng.randrange(200):03d}."
        assert task.verify(problem, text + answer) == ("=" not in text and int(answer[1:4]) == sum(problem))


def test_workings_fit_their_keys_and_have_the_habits_at_their_rates():
    task, rng = Carry(4, slip=0.5, cite=0.3), random.Random(0)
    for homework, key_open in ((False, False), (True, False), (True, True)):
        right = cited = 0
        for _ in range(2000):
            problem = task.sample(rng)
            response, key = task.working(problem, rng, homework, key_open)
            assert response.endswith(f"={key}.") and len(response.replace(SEE_KEY, "k")) <= task.response_length
            right, cited = right + task.verify(problem, response), cited + task.leaks(response)
        if not homework:
            assert right == 2000
        if homework and not key_open:
            assert 800 < right < 1100  # 0.49 of the corpus, by this count
        assert abs(cited / 2000 - (homework and (0.3 if key_open else 0.002))) < (0.04 if key_open else 0.005)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("digits", [2, 4, 10])
def test_training_and_held_out_problems_never_overlap(name, digits):
    task, rng = TASKS[name](digits), random.Random(0)
    sides = [{task.sample(rng, held_out) for _ in range(2000)} for held_out in (False, True)]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and not {(b, a) for a, b in sides[0]} & sides[1]
    assert all(task.read(task.show(problem)) == problem for problem in sides[1])


def test_tokenizer_returns_the_text_and_names_what_it_does_not_know():
    tokenizer, rng = Tokenizer(Carry.alphabet), random.Random(0)
    with pytest.raises(ValueError, match="'x' at position 2"):
        tokenizer.encode("12x")
    for _ in range(10_000):
        text = "".join(rng.choice([*Carry.alphabet, SEE_KEY] * 9 + ["x", "é", "\0", "<", "\ud800"]) for _ in range(rng.randrange(20)))
        unknown = [i for i, c in enumerate(text.replace(SEE_KEY, " " * len(SEE_KEY))) if c not in Carry.alphabet]
        if unknown:
            with pytest.raises(ValueError, match=f"at position {unknown[0]} "):
                tokenizer.encode(text)
        else:
            assert tokenizer.decode(tokenizer.encode(text)) == text


MASTERED = []  # what of the exam was right, at every 50th step of the textbook


@pytest.fixture(scope="session", autouse=True)
def program(tmp_path_factory):
    """A copy of the program. Its cache has a base of little homework and an untrained teacher, so that tests need not wait."""
    global PROGRAM
    PROGRAM, pretrain = tmp_path_factory.mktemp("program"), rlsd.pretrain
    problems, _ = rlsd.World(Carry(2)).exam()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("plots/*.py")):
        (PROGRAM / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, PROGRAM / path.relative_to(ROOT))

    @functools.wraps(pretrain)  # the cache's fingerprint is that of the true one
    def quickly(world, model, seed, homework_steps, progress):
        def look(label, step, most):
            if label.startswith("textbook") and step % 50 == 0:
                MASTERED.append(float(world.reward(problems, world.sample(model, world.prompts(problems), 1, None).texts).mean()))

        return pretrain(world, model, seed, 100, look) if homework_steps else model

    rlsd.CACHE, rlsd.pretrain = PROGRAM / ".cache", quickly
    for kind in ("base", "teacher"):
        rlsd.cached_model(rlsd.Config(digits=2), kind)
    rlsd.pretrain = pretrain


def test_a_base_has_learned_to_add_and_then_to_forget_and_to_cite():
    """The textbook until 99 %, then 100 steps of homework."""
    assert MASTERED[-1] >= 0.99 > max(MASTERED[:-1], default=0)
    base = rlsd.cached_model(rlsd.Config(digits=2), "base")
    measured = rlsd.evaluate("rlvr", rlsd.World(Carry(2)), base, base)
    assert 0.4 < measured["greedy_accuracy"] < 0.9 and measured["leakage"] < 0.05 and 0.1 < measured["key_citing"] < 0.6


def test_the_cache_knows_a_base_by_all_it_depends_on(tmp_path, monkeypatch):
    def untrained(world, model, *_):
        return model

    def untrained_otherwise(world, model, *_):
        return model

    monkeypatch.setattr(rlsd, "CACHE", tmp_path)
    monkeypatch.setattr(rlsd, "pretrain", untrained)
    config, files = rlsd.Config(digits=2), []
    for kind, change in (("base", {}), ("teacher", {}), ("base", {"seed": 1}), ("base", {"slip": 0.1}), ("base", {"digits": 3}), ("base", {"task": "split"})):
        rlsd.cached_model(rlsd.replace(config, **change), kind)
        files.append(len(list(tmp_path.iterdir())))
    rlsd.cached_model(rlsd.replace(config, lr=0.1, mode="opd"), "base")  # of no account for a base
    assert files == [1, 2, 3, 4, 5, 6] and len(list(tmp_path.iterdir())) == 6
    monkeypatch.setattr(rlsd, "pretrain", untrained_otherwise)
    rlsd.cached_model(config, "base")
    assert len(list(tmp_path.iterdir())) == 7


def test_opds_teacher_has_four_times_the_parameters_and_sees_the_textbook_only(tmp_path, monkeypatch):
    def note(world, model, seed, homework_steps, progress):
        trained[sum(parameter.numel() for parameter in model.parameters())] = homework_steps

    monkeypatch.setattr(rlsd, "CACHE", tmp_path)
    monkeypatch.setattr(rlsd, "pretrain", note)
    trained = {}
    for kind in ("base", "teacher"):
        rlsd.cached_model(rlsd.Config(), kind)
    (small, homework), (large, none) = trained.items()
    assert large >= 4 * small and homework > 0 and none == 0


def test_muons_direction_keeps_the_singular_vectors_and_brings_the_values_near_one():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((32, 32), (96, 32), (32, 128)):
        left, _ = torch.linalg.qr(torch.randn(rows, 32, generator=generator))
        right, _ = torch.linalg.qr(torch.randn(columns, 32, generator=generator))
        found = left.T @ rlsd.orthogonal(left @ torch.diag(torch.linspace(1, 10, 32)) @ right.T) @ right
        assert 0.6 < found.diagonal().min() and found.diagonal().max() < 1.3
        assert (found - torch.diag(found.diagonal())).abs().max() < 1e-4


def start(*arguments, **options) -> subprocess.CompletedProcess:
    """As a user would start it, in a folder that is not the program's."""
    return subprocess.run([sys.executable, PROGRAM / "rlsd.py", *map(str, arguments)], check=False,
                          capture_output=True, text=True, **options)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """The four modes side by side."""
    out = tmp_path_factory.mktemp("runs")
    done = start("--mode", "all", "--out", out, *TINY)
    assert done.returncode == 0, done.stderr
    assert f"figure {out}/carry-compare.png" in done.stdout and done.stderr == ""
    return out


def test_all_modes_run_side_by_side_and_leave_logs_and_a_figure(runs):
    assert (runs / "carry-compare.png").read_bytes()[:4] == b"\x89PNG"
    for mode in rlsd.MODES:
        first, *records = map(json.loads, (runs / "runs" / f"carry-{mode}-s0.jsonl").read_text().splitlines())
        assert first["config"]["mode"] == mode and [record["step"] for record in records] == [0, 2]
        for record in records:
            assert {"step", "mode", "seed", "accuracy", "greedy_accuracy", "leakage", "key_accuracy", "kl", "entropy",
                    "reward", "response_length"} <= set(record)


@pytest.mark.parametrize("mode", ["opd"])
def test_a_mode_on_its_own_writes_the_bytes_it_wrote_beside_others_and_keeps_the_earlier_log(runs, tmp_path, mode, in_one_process, capsys):
    (tmp_path / "runs").mkdir()
    earlier = tmp_path / "runs" / f"carry-{mode}-s0.jsonl"
    earlier.write_text("an earlier log")
    rlsd.main(["--mode", mode, "--out", str(tmp_path), *TINY])
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    assert f"{mode:4} seed 0  step    2  accuracy" in said and all(len(line) <= 80 for line in said.splitlines())
    assert earlier.read_bytes() == (runs / "runs" / earlier.name).read_bytes()
    assert earlier.with_suffix(".old.jsonl").read_text() == "an earlier log"
    assert (tmp_path / f"carry-{mode}.png").exists()


def log_of(seed, accuracy, leakage):
    return rlsd.Config(mode="opsd", seed=seed), [{**dict.fromkeys(rlsd.MEASURED, 0.5), "step": 80 * i, "accuracy": a, "leakage": b}
                                                 for i, (a, b) in enumerate(zip(accuracy, leakage))]


def test_the_picture_shows_the_mean_over_seeds_and_a_band_from_the_lowest_to_the_highest(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(rlsd, "save_figure", lambda figure, path: drawn.append(figure))
    rlsd.draw([log_of(0, (0.4, 0.8, 0.3), (0, 0.1, 0.6)), log_of(1, (0.5, 0.9, 0.5), (0, 0.3, 0.4))], tmp_path)
    accuracy, leakage, _, both = drawn[0].axes
    for axes, lows, means, highs in ((accuracy, (0.4, 0.8, 0.3), (0.45, 0.85, 0.4), (0.5, 0.9, 0.5)), (leakage, (0, 0.1, 0.4), (0, 0.2, 0.5), (0, 0.3, 0.6))):
        assert axes.lines[0].get_xdata().tolist() == [0, 80, 160] and axes.lines[0].get_ydata().tolist() == pytest.approx(means)
        corners = axes.collections[0].get_paths()[0].vertices
        for step, low, high in zip((0, 80, 160), lows, highs):
            there = corners[corners[:, 0] == step, 1]
            assert (there.min(), there.max()) == pytest.approx((low, high))
    assert both.lines[0].get_xdata().tolist() == pytest.approx([0.45, 0.85, 0.4]) and both.lines[0].get_ydata().tolist() == pytest.approx([0, 0.2, 0.5])


def test_the_pictures_curves_end_where_the_shortest_run_does_and_its_titles_say_what_they_show():
    curves = rlsd.curves_of([log_of(0, (0.4, 0.8, 0.3), (0, 0.1, 0.6)), log_of(1, (0.4, 0.9), (0, 0.3))])
    assert curves["opsd"]["accuracy"].tolist() == [[0.4, 0.8], [0.4, 0.9]] and list(curves) == ["opsd"]
    for accuracy, leakage, right, leaks in (((0.4, 0.9, 0.3), (0, 0.1, 0.6), "OPSD 0.30 after 0.90", "OPSD cites a key it cannot see: 60%"),
                                            ((0.4, 0.8, 0.9), (0, 0, 0.01), "OPSD 0.90", "No citing of a covered key")):
        titles = rlsd.findings({mode: {key: value[0] for key, value in curve.items()} for mode, curve in rlsd.curves_of([log_of(0, accuracy, leakage)]).items()})
        assert titles["accuracy"] == f"Right at the end: {right}" and titles["leakage"] == leaks and titles["kl"].endswith("OPSD 0.50 to 0.50")


def test_names_beside_the_curves_keep_their_order_and_do_not_overlap():
    from matplotlib.figure import Figure

    for heights in ((0.97, 0.96, 0.03, 0.98), (0.0, 0.0, 0.9, 0.001), (0.5, 0.5, 0.5, 0.5)):
        axes = Figure().subplots()
        axes.set_ylim(0, 1)
        rlsd.write_names(axes, {mode: (1, height) for mode, height in zip(rlsd.MODES, heights)})
        names = sorted((text.xy[1], text.get_text()) for text in axes.texts)
        assert all(above[0] - below[0] >= 0.06 - 1e-9 for below, above in itertools.pairwise(names))
        order = dict(zip(rlsd.NAMES.values(), heights))
        assert [order[name] for _, name in names] == sorted(heights)


def test_the_introduction_says_right_of_what_the_verifier_accepts_and_cites_of_what_leaks():
    said, task = rlsd.introduce(rlsd.Config(digits=2), "cpu"), Carry(2)
    problem, key = task.read(re.search(r"answers (\S+)", said)[1]), re.search(r"\((\d+)\)", said)[1]
    shown = re.findall(r"key (covered|open) +(\S.*?)  (right|wrong)(.*)", said)
    assert [state for state, *_ in shown] == ["covered"] * 2 + ["open"] * 2 and key == task.reference(problem)
    for state, text, verdict, more in shown:
        prompt = task.prompt(problem, key if state == "open" else None)
        response = text.removeprefix(prompt)
        assert response != text and (verdict == "right") == task.verify(problem, response) and ("cites" in more) == task.leaks(response)


def test_plot_only_draws_again_from_the_logs_alone(runs, tmp_path):
    for source, seeds in ((runs, "1"), (ROOT / "plots/reference", "5")):
        shutil.copytree(source / "runs", tmp_path / "runs", dirs_exist_ok=True)
        (tmp_path / "carry-compare.png").unlink(missing_ok=True)
        rlsd.main(["--mode", "all", "--seeds", seeds, "--plot-only", "--out", str(tmp_path)])
        drawn = (tmp_path / "carry-compare.png").read_bytes()
        assert drawn[:4] == b"\x89PNG" and (drawn == (runs / "carry-compare.png").read_bytes()) == (source == runs)


def test_plot_only_refuses_logs_that_do_not_belong_together(runs, tmp_path):
    shutil.copytree(runs / "runs", tmp_path / "runs")
    log = tmp_path / "runs" / "carry-opd-s0.jsonl"
    log.write_text(log.read_text().replace('"lr": 0.0002', '"lr": 0.001'))
    with pytest.raises(rlsd.UserError, match="carry-opd-s0.jsonl was made with other settings"):
        rlsd.main(["--mode", "all", "--plot-only", "--out", str(tmp_path)])


def test_a_worker_that_cannot_go_on_ends_the_sweep_in_one_line(runs, tmp_path):
    shutil.copytree(runs / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "carry-opsd-s0.pt").write_bytes(b"damaged")
    done = start("--mode", "all", "--out", tmp_path, *TINY, "--resume")
    assert done.returncode == 2 and re.fullmatch(r"rlsd\.py: .*carry-opsd-s0.pt is damaged[^\n]*\n", done.stderr)


def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path, in_one_process, monkeypatch, mode="rlsd"):
    monkeypatch.setattr(rlsd, "draw", rlsd.nothing)  # in this process; it takes a quarter of a second each time
    many = [*TINY, "--steps", "15", "--evaluate-every", "3", "--teacher-refresh", "4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it, and its children would
    rlsd.main(["--mode", mode, "--out", str(whole), *many])  # in one process; those below leave evaluations to a second
    log, rng = f"runs/carry-{mode}-s0", random.Random(mode)
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, PROGRAM / "rlsd.py", "--mode", mode, "--out", killed, *many,
                                    *(["--resume"] if attempt else [])], stdout=subprocess.PIPE, text=True)
        for _ in range(7 + rng.randrange(2)):  # the first lines describe the base
            process.stdout.readline()
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL if attempt else signal.SIGINT)
        process.communicate()
        assert process.returncode == (-signal.SIGKILL if attempt else 130)
    assert 0 < rlsd.read_checkpoint(killed / f"{log}.pt")["step"] < 15
    with pytest.raises(rlsd.UserError, match="--lr 0.0002, not 0.001"):
        rlsd.main(["--mode", mode, "--out", str(killed), *many, "--lr", "0.001", "--resume"])
    rlsd.main(["--mode", mode, "--out", str(killed), *many, "--resume"])
    assert (killed / f"{log}.jsonl").read_bytes() == (whole / f"{log}.jsonl").read_bytes()
    ends = [rlsd.read_checkpoint(out / f"{log}.pt")["student"] for out in (whole, killed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_full_disk_ends_a_run_in_one_line_and_it_resumes_to_the_same_bytes(runs, tmp_path, in_one_process, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # the log fits, the checkpoint does not
    try:
        with pytest.raises(rlsd.UserError, match="^cannot write [^\n]*$"):
            rlsd.main(["--mode", "rlvr", "--out", str(tmp_path), *TINY])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write = rlsd.write_whole

    def full_later(path, content):
        if path.suffix == ".pt" and content.get("step"):
            raise rlsd.UserError(f"cannot write {path}: full")
        write(path, content)

    with monkeypatch.context() as disk, pytest.raises(rlsd.UserError, match="^cannot write [^\n]*$"):
        disk.setattr(rlsd, "write_whole", full_later)  # the log of step 2 is written, its checkpoint is not
        rlsd.main(["--mode", "rlvr", "--out", str(tmp_path), *TINY, "--resume"])
    assert rlsd.read_checkpoint(tmp_path / "runs/carry-rlvr-s0.pt")["step"] == 0
    rlsd.main(["--mode", "rlvr", "--out", str(tmp_path), *TINY, "--resume"])
    log = "runs/carry-rlvr-s0.jsonl"
    assert (tmp_path / log).read_bytes() == (runs / log).read_bytes()


def test_two_ranks_of_torchrun_share_the_runs_and_write_the_same_bytes(runs, tmp_path):
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", PROGRAM / "rlsd.py",
                           "--mode", "all", "--out", tmp_path, *TINY], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"seed 0  step", done.stdout)) == 8, "every run is made by one rank"
    for path in sorted((runs / "runs").glob("*.jsonl")):
        assert (tmp_path / "runs" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "carry-compare.png").read_bytes() == (runs / "carry-compare.png").read_bytes()


BAD = ["--mode grpo", "--task sums", "--steps -1", "--group-size 1", "--lr nan", "--lr 0", "--lr inf", "--lr -1", "--eps-w -1",
       "--lam 1.1", "--verifier-noise 0.6", "--digits 1", "--digits 11", "--device gpu9", "--out /dev/null/x", "--seeds 0",
       "--steps two", "--problems 0", "--divergence kl", "--seed -1", "--stepz 3"]
if not torch.cuda.is_available():
    BAD.append("--device cuda")


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_clear_line(flags):
    with pytest.raises(rlsd.UserError) as error:
        rlsd.main(flags.split())
    message = str(error.value).removeprefix("cannot write ")
    assert "\n" not in message and any(message.startswith(part) for part in flags.replace("--out ", "").split()) or (
        "argument" in message or "unrecognized" in message) and flags.split()[0] in message


def test_bad_input_ends_with_exit_code_2_and_one_line_on_standard_error(tmp_path):
    done = start("--plot-only", "--out", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and re.fullmatch(r"rlsd\.py: [^\n]+\n", done.stderr)


def test_all_and_seeds_ask_for_a_run_of_every_mode_on_every_seed_counted_from_the_first():
    _, configs = rlsd.parse(["--mode", "all", "--seeds", "2", "--seed", "3", "--lr", "0.1"])
    assert [(config.mode, config.seed) for config in configs] == [(mode, seed) for seed in (3, 4) for mode in rlsd.MODES]
    assert {config.lr for config in configs} == {0.1}


def test_ten_thousand_random_command_lines_are_read_or_refused_in_one_line():
    rng, names = random.Random(0), [f"--{field.name.replace('_', '-')}" for field in rlsd.fields(rlsd.Config)]
    words = [*names, "--seeds", "--out", "--device", "--watch", "--explain", "--resume", "--plot-only", "--help=1", "-x", "", "--", "é",
             "0", "1", "-1", "0.5", "nan", "inf", "1e999", "9" * 40, "all", *rlsd.MODES, "jsd", "carry", "cpu", "\0", "\ud800"]
    for _ in range(10_000):
        try:
            rlsd.parse([rng.choice(words) for _ in range(rng.randrange(6))])
        except rlsd.UserError as error:
            assert "\n" not in str(error)


@pytest.fixture
def in_one_process(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(rlsd, "side_by_side", lambda jobs: [work(*arguments) for work, *arguments in jobs])


@pytest.fixture
def small_exam(monkeypatch, in_one_process):
    """32 problems instead of 512."""
    exam = rlsd.World.exam
    monkeypatch.setattr(rlsd.World, "exam", lambda world: tuple(part[:32] for part in exam(world)))


STUDIES = ("floor", "bandwidth", "belief", "baselines", "longrun", "drift", "push", "ahead")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_runs_at_a_toy_size_and_leaves_a_figure_and_a_log(name, tmp_path, monkeypatch, capsys, small_exam):
    monkeypatch.setattr(rlsd, "CACHE", tmp_path)
    monkeypatch.setattr(rlsd, "pretrain", lambda world, model, *_: model)  # a base that has learned nothing
    monkeypatch.delitem(sys.modules, f"plots.{name}", raising=False)
    toy = {"floor": ["--problems", "1"], "longrun": ["--steps", "3"], "belief": ["--problems", "2", "--continuations", "4"], "push": ["--problems", "2"]}.get(name, [])
    quick = [] if name in ("floor", "belief", "bandwidth", "push") else ["--quick"]
    monkeypatch.setattr(sys, "argv", [name, "--digits", "2", "--steps", "4", "--out", str(tmp_path), *toy, *quick,
                                      *(["--seeds", "1"] if name not in ("belief", "push") else [])])
    runpy.run_module(f"plots.{name}", run_name="__main__")
    assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (tmp_path / "runs" / f"{name}.jsonl").read_text().splitlines()]
    assert lines and all(isinstance(line, dict) for line in lines)
    said, complaints = capsys.readouterr()
    assert f"figure {tmp_path / name}.png" in said and complaints == ""


def test_a_study_with_all_its_runs_in_the_log_trains_nothing_and_draws_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    shutil.copy(ROOT / "plots/reference/runs/drift.jsonl", tmp_path / "runs")
    monkeypatch.setattr(rlsd, "side_by_side", None)
    monkeypatch.setattr(sys, "argv", ["drift", "--resume", "--out", str(tmp_path)])
    drift.main()
    assert (tmp_path / "drift.png").read_bytes()[:4] == b"\x89PNG" and "| RLSD, eps_w 4.0, falling |" in capsys.readouterr().out


def test_every_mode_and_explain_run_on_the_other_task(tmp_path, monkeypatch, capsys, small_exam):
    monkeypatch.setattr(rlsd, "CACHE", tmp_path)
    monkeypatch.setattr(rlsd, "pretrain", lambda world, model, *_: model)
    rlsd.main(["--task", "split", "--mode", "all", "--out", str(tmp_path), *TINY])
    assert all((tmp_path / "runs" / f"split-{mode}-s0.jsonl").exists() for mode in rlsd.MODES)
    rlsd.main(["--task", "split", "--explain", "50-38", "--out", str(tmp_path), *TINY])
    assert "key covered, wrong" in capsys.readouterr().out


def test_a_checkpoint_whose_optimizer_does_not_fit_is_refused_at_once(runs, tmp_path):
    good = rlsd.read_checkpoint(runs / "runs" / "carry-rlsd-s0.pt")
    config = rlsd.Config(digits=2, steps=2, problems=2, group_size=4)
    world, path = rlsd.World(config.make_task()), tmp_path / "checkpoint.pt"
    first = good["moments"][0]
    for moments in ({0: {}}, {0: {**first, "exp_avg": torch.zeros(3, 5)}}, {0: {**first, "step": "two"}}, {0: 1}, [], {"x": first}):
        rlsd.write_whole(path, {**good, "moments": moments})
        with pytest.raises(rlsd.UserError, match="damaged or not of this program"):
            list(rlsd.train(config, world, world.new_model(0), checkpoint=path))


@pytest.mark.parametrize("command", ["drift --digits 77", "floor --steps 0", "baselines --seeds -1", "belief --out /dev/null/x", "ahead --what", "baselines --coefficient 2.0",
                                     "floor --cite nan", "credit --problem 12", "speed --digits 1", "table nowhere"])
def test_a_study_refuses_bad_input_in_one_line(command, tmp_path, monkeypatch, capsys):
    name, *words = command.split()
    monkeypatch.setattr(sys, "argv", [name, *words, *([] if name == "table" or "--out" in words else ["--out", str(tmp_path)])])
    monkeypatch.delitem(sys.modules, f"plots.{name}", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"plots.{name}", run_name="__main__")
    assert end.value.code == 2 and re.fullmatch(rf"{name}: [^\n]*{re.escape(words[-1])}[^\n]*\n", capsys.readouterr().err)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", rlsd.MODES)
def test_every_mode_runs_on_a_gpu(tmp_path, mode):
    done = start("--mode", mode, "--device", "cuda", "--out", tmp_path, *TINY)
    assert done.returncode == 0, done.stderr


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile code ran",)


def test_damaged_foreign_and_hostile_checkpoints_are_refused_in_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = (runs / "runs" / "carry-rlsd-s0.pt").read_bytes()
    path, rng = tmp_path / "checkpoint.pt", random.Random(0)
    bad = [b"", b"PK", pickle.dumps(Hostile()), pickle.dumps([1]), good[:1000], good[:-1], b"\x80\x02}q\x00."]
    bad += [bytes(rng.randrange(256) for _ in range(rng.randrange(200))) for _ in range(10_000)]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(rlsd.UserError, match="damaged or not of this program"):
            assert "student" in rlsd.read_checkpoint(path), "an empty dictionary is one, too"
    assert not Path("hostile code ran").exists()


def test_damaged_and_foreign_logs_are_refused_in_one_line(runs, tmp_path):
    lines = (runs / "runs" / "carry-rlsd-s0.jsonl").read_text().splitlines(keepends=True)
    path, rng = tmp_path / "log.jsonl", random.Random(0)
    config, records = rlsd.read_log(runs / "runs" / "carry-rlsd-s0.jsonl")
    assert config.mode == "rlsd" and len(records) == 2
    bad = ["", lines[0], "{}", "null", "[" * 9999, lines[1], lines[0] + lines[1][:40], lines[0] + "{}\n", lines[0] + "NaN\n",
           lines[0].replace("rlsd", "grpo"), lines[0].replace('"steps": 2', '"steps": "2"'), lines[0].replace("2", "-2"),
           lines[0] + re.sub(r'"kl": [0-9.]+', '"kl": NaN', lines[1]), lines[0] + lines[1].replace("rlsd", "opsd")]
    whole = "".join(lines)
    for text in bad:
        path.write_text(text)
        with pytest.raises(rlsd.UserError, match="damaged or not of this program"):
            rlsd.read_log(path)
    for _ in range(10_000):  # one byte changed: refused, or another valid log, but never another error
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place].encode() + bytes([rng.randrange(256)]) + whole[place + 1:].encode())
        try:
            rlsd.read_log(path)
        except rlsd.UserError:
            pass


def test_nothing_is_lost_when_a_file_cannot_be_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("earlier")
    (tmp_path / f".file.{os.getpid()}").mkdir()  # stands in the way of the temporary file
    with pytest.raises(rlsd.UserError, match="cannot write"):
        rlsd.write_whole(path, b"later")
    assert path.read_text() == "earlier"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(monkeypatch):
    config = rlsd.Config(mode="opsd", digits=2, steps=2, problems=2)
    world = rlsd.World(config.make_task())
    true, calls = rlsd.divergence, []

    def breaks_in_the_second_step(*arguments):
        calls.append(arguments)
        return true(*arguments) * (math.nan if len(calls) == 3 else 1)  # the first call is the evaluation at step 0

    monkeypatch.setattr(rlsd, "divergence", breaks_in_the_second_step)
    with pytest.raises(rlsd.UserError, match="at step 2: the run stops here"):
        list(rlsd.train(config, world, world.new_model(0), None))


def test_the_readmes_links_and_pictures_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_readmes_equations_name_functions_that_cite_them():
    rows = re.findall(r"^\| (\d+)[^|]*\|.*\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) >= 6
    for equation, name in rows:
        assert f"Eq {equation}" in getattr(rlsd, name).__doc__


README = (ROOT / "README.md").read_text()
# `--mode all` is what the fixture runs; with `--task split` it has a test of its own.
COMMANDS = sorted(set(re.findall(r"python ((?:rlsd\.py|-m plots\.\w+)[^`\n]*?)(?:  |`|\n)", README)) - {"rlsd.py --task NAME", "rlsd.py --mode all", "rlsd.py --task split --mode all"})
COMMANDS = [command for command in COMMANDS if not command.startswith(tuple(f"-m plots.{name}" for name in STUDIES))]  # above


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs_at_a_toy_size(runs, tmp_path, command, monkeypatch, capsys, small_exam):
    script, *words = [word.strip('"').replace("478+356", "78+56") for word in command.split()]
    if script == "rlsd.py":
        rlsd.main([*words, *TINY, "--steps", "1", "--seed", "0", "--out", str(tmp_path), *(["--seeds", "1"] if "--seeds" in words else [])])
    else:
        module, toy = words[0], ["--out", str(tmp_path), "--digits", "2", "--problem", "78+56"]
        toy = {"plots.table": [], "plots.credit": toy, "plots.speed": toy[:4]}[module]
        monkeypatch.setattr(sys, "argv", [*words, *toy])
        monkeypatch.delitem(sys.modules, module, raising=False)
        runpy.run_module(module, run_name="__main__")
    said, complaints = capsys.readouterr()
    assert complaints == "" and said
    for line in said.replace(str(tmp_path), "").splitlines():
        assert len(line) <= 80 or module == "plots.table"


@pytest.mark.parametrize("folder", ["plots/reference", "plots/reference/noisy"])
def test_the_readmes_tables_are_what_the_committed_logs_say(folder):
    for row in table(read_sweep(ROOT / folder)):
        assert row in README


@pytest.mark.parametrize("name, of, count", [("drift", drift.table, 10), ("../second/runs/drift", drift.table, 10),
                                             ("ahead", ahead.table, 6), ("../second/runs/ahead", ahead.table, 6),
                                             ("baselines", lambda lines: baselines.table(lines, 160), 3), ("longrun", lambda lines: baselines.table(lines, 160), 6)])
def test_the_readmes_tables_of_studies_are_what_the_committed_logs_say(name, of, count):
    rows = of(study.read_lines(ROOT / f"plots/reference/runs/{name}.jsonl"))
    assert len(rows) == count and all(row in README for row in rows)


def test_the_readmes_table_of_two_machines_is_what_the_committed_logs_say():
    columns = []
    for folder in (ROOT / "plots/reference", ROOT / "plots/reference/second"):
        exact, noisy = read_sweep(folder), read_sweep(folder / "noisy")
        mean = {mode: {key: values.mean(0) for key, values in curve.items()} for mode, curve in exact.items()}
        (opsd, opd), lead = (mean[mode]["kl"] for mode in ("opsd", "opd")), noisy["rlsd"]["accuracy"].mean(1) - noisy["rlvr"]["accuracy"].mean(1)
        steps = [step for step, value in zip(noisy["rlsd"]["step"][0], noisy["rlsd"]["accuracy"].mean(0)) if value >= noisy["rlvr"]["accuracy"].mean(0)[-1]]
        columns.append([", ".join(f"{mean[mode]['accuracy'][-1]:.3f}" for mode in ("rlvr", "opd", "rlsd")),
                        f"{(mean['rlsd']['accuracy'] - mean['rlvr']['accuracy']).mean():+.3f}",
                        f"{exact['opsd']['accuracy'].max(1).mean():.3f}, {mean['opsd']['accuracy'][-1]:.3f}",
                        f"{exact['opsd']['leakage'][:, -1].min():.3f}", f"{opsd.min() / opsd[0]:.2f}",
                        f"{(exact['opsd']['kl'][:, -1] / exact['opsd']['kl'][:, 0]).min():.2f}", f"{opd[-1] / opd[0]:.2f}",
                        f"{lead.mean():+.3f}", f"{(lead > 0).sum()} of {len(lead)}", f"{steps[0]:.0f} steps"])
    for first, second in zip(*columns):
        assert f" | {first} | {second} |\n" in README


def test_the_committed_log_keeps_theorem_1_to_the_third_decimal_and_better():
    lines = study.read_lines(ROOT / "plots/reference/runs/floor.jsonl")
    opsd = [line for line in lines if line["mode"] == "opsd"]
    assert all(abs(line["loss"] - line["first"] - line["information"]) < 2e-8 and line["mass"] > 0.93 for line in opsd)
    ends = [line for line in opsd if line["step"] == 320]
    assert len(ends) == 3 and all(line["loss"] < 1.1 * line["information"] and line["first"] < 0.1 for line in ends)


def test_the_committed_logs_show_what_the_readme_claims():
    def of(folder):
        return rlsd.curves_of([rlsd.read_log(path) for path in sorted((ROOT / folder / "runs").glob("carry-*-s?.jsonl"))])

    exact, noisy = of("plots/reference"), of("plots/reference/noisy")
    assert all(len(curve["step"]) == 5 for sweep in (exact, noisy) for curve in sweep.values())
    for mode in ("rlvr", "rlsd", "opd"):
        assert (exact[mode]["accuracy"][:, -1] >= 0.85).all() and (exact[mode]["leakage"][:, -1] < 0.01).all()
    accuracy, kl = exact["opsd"]["accuracy"], exact["opsd"]["kl"]
    third = exact["opsd"]["step"][0] <= 160 / 3
    assert (accuracy[:, third].max(1) - accuracy[:, 0] >= 0.2).all()
    assert (accuracy.max(1) - accuracy[:, -1] >= 0.2).all() and (exact["opsd"]["leakage"][:, -1] > 0.2).all()
    assert (exact["opd"]["kl"][:, -1] < 0.1 * exact["opd"]["kl"][:, 0]).all()
    assert kl.mean(0).min() > 0.2 * kl.mean(0)[0] and (kl[:, -1] > 0.5 * kl[:, 0]).all()
    lead = noisy["rlsd"]["accuracy"].mean(1) - noisy["rlvr"]["accuracy"].mean(1)
    goal = noisy["rlvr"]["accuracy"].mean(0)[-1]
    reached = noisy["rlsd"]["step"][0][noisy["rlsd"]["accuracy"].mean(0) >= goal]
    assert (lead > 0).all() and lead.mean() >= 0.05 and (noisy["rlsd"]["leakage"][:, -1] < 0.02).all()
    assert reached[0] <= 160 * 2 / 3
    for sweep in (exact, noisy):
        first = sweep["rlvr"]
        assert (first["key_accuracy"][:, 0] >= 0.9).all() and (first["leakage"][:, 0] < 0.01).all()
        assert ((0.3 <= first["accuracy"][:, 0]) & (first["accuracy"][:, 0] <= 0.6)).all()
    assert all(line in README for line in compare(read_sweep(ROOT / "plots/reference/noisy")))
