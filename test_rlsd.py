"""What is true of rlsd.py and tiny_tasks.py. The name of each test is a claim.

    python -m pytest -q test_rlsd.py

The sections follow those of the page. The toy runs add numbers of two digits and learn from 2 x 4
responses per step. Their bases are made once, and all tests share them.
"""

import copy
import importlib
import inspect
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import count, pairwise, product
from pathlib import Path

import pytest
import torch
from pytest import approx, mark, raises
from torch import tensor
from torch.distributions import Categorical, kl_divergence

import rlsd
from rlsd import MODES, cached_model, group_advantage, method_loss, rlsd_token_advantage
from tiny_tasks import SEE_KEY, TASKS, Carry, Split, Task, Tokenizer, UserError

torch.set_num_threads(1)
inspect.getsource = cache(inspect.getsource)  # it is slow, and a base's name asks for 12 sources

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "plots/reference/vectors.json").read_text("utf-8"))
FLAGS = "--digits 2 --steps 2 --problems 2 --group-size 4 --evaluate-every 2"
TOY = rlsd.Config(digits=2, steps=2, problems=2, group_size=4, evaluate_every=1)
toy = partial(replace, TOY)
TASK = TOY.make_task()
PROBLEMS = [(37, 57), (12, 9)]
SIGHTS = "no key", "right key", "wrong key"

for_each_mode = mark.parametrize("mode", MODES)
assert_close = partial(torch.testing.assert_close, atol=2e-5, rtol=0)


def random_tensor(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()


def random_model(seed):
    """A GPT whose layers all do something; the blocks of a new one do nothing."""
    torch.manual_seed(seed)
    model = rlsd.GPT(TASK.tokenizer.vocabulary_size, 16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


RANDOM, LARGER = random_model(0), random_model(1)


def is_share(flags, expected):
    """Is this share of the flags true, within five standard errors?"""
    error = math.sqrt(expected * (1 - expected) / len(flags))
    return abs(rlsd.share(flags) - expected) <= 5 * error


def nothing(*_, **__):
    """Stands in for a function that is not wanted."""


# ==== 1. The equations ====


def test_advantages_are_standardised_within_each_group():
    reward = tensor([1.0] + [0.0] * 4 + [1.0] * 4 + [0.0])
    by_hand = [2.0] + [-0.5] * 4 + [0.5] * 4 + [-2.0]
    assert group_advantage(reward, 5).tolist() == approx(by_hand)


@mark.parametrize("reward", [1.0, 0.1])  # the mean of 0.1 x 8 is not exactly 0.1
def test_equal_rewards_give_an_advantage_of_exactly_zero(reward):
    assert not group_advantage(torch.full((8,), reward), 8).any()


@mark.parametrize("reward", [[math.nan, 1], [math.inf, 0], [1, 0, 1]])
def test_rewards_must_be_finite_and_in_whole_groups(reward):
    with raises(ValueError, match="finite and in groups of 2"):
        group_advantage(tensor(reward), 2)


def test_the_surrogates_gradient_at_rho_one_is_that_by_hand_and_by_finite_differences():
    log_probs, advantage = random_tensor(2, 2, 4)
    mask = tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    student = log_probs.clone().requires_grad_()

    def loss(student):
        return rlsd.clipped_surrogate(student, log_probs, advantage, mask)

    assert torch.autograd.gradcheck(loss, student)
    loss(student).backward()
    assert_close(student.grad, -advantage * mask / tensor([[4], [2]]) / 2)


@mark.parametrize(
    "rho, sign, value", [(1.5, 1, 1.28), (0.5, 1, 0.5), (1.5, -1, -1.5), (0.5, -1, -0.8)]
)
def test_the_clip_binds_on_the_right_side_for_each_sign(rho, sign, value):
    one = torch.ones(1, 1)
    loss = rlsd.clipped_surrogate(math.log(rho) * one, 0 * one, sign * one, one)
    assert loss == approx(-value)


def test_padding_counts_for_nothing_in_the_surrogate_and_its_gradient():
    log_probs = tensor([[-1.0, -math.inf]], requires_grad=True)
    advantage, mask = tensor([[3.0, math.nan]]), tensor([[1, 0]])
    loss = rlsd.clipped_surrogate(log_probs, log_probs.detach(), advantage, mask)
    loss.backward()
    assert loss == -3 and log_probs.grad.tolist() == [[-3, 0]]


def test_padding_counts_for_nothing_in_the_mean():
    assert rlsd.response_mean(tensor([[1.5, math.nan]]), tensor([[1, 0]])) == 1.5


KINDS = "reverse_kl", "forward_kl", "jsd"


@mark.parametrize("kind", KINDS)
def test_a_divergence_is_what_torch_computes_from_the_distributions(kind):
    views = random_tensor(2, 2, 3, 5).log_softmax(-1)
    student, teacher = (Categorical(logits=view) for view in views)
    mixture = Categorical(0.3 * teacher.probs + 0.7 * student.probs)
    expected = {
        "reverse_kl": kl_divergence(student, teacher),
        "forward_kl": kl_divergence(teacher, student),
        "jsd": 0.3 * kl_divergence(teacher, mixture) + 0.7 * kl_divergence(student, mixture),
    }
    assert_close(rlsd.divergence(*views, kind, 0.3), expected[kind])


@mark.parametrize("impossible", [[], [0], [0, 1]])  # for nobody, for the student, for both
@mark.parametrize("kind", KINDS)
def test_a_divergences_gradient_is_finite_and_the_students_alone(kind, impossible):
    logits = random_tensor(2, 2, 3, 5)
    logits[impossible, 0, 0, 3] = -math.inf
    distance = rlsd.divergence(*logits.requires_grad_().log_softmax(-1), kind)
    distance[distance.isfinite()].sum().backward()
    of_student, of_teacher = logits.grad
    assert of_student.isfinite().all() and of_student.any() and not of_teacher.any()


def test_the_information_gain_has_no_gradient():
    log_probs = random_tensor(2, 3).requires_grad_()
    assert not rlsd.information_gain(log_probs, log_probs).requires_grad


EXTREME_GAINS = tensor([[-math.inf, -1e30, 0, 1, 1e30, math.inf]] * 3)
ADVANTAGES = tensor([1.5, 0.0, -1.5])


def test_the_evidence_weight_is_positive_and_finite_even_for_extreme_gains():
    weight = rlsd.evidence_weight(EXTREME_GAINS, ADVANTAGES)
    assert (weight > 0).all() and weight.isfinite().all()


@mark.parametrize("eps_w", [0.2, 4.0])
def test_eq_15_never_flips_the_sign_of_an_advantage(eps_w):
    token_advantage = rlsd_token_advantage(EXTREME_GAINS, ADVANTAGES, eps_w, lam=1)
    assert (token_advantage.T * ADVANTAGES >= 0).all()


@mark.parametrize("gain", [-2.0, 0.5])
def test_a_token_that_a_group_shares_is_pushed_by_eq_15_and_not_by_rlvr(gain):
    """The mean of A_t is 0 under RLVR, and lam sqrt(p (1 - p)) (w+ - w-) under Eq 15."""
    up, down = min(math.exp(gain), 2), min(math.exp(-gain), 2)
    for rewards in product([0.0, 1.0], repeat=6):
        advantage = group_advantage(tensor(rewards), 6)
        assert advantage.mean().item() == approx(0, abs=1e-6)
        pushes = rlsd_token_advantage(torch.full((6, 1), gain), advantage, eps_w=1, lam=0.7)
        p = rlsd.share(rewards)
        expected = 0.7 * math.sqrt(p * (1 - p)) * (up - down)
        assert pushes.mean().item() == approx(expected, abs=1e-6)


@mark.parametrize(
    "function, dimensions",
    [
        (partial(group_advantage, group_size=3), "1"),
        (rlsd.response_mean, "22"),
        (rlsd.clipped_surrogate, "2222"),
        (partial(rlsd.divergence, kind="jsd"), "33"),
        (rlsd.information_gain, "22"),
        (rlsd.evidence_weight, "21"),
        (partial(rlsd_token_advantage, eps_w=0.2, lam=1), "21"),
    ],
)
def test_shapes_that_would_only_broadcast_are_refused(function, dimensions):
    good = [torch.ones([3] * int(dimension)) for dimension in dimensions]
    function(*good)
    for place, value in enumerate(good):
        for wrong in (value[0], value[:1], value[None]):
            with raises(ValueError):
                function(*good[:place], wrong, *good[place + 1 :])


# ---- The table in the docstring

PAGE = " ".join(rlsd.__doc__.split())
TABLE = {row[0]: row[1:] for row in map(str.split, rlsd.__doc__.splitlines()) if len(row) == 16}


def quoted(pattern):
    """The numbers in a sentence of the docstring."""
    return [*map(float, re.search(pattern, PAGE).groups())]


def table_row(name):
    return tensor([*map(float, TABLE[name])])


def table_advantage():
    assert "Eight responses" in PAGE and "Three are right" in PAGE
    return group_advantage(tensor([0.0] * 5 + [1.0] * 3), 8)[:1]


def test_the_tables_token_advantages_are_what_the_functions_give():
    assert "Both are 1 in the table" in PAGE  # eps_w and lam
    advantage = table_advantage()
    gain = (table_row("P_T") / table_row("P_S")).log()
    (rlsd_row,) = rlsd_token_advantage(gain.unsqueeze(0), advantage, eps_w=1, lam=1)
    for name, expected in (("RLVR", advantage), ("OPSD", gain), ("RLSD", rlsd_row)):
        assert (table_row(name) - expected).abs().max() < 0.006


def test_the_cell_that_the_text_works_out_is_right():
    student, teacher, ratio = quoted(r"([\d.]+) / ([\d.]+) = (\d+) times")
    weight, advantage, push = quoted(r"eps_w = (\d), and \d times (-[\d.]+) is (-[\d.]+)\. ")
    assert [float(TABLE[name][2]) for name in ("P_S", "P_T", "RLSD")] == [student, teacher, push]
    assert student / teacher == approx(ratio, abs=0.5)
    assert advantage == approx(table_advantage().item(), abs=0.0005)
    assert weight * advantage == approx(push, abs=0.005)


def test_the_sums_of_the_pushes_on_the_shared_first_token_are_what_the_functions_give():
    rlvr, rlsds = quoted(r"5 \* 0\.7746 = (0) .* 1\.32 = (-[\d.]+) The weights")
    advantage = group_advantage(tensor([1.0] * 3 + [0.0] * 5), 8)
    gain = (table_row("P_T") / table_row("P_S")).log()[0].expand(8, 1)
    pushes = rlsd_token_advantage(gain, advantage, eps_w=1, lam=1)
    assert [advantage.sum(), pushes.sum()] == [approx(rlvr, abs=1e-6), approx(rlsds, abs=0.005)]


# ==== 2. The methods ====


def make_batch(**changed):
    """Four random responses to each of two problems, as three random teachers see them."""
    rng, keys = random.Random(0), ["094", "021"]
    batch = rlsd.collect(TOY, TASK, RANDOM, LARGER, PROBLEMS, keys, 4, SIGHTS, rng)
    batch.wrong_key_log_probs = batch.right_key_log_probs.flip(0)
    batch.reward = tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    batch.student_log_probs.requires_grad_()
    return replace(batch, **changed)


@mark.parametrize("mode, case", [(mode, case) for mode in VECTORS for case in VECTORS[mode]])
def test_token_advantages_are_those_of_the_authors_code(mode, case):
    case = {name: tensor(value) for name, value in case.items()}
    mask, advantage = case["mask"], case["advantage"]
    right, other = (value.unsqueeze(-1) for name, value in case.items() if "logp" in name)
    batch = make_batch(
        tokens=torch.zeros_like(mask).long(),  # the only token of the vocabulary
        mask=mask,
        reward=advantage,  # is standardised already
        group_size=len(advantage),
        old_log_probs=mask,
        student_log_probs=other,
        right_key_log_probs=right,
        wrong_key_log_probs=other,
        eps_w=case["eps_w"],
        lam=case["lam"],
    )
    _, token_advantage = method_loss(mode, batch)
    assert_close(token_advantage * mask, case["token_advantage"])


def gradient(mode, **changed):
    batch = make_batch(**changed)
    loss, _ = method_loss(mode, batch)
    return torch.autograd.grad(loss, batch.student_log_probs)[0]


@for_each_mode
def test_only_rlvr_rlsd_and_cepo_listen_to_the_reward(mode):
    other = gradient(mode, reward=torch.arange(8.0))
    assert torch.equal(gradient(mode), other) == (mode in ("opd", "opsd"))


@for_each_mode
def test_a_mode_reads_exactly_the_views_that_its_row_lists(mode):
    for sight in SIGHTS:
        hidden = {f"{sight.replace(' ', '_')}_log_probs": None}
        if sight not in MODES[mode].sees:
            gradient(mode, **hidden)
            continue
        with raises(AttributeError):
            gradient(mode, **hidden)


def test_an_unknown_mode_is_refused():
    with raises(UserError, match="no branch for mode 'grpo'"):
        gradient("grpo")


@mark.parametrize("mode", ["opd", "opsd"])
def test_the_token_advantage_of_distillation_is_the_gradient_of_its_loss(mode):
    """Eq 17: sum over y of P_S(y) A_t(y) grad log P_S(y) is minus the gradient of the loss."""
    logits = make_batch().student_log_probs.detach().requires_grad_()
    log_probs, objective = logits.log_softmax(-1), 0
    batch = make_batch(student_log_probs=log_probs)
    for token, log_prob in enumerate(log_probs.unbind(-1)):
        batch.tokens = torch.full_like(batch.tokens, token)
        loss, token_advantage = method_loss(mode, batch)
        pushed = log_prob.exp().detach() * token_advantage * log_prob
        objective += rlsd.response_mean(pushed, batch.mask)
    (objective + loss).backward()
    assert_close(logits.grad, 0 * logits)


@mark.parametrize("lam", [0.33, 1.0])
def test_cepo_gives_exactly_a_to_a_token_that_is_equally_likely_under_both_keys(lam):
    batch = make_batch(lam=lam, eps_w=1)
    batch.wrong_key_log_probs[:, 0] = batch.right_key_log_probs[:, 0]
    _, token_advantage = method_loss("cepo", batch)
    is_rlvrs = token_advantage.T == group_advantage(batch.reward, 4)
    assert is_rlvrs[0].all() and not is_rlvrs[1:].all(1).any()


# ==== 3. Training ====


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with the page alone, in whose cache are the toy bases of seeds 0 and 1.

    Only the base of seed 0 has learned anything. All tests use this cache.
    """
    folder = tmp_path_factory.mktemp("page")
    for name in ("rlsd.py", "tiny_tasks.py"):
        shutil.copy(HERE / name, folder)
    rlsd.CACHE = folder / ".cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlsd.HOMEWORK_STEPS", 160)
        cached_model(TOY, "base")
        patch.setattr("rlsd.pretrain", nothing)
        for kind, seed in (("larger", 0), ("base", 1), ("larger", 1)):
            cached_model(toy(seed=seed), kind)
    return folder


def run_program(folder, words, given="", moment=None):
    """Runs Python as a user would. Returns its exit code, and what it has said.

    `given` is typed in. If there is a `moment`, Ctrl-C is pressed when a line has it.
    """
    process = subprocess.Popen(
        [sys.executable, *words.split()],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own
    )
    if moment is None:
        said, _ = process.communicate(given)
        return process.returncode, said
    for line in process.stdout:
        if moment in line:
            break
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=2)  # it returns when no process could still write
    return process.returncode, said


SCRIPT = f"""import sys, rlsd
rlsd.Task.exam = lambda task: ([(37, 57)], ["094"])
sys.exit(rlsd.main("--mode all {FLAGS} --steps 0 --out scripts".split()))"""
STOPPED = {  # the commands, and the line at which Ctrl-C is pressed
    "-X importtime rlsd.py": "torch",
    "rlsd.py --digits 2 --steps 9999": "rlsd     0     0",
    "rlsd.py --digits 3 --mode all": "live page",  # then come the workers
    "rlsd.py --digits 2 --steps 9999 --mode all": "rlvr     0     0",
}


@pytest.fixture(scope="session")
def programs(folder):
    """Whole programs. They run one after another, while this process runs other tests."""
    (folder / "script.py").write_text(SCRIPT)
    # What the environment says of figures must not matter; a test below looks at it.
    (folder / "matplotlibrc").write_text("text.usetex: True")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        pool = ThreadPoolExecutor(1)
        running = {"all modes": pool.submit(run_program, folder, f"rlsd.py --mode all {FLAGS}")}
        running["script"] = pool.submit(run_program, folder, "script.py")
        running["typed in"] = pool.submit(run_program, folder, "-", SCRIPT)
        for words, moment in STOPPED.items():
            if os.name != "nt":
                words_and_folder = f"{words} --out {folder / 'stopped'}"
                running[words] = pool.submit(run_program, folder, words_and_folder, "", moment)
        yield running
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def small_exam(monkeypatch):
    """The exam has 64 problems instead of 512."""
    exam = Task.exam
    monkeypatch.setattr(Task, "exam", lambda task: [part[:64] for part in exam(task)])


@pytest.fixture
def base(folder, programs, small_exam):
    """The toy base of seed 0."""
    return cached_model(TOY, "base")


def watch(base, **settings):
    """Trains a toy run. Returns its records, its steps' batches, and the student per record."""
    records, batches, students = [], [], []

    def method(mode, batch):
        if batch.student_log_probs.requires_grad:  # a step, and no evaluation
            batches.append(batch)
        return method_loss(mode, batch)

    for record, student, _ in rlsd.train(toy(**settings), TASK, base, LARGER, method):
        records.append(record)
        students.append(copy.deepcopy(student))
    return records, batches, students


@torch.no_grad()
def slow_log_probs(model, problems, responses, keys=None):
    """One full pass over prompts and responses, without a cache."""
    prompts = rlsd.encode_prompts(TASK, problems, model.device, keys)
    prompts = prompts.repeat_interleave(len(responses) // len(problems), 0)
    logits, _ = model(torch.cat((prompts, responses), 1))
    return logits[:, prompts.shape[1] - 1 : -1].log_softmax(-1)


@for_each_mode
def test_teacher_and_student_see_what_the_table_says_with_the_right_weights(mode, base):
    _, batches, students = watch(base, mode=mode, steps=5, teacher_refresh=2, lr=0.01)
    for step, batch in enumerate(batches, 1):
        copied = students[(step - 1) // 2 * 2]  # of step 0 in steps 1 and 2, of step 2 in 3 and 4
        teacher = LARGER if mode == "opd" else copied
        views = {
            "no key": (batch.no_key_log_probs, None),
            "right key": (batch.right_key_log_probs, batch.keys),
            "wrong key": (batch.wrong_key_log_probs, batch.wrong_keys),
        }
        for sight in MODES[mode].sees:
            found, keys = views.pop(sight)
            assert_close(found, slow_log_probs(teacher, batch.problems, batch.tokens, keys))
        assert all(found is None for found, _ in views.values())
        expected = slow_log_probs(students[step - 1], batch.problems, batch.tokens)
        assert_close(batch.student_log_probs.detach(), expected)


def same_weights(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


@for_each_mode
def test_only_the_student_learns(mode, base):
    *_, students = watch(base, mode=mode)
    assert same_weights(base, cached_model(TOY, "base")) and same_weights(LARGER, random_model(1))
    assert not same_weights(base, students[-1])


@for_each_mode
def test_a_study_can_refresh_the_students_copy_in_its_own_way(mode, base):
    steps = []

    def refresh(config, step, *models):
        steps.append(step)

    list(rlsd.train(toy(mode=mode), TASK, base, LARGER, refresh_teacher=refresh))
    assert steps == ([1, 2] if mode in ("opsd", "rlsd", "cepo") else [])


def test_all_modes_see_the_same_problems_anew_at_each_step_and_none_of_the_exam(base):
    seen = set()
    for mode in MODES:
        _, batches, _ = watch(base, mode=mode, problems=50)
        seen.add(tuple(tuple(batch.problems) for batch in batches))
    ((first, second),) = seen
    assert first != second and not any(map(TASK.is_held_out, first + second))


@mark.parametrize("lam_decay, lams", [(2, [0.8, 0.4, 0, 0]), (0, [0.8] * 4)])
def test_lam_falls_linearly_from_the_first_step_or_is_held(lam_decay, lams, base):
    _, batches, _ = watch(base, steps=4, lam=0.8, lam_decay=lam_decay)
    assert [batch.lam for batch in batches] == lams


NUMBER = tensor(1.0, requires_grad=True)
PUSHES = torch.zeros(8, 9)


@mark.parametrize(
    "result, complaint",
    [
        (NUMBER, "must return two things"),
        ((PUSHES, NUMBER), "the loss must be one number"),
        ((0.5, PUSHES), "the loss must be one number"),
        ((NUMBER.detach(), PUSHES), "the loss must be one number, a tensor with a gradient"),
        ((NUMBER, PUSHES[:, 0]), r"A_t must have the shape \(B, T\), here \(8, 9\)"),
        ((NUMBER, PUSHES * NUMBER), "A_t must have .* no gradient"),
    ],
)
def test_what_a_method_returns_by_mistake_is_named_in_one_line(result, complaint):
    with raises(UserError, match=f"^[^\n]*{complaint}[^\n]*$"):
        rlsd.check_result(result, PUSHES)


@mark.parametrize("what", ["A_t", "the loss", "the gradient"])
def test_a_run_stops_at_the_first_thing_that_is_not_finite_and_names_it(what, base):
    calls = count()

    def breaks(mode, batch):
        loss, token_advantage = method_loss(mode, batch)
        if next(calls) < 2:  # the evaluation of step 0, and step 1
            return loss, token_advantage
        factor = 1e38 if what == "the gradient" else math.nan
        return loss * factor, token_advantage * (factor if what == "A_t" else 1)

    with raises(UserError, match=f"^at step 2 {what} is not finite: look for"):
        list(rlsd.train(toy(evaluate_every=2), TASK, base, method=breaks))


@for_each_mode
def test_every_tensor_of_a_run_is_made_on_the_runs_device(mode, base, monkeypatch):
    """Where no device is named, a tensor would be made on `meta` here, and would not mix."""
    generator = torch.Generator

    def make_generator(device):
        assert device == base.device
        return generator(device)

    monkeypatch.setattr(torch, "Generator", make_generator)
    with torch.device("meta"):
        list(rlsd.train(toy(mode=mode), TASK, base, base))


# ---- The verifier

RIGHT, WRONG = "4c9-=094.", "4c8-=084."  # responses to 37+57
GROUP = [RIGHT, WRONG, "=193.", "no answer"]


def judge(texts, seed=0, **errors):
    return rlsd.judge(toy(**errors), TASK, (37, 57), "094", texts, random.Random(seed))


@mark.parametrize("rejected, accepted", [(0.3, 0), (0, 0.2)])
def test_the_verifier_errs_in_each_direction_at_its_own_rate(rejected, accepted):
    texts = [RIGHT] * 4000 + [WRONG] * 4000
    rewards, _ = judge(texts, false_negatives=rejected, false_positives=accepted)
    assert is_share(rewards[:4000], 1 - rejected) and is_share(rewards[4000:], accepted)


def test_key_noise_makes_a_wrong_answer_of_the_group_its_key_at_that_rate():
    keys = [judge(GROUP, seed, key_noise=0.4)[1] for seed in range(4000)]
    for key, rate in {"094": 0.6, "084": 0.2, "193": 0.2}.items():
        assert is_share([one == key for one in keys], rate)


def test_a_wrong_key_judges_its_group_and_a_group_without_wrong_answers_keeps_its_key():
    assert judge([RIGHT, WRONG, "no answer", WRONG], key_noise=1) == ([0, 1, 0, 1], "084")
    assert judge([RIGHT, "no answer"], key_noise=1) == ([1, 0], "094")


@mark.parametrize(
    "rewards, choices",
    [
        ([1, 0, 0, 0], "084 193"),
        ([0, 0, 1, 1], "094 084"),  # the verifier erred, and the right answer may be the wrong key
        ([1, 1, 1, 0], "094"),  # no answer was rejected, and the right key stands in
    ],
)
def test_the_wrong_key_is_any_rejected_answer_or_else_the_key(rewards, choices):
    rng = random.Random(0)
    found = {rlsd.choose_wrong_key(TASK, GROUP, rewards, "094", rng) for _ in range(100)}
    assert found == {*choices.split()}


# ==== 4. Rollouts and the model ====


def sample(model, problems, group_size=1, seed=None, keys=None):
    prompts = rlsd.encode_prompts(TASK, problems, model.device, keys)
    return rlsd.sample_responses(TASK, model, prompts, group_size, seed)


def test_log_probs_with_a_cache_are_those_of_a_full_pass_so_no_token_sees_a_later_one():
    rollout = sample(RANDOM, PROBLEMS, 4, 0)
    prompts = rlsd.encode_prompts(TASK, PROBLEMS, RANDOM.device)
    found = rlsd.response_log_probs(RANDOM, prompts, rollout.tokens)
    assert_close(found, slow_log_probs(RANDOM, PROBLEMS, rollout.tokens))
    assert_close(rollout.log_probs, found)


def test_sampling_frequencies_are_the_models_probabilities():
    tokens = sample(RANDOM, PROBLEMS[:1], 20_000, seed=0).tokens
    first = slow_log_probs(RANDOM, PROBLEMS[:1], tokens[:1])[0, 0].exp()
    for token, probability in enumerate(first.tolist()):
        assert is_share((tokens[:, 0] == token).tolist(), probability)


# ==== 5. What is measured ====


def test_a_record_has_exactly_these_fields(base):
    record, _, _ = next(rlsd.train(TOY, TASK, base))
    names = "step mode seed accuracy greedy_accuracy leakage kl entropy response_length reward"
    assert [*record] == [*names.split(), "dead_groups", "shown"]


def test_reward_and_dead_groups_are_means_since_the_last_evaluation(base):
    records, batches, _ = watch(base, steps=3, evaluate_every=2)
    rewards = [batch.reward.view(2, 4).mean(1) for batch in batches]  # of each group
    dead = [(reward % 1 == 0).float() for reward in rewards]
    for name, values in (("reward", rewards), ("dead_groups", dead)):
        first, second, third = (value.mean().item() for value in values)
        assert [record[name] for record in records] == [None, (first + second) / 2, third]


@mark.parametrize("mode", ["rlvr", "opd", "rlsd"])
def test_what_is_measured_is_what_a_slow_count_finds_without_errors(mode, base):
    config = toy(mode=mode, false_negatives=0.5, false_positives=0.5, key_noise=1)
    record, _, _ = next(rlsd.train(config, TASK, base, LARGER))

    problems, keys = TASK.exam()
    rollout = sample(base, problems, seed=random.Random("exam").getrandbits(62))
    lengths = tensor([len(TASK.tokenizer.encode(text)) for text in rollout.texts])
    written = torch.arange(TASK.response_length) < lengths.unsqueeze(1)
    p = slow_log_probs(base, problems, rollout.tokens)[written]
    teacher, shown = (LARGER, None) if mode == "opd" else (base, keys)
    q = slow_log_probs(teacher, problems, rollout.tokens, shown)[written]

    def accuracy(texts):
        return sum(map(TASK.verify, problems, texts)) / 64

    expected = {
        "accuracy": accuracy(rollout.texts),
        "greedy_accuracy": accuracy(sample(base, problems).texts),
        "leakage": sum(SEE_KEY in text for text in rollout.texts) / 64,
        "kl": (p.exp() * (p - q)).sum(1).mean(),
        "entropy": -(p.exp() * p).sum(1).mean(),
        "response_length": lengths.float().mean(),
    }
    for name, value in expected.items():
        assert record[name] == approx(float(value), abs=2e-5)


def test_what_is_shown_is_the_first_response_whatever_its_reward_with_the_methods_a_t(base):
    problem, results = TASK.exam()[0][0], []

    def method(mode, batch):
        results.append(method_loss(mode, batch))
        return results[0]

    shown = rlsd.show_response(toy(group_size=8), TASK, base, base, 7, method)
    texts = sample(base, [problem], 8, random.Random("shown").getrandbits(62)).texts
    right = [TASK.verify(problem, text) for text in texts]
    assert "".join(shown["tokens"]) == texts[0]
    assert (shown["right"], shown["group_right"]) == (right[0], sum(right))
    ((_, token_advantage),) = results
    found = tensor(shown["token_advantage"])
    assert_close(found, token_advantage[0, : len(found)], atol=0.001)


# ==== 6. The tasks ====

ALL_TASKS = [task(digits) for task in TASKS.values() for digits in (2, 4, 10)]


@mark.parametrize(
    "task, problem, accepted, wrong, malformed",
    [
        (
            Carry(3),
            (478, 356),
            "4c3c8-=0834. | =0834. | 9-9-9-=0834. | <see key>=0834.",
            "4c2c8-=0824. | =1834.",
            " | 4c3c8-0834. | =0834 | =0834.4 | =0834.. | =834. | =00834. | =1=0834. | =083\u0664.",
        ),
        (
            Split(3),
            (50, 38),
            "21-40=80-50=30-30=00. | 99-4-5-3. | <see key>-4-5-3.",
            "21-40=80-50=30-40=00. | <see key>-0-0-0.",
            " | 21-40=80-50=30-30=00 | -4-5-3. | 99-4-5-3.. | 21-12-0-0. | 99-4-5-3-0. | 9-4-5-3.",
        ),
    ],
)
def test_a_right_answer_in_its_form_is_accepted(task, problem, accepted, wrong, malformed):
    for response in accepted.split(" | "):
        assert task.verify(problem, response)
    for response in wrong.split(" | "):
        assert not task.verify(problem, response) and task.answer(response)
    for response in malformed.split(" | "):
        assert not task.verify(problem, response) and task.answer(response) is None


def write(task, homework, key_open):
    """Of 2,000 workings: which are right, and which cite the key."""
    rng, right, cited = random.Random(0), [], []
    for _ in range(2000):
        problem = task.sample(rng)
        response, _ = task.working(problem, rng, homework, key_open)
        right.append(task.verify(problem, response))
        cited.append(task.leaks(response))
    return right, cited


@mark.parametrize("task", ALL_TASKS)
def test_the_textbook_is_always_right_and_never_cites(task):
    right, cited = write(task, False, key_open=False)
    assert all(right) and not any(cited)


@mark.parametrize("task, rate", [(Carry(4, slip=0.5), 0.49), (Split(2), 0.5)])
def test_homework_slips_and_cites_at_its_rates(task, rate):
    right, cited = write(task, True, key_open=False)
    assert is_share(right, rate) and is_share(cited, 0.002)
    _, cited = write(task, True, key_open=True)
    assert is_share(cited, 0.3)


@mark.parametrize("task", ALL_TASKS)
def test_training_problems_are_never_held_out_and_each_is_shown_in_its_own_way(task):
    rng = random.Random(0)
    train, held_out = ({task.sample(rng, side) for _ in range(2000)} for side in (False, True))
    mirrored = {problem[::-1] for problem in train}  # a+b is not new to someone who knows b+a
    assert train and held_out and not held_out & (train | mirrored)
    assert len({*map(task.show, train)}) == len(train)
    task.check()


@mark.parametrize(
    "member, value, complaint",
    [
        ("verify", lambda _, text: len(text), "verify.* is .*, but must be True or False"),
        ("working", lambda *_, **__: ("=00000.", "0"), "'=00000.'.* verify says False"),
        ("verify", lambda *_: True, "verify accepts an empty response"),
        ("working", lambda *_, **__: "=00000.", "working must return its text and a key"),
        ("problem", lambda rng: rng.randrange(99), "problem must return a tuple"),
        ("response_length", 5, "is longer than response_length"),
        (
            "prompt",
            lambda problem, key=None: f"{sum(problem)}:",
            "pad the prompts: all without a key must have one length",
        ),
        ("alphabet", "012345678: c-=[].", "'9' in .* is not in the task's alphabet"),
    ],
)
def test_the_check_of_a_task_names_its_mistake_in_one_line(member, value, complaint):
    task = Carry(4)
    setattr(task, member, value)
    with raises(UserError, match=f"^[^\n]*{complaint}[^\n]*$"):
        task.check()


def test_a_task_needs_a_name_of_its_own():
    with raises(UserError, match="class Nameless must have a name of its own"):
        type("Nameless", (Carry,), {})(4).check()


def test_an_alphabet_without_the_end_is_refused():
    with raises(UserError, match="the alphabet lacks '.'"):
        Tokenizer("0123456789")


def test_the_tokenizer_gives_the_text_back():
    text = "".join(random.Random(0).choices([*Carry.alphabet, SEE_KEY], k=1000))
    assert TASK.tokenizer.decode(TASK.tokenizer.encode(text)) == text


@mark.parametrize("unknown", ["x", "é", "\ud800"])
def test_the_tokenizer_names_a_character_that_it_does_not_know(unknown):
    with raises(UserError, match=re.escape(repr(unknown))):
        TASK.tokenizer.encode(f"12{SEE_KEY}{unknown}3")


# ==== 7. The base and its cache ====


def test_a_base_has_learned_to_add_but_often_forgets_a_carry(base):
    problems, _ = TASK.exam()
    texts = sample(base, problems).texts
    wrong = [text for problem, text in zip(problems, texts) if not TASK.verify(problem, text)]
    assert 5 < len(wrong) < 45
    assert sum("c" in text for text in wrong) > 0.9 * len(wrong)


def test_a_base_cites_a_key_that_it_sees_and_hardly_ever_another(base):
    problems, keys = TASK.exam()
    for shown, low, high in ((keys, 6, 32), (None, 0, 5)):
        texts = sample(base, problems, seed=0, keys=shown).texts
        assert low <= sum(map(TASK.leaks, texts)) <= high


def test_a_base_that_does_not_learn_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("rlsd.learn", nothing)
    monkeypatch.setattr("rlsd.MOST_TEXTBOOK_STEPS", 9)
    with raises(
        UserError, match="^after 240 steps of the textbook 0% of the held-out answers [^\n]*$"
    ):
        rlsd.pretrain(TASK, RANDOM, "base", 0, nothing)


def fingerprint(page=rlsd, **settings):
    return page.fingerprint(page.Config(**settings), "base", "cpu")


OTHER_BASES = [{"digits": 3}, {"slip": 0}, {"cite": 0}, {"seed": 1}, {"task": "split"}]


@mark.parametrize("settings", OTHER_BASES)
def test_a_base_is_made_anew_if_its_task_or_its_seed_changes(settings):
    assert fingerprint(**settings) != fingerprint()


def test_a_base_is_kept_if_other_settings_change_or_eq_15(edited):
    source = inspect.getsource(rlsd_token_advantage)
    page = edited((source, source.replace("return", "return 2 *")))
    assert fingerprint(page, lr=0.1, eps_w=1, mode="opd", steps=5) == fingerprint()


class Child(Carry):
    """A task whose class and parent are in different modules."""


@mark.parametrize("part", [sys.modules[__name__], sys.modules["tiny_tasks"], *rlsd.MAKES_A_BASE])
def test_a_base_is_made_anew_if_the_source_of_what_makes_it_changes(part, monkeypatch):
    monkeypatch.setitem(TASKS, "carry", Child)
    before, source = fingerprint(), inspect.getsource
    others = [one for one in rlsd.MAKES_A_BASE if callable(one) or one is not part]
    monkeypatch.setattr("rlsd.MAKES_A_BASE", others)
    monkeypatch.setattr("rlsd.source_of", lambda one: source(one) + "#" * (one is part))
    assert fingerprint() != before


@mark.parametrize("what", ["__version__", "get_num_threads", "backends.cpu.get_cpu_capability"])
def test_a_base_is_made_anew_on_another_machine(what, monkeypatch):
    before = fingerprint()
    monkeypatch.setattr(f"torch.{what}", lambda: 99)
    assert fingerprint() != before


@mark.parametrize("damage", [Path.mkdir, lambda path: path.write_bytes(b"half of it")])
def test_a_cached_base_that_cannot_be_read_is_named(damage, folder, tmp_path, monkeypatch):
    (path,) = folder.glob(".cache/carry-base-s0-*")
    damage(tmp_path / path.name)
    monkeypatch.setattr("rlsd.CACHE", tmp_path)
    with raises(UserError, match=f"^[^\n]*{path.name}[^\n]*$"):
        cached_model(TOY, "base")


@mark.parametrize("read", [lambda path: cached_model(TOY, "base"), rlsd.read_log])
def test_a_file_that_may_not_be_read_is_not_called_damaged_and_the_systems_words_are_said(
    read, folder, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with raises(UserError, match="^cannot read .*: Permission denied$"):
        read(tmp_path / "log.jsonl")


def test_a_system_error_that_names_no_file_is_said_without_one():
    assert rlsd.explain(OSError(28, "No space left on device")) == "No space left on device"


def test_a_base_that_cannot_be_kept_is_a_warning(monkeypatch, capsys):
    monkeypatch.setattr("rlsd.CACHE", HERE / "rlsd.py" / "cache")
    monkeypatch.setattr("rlsd.pretrain", nothing)
    cached_model(TOY, "base")
    assert re.fullmatch("rlsd.py: cannot keep [^\n]*\n", capsys.readouterr().err)


@mark.parametrize("shape", [(96, 32), (32, 128)])
def test_muons_direction_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    left, _, right = torch.linalg.svd(random_tensor(*shape), full_matrices=False)
    found = left.T @ rlsd.orthogonal(left * torch.linspace(1, 10, 32) @ right) @ right.T
    assert_close(found, found.diagonal().diag())
    assert 0.6 < found.diagonal().min() and found.diagonal().max() < 1.3


# ==== 8. The program ====


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Runs the program in this process, without workers, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlsd.cores", lambda: 1)
    return lambda words: rlsd.main(words.split())


def results(folder, kind="*"):
    return {path.name: path.read_bytes() for path in Path(folder).glob(f"plots/**/*.{kind}")}


def planned(words):
    """The figure of a command."""
    return rlsd.plan(rlsd.read_flags(words.split()))[1]


MANY = """--lr 1e-3 --lam 0.9 --eps-w 0.9 --digits 3 --slip 0.1 --cite 0.1 --key-noise 0.1
--problems 9 --steps 9 --group-size 9"""
ONE = """--mode opd|--mode all|--seed 1|--seeds 2|--task split|--name mine
--lr 1e-3|--lr 1e-4|--lr 1.0000001e-4"""


def test_commands_with_different_settings_never_share_a_figure_and_names_are_not_too_long():
    commands = ["", *re.split("[|\n]", ONE), f"{MANY} --lam-decay 0", f"{MANY} --lam-decay 1"]
    names = {planned(words).stem for words in commands}
    assert len(names) == len(commands) and max(map(len, names)) <= 120


def test_a_sweep_keeps_whole_logs_of_this_very_page_and_repeats_the_others(run, monkeypatch):
    words, trained = f"--seeds 2 {FLAGS} --steps 0 --name mine", []
    run(words)
    (log,) = Path().glob("plots/runs/mine-*-s1-*.jsonl")
    log.write_text(log.read_text().replace('"source": "', '"source": "other'))
    monkeypatch.setattr("rlsd.train_together", lambda runs, report: trained.extend(runs))
    assert run(words) == 0 and [run.log.name for run in trained] == [log.name]


@mark.parametrize("source, compared", [("other", [("rlsd", 0)]), (rlsd.SOURCE, [])])
def test_an_edited_page_is_compared_with_runs_of_another_version(
    source, compared, run, monkeypatch
):
    run(f"--mode rlsd {FLAGS}")
    monkeypatch.setattr(rlsd, "SOURCE", source)
    flags = rlsd.read_flags(f"--mode all {FLAGS} --name edited".split())
    _, unedited = rlsd.runs_to_compare_with(flags, rlsd.plan(flags)[0])
    assert list(unedited) == compared


def test_without_a_name_a_run_is_not_compared_with_itself(run):
    run(f"--mode rlsd {FLAGS}")
    flags = rlsd.read_flags(f"--mode rlsd {FLAGS}".split())
    assert rlsd.runs_to_compare_with(flags, rlsd.plan(flags)[0]) == ({}, {})


@mark.parametrize(
    "settings, modes, told",
    [
        ({}, ["rlvr"], "exact verifier"),
        ({"key_noise": 0.2}, ["opd"], "exact verifier; a wrong key with probability 0.2"),
        ({}, ["rlsd"], "exact verifier; RLSD: eps_w 0.2, lam falling from 0.5"),
        (
            {"false_negatives": 0.4, "false_positives": 0.4},
            ["opsd"],
            "each verdict wrong with probability 0.4",
        ),
        (
            {"false_negatives": 0.5, "eps_w": 1, "lam": 1, "lam_decay": 0},
            ["rlvr", "rlsd", "cepo"],
            "verifier rejects 50% of right, accepts 0% of wrong answers; "
            "RLSD and CEPO: eps_w 1, lam held at 1",
        ),
    ],
)
def test_a_figure_says_in_words_what_the_verifier_gets_wrong_and_who_is_weighted(
    settings, modes, told
):
    assert rlsd.describe(toy(**settings), modes) == told


def test_a_run_that_fails_says_so_and_the_others_go_on(run, small_exam, monkeypatch, capsys):
    measure = rlsd.evaluate

    def evaluate(config, *rest):
        if config.mode == "opsd":
            raise UserError("it fails")
        return measure(config, *rest)

    monkeypatch.setattr("rlsd.evaluate", evaluate)
    assert run(f"--mode all {FLAGS}") == 2 and len(results(".", "jsonl")) == 4
    assert capsys.readouterr().err == "rlsd.py: opsd, seed 0: it fails\n"


def begin(folder):
    run = rlsd.Run(TOY, folder / "log.jsonl", "cpu")
    return run.log, rlsd.logged_training(run, nothing)


def test_a_stopped_run_leaves_a_part_and_the_finished_log_as_it_was(base, tmp_path):
    log, run = begin(tmp_path)
    list(run)
    whole = log.read_bytes()
    _, stopped = begin(tmp_path)
    next(stopped)
    stopped.close()
    assert log.read_bytes() == whole and [*tmp_path.glob("*.part")]


def test_two_runs_of_one_command_at_a_time_leave_one_whole_log(base, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", count().__next__)  # as in other processes
    (log, one), (_, other) = begin(tmp_path), begin(tmp_path)
    next(one)
    list(other)
    list(one)
    assert [record["step"] for record in rlsd.read_log(log)[1]] == [0, 1, 2]


def complaint(main, words, capsys):
    """The line with which the program refuses a command."""
    try:
        code = main(words.split())
    except SystemExit as end:
        code = end.code
    said, complaint = capsys.readouterr()
    assert (code, said, complaint.count("\n")) == (2, "", 1)
    return complaint


BAD = """--task x|--steps -1|--steps two|--group-size 1|--lr nan|--lr 0|--lr inf|--eps-w -1|--lam 2
--false-negatives 2|--key-noise -1|--digits 1|--digits 11|--step 3|--seed -1|--seeds 0
--device gpu9|--problems 0|--divergence kl|--name a/b|--name split"""


@mark.parametrize("words", re.split("[|\n]", BAD))
def test_a_bad_flag_is_one_line_on_standard_error_and_exit_code_2(words, run, capsys):
    assert words.split()[0] in complaint(rlsd.main, words, capsys)


def test_the_complaint_about_an_unknown_mode_lists_the_modes(run, capsys):
    line = complaint(rlsd.main, "--mode foo", capsys)
    assert all(mode in line for mode in [*MODES, "all"])


def test_a_figure_that_cannot_be_drawn_is_a_warning_of_one_line(run, small_exam, capsys):
    planned(f"{FLAGS} --steps 0").mkdir(parents=True)
    assert run(f"{FLAGS} --steps 0") == 0
    assert re.fullmatch("rlsd.py: cannot draw [^\n]*\n", capsys.readouterr().err)


def test_all_modes_train_in_a_thread(run, small_exam, monkeypatch):
    monkeypatch.setattr("rlsd.cores", lambda: 2)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(run, f"--mode all {FLAGS} --steps 0").result() == 0


def test_a_verifier_that_takes_20_ms_delays_the_first_sign_of_life_by_less_than_4_s(
    folder, monkeypatch, capsys
):
    asked = []

    class Slow(Carry):
        name = "carry"

        def verify(self, problem, response):
            asked.append(response)
            return super().verify(problem, response)

    monkeypatch.setitem(TASKS, "carry", Slow)
    monkeypatch.setattr("rlsd.side_by_side", lambda *_: [])  # so that nothing is trained
    rlsd.main(["--out", f"{folder}/slow"])
    assert 0 < 0.02 * len(asked) < 4 and "live page" in capsys.readouterr().out


# ---- What a student adds


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Imports a copy of the page in which texts are replaced. Its bases learn nothing."""

    def edit(*edits):
        for name in ("rlsd", "tiny_tasks"):
            text = (HERE / f"{name}.py").read_text("utf-8")
            for old, new in edits:
                text = text.replace(old, new)
            (tmp_path / f"{name}.py").write_text(text, "utf-8")
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.chdir(tmp_path)
        page = importlib.import_module("rlsd")
        monkeypatch.setattr(page, "pretrain", nothing)
        monkeypatch.setattr(page, "cores", lambda: 1)
        return page

    return edit


SMALL = "range(512)", "range(64)"  # the exam
README = (HERE / "README.md").read_text("utf-8")
THEIR_TASK, THEIR_ROW, THEIR_BRANCH = re.findall("```(?:python|text)\n(.*?)```", README, re.DOTALL)
ROW = "MODES = {\n", "MODES = {\n" + THEIR_ROW
LAST = '    raise UserError(f"method_loss has no branch'
BRANCH = LAST, f"{THEIR_BRANCH}\n{LAST}"


@mark.parametrize("mode, count", [("mine", 1), ("all", 1 + len(MODES))])
def test_the_method_that_the_readme_adds_trains_alone_and_among_all(mode, count, edited):
    page = edited(SMALL, ROW, BRANCH)
    assert page.main(f"--mode {mode} {FLAGS}".split()) == 0
    assert len(results(".", "jsonl")) == count


BAD_TEACHER = ROW[0], ROW[1].replace("student", "me")
BAD_SIGHT = ROW[0], ROW[1].replace("right", "left")


NO_TUPLE = ROW[0], ROW[1].replace('("right key",)', '("right key")')
LONG = ROW[0], ROW[1].replace('"MINE"', '"MY METHOD"')


@mark.parametrize("row", [ROW, BAD_TEACHER, BAD_SIGHT, NO_TUPLE, LONG])  # the first has no branch
def test_a_mode_that_cannot_work_is_refused_before_a_base_is_made(row, edited, capsys):
    page = edited(row)
    line = complaint(page.main, "--mode mine", capsys)
    assert "mode mine" in line and not page.CACHE.exists()


def test_a_key_that_a_mode_does_not_list_is_named_as_the_reason(edited, capsys):
    branch = BRANCH[0], BRANCH[1].replace("batch.right_key_log_probs", "batch.no_key_log_probs")
    page = edited(ROW, branch)
    assert "unless the mode's `sees` lists it" in complaint(page.main, "--mode mine", capsys)


def test_the_task_that_the_readme_adds_trains(edited):
    task = "\nTASKS =", f"\n{THEIR_TASK}\nTASKS ="
    page = edited(SMALL, task, ("(Carry, Split)", "(Carry, Split, Plain)"))
    assert page.main(f"--task plain {FLAGS}".split()) == 0


# ---- Jobs side by side


def double(number, report):
    return 2 * number


def is_deaf(report):
    """Is Ctrl-C blocked, from before this worker process began?"""
    return os.name == "nt" or signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def refuse(report):
    raise UserError("refused")


def die(report):
    os._exit(9)


PHASES = [[(is_deaf,), (is_deaf,), (refuse,)], [(die,), (double, 3), (double, 4)]]


@pytest.fixture(scope="session")
def jobs():
    """What two workers give back, and how many jobs had ended at the start of each phase."""
    ended, starts = [], []

    def phases():
        for phase in PHASES:
            starts.append(len(ended))
            yield phase

    for (function, *_), result in rlsd.side_by_side(phases(), 2):
        ended.append((function, str(result)))
    return ended, starts


def test_each_job_has_its_result_or_its_error_and_a_killed_worker_is_one(jobs):
    lost = "its worker process has ended: killed, or out of memory"
    assert {(refuse, "refused"), (die, lost), (double, "6"), (double, "8")} < {*jobs[0]}


def test_a_phase_begins_when_the_one_before_it_has_ended(jobs):
    assert jobs[1] == [0, 3]


def test_no_worker_ever_sees_ctrl_c(jobs):
    assert (is_deaf, "False") not in jobs[0]


# ---- What a user sees


def test_the_progress_line_is_cut_to_the_width_of_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    monitor = rlsd.Monitor(TOY, Path("figure.png"), {})
    monitor.begin(["rlsd, seed 0"])
    monitor.progress("rlsd, seed 0", 1, 2)
    assert re.fullmatch(r"\r\033\[K 50%.{15}", capsys.readouterr().err)


@pytest.fixture
def clock(monkeypatch):
    """The page's time in seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(rlsd.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_phase_and_not_of_what_ran_before(clock, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monitor = rlsd.Monitor(TOY, Path("figure.png"), {})
    clock[0] = 100.0
    monitor.begin(["rlsd, seed 0"])
    clock[0] = 110.0
    monitor.progress("rlsd, seed 0", 1, 2)
    assert " 10 s left" in capsys.readouterr().err


def test_drawing_takes_at_most_a_twentieth_of_the_time(clock, monkeypatch):
    def draw_for_three_seconds(*_):
        clock[0] += 3

    monkeypatch.setattr(rlsd, "draw_figure", draw_for_three_seconds)
    monitor = rlsd.Monitor(TOY, Path("figure.png"), {})
    [records] = imagine("rlsd", *[0.5] * 400).values()
    for record in records:
        clock[0] += 1
        monitor.add(record | {"greedy_accuracy": 0.5, "kl": 0.1})
    assert 0.04 < monitor.drawing / clock[0] < 0.06


def test_a_sweep_on_many_cores_starts_eight_workers_at_most(run, monkeypatch):
    counts = []
    monkeypatch.setattr(rlsd, "cores", lambda: 64)
    monkeypatch.setattr(rlsd, "can_start_workers", lambda: True)
    monkeypatch.setattr(rlsd, "side_by_side", lambda _, workers, *__: counts.append(workers) or [])
    run("--mode rlvr --seeds 20")
    assert counts == [8]


def test_tiktoken_is_bounded_where_it_is_installed_from():
    for name in ("requirements.txt", "rlsd.py"):
        assert "tiktoken>=0.7,<0.15" in (HERE / name).read_text("utf-8")


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws runs. Returns the panels of the figure."""

    def draw(runs):
        panels = []

        def keep(figure, part, **_):
            panels.extend(figure.axes)
            part.touch()

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep)
        rlsd.draw_figure(tmp_path / "figure.png", runs, toy(steps=20), {})
        return panels

    return draw


def imagine(mode, *accuracies, seed=0, response="4c9-=094."):
    """A run of a mode, with these accuracies and with this response as its tiles."""
    pushes = [2.0, -2.0, 0.0] * len(response)
    shown = {"problem": "37+57", "tokens": response, "token_advantage": pushes}
    shown |= {"right": True, "group_size": 8, "group_rewarded": 3}
    record = {"mode": mode, "seed": seed, "leakage": 0.1, "shown": shown}
    records = [record | {"step": n, "accuracy": value} for n, value in enumerate(accuracies)]
    return {(mode, seed): records}


def test_the_bold_curve_is_the_mean_over_seeds_as_far_as_all_have_come(draw):
    panel, *_ = draw(imagine("rlsd", 0.1, 0.5, 0.9) | imagine("rlsd", 0.3, 0.5, seed=1))
    bold = max(panel.lines, key=lambda curve: curve.get_linewidth())
    assert bold.get_ydata() == approx([0.2, 0.5])


@mark.parametrize("heights", [(0.97, 0.96, 0.03, 0.98, 0.5), (0.5,) * 5])
def test_names_at_the_ends_of_curves_keep_their_order_and_do_not_overlap(heights, draw):
    runs, height_of = {}, dict(zip(MODES, heights))
    for mode in MODES:
        runs |= imagine(mode, height_of[mode])
    panel, *_ = draw(runs)
    names = sorted(panel.texts, key=lambda name: name.get_position()[1])
    order = [MODES[mode].name for mode in sorted(MODES, key=height_of.get)]
    assert [name.get_text().strip() for name in names] == order
    for lower, upper in pairwise(names):
        assert lower.get_window_extent().y1 <= upper.get_window_extent().y0


def test_tiles_are_blue_if_pushed_up_red_if_pushed_down_and_else_white(draw):
    *_, panel = draw(imagine("rlsd", 0.5))
    up, down, neither = (tile.get_facecolor()[0] for tile in panel.collections[:3])
    assert up[2] > 2 * up[0] and down[0] > 2 * down[2] and neither.min() > 0.9


def test_a_long_response_is_cut_with_an_ellipsis_inside_the_figure(draw):
    *_, panel = draw(imagine("rlsd", 0.5, response="4c" * 40))
    assert " ..." in [text.get_text() for text in panel.texts]
    assert max(text.get_window_extent().x1 for text in panel.texts) < panel.bbox.x1


# ---- Whole programs, which have been running since the fixture `programs` was made


@pytest.fixture(scope="session")
def all_modes(programs):
    """What `--mode all` says in a folder that has the page only, with as many workers as cores."""
    code, said = programs["all modes"].result()
    assert code == 0
    return said


def test_all_modes_train_print_and_log(all_modes, folder):
    assert len(results(folder, "jsonl")) == len(MODES)
    for mode in MODES:
        assert re.findall(rf"^{mode} +0 +(\d)", all_modes, re.MULTILINE) == ["0", "2"]


def test_all_modes_are_drawn_in_a_figure_which_a_web_page_shows(all_modes, folder):
    ((figure, image),) = results(folder, "png").items()
    (page,) = results(folder, "html").values()
    assert image.startswith(b"\x89PNG") and figure.encode() in page


def test_the_same_command_writes_the_same_bytes_whoever_works(all_modes, folder, run):
    run(f"--mode all {FLAGS}")
    assert results(".") == results(folder)


def test_a_mode_alone_writes_the_log_that_it_writes_among_all(all_modes, folder, run):
    run(f"--mode opd {FLAGS}")
    assert results(".", "jsonl").items() < results(folder, "jsonl").items()


def test_the_figure_does_not_depend_on_matplotlibs_environment(all_modes):
    assert "cannot draw" not in all_modes and "\nfigure " in all_modes


def test_a_script_without_a_main_guard_ends_with_a_line_that_says_what_to_do(programs):
    code, said = programs["script"].result()
    _, line = said.splitlines()  # after the line that names the live page
    assert code == 2 and 'only under if __name__ == "__main__"' in line


def test_a_program_from_standard_input_trains_all_modes(programs):
    code, _ = programs["typed in"].result()
    assert code == 0


@mark.skipif(os.name == "nt", reason="Windows has no process groups that get a signal")
@mark.parametrize("words", STOPPED)
def test_ctrl_c_at_any_moment_is_one_line_and_leaves_no_process(words, programs):
    code, said = programs[words].result()
    assert code == 130 and said.count("stopped") == 1 and "Traceback" not in said
