"""The claims: each test's name is a sentence that would be false if the code were wrong. The methods first."""

import contextlib
import importlib
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import rlsd
from plots import compare, files, floor, pool, variants
from tiny_tasks import SEE_KEY, TASKS, Carry, Split, Task, Tokenizer, UserError

torch.set_num_threads(1)
ROOT = PROGRAM = Path(__file__).parent
VECTORS = json.loads((ROOT / "plots/reference/vectors.json").read_text("utf-8"))
TINY = ["--digits", "2", "--steps", "2", "--problems", "2", "--group-size", "4", "--evaluate-every", "2"]
MASTERED = []  # what of the exam was right, at every 50th step of the textbook
each, raises = pytest.mark.parametrize, pytest.raises

def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

def a_batch(reward, mode="rlsd", size=(4, 3, 5), tokens=None, **changed):  # in groups of 2; all else is random
    logp, *views = (numbers(*size, seed=n).log_softmax(-1) for n in range(1 + len(rlsd.MODES[mode].sees)))
    tokens = torch.randint(size[2], size[:2], generator=torch.Generator().manual_seed(9)) if tokens is None else tokens
    rollout = rlsd.Rollout(tokens, rlsd.of_tokens(logp, tokens), torch.ones(size[:2]), [""] * size[0])
    batch = rlsd.Batch(rollout, torch.tensor(reward), logp.requires_grad_(), tuple(views), 2, "reverse_kl", 0.2, 0.5)
    return batch._replace(**changed)

# ---- 1. The methods.
@each("method, case", [(method, case) for method in VECTORS for case in VECTORS[method]])
def test_token_advantages_are_those_of_the_authors_code(method, case):  # RLSD's and CEPO's, on these inputs
    views = {"rlsd": ("teacher_logp", "student_logp"), "cepo": ("right_key_logp", "wrong_key_logp")}[method]
    gain, mask = rlsd.information_gain(*(torch.tensor(case[view]) for view in views)), torch.tensor(case["mask"])
    ours = rlsd.token_credit(method, gain, torch.tensor(case["advantage"]), case["eps_w"], case["lam"])
    torch.testing.assert_close(ours * mask, torch.tensor(case["token_advantage"]), atol=1e-5, rtol=0)

def test_group_advantage_by_hand_and_exactly_zero_where_rewards_are_equal():
    root, ours = math.sqrt(3), rlsd.group_advantage(torch.tensor([1.0, 0, 0, 0, 0.1, 0.1, 0.1, 0.1]), 4)
    torch.testing.assert_close(ours, torch.tensor([root, -1 / root, -1 / root, -1 / root, 0, 0, 0, 0]))
    assert (ours[4:] == 0).all() and (rlsd.group_advantage(torch.full((8,), 0.1), 8) == 0).all()  # its mean is not

def test_surrogate_gradient_at_rho_one_is_the_policy_gradient_by_finite_differences():
    logits, direction, advantage = numbers(2, 4, 5), numbers(2, 4, 5, seed=1), numbers(2, 4, seed=2)
    mask, tokens = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]])
    def logp(shift):
        return rlsd.of_tokens((logits + shift * direction).log_softmax(-1), tokens)
    def objective(shift):  # mean_i (1/|y|) sum_t A_t log P(y_t)
        return sum(float((advantage * logp(shift))[i, :length].mean()) for i, length in enumerate((4, 2))) / 2
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    rlsd.clipped_surrogate(logp(shift), logp(0), advantage, mask.double()).backward()
    assert -shift.grad.item() == pytest.approx((objective(1e-6) - objective(-1e-6)) / 2e-6, rel=1e-6)

@each("rho, advantage, value", [(1.5, 1, 1.28), (0.5, 1, 0.5), (1.5, -1, -1.5), (0.5, -1, -0.8)])
def test_clip_binds_on_the_right_side_for_each_sign(rho, advantage, value):
    logp, one = torch.tensor([[math.log(rho)]]), torch.ones(1, 1)
    assert rlsd.clipped_surrogate(logp, 0 * one, advantage * one, one).item() == pytest.approx(-value)

def test_what_stands_in_the_padding_counts_for_nothing():
    mask, logp = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[-1.0, -2, -math.inf, 0]], requires_grad=True)
    loss = rlsd.clipped_surrogate(logp, logp.detach(), torch.tensor([[1.0, 3, math.nan, math.inf]]), mask)
    loss.backward()
    assert loss.item() == -2 and logp.grad.tolist() == [[-0.5, -1.5, 0, 0]]
    assert rlsd.response_mean(torch.tensor([[1.0, 2, math.inf, math.nan]]), mask).item() == 1.5

@each("impossible", [(), (0,), (1,), (0, 1)], ids=str)
@each("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_divergence_is_brute_force_and_its_gradient_is_the_students_and_finite_if_it_is(kind, impossible):
    def kl(p, q):
        return sum((a * math.log(a / b) if b else math.inf) for a, b in zip(p, q) if a)
    views = numbers(2, 2, 3, 5)
    views[[*impossible], 0, 0, 3] = -math.inf  # a token that student, teacher, or both never give
    student, teacher = views.requires_grad_().log_softmax(-1)
    ours = rlsd.divergence(student, teacher, kind, beta=0.3)
    for b, t in itertools.product(range(2), range(3)):
        s, p = student[b, t].exp().tolist(), teacher[b, t].exp().tolist()
        middle = [0.3 * a + 0.7 * c for a, c in zip(p, s)]
        brute = {"reverse_kl": kl(s, p), "forward_kl": kl(p, s), "jsd": 0.3 * kl(p, middle) + 0.7 * kl(s, middle)}
        assert ours[b, t].item() == pytest.approx(brute[kind], abs=1e-12)
    assert rlsd.divergence(student, student, kind).abs().max() < 1e-12
    if ours.isfinite().all():
        ours.sum().backward()
        assert (views.grad[0] != 0).any() and views.grad[0].isfinite().all() and (views.grad[1] == 0).all()

@each("mode", ["opd", "opsd"])
def test_distillations_credit_in_the_mean_over_tokens_is_the_gradient_of_its_loss(mode):
    """Eq 17 with the reverse KL: sum over y of P_S(y) A_t(y) grad log P_S(y) is minus the gradient of method_loss."""
    size, climbed, logits = (2, 1, 5), torch.zeros(5, dtype=torch.float64), numbers(5, seed=7).requires_grad_()
    teacher, student = numbers(5, seed=8).log_softmax(-1).expand(size), logits.log_softmax(-1)
    for token in range(5):
        loss, credit = rlsd.method_loss(mode, a_batch([1.0, 0], mode, size, torch.full((2, 1), token),
                                                      student_logp=student.expand(size), teacher_logp=(teacher,)))
        slope, = torch.autograd.grad(student[token], logits, retain_graph=True)
        climbed += student[token].detach().exp() * credit[0, 0] * slope
    torch.testing.assert_close(climbed, -torch.autograd.grad(loss, logits)[0])

@each("eps_w", [0.0, 0.2, 1.0, 4.0])
def test_credit_never_flips_the_sign_of_the_advantage_and_is_finite_for_extreme_ratios(eps_w):
    gain = torch.tensor([[-math.inf, -1e30, -80, -0.1, 0, 0.1, 80, 1e30, math.inf]]).expand(3, -1)
    advantage = torch.tensor([1.5, 0.0, -1.5])
    assert (weight := rlsd.evidence_weight(gain, advantage)).isfinite().all() and (weight > 0).all()
    for mode in ("rlvr", "rlsd", "cepo"):
        credit = rlsd.token_credit(mode, gain, advantage, eps_w, 1.0)
        assert (credit * advantage.sign()[:, None] >= 0).all() and (credit.abs() <= 1.5 * (1 + eps_w) + 1e-6).all()

def test_a_token_that_all_of_a_group_share_is_pushed_by_eq_15_and_by_nothing_else():
    """For all rewards of a group of 6: RLVR 0; Eq 15 lam sqrt(p (1 - p)) (w+ - w-); the weight exp(|gain|) 0."""
    for number, gain in itertools.product(range(1, 2**6 - 1), (-2.0, -0.1, 0.1, 0.5, 2.0)):
        reward = torch.tensor([float(number >> i & 1) for i in range(6)], dtype=torch.float64)
        advantage, p, shared = rlsd.group_advantage(reward, 6), float(reward.mean()), gain + 0 * numbers(6, 1)
        push = rlsd.rlsd_token_advantage(shared, advantage, eps_w=1.0, lam=0.7).mean().item()
        up, down = min(math.exp(gain), 2.0), min(math.exp(-gain), 2.0)
        assert push == pytest.approx(0.7 * math.sqrt(p * (1 - p)) * (up - down), abs=1e-9)
        assert push * gain > 0 and abs(push) > 1e-3, "it is always towards the teacher"
        assert abs(advantage.mean()) < 1e-9 and abs((advantage.unsqueeze(-1) * shared.abs().exp()).mean()) < 1e-9

@each("lam", [0.5, 1.0, rlsd.lam_at(18, 0.5, 50)])
def test_cepo_gives_a_token_that_is_equally_likely_under_both_keys_exactly_a(lam):
    batch = a_batch([1.0, 0, 0, 1], "cepo", lam=lam, eps_w=1.0)
    advantage, (right, wrong) = rlsd.group_advantage(batch.reward, 2).unsqueeze(-1), batch.teacher_logp
    wrong[:, 0] = right[:, 0]
    _, credit = rlsd.method_loss("cepo", batch)
    assert (credit[:, :1] == advantage).all() and (credit[:, 1:] != advantage).all()

def test_the_docstrings_table_of_credit_is_what_the_functions_give():  # three of eight right; this one is wrong
    table = rlsd.__doc__[rlsd.__doc__.index("    token "):rlsd.__doc__.index("`python rlsd.py")]
    rows = {row[0]: row[1:] for row in map(str.split, table.splitlines()) if row}
    task, response = Carry(4), "".join(rows.pop("token"))
    assert task.answer(response) and not task.verify((4218, 3567), response) and {*map(len, rows.values())} == {15}
    gain = rlsd.information_gain(*(torch.tensor([list(map(float, rows[name]))]).log() for name in ("P_T", "P_S")))
    advantage = rlsd.group_advantage(torch.tensor([1.0] * 3 + [0.0] * 5), 8)[-1:]
    assert f"advantage A = {advantage.item():.2f}" in rlsd.__doc__
    for name in ("RLVR", "OPSD", "RLSD"):
        credit = rlsd.token_credit(name.lower(), gain, advantage, 1.0, 1.0)
        assert credit[0].tolist() == pytest.approx(list(map(float, rows[name])), abs=0.01)

@each("function, good, more", [
    (rlsd.group_advantage, [(4,)], [2]), (rlsd.divergence, [(3, 3, 3)] * 2, ["jsd"]),
    (rlsd.divergence, [(3, 3, 3)] * 2, ["reverse_kl"]), (rlsd.divergence, [(3, 3, 3)] * 2, ["forward_kl"]),
    (rlsd.clipped_surrogate, [(3, 3)] * 4, []), (rlsd.response_mean, [(3, 3)] * 2, []),
    (rlsd.information_gain, [(3, 3)] * 2, []), (rlsd.evidence_weight, [(3, 3), (3,)], []),
    (rlsd.rlsd_token_advantage, [(3, 3), (3,)], [0.2, 1])])
def test_tensors_that_do_not_belong_together_are_refused(function, good, more):
    function(*map(torch.zeros, good), *more)
    wrong = (), (1,), (3,), (5,), (3, 1), (1, 3), (3, 3), (3, 4), (4, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 3, 4)
    for place, shape in itertools.product(range(len(good)), wrong):
        if good[place] == good[-1] != shape:  # a gain may have any length
            with raises(ValueError):
                function(*map(torch.zeros, [*good[:place], shape, *good[place + 1:]]), *more)

@each("call", [
    lambda: rlsd.group_advantage(torch.tensor([1, math.nan]), 2), lambda: next(rlsd.train(*a_world(mode="opd")[:3])),
    lambda: rlsd.group_advantage(torch.tensor([1, math.inf]), 2), lambda: rlsd.divergence(*numbers(2, 2, 3, 5), "kl"),
    lambda: rlsd.token_credit("grpo", *numbers(2, 1, 1), 0.2, 1), lambda: rlsd.method_loss("grpo", a_batch([1.0] * 4))])
def test_rewards_that_are_no_numbers_unknown_names_and_opd_without_a_teacher_are_refused(call):
    with raises(ValueError):
        call()

def test_the_cures_leave_no_push_in_the_mean_where_eq_15_does():
    mask, advantage = torch.ones(8, 3), rlsd.group_advantage(torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0]), 8)
    shared, own = torch.tensor([0.7, -0.4, 0.1]).expand(8, 3), numbers(8, 3).float()  # gains of a token at one prefix
    for weight in (variants.unsigned_weight(shared, 1.0), *(variants.balanced_weight(gain, advantage, mask, 1.0, 8)
                                                            for gain in (shared, own))):
        assert (weight > 0).all() and (advantage @ weight).abs().max() < 1e-6
    assert rlsd.rlsd_token_advantage(shared, advantage, 1.0, 1.0).mean(0).abs().min() > 0.05

def test_rlvr_plus_opsd_is_the_sum_and_the_variants_of_rlsd_differ_in_their_weights():
    batch = a_batch([1.0, 0, 0, 1])
    (one, advantage), (other, _), (_, ours) = (rlsd.method_loss(mode, batch) for mode in ("rlvr", "opsd", "rlsd"))
    assert variants.plain_sum("rlvr", batch)[0].item() == pytest.approx((one + 0.5 * other).item())
    assert torch.allclose(variants.negative_only("rlsd", batch)[1], torch.where(advantage > 0, advantage, ours))
    assert all((method("rlsd", batch)[1] * advantage > 0).all() for method in (variants.unsigned, variants.balanced))

@each("scale", [0.1, 1, 5])
def test_theorem_1_holds_for_any_teacher_and_student(scale):
    teacher, student = ((scale * numbers(*shape)).log_softmax(-1) for shape in ((6, 4, 9), (4, 9)))
    loss, first, information = floor.theorem_1(teacher, student)
    by_hand = sum(float(p.exp() * (p - q)) for r in teacher for p, q in zip(r.flatten(), student.flatten())) / 6
    assert abs(float(loss.sum()) - by_hand) < 1e-9 and (information >= 0).all() and (first >= 0).all()
    torch.testing.assert_close(loss, first + information)

def test_proposition_1_by_enumeration():  # of a student of 5 parameters
    weights, teacher = numbers(5, seed=1).requires_grad_(), (2 * numbers(6, 9, seed=2)).softmax(-1)
    logp = (numbers(9, 5) @ weights).log_softmax(-1)
    def gradient(target):
        return torch.autograd.grad((target * (target.log() - logp)).sum(), weights, retain_graph=True)[0]
    score = torch.stack([torch.autograd.grad(value, weights, retain_graph=True)[0] for value in logp])
    deviation, variance = floor.gradient_deviation(teacher, score)
    torch.testing.assert_close(torch.stack([*map(gradient, teacher)]), gradient(teacher.mean(0)) + deviation)
    torch.testing.assert_close(deviation.square().sum(1).mean(), variance)
    assert deviation.mean(0).abs().max() < 1e-12
    assert variance <= 2 * score.square().sum(1).max() * floor.theorem_1(teacher.log(), logp.detach())[2]

# ---- 2. The table of modes, and what all modes have in common.
@pytest.fixture
def small_exam(monkeypatch):  # 32 problems instead of 512
    exam = Task.exam
    monkeypatch.setattr(Task, "exam", lambda task: tuple(part[:32] for part in exam(task)))

def random_model(world):  # a new model's blocks do nothing, so that all contexts are one to it; this one's do something
    torch.manual_seed(0)
    model = rlsd.GPT(world.tokenizer.vocabulary_size, 64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model

def a_world(**settings):  # of a toy size, with the base of little homework, and a teacher that has learned nothing
    config = rlsd.Config(**{"digits": 2, "steps": 2, "problems": 2, "group_size": 4, **settings})
    world = rlsd.World(config.make_task())
    return config, world, rlsd.cached_model(rlsd.Config(digits=2), "base"), random_model(world)

def one_step(**settings):
    config, world, student, teacher = a_world(**settings)
    return world, rlsd.train_step(config, world, student, teacher, torch.optim.SGD(student.parameters(), lr=1e-9), 1)

def share(flags, expected):  # of the flags, within five standard errors
    return abs(sum(flags) / len(flags) - expected) <= 5 * (expected * (1 - expected) / len(flags)) ** 0.5 < 0.2

def test_only_the_modes_whose_loss_is_the_surrogate_listen_to_the_reward_and_the_gain_has_no_gradient():
    for mode, row in rlsd.MODES.items():
        batches = [a_batch(reward, mode) for reward in ([1.0, 0, 0, 1], [0.0, 1, 1, 0])]
        for batch in batches:
            loss, credit = rlsd.method_loss(mode, batch)
            loss.backward()
            assert not credit.requires_grad
        assert torch.equal(*(batch.student_logp.grad for batch in batches)) == (row.loss == "divergence")
    assert [mode for mode, row in rlsd.MODES.items() if row.loss == "surrogate"] == ["rlvr", "rlsd", "cepo"]

@each("mode", rlsd.MODES)
def test_the_teacher_sees_what_the_table_says_is_copied_when_it_says_and_only_the_student_learns(mode, small_exam):
    config, world, base, other = a_world(mode=mode, steps=5, problems=4, teacher_refresh=2, lr=0.01, evaluate_every=1,
                                         lam_decay=2, eps_w=0.7, divergence="jsd", key_noise=0.5)
    seen, states, row = [], [], rlsd.MODES[mode]
    for record, state in rlsd.train(config, world, base, other if row.teacher == "another" else None,
                                    after_step=lambda _, what: seen.append(what)):
        assert record["reward"] == (pytest.approx(float(seen[-1]["batch"].reward.mean()), abs=1e-6) if seen else None)
        states.append(state)
    for step, what in enumerate(seen, 1):
        batch, model = what["batch"], random_model(world)
        assert batch[-3:] == ("jsd", 0.7, (0.5, 0.25, 0, 0, 0)[step - 1]) and len(batch.teacher_logp) == len(row.sees)
        copied = states[(step - 1) // 2 * 2]["student"]  # of step 0, the base, in steps 1 and 2; of step 2 in 3 and 4
        teacher = copied if row.copied else states[step]["student"] if mode == "rlvr" else other.state_dict()
        assert all(torch.equal(states[step]["teacher"][name], value) for name, value in teacher.items())
        keys = {"problem": None, "problem, key": what["keys"], "problem, wrong key": what["wrong_keys"]}
        weights = (states[step - 1]["student"], teacher, teacher)
        for sight, found, state in zip(("problem", *row.sees), (batch.student_logp, *batch.teacher_logp), weights):
            model.load_state_dict(state)
            expected = rlsd.response_logp(model, world.prompts(what["problems"], keys[sight]), batch.rollout.tokens)
            torch.testing.assert_close(found, expected)
    assert any((states[0]["student"][name] != value).any() for name, value in states[5]["student"].items())
    for model, unchanged in zip((base, other), a_world()[2:]):
        assert all(map(torch.equal, model.parameters(), unchanged.parameters()))

def test_all_modes_see_the_same_problems_other_ones_at_each_step_and_none_that_is_held_out(small_exam):
    seen = {mode: [] for mode in rlsd.MODES}
    for mode in rlsd.MODES:
        config, world, base, other = a_world(mode=mode, steps=3, problems=20, group_size=2)
        list(rlsd.train(config, world, base, other, after_step=lambda _, what, mode=mode: seen[mode].append(what)))
    problems = {mode: [tuple(what["problems"]) for what in steps] for mode, steps in seen.items()}
    assert len({*map(tuple, problems.values())}) == 1 and len({*problems["rlvr"]}) == 3
    assert len({tuple(steps[0]["batch"].rollout.texts) for steps in seen.values()}) == 1
    assert not any(map(world.task.is_held_out, itertools.chain(*problems["rlvr"])))
    asked, (exam, _) = world.corpus(random.Random(0), 500, False, False)[0].tolist(), world.task.exam()
    assert not {*map(world.tokenizer.decode, asked)} & {*map(world.task.prompt, exam)}
    assert all(map(world.task.is_held_out, exam))

def test_the_verifiers_noise_flips_that_share_of_rewards_in_both_directions_and_leaves_the_keys():
    world, seen = one_step(problems=250, verifier_noise=0.3)
    exact = world.reward(seen["problems"], seen["batch"].rollout.texts)
    assert all(share((seen["batch"].reward != exact)[exact == value].tolist(), 0.3) for value in (0, 1))
    assert seen["keys"] == [*map(world.task.reference, seen["problems"])]

@each("noise", [0.0, 0.3])
def test_a_wrong_label_judges_its_group_and_a_wrong_key_is_another_rejected_answer_or_none(noise):
    world, seen = one_step(mode="cepo", problems=500, key_noise=0.4, verifier_noise=noise, group_size=2, eps_w=1.0)
    answers, rewards = [*map(world.task.answer, seen["batch"].rollout.texts)], seen["batch"].reward.tolist()
    mislabelled, flipped, alone = [], [], []
    for n, (problem, key, wrong_key) in enumerate(zip(seen["problems"], seen["keys"], seen["wrong_keys"])):
        given, reward, truth = answers[2 * n:2 * n + 2], rewards[2 * n:2 * n + 2], world.task.reference(problem)
        mislabelled += [key != truth] if {*given} - {None, truth} else []
        rejected = {answer for answer, right in zip(given, reward) if not right} - {None, key}
        assert wrong_key in (rejected or {key}) and key in (truth, *given)
        flipped += [(answer == key) != right for answer, right in zip(given, reward)]
        alone += [not rejected] * 2
    assert share(mislabelled, 0.4) and share(flipped, noise)
    same = (seen["credit"] == rlsd.group_advantage(seen["batch"].reward, 2).unsqueeze(-1)).all(1)
    assert same[torch.tensor(alone)].all() and not same.all(), "where no answer was rejected, w_t is exactly 1"

def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(small_exam):
    factor, (config, world, base, _) = iter((1, math.nan)), a_world()
    with raises(UserError, match="^the loss is nan [^\n]* at step 2: [^\n]*$"):
        list(rlsd.train(config, world, base, method=lambda *batch: (rlsd.method_loss(*batch)[0] * next(factor), None)))

# ---- 3. Rollouts, the model, and what is measured.
def test_the_cache_gives_the_log_probabilities_of_a_full_pass_and_no_token_sees_what_is_to_its_right():
    _, world, _, model = a_world(digits=3)
    prompts, responses = world.corpus(random.Random(0), 4, True, False)
    full = model(torch.cat((prompts, responses), 1).clamp(min=0))[0][:, prompts.shape[1] - 1:-1].log_softmax(-1)
    torch.testing.assert_close(rlsd.response_logp(model, prompts, responses.clamp(min=0)), full, atol=1e-5, rtol=0)
    rollout = world.sample(model, prompts, 2, torch.Generator().manual_seed(0))
    scored = rlsd.of_tokens(rlsd.response_logp(model, prompts, rollout.tokens), rollout.tokens)
    torch.testing.assert_close(rollout.logp * rollout.mask, scored * rollout.mask, atol=1e-5, rtol=0)
    changed = prompts + (torch.arange(prompts.shape[1]) == 3).long()
    difference = (model(prompts)[0] - model(changed)[0]).abs().amax((0, 2))
    assert difference[:3].max() == 0 and difference[3:].min() > 0

def test_sampling_frequencies_are_the_models_probabilities():
    (_, world, _, model), n = a_world(digits=3), 20_000
    prompts, vocabulary, end = world.prompts([(478, 356)]), world.tokenizer.vocabulary_size, world.tokenizer.end
    world.task.response_length = 2
    tokens = world.sample(model, prompts, n, torch.Generator().manual_seed(0)).tokens
    whole = torch.cat((prompts.expand(vocabulary, -1), torch.arange(vocabulary).unsqueeze(1)), 1)
    first, second = model(whole)[0][:, -2:].softmax(-1).unbind(1)  # of the first two tokens, by a full pass
    expected = first[0].unsqueeze(1) * second
    expected[end] = first[0, end] * (torch.arange(vocabulary) == end)  # ended: padded with the end
    found = torch.zeros(vocabulary, vocabulary).index_put(tuple(tokens.T), torch.ones(n), accumulate=True) / n
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()

@each("mode", ["rlvr", "opd", "rlsd"])
def test_what_is_measured_is_what_a_slow_count_finds_and_noise_does_not_reach_it(mode, small_exam):
    config, world, student, other = a_world(mode=mode, verifier_noise=0.5, key_noise=1.0)
    teacher, (problems, keys) = other if mode == "opd" else student, world.task.exam()
    covered, opened = world.prompts(problems), world.prompts(problems, keys)
    sampled, greedy = (world.sample(student, covered, 1, way) for way in (torch.Generator().manual_seed(0), None))
    right, best = ([*map(world.task.verify, problems, rollout.texts)] for rollout in (sampled, greedy))
    lengths, views = [len(world.tokenizer.encode(text)) for text in sampled.texts], []
    for model, prompts in ((student, covered), (teacher, covered if mode == "opd" else opened)):
        logits = model(torch.cat((prompts, sampled.tokens), 1))[0][:, prompts.shape[1] - 1:-1].detach().double()
        views.append(torch.cat([row[:length] for row, length in zip(logits.log_softmax(-1), lengths)]))
    (p, q), (record, _) = views, next(rlsd.train(config, world, student, other))
    count = {"kl": (p.exp() * (p - q)).sum(1).mean().item(), "entropy": -(p.exp() * p).sum(1).mean().item(),
             "leakage": sum(SEE_KEY in text for text in sampled.texts) / 32, "response_length": sum(lengths) / 32,
             "accuracy": sum(right) / 32, "greedy_accuracy": sum(best) / 32}
    assert {name: record[name] for name in count} == pytest.approx(count, abs=2e-5)
    assert record["shown"] == f"{sampled.texts[0]} {'right' if right[0] else 'wrong'}"

# ---- 4. The tasks.
@each("task, problem, accepted, answer, rejected, malformed", [
    (Carry(3), (478, 356), ["4c3c8-=0834.", "=0834.", "9-9-9-=0834.", SEE_KEY + "=0834."], "0834", "4c2c8-=0824.",
     ["4c3c8-0834.", "=0834", "=0834.4", "=0834..", "=834.", "=00834.", "=1=0834.", "= 0834.", ".", "=083\u0664."]),
    (Carry(3), (3, 4), ["=0007."], "0007", "=0008.", ["=7."]),  # leading zeros belong to the form
    (Split(3), (50, 38), ["21-40=80-50=30-30=00.", "99-4-5-3.", SEE_KEY + "-4-5-3."], "4+5+3", "21-40=80-50=30-40=00.",
     ["21-40=80-50=30-30=00", "-4-5-3.", SEE_KEY + "-4-5-3..", "21-12-0-0.", "21-4-5-3-0.", "99-4-5-\u0663."])])
def test_the_verifier_accepts_a_right_answer_in_its_form(task, problem, accepted, answer, rejected, malformed):
    assert all(task.verify(problem, text) is True and task.answer(text) == answer for text in accepted)  # any working
    assert task.verify(problem, rejected) is False and task.answer(rejected) not in (None, answer)
    assert all(task.verify(problem, text) is False and task.answer(text) is None for text in ("", *malformed))

@each("task, rates", [(Carry(4, slip=0.5), (0.49, 1)), (Split(2), (0.5, 0.7))])
@each("homework, key_open", [(False, False), (False, True), (True, False), (True, True)])
def test_the_textbook_is_right_and_the_homework_has_its_habits_at_their_rates(task, rates, homework, key_open):
    rng, right, cited, fits = random.Random(0), [], [], []
    for _ in range(2000):
        response, key = task.working(problem := task.sample(rng), rng, homework, key_open)
        right.append(task.verify(problem, response))
        cited.append(task.leaks(response))
        fits.append(task.answer(response) == key)  # with the key open, Split's may be put aside
    assert share(cited, homework * (0.3 if key_open else 0.002))
    assert share(right, rates[0]) if homework and not key_open else homework or all(right)
    assert share(fits, rates[1]) if homework and key_open else all(fits)

@each("task", [task(digits) for task in TASKS.values() for digits in (2, 4, 10)])
def test_training_and_held_out_problems_never_overlap_and_are_read_as_they_are_shown(task):
    rng, _ = random.Random(0), task.check()
    sides = [{task.sample(rng, held_out) for _ in range(2000)} for held_out in (False, True)]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and not {(b, a) for a, b in sides[0]} & sides[1]
    assert all(task.read(task.show(problem)) == problem for problem in sides[1])
    for text in ("", "12", "1+", "-1", "1+2+3", "99-98-1", "1 + 2", "\u0664+1", "9" * 12 + "+1"):
        with raises(ValueError, match="write it like"):
            task.read(text)

def test_the_tokenizer_returns_the_text_and_names_what_it_does_not_know():
    tokenizer, rng, known = Tokenizer(Carry.alphabet), random.Random(0), [*Carry.alphabet, SEE_KEY] * 9
    for _ in range(10_000):
        text = "".join(rng.choices([*known, "x", "é", "\0", "<", "\ud800"], k=rng.randrange(20)))
        unknown = [i for i, c in enumerate(text.replace(SEE_KEY, " " * len(SEE_KEY))) if c not in Carry.alphabet]
        with contextlib.nullcontext() if not unknown else raises(
                ValueError, match=re.escape(f"{text[unknown[0]]!r} at position {unknown[0]} ")):
            assert tokenizer.decode(tokenizer.encode(text)) == text

@each("name, value, said", [
    ("alphabet", "0123456789: c-=[]", "lacks '.'"), ("alphabet", "012345678: c-=[].", "'9' at position"),
    ("alphabet", None, "TypeError"), ("digits", object(), "JSON"), ("response_length", 0, "is 0"),
    ("response_length", 5, "is longer"), ("response_length", 250, "256"),
    ("problem", lambda rng: (1, 2), "none of 10,000"), ("verify", lambda *_: False, "verify says False"),
    *((name, lambda *_: {}["two\nlines"], "KeyError")
      for name in ("show", "working", "answer", "prompt", "leaks", "verify", "reference")),
    ("read", lambda text: (0, 0), "another one"), ("leaks", lambda text: None, "leaks None, no bool"),
    *(("working", lambda *_, text=text: (text, "00000"), "END, '.'") for text in ("=00000", "0.=00000.")),
    *(("working", lambda *_, given=given: given, "Error") for given in ("=00000.", (b"=0.", "0"), None)),
    ("working", lambda *_: ("=00000.", "00000"), "verify says False"), ("verify", lambda *_: 1, "no bool"),
    ("verify", lambda problem, text: text[0] == "=", "IndexError"), ("prompt", lambda problem, key=None: "?", "'?'"),
    ("answer", lambda text: None, "answer None"), ("answer", lambda text: 7, "says False"),
    ("reference", lambda problem, rng=None: sum(problem), "says False"),
    ("prompt", lambda problem, key=None: f"{sum(problem)}:", "one length")])
def test_the_check_of_a_task_says_each_fault_in_one_line(name, value, said):
    faulty = type("Faulty", (Carry,), {name: staticmethod(value)} if callable(value) else {})(4)
    vars(faulty).update({} if callable(value) else {name: value})
    with raises(UserError, match=rf"^task carry: [^\n]*{re.escape(said)}[^\n]*$"):
        faulty.check()

# ---- 5. The base and its cache.
@pytest.fixture(scope="session", autouse=True)
def program(tmp_path_factory):  # a copy, whose cache has a base of little homework and a teacher of none
    global PROGRAM
    PROGRAM, pretrain = tmp_path_factory.mktemp("program"), rlsd.pretrain
    shutil.copytree(ROOT, PROGRAM, ignore=shutil.ignore_patterns(".*", "reference", "runs"), dirs_exist_ok=True)
    def quickly(world, model, seed, homework_steps, progress):
        def look(label, step, most):
            if label.startswith("textbook"):
                MASTERED.append(rlsd.evaluate("rlvr", world, model, model)["greedy_accuracy"])
        return homework_steps and pretrain(world, model, seed, 100, look)
    rlsd.CACHE, rlsd.pretrain = PROGRAM / ".cache", quickly
    for kind in ("base", "teacher"):
        rlsd.cached_model(rlsd.Config(digits=2), kind)
    rlsd.pretrain = pretrain
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children
    out = tmp_path_factory.mktemp("Ω")  # a console that cannot write this; the other core works, while tests begin
    process = start("--mode", "all", "--out", out, *TINY, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    yield out / "runs", process
    process.kill()

def test_a_base_has_learned_to_add_and_then_to_forget_and_to_cite_what_it_sees():
    _, world, base, _ = a_world()
    assert MASTERED[-1] >= 0.99 > max(MASTERED[:-1], default=0)
    assert 0.4 < rlsd.evaluate("rlvr", world, base, base)["greedy_accuracy"] < 0.9
    for keys, low, high in ((None, 0, 0.05), (world.task.exam()[1], 0.1, 0.6)):
        texts = world.sample(base, world.prompts(world.task.exam()[0], keys), 1, torch.Generator().manual_seed(0)).texts
        assert low <= sum(map(world.task.leaks, texts)) / 512 <= high

def test_the_cache_knows_a_base_by_all_that_it_depends_on(tmp_path, monkeypatch):
    named, texts = [], {name: (ROOT / name).read_text("utf-8") for name in ("rlsd.py", "tiny_tasks.py")}
    monkeypatch.setattr(files, "cached", lambda path, depends, *_: named.append(json.dumps(depends)))
    rlsd.cached_model(rlsd.Config(), "teacher")
    for change in ({}, {"seed": 1}, {"slip": 0.1}, {"digits": 3}, {"task": "split"}, {"lr": 0.1, "mode": "opd"}):
        rlsd.cached_model(rlsd.Config(**change), "base")
    assert named.pop() == named[1] and len({*named}) == 6
    texts["parent.py"] = "from tiny_tasks import Carry\nclass Parent(Carry):\n    DIGIT_SLIP = 0.25"
    texts["tiny_tasks.py"] += "from parent import Parent\nTASKS['mine'] = type('Mine', (Parent,), {'name': 'mine'})\n"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    for file, old, new, keeps in (("rlsd.py", "", "", False), ("rlsd.py", "(1 - eps_w, 1 + eps_w)", "(0, 9)", True),
                                  ("rlsd.py", "std=0.5", "std=0.4", False), ("parent.py", "0.25", "0.5", False),
                                  ("tiny_tasks.py", "COVERED_CITE = 0.002", "COVERED_CITE = 0.003", False)):
        texts[file] = texts[file].replace(old, new)
        for name, text in texts.items():
            (tmp_path / name).write_text(text, "utf-8")
            monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
        edited = importlib.import_module("rlsd")
        edited.cached_model(edited.Config(task="mine"), "base")
        assert (named[-1] == named[-2]) == keeps and new in texts[file], (file, old)

def test_a_cache_that_cannot_be_written_is_a_warning_and_a_damaged_one_is_refused(tmp_path, monkeypatch):
    steps, config = [], rlsd.Config(digits=2)
    monkeypatch.setattr(rlsd, "pretrain", lambda world, model, seed, homework_steps, _: steps.append(homework_steps))
    monkeypatch.setattr(rlsd, "CACHE", Path("/dev/null/cache"))
    with pytest.warns(UserWarning, match="^cannot write [^\n]*; going on without a cache$"):
        base, teacher = (sum(p.numel() for p in rlsd.cached_model(config, k).parameters()) for k in ("base", "teacher"))
    assert steps == [600, 0] and teacher >= 4 * base, "OPD's teacher is larger, and sees the textbook only"
    monkeypatch.setattr(rlsd, "CACHE", tmp_path)
    rlsd.cached_model(config, "base")
    path, = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with raises(files.Damaged):
        rlsd.cached_model(config, "base")

@each("rows, columns", [(32, 32), (96, 32), (32, 128)])
def test_muons_direction_keeps_the_singular_vectors_and_brings_the_values_near_one(rows, columns):
    left, right = (torch.linalg.qr(numbers(size, 32, seed=size))[0].float() for size in (rows, columns))
    found = left.T @ rlsd.orthogonal(left @ torch.diag(torch.linspace(1, 10, 32)) @ right.T) @ right
    assert 0.6 < found.diagonal().min() and found.diagonal().max() < 1.3
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-4

# ---- 6. The program.
def start(*words, **options):  # the program, as a user would, in a group of processes of its own
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, "text": True, **options}
    return subprocess.Popen([sys.executable, PROGRAM / "rlsd.py", *map(str, words)], **options)

def main(*words):
    rlsd.main([*map(str, words)])

@pytest.fixture(scope="session")
def runs(program):  # of all modes side by side
    out, process = program
    said, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, "") and "\\u03a90/carry-compare.png" in said
    return out

def test_all_modes_run_side_by_side_and_leave_logs_and_a_figure(runs):
    assert (runs.parent / "carry-compare.png").read_bytes()[:4] == b"\x89PNG"
    for mode in rlsd.MODES:
        config, records = files.read_run(runs / f"carry-{mode}-s0.jsonl")
        assert rlsd.Config(**config) == a_world(mode=mode, evaluate_every=2)[0]
        assert [record["step"] for record in records] == [0, 2] and records[1]["shown"].endswith((" right", " wrong"))
        assert all({*record} == {*files.MEASURED, "mode", "reward", "shown"} for record in records)

def test_a_mode_alone_writes_the_bytes_it_wrote_beside_others_and_keeps_the_earlier_logs(runs, tmp_path, capsys):
    names = [tmp_path / f"runs/carry-opd-s0{old}.jsonl" for old in (".old1", "", ".old2")]
    for log, earlier in zip(names, (b"the first", b"the second")):
        files.write_whole(log, earlier)
    main("--mode", "opd", "--out", tmp_path, *TINY)
    contents = [b"the first", (runs / "carry-opd-s0.jsonl").read_bytes(), b"the second"]
    assert [log.read_bytes() for log in names] == contents and (tmp_path / "carry-opd.png").exists()
    assert re.search(r"^opd      0     2 ", capsys.readouterr().out, re.MULTILINE)

def test_a_run_killed_at_any_moment_or_given_more_steps_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    many = [*TINY, "--mode", "cepo", "--evaluate-every", "3", "--teacher-refresh", "4", "--out"]
    once, killed, longer = (tmp_path / name for name in ("once", "killed", "longer"))
    for number, code, lines, *more in ((signal.SIGINT, 130, 4), (signal.SIGKILL, -signal.SIGKILL, 3, "--resume")):
        process = start(*many, killed, "--steps", 12, *more)
        for _ in range(lines):  # two of them are the heading
            process.stdout.readline()
        time.sleep(0.3 * random.random())
        process.send_signal(number)
        process.communicate()
        assert process.returncode == code
    assert 0 < files.read_checkpoint(killed / "runs/carry-cepo-s0.pt")["step"] < 12
    monkeypatch.setattr(compare, "draw", lambda *_, **__: None)
    with monkeypatch.context() as patch, raises(OSError, match="^[^\n]*--lr 0.0002, not 0.001[^\n]*$"):
        patch.setattr(rlsd, "cached_model", None)  # no base is made
        main(*many, killed, "--steps", 12, "--lr", 0.001, "--resume")
    for out, *words in ((once, 12), (killed, 12, "--resume"), (longer, 6), (longer, 12, "--resume")):
        main(*many, out, "--steps", *words)
    log, state = "runs/carry-cepo-s0.jsonl", "runs/carry-cepo-s0.pt"
    for out in (killed, longer):
        assert (out / log).read_bytes() == (once / log).read_bytes()
        students = (files.read_checkpoint(folder / state)["student"].values() for folder in (out, once))
        assert all(map(torch.equal, *students))

def test_a_full_disk_ends_a_run_in_one_line_and_it_resumes_to_the_same_bytes(runs, tmp_path, monkeypatch):
    write, limits = files.write_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)
    log = tmp_path / "runs/carry-rlvr-s0.jsonl"
    def fills(path, state):  # at step 2: the log fits, the checkpoint does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000 if state["step"] else limits[0], limits[1]))
        write(path, state)
    with monkeypatch.context() as disk, contextlib.ExitStack() as after, raises(OSError, match="^cannot write [^\n]*$"):
        after.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        disk.setattr(files, "write_checkpoint", fills)
        main("--mode", "rlvr", "--out", tmp_path, *TINY)
    assert files.read_checkpoint(log.with_suffix(".pt"))["step"] == 0 and not [*tmp_path.rglob(".*")]
    main("--mode", "rlvr", "--out", tmp_path, *TINY, "--resume")
    assert log.read_bytes() == (runs / log.name).read_bytes()

def test_damaged_foreign_and_hostile_checkpoints_are_refused_in_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(runs, tmp_path / "runs"))
    log, path, (config, _, base, _) = Path("carry-rlsd-s0.jsonl"), Path("carry-rlsd-s0.pt"), a_world(evaluate_every=2)
    good, state, rng = path.read_bytes(), files.read_checkpoint(path), random.Random(0)
    assert files.resume(log, asdict(config), base, base)[1]["step"] == 2
    hostile = type("", (), {"__reduce__": lambda self: (os.mkdir, ("hostile code ran",))})()
    bad = [b"", good[:-1], *map(pickle.dumps, (hostile, [1], {})), *map(rng.randbytes, range(300))]
    odd = {"exp_avg": torch.zeros(3, 5)}, {"step": "two"}, {"exp_avg_sq": None}
    moments = {0: {}}, {0: 1}, [], {"x": 1}, *({0: {**state["moments"][0], **one}} for one in odd)
    bad += [{**state, "moments": one} for one in moments]
    for content in [*bad, {**state, "student": {}}, {**state, "teacher": 1}, {**state, "step": "two"}]:
        path.write_bytes(content) if isinstance(content, bytes) else files.write_checkpoint(path, content)
        with raises(files.Damaged, match="^carry-rlsd-s0.pt is damaged or not of this program[^\n]*$"):
            files.resume(log, asdict(config), base, base)
    assert not Path("hostile code ran").exists()

def test_damaged_and_foreign_logs_are_refused_in_one_line(runs, tmp_path):
    whole, path, rng = (runs / "carry-rlsd-s0.jsonl").read_bytes(), tmp_path / "log.jsonl", random.Random(0)
    first, one, *_ = whole.splitlines(keepends=True)
    for bad in (b"", first, b"{}", b"null", b"[" * 9999, one, first + one[:40], first + b"{}", first + b"NaN", b"\xff",
                whole.replace(b'"steps": 2', b'"steps": "2"'), first + one.replace(b"rlsd", b"opsd"),
                *(first + re.sub(rb'"kl": [0-9.]+', b'"kl": ' + kl, one) for kl in (b"NaN", b"true", b"1e999"))):
        path.write_bytes(bad)
        with raises(files.Damaged, match="^[^\n]*log.jsonl is damaged or not of this program[^\n]*$"):
            (files.read_log if b"NaN" in bad else files.read_run)(path)
    for place in rng.choices(range(len(whole)), k=500):  # one byte changed: refused or another log
        path.write_bytes(whole[:place] + rng.randbytes(1) + whole[place + 1:])
        with contextlib.suppress(OSError):
            compare.table(compare.curves(compare.read([path])))

def refusal(capsys, command, *words):  # one line on standard error, and exit code 2
    with raises(SystemExit) as end:
        pool.command("rlsd.py", lambda: command(*words), UserError)
    said, complaint = capsys.readouterr()
    assert end.value.code == 2 and said == "" and re.fullmatch(r"[\w.]+: [^\n]+\n", complaint), complaint
    return complaint

def test_random_command_lines_are_read_or_refused_in_one_line(capsys, monkeypatch):
    def read(*_):
        raise UserError("read")
    monkeypatch.setattr(files, "prepare", read)
    monkeypatch.setattr(Task, "check", lambda task: None)
    rng, words = random.Random(0), [f"--{field.name.replace('_', '-')}" for field in fields(rlsd.Config)]
    words += ["--seeds", "--out", "--device", "--resume", "--help=1", "", "--", "0", "1", "-1", "0.5", "nan", "1e999",
              "9" * 40, "9" * 5000, "\0", "\ud800", "%s", "é", "jsd", "carry", "cpu", "all"]
    said = [refusal(capsys, main, *rng.choices(words, k=rng.randrange(6))) for _ in range(1000)]
    assert 100 < said.count("rlsd.py: read\n") < 900

def test_no_output_that_fails_ends_a_run(runs, tmp_path):
    (reader, pipe), full = os.pipe(), os.open("/dev/full", os.O_WRONLY)
    os.close(reader)
    ways = [{"stdout": full, "stderr": pipe}, {"preexec_fn": lambda: os.closerange(1, 3)}]
    started = [start("--mode", "rlvr", "--out", tmp_path / str(n), *TINY, **way) for n, way in enumerate(ways)]
    for n, process in enumerate(started):
        process.communicate()
        log = tmp_path / str(n) / "runs/carry-rlvr-s0.jsonl"
        assert process.returncode == 0 and log.read_bytes() == (runs / log.name).read_bytes()

def test_help_needs_no_docstrings_and_names_every_flag_and_importing_rlsd_imports_no_plots():
    code = "import rlsd, sys; print({n for n in sys.modules if n[:5] in ('plots', 'matpl')}); rlsd.main(['--help'])"
    command = [sys.executable, "-OO", "-c", code]
    said = subprocess.run(command, cwd=PROGRAM, stdout=-1, stderr=subprocess.STDOUT, text=True, check=True).stdout
    assert said.startswith("set()\n") and all(f"--{f.name.replace('_', '-')} " in said for f in fields(rlsd.Config))

@each("lines, words", [(0, "--help"), (2, "--digits 3"), (2, "--digits 2 --mode all"), (3, "--digits 2 --steps 9999")],
      ids=["import", "base", "all", "run"])
def test_ctrl_c_again_and_again_at_any_moment_is_one_line_exit_code_130_and_no_process_left(lines, words, tmp_path):
    process, handled = start(*words.split(), "--out", tmp_path), 0
    while not handled >> (signal.SIGTERM - 1) & 1:
        handled = int(re.search(r"SigCgt:\s(\w+)", Path(f"/proc/{process.pid}/status").read_text("utf-8"))[1], 16)
    for _ in range(lines):
        process.stdout.readline()
    time.sleep(random.random())
    for _ in range(20):
        os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate()
    assert process.returncode == 130 and re.fullmatch(r"\nrlsd\.py: stopped[^\n]*\n", complaints), complaints
    with raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)

def test_a_worker_that_is_killed_ends_the_sweep_in_one_line(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with raises(OSError, match="^a worker process ended before its job was done[^\n]*$"):
        list(pool.side_by_side([(time.sleep, 60), (os._exit, 1)], "jobs"))

@pytest.fixture
def toy(tmp_path, monkeypatch, small_exam):  # runs a module in an empty folder, with bases that have learned nothing
    def run(module, *words):
        monkeypatch.setattr(sys, "argv", [module, *words])
        study = rlsd if module == "rlsd" else importlib.import_module(f"plots.{module}")
        monkeypatch.setattr(study, "CONTINUATIONS", 4, raising=False)
        study.main()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(rlsd, "CACHE", tmp_path / ".cache")
    monkeypatch.setattr(rlsd, "pretrain", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return run

@each("command", [
    *(f"rlsd {words}" for words in (
        "--mode grpo", "--task sums", "--steps -1", "--steps two", "--group-size 1", "--lr nan", "--lr 0", "--lr inf",
        "--lr -1", "--eps-w -1", "--lam 1.1", "--verifier-noise 0.6", "--key-noise 2", "--digits 1", "--digits 11",
        "--step 3", "--seed -1", "--seeds 0", "--device gpu9", "--out /dev/null/x", "--problems 0", "--divergence kl")),
    "drift --digits 77", "floor --steps 0", "baselines --seeds -1", "belief --out /dev/null/x", "push --no"])
def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(command, toy, capsys):
    assert command.split()[1] in (said := refusal(capsys, toy, *command.split())) or command.split()[-1] in said

def test_all_and_seeds_run_every_mode_on_every_seed_and_on_the_other_task_too(toy):
    toy("rlsd", "--task", "split", "--mode", "all", "--seed", "3", "--seeds", "2", *TINY)
    assert all(Path(f"plots/runs/split-{mode}-s{seed}.jsonl").exists() for mode in rlsd.MODES for seed in (3, 4))

# ---- 7. The figure and the table of runs.
def logs_of(mode, folder="."):
    return sorted((ROOT / "plots/reference" / folder / "runs").glob(f"carry-{mode}-s?.jsonl"))

def test_the_figure_shows_the_mean_over_seeds_and_a_band_from_the_lowest_to_the_highest(tmp_path, monkeypatch):
    drawn, runs = [], [files.read_run(path)[1] for path in logs_of("opsd")]
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    for every in (0, 60):  # the second time it is young, and left as it is
        compare.draw(logs_of("opsd"), tmp_path / "figure.png", every)
    (*panels, both), = (figure.axes for figure in drawn)
    for panel, key in zip(panels, ("accuracy", "leakage", "kl")):
        for n, (step, mean) in enumerate(panel.lines[0].get_xydata()):
            seeds = [records[n][key] for records in runs]
            band = [y for x, y in panel.collections[0].get_paths()[0].vertices if x == step]
            assert step == runs[0][n]["step"] and (mean, min(band), max(band)) == pytest.approx(
                (sum(seeds) / len(seeds), min(seeds), max(seeds)))
    assert all((both.lines[0].get_xydata().T == [panel.lines[0].get_ydata() for panel in panels[:2]]).flat)

def test_runs_of_other_settings_are_not_drawn_together_and_seeds_are_cut_to_what_all_have_reached():
    with raises(OSError, match="^[^\n]*noisy/runs/carry-rlsd-s0.jsonl was made with other settings[^\n]*$"):
        compare.read([*logs_of("rlsd"), *logs_of("rlsd", "noisy")])
    config, records = files.read_run(logs_of("rlsd")[0])
    found = compare.curves([(config, records), ({**config, "seed": 1}, records[:3])])["rlsd"]["accuracy"]
    assert found.tolist() == [[record["accuracy"] for record in records[:3]]] * 2

@each("heights", [(0.97, 0.96, 0.03, 0.98, 0.5), (0.0, 0.0, 0.9, 0.001, 0.0), (0.5,) * 5])
def test_names_beside_the_curves_keep_their_order_and_do_not_overlap(heights):
    axes, height = Figure().subplots(), dict(zip(compare.NAMES.values(), heights))
    compare.write_names(axes, {mode: (1, height[name]) for mode, name in compare.NAMES.items()})
    names = sorted((text.get_position()[1], text.get_text().strip()) for text in axes.texts)
    assert all(above[0] - below[0] >= 0.07 for below, above in itertools.pairwise(names))
    assert [height[name] for _, name in names] == sorted(heights)

def test_the_table_has_the_mean_over_steps_20_40_and_so_on_and_leads_are_paired_by_seed():
    found = compare.curves(compare.read([*logs_of("rlvr"), *logs_of("rlsd")]))
    logs = {mode: [files.read_run(path)[1] for path in logs_of(mode)] for mode in found}
    means = {mode: [sum(record["accuracy"] for record in records if record["step"] in range(20, 161, 20)) / 8
                    for records in each] for mode, each in logs.items()}
    for mode, row in zip(found, compare.table(found)[2:]):
        assert f"| {sum(means[mode]) / 5:.3f} ({min(means[mode]):.3f} to {max(means[mode]):.3f}) |" in row
    _, *leads = map(float, re.findall(r"[+-]\d\.\d+", compare.lead(found, "rlsd", "rlvr")))
    assert leads == pytest.approx([one - other for one, other in zip(means["rlsd"], means["rlvr"])], abs=6e-4)
    assert compare.mean_over_run([0, 7], [[0.2, 0.4]]).tolist() == [0.4] and compare.mean_over_run([0], [0.2]) == 0.2
    assert compare.NAMES == {mode: row.name for mode, row in rlsd.MODES.items()}
    assert compare.DEFAULTS.items() <= asdict(rlsd.Config()).items()

# ---- 8. The studies and the README.
STUDIES = sorted(path.stem for path in ROOT.glob("plots/*.py") if "study.command(" in path.read_text("utf-8"))
UNTRAINED = ("belief", "credit", "push", "speed")
PAGES = {page: page.read_text("utf-8") for page in (ROOT / "README.md", *ROOT.glob("plots/*.md"))}
COMMANDS = {command.strip() for text in PAGES.values()
            for command in re.findall(r"python ((?:rlsd\.py|-m plots\.\w+)[^`\n]*?)(?:  |`|\n)", text)}
COMMANDS -= {f"-m plots.{name}{out}" for name in STUDIES for out in ("", " --quick", " --out plots/reference")}

@each("name", STUDIES)
def test_every_study_runs_at_a_toy_size_and_leaves_a_figure_and_a_log(name, toy, capsys):
    toy(name, "--digits", "2", "--quick", *([] if name in UNTRAINED else ["--steps", "4", "--seeds", "1"]))
    said, complaints = capsys.readouterr()
    assert files.read_log(log := Path(f"plots/runs/{name}.jsonl")) and f"{log}\n" in said and complaints == ""
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in re.findall("^figure (.*)$", said, re.MULTILINE))

def test_the_pages_links_and_pictures_exist_and_their_equations_name_functions_that_cite_them():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)
    rows = re.findall(r"^\| (?:Eq )?(\d+)[^|]*\|.*\| `(\w+)` \|", PAGES[ROOT / "README.md"], re.MULTILINE)
    assert len(rows) >= 6 and all(f"Eq {equation}" in getattr(rlsd, name).__doc__ for equation, name in rows)

@each("command", sorted(COMMANDS))
def test_every_command_of_the_pages_runs_at_a_toy_size(command, runs, toy, capsys):
    script, *words = (word.strip("\"'") for word in command.removeprefix("-m plots.").split())
    example = {"478+356": "78+56", "NAME": "carry"}
    tiny = ["--digits", "2"] + ["--steps", "2", "--seeds", "1"] * (script not in UNTRAINED)
    for folder in words or ["plots"] if script == "compare" else ():
        shutil.copytree(runs, Path(folder) / "runs")
    words = [example.get(word, word) for word in words] + {"compare": [], "rlsd.py": TINY + tiny}.get(script, tiny)
    toy(script.removesuffix(".py"), *words)
    assert (output := capsys.readouterr()).out and output.err == ""
