"""What plots/*.md say of the committed logs is what these logs say; and the studies work."""

import importlib
import itertools
import json
import math
import random
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

import rlsd
from plots import compare, film, floor, strict, study, teacher, variants
from tiny_tasks import SEE_KEY, Task

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text("utf-8") for path in ROOT.glob("plots/*.md")}
MODULES = {}  # the studies
for path in sorted(ROOT.glob("plots/*.py")):
    if not path.stem.startswith("test_") and "study.run_all(" in path.read_text("utf-8"):
        MODULES[path.stem] = importlib.import_module(f"plots.{path.stem}")
UNTRAINED = ("belief", "credit", "push")  # studies without --steps and --seeds
LOGGED = []  # the studies that have run in full, and whose tables are in the pages
for name in MODULES:
    if name != "credit" and (ROOT / f"plots/reference/runs/{name}.jsonl").exists():
        LOGGED.append(name)


def rows_of(name: str) -> list[str]:
    """The table of a study's committed log."""
    lines = study.read_lines(ROOT / f"plots/reference/runs/{name}.jsonl")
    lines = [line for line in lines if not line["label"].startswith("tuning")]
    return MODULES[name].table(lines)


def rows_of_all(names: list[str]) -> str:
    return "\n".join("\n".join(rows_of(name)) for name in names)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ==== The pages ====


@pytest.mark.parametrize("name", LOGGED)
def test_the_studies_tables_are_those_of_their_logs(name):
    page = PAGES["LESSON" if name == "lesson" else "README"]
    rows = rows_of(name)
    assert len(rows) > 2
    assert [row for row in rows if row not in page] == []


def test_every_number_of_a_verdict_on_the_paper_is_in_the_tables_of_the_study_that_gave_it():
    section = PAGES["README"].split("## The paper's claims")[1].split("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in section.splitlines() if row.startswith("| ")]
    assert len(rows) == 15
    for *_, seen, by in rows[1:]:
        names = [name for name in LOGGED if name in by]
        tables = rows_of_all(names)
        for number in re.findall(r"\d+\.\d+|\d+ of \d+", seen):
            assert not names or number in tables, seen


def test_a_studys_text_has_no_number_of_three_decimals_that_its_table_has_not():
    for section in PAGES["README"].split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        words = title.partition(":")[0].split()
        names = [name for name in LOGGED if name in words]
        tables = rows_of_all(names)
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
        for number in re.findall(r"\b\d\.\d{3}\b", prose):
            assert not names or number in tables, title


def test_the_lessons_answers_have_the_numbers_of_its_log():
    tables = rows_of_all(["lesson"])
    answers = PAGES["LESSON"].split("**2. Remove the sign.**")[1]
    numbers = re.findall(r"\b\d\.\d\d\b", answers)
    assert len(numbers) > 40
    assert [number for number in numbers if number not in tables] == ["0.25"]  # the base's cites


def test_the_links_and_pictures_of_the_pages_exist():
    for name, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert link.startswith("https://") or (ROOT / "plots" / link).exists(), (name, link)


# ==== The mathematics of the pages ====


def test_with_a_coin_for_a_reward_rlsds_mean_update_is_opsds_times_2_lam_sqrt_p_1_minus_p():
    """Over all coins and all tokens."""
    logits = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    student = logits.log_softmax(0)
    shift = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    teacher = (logits.detach() + 1e-4 * shift).log_softmax(0)
    gain = rlsd.information_gain(teacher.view(-1, 1), student.view(-1, 1))
    update, size = 0, 0
    for rewards in itertools.product((0.0, 1.0), repeat=4):
        advantage = rlsd.group_advantage(torch.tensor(rewards, dtype=torch.float64), 4)[0]
        token_advantage = rlsd.rlsd_token_advantage(gain, advantage.expand(5), 0.2, 0.5)
        weight = student.exp() * token_advantage.flatten() / 16
        update += torch.autograd.grad(student, logits, weight, retain_graph=True)[0]
        p = sum(rewards) / 4
        size += 2 * 0.5 * math.sqrt(p * (1 - p)) / 16
    loss = rlsd.divergence(student.view(1, 1, -1), teacher.view(1, 1, -1), "reverse_kl").sum()
    imitation = -torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(update, size * imitation, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("eps_w", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("lam", [0.3, 1.0])
@pytest.mark.parametrize("noise", [0.1, 0.3, 0.44, 0.5])
def test_a_cite_is_pushed_up_if_lam_eps_w_is_above_1_minus_twice_the_noise(eps_w, lam, noise):
    """Half of the group is rewarded."""
    gain = torch.full((2, 1), 5.0)
    advantage = rlsd.group_advantage(torch.tensor([1.0, 0.0]), 2)
    up, down = rlsd.rlsd_token_advantage(gain, advantage, eps_w, lam).flatten().tolist()
    push = noise * up + (1 - noise) * down
    assert (push > 1e-6) == (lam * eps_w > 1 - 2 * noise)


@pytest.mark.parametrize("lam_eps_w", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("accuracy", [0.2, 0.39, 0.95])
@pytest.mark.parametrize("noise", [0.1, 0.4, 0.48])
def test_the_rule_of_thumb_has_the_general_form_of_the_page(lam_eps_w, accuracy, noise):
    """One cite among many responses, of which the verifier accepts a share `accepted`."""
    accepted = accuracy * (1 - noise) + (1 - accuracy) * noise
    others = 4000
    count = round(accepted * others)
    rewards = [1.0] * count + [0.0] * (others - count)
    gain = torch.full((others + 1, 1), 5.0, dtype=torch.float64)
    push = 0.0
    for reward, chance in ((1.0, noise), (0.0, 1 - noise)):
        group = torch.tensor([reward, *rewards], dtype=torch.float64)
        advantage = rlsd.group_advantage(group, others + 1)
        push += chance * float(rlsd.rlsd_token_advantage(gain, advantage, lam_eps_w, 1.0)[0])
    odds = (1 - noise) * accepted / (noise * (1 - accepted))
    assert (push > 0) == ((1 + lam_eps_w) / (1 - lam_eps_w) > odds)


def test_a_rejected_cite_keeps_hardly_any_blame_at_eps_w_1_and_four_fifths_at_0_2():
    """The cite is much likelier with the key. plots.strict"""
    advantage, gain = torch.tensor([-0.8]), torch.tensor([[5.0]])
    assert -0.01 < float(rlsd.rlsd_token_advantage(gain, advantage, 1.0, 1.0)) < 0
    blame = float(rlsd.rlsd_token_advantage(gain, advantage, 0.2, 1.0))
    assert blame == pytest.approx(-0.8 * 0.8)


def test_the_cites_alternatives_are_praised_less_and_blamed_more_than_under_rlvr():
    """They are less likely with the key. plots.strict"""
    advantage, gain = torch.tensor([0.8, -0.8]), torch.full((2, 1), -0.3)
    praise, blame = rlsd.rlsd_token_advantage(gain, advantage, 1.0, 1.0).flatten().tolist()
    assert 0 < praise < 0.8
    assert blame < -0.8


@pytest.mark.parametrize("scale", [0.1, 1, 5])
def test_theorem_1_holds_for_any_teacher_and_student(scale):
    teacher = (scale * numbers(6, 4, 9)).log_softmax(-1)
    student = (scale * numbers(4, 9)).log_softmax(-1)
    loss, first, information = floor.theorem_1(teacher, student)
    by_hand = 0.0
    for of_key in teacher:
        for p, q in zip(of_key.flatten(), student.flatten()):
            by_hand += float(p.exp() * (p - q)) / 6
    assert float(loss.sum()) == pytest.approx(by_hand, abs=1e-9)
    assert (information >= 0).all() and (first >= 0).all()
    torch.testing.assert_close(loss, first + information)


def test_proposition_1_by_enumeration():
    """A student of 5 parameters."""
    weights = numbers(5, seed=1).requires_grad_()
    teacher = (2 * numbers(6, 9, seed=2)).softmax(-1)
    log_probs = (numbers(9, 5) @ weights).log_softmax(-1)

    def gradient(target: torch.Tensor) -> torch.Tensor:
        loss = (target * (target.log() - log_probs)).sum()
        return torch.autograd.grad(loss, weights, retain_graph=True)[0]

    def score_of(log_prob: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(log_prob, weights, retain_graph=True)[0]

    score = torch.stack([score_of(log_prob) for log_prob in log_probs])
    deviation, variance = floor.gradient_deviation(teacher, score)
    samples = torch.stack([gradient(target) for target in teacher])
    torch.testing.assert_close(samples, gradient(teacher.mean(0)) + deviation)
    torch.testing.assert_close(deviation.square().sum(1).mean(), variance)
    assert deviation.mean(0).abs().max() < 1e-12
    _, _, information = floor.theorem_1(teacher.log(), log_probs.detach())
    assert variance <= 2 * score.square().sum(1).max() * information


# ==== The variants ====


def a_batch() -> rlsd.Batch:
    """Four responses in two groups; all that is not told is random."""
    generator = torch.Generator().manual_seed(9)
    tokens = torch.randint(5, (4, 3), generator=generator)
    student = numbers(4, 3, 5).log_softmax(-1).requires_grad_()
    return rlsd.Batch(
        tokens=tokens,
        mask=torch.ones(4, 3),
        reward=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        old_log_probs=rlsd.token_log_probs(student.detach(), tokens),
        student_log_probs=student,
        no_key_log_probs=None,
        right_key_log_probs=numbers(4, 3, 5, seed=1).log_softmax(-1),
        wrong_key_log_probs=None,
        group_size=2,
        divergence="reverse_kl",
        eps_w=0.2,
        lam=0.5,
        problems=[],
        keys=[],
        wrong_keys=[],
        texts=[],
    )


def test_the_cures_leave_no_push_in_the_mean_where_eq_15_does():
    mask = torch.ones(8, 3)
    advantage = rlsd.group_advantage(torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0]), 8)
    shared = torch.tensor([0.7, -0.4, 0.1]).expand(8, 3)  # the gains of tokens that all have
    own = numbers(8, 3).float()
    for weight in (
        variants.unsigned_weight(shared, 1.0),
        variants.balanced_weight(shared, advantage, mask, 1.0, 8),
        variants.balanced_weight(own, advantage, mask, 1.0, 8),
    ):
        assert (weight > 0).all()
        assert (advantage @ weight).abs().max() < 1e-6
    pushed = rlsd.rlsd_token_advantage(shared, advantage, 1.0, 1.0).mean(0)
    assert pushed.abs().min() > 0.05


def test_rlvr_plus_opsd_is_the_sum_of_the_two_losses():
    batch = a_batch()
    rlvr, token_advantage = rlsd.method_loss("rlvr", batch)
    opsd, _ = rlsd.method_loss("opsd", batch)
    loss, ours = variants.plain_sum("rlsd", batch)
    assert loss.item() == pytest.approx((rlvr + 0.5 * opsd).item())
    assert torch.equal(ours, token_advantage)


def test_the_variants_of_rlsd_differ_in_their_weights_and_keep_the_sign():
    batch = a_batch()
    _, advantage = rlsd.method_loss("rlvr", batch)
    loss, rlsds = rlsd.method_loss("rlsd", batch)

    def own_weight(gain: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        return variants.clipped_weight(gain, advantage, batch.eps_w)

    same_loss, same = variants.weighted(batch, own_weight)
    assert torch.equal(same, rlsds) and torch.equal(same_loss, loss)
    _, negative_only = variants.negative_only("rlsd", batch)
    torch.testing.assert_close(negative_only, torch.where(advantage > 0, advantage, rlsds))
    for method in (variants.unsigned, variants.balanced):
        _, token_advantage = method("rlsd", batch)
        assert (token_advantage * advantage > 0).all()
        assert not torch.allclose(token_advantage, rlsds)


@pytest.mark.parametrize(
    "variant, other", [("plain_cites", rlsd.method_loss), ("balanced_plain_cites", "balanced")]
)
def test_plain_cites_are_pushed_as_under_rlvr_and_all_else_is_left_alone(variant, other):
    batch = a_batch()
    batch.tokens[0, 0] = batch.tokens[1, 2] = 4  # the last token of this vocabulary
    other = getattr(variants, other) if isinstance(other, str) else other
    _, rlvr = rlsd.method_loss("rlvr", batch)
    _, others = other("rlsd", batch)
    _, plain = getattr(variants, variant)("rlsd", batch)
    torch.testing.assert_close(plain, torch.where(batch.tokens == 4, rlvr, others))


def test_the_cite_is_the_last_token_of_every_task():
    for name in rlsd.TASKS:
        tokenizer = rlsd.Config(task=name).make_task().tokenizer
        assert tokenizer.encode(SEE_KEY) == [tokenizer.vocabulary_size - 1]


def test_the_reversed_ratio_is_rlsds_weight_for_the_negated_gain():
    batch = a_batch()
    _, advantage = rlsd.method_loss("rlvr", batch)
    _, away = variants.away("rlsd", batch)
    teacher = rlsd.token_log_probs(batch.right_key_log_probs, batch.tokens)
    gain = teacher - rlsd.token_log_probs(batch.student_log_probs.detach(), batch.tokens)
    weight = (-advantage.sign() * gain).exp().clamp(0.8, 1.2)
    torch.testing.assert_close(away, advantage * (0.5 + 0.5 * weight))


def test_the_reversed_ratio_on_right_responses_leaves_the_others_to_rlvr():
    batch = a_batch()
    _, advantage = rlsd.method_loss("rlvr", batch)
    _, away = variants.away("rlsd", batch)
    _, when_accepted = variants.away_when_accepted("rlsd", batch)
    torch.testing.assert_close(when_accepted, torch.where(advantage > 0, away, advantage))


def test_regraded_rlvr_rewards_the_answers_that_equal_the_key():
    batch = a_batch()
    batch.keys, batch.texts = ["05", "11"], ["5-=05.", "5-=06.", "<see key>=11.", "=11"]
    regraded, _ = variants.regraded("rlsd", batch)
    by_hand = replace(batch, reward=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert regraded.item() == rlsd.method_loss("rlvr", by_hand)[0].item()


# ==== What the studies measure ====


@pytest.mark.parametrize(
    "text, strays",
    [
        ("4c3c8-=0834.", 0),  # right
        ("4c2c8-=0824.", 0),  # the carry is forgotten
        ("4c5c8-=0854.", 1),  # no carry explains this 5
        ("4-2c8-=0824.", 0),  # the carry was not written: by what is written, 2 is right
        ("4-3c8-=0834.", 1),
    ],
)
def test_a_digit_is_stray_if_no_forgotten_carry_explains_it(text, strays):
    task = rlsd.Config(digits=3).make_task()
    assert study.count_strays(task, (478, 356), text) == (strays, 3)


def test_a_cite_has_no_working_in_which_a_digit_could_be_stray():
    task = rlsd.Config(digits=3).make_task()
    assert study.count_strays(task, (478, 356), "<see key>=0834.") == (0, 0)


def test_the_hidden_digit_counts_when_it_is_graded_and_not_before():
    task = strict.Hidden(4, 0.6, 0.3)
    task.check()
    problem = (4218, 3567)
    right, _ = task.working(problem, random.Random(0), False, False)
    wrong = f"{right[:-2]}{1 - int(right[-2])}."
    assert task.verify(problem, right) and task.verify(problem, wrong)
    task.graded = True
    assert task.verify(problem, right) and not task.verify(problem, wrong)


def test_the_hidden_digit_is_shown_in_the_key_or_to_no_one():
    problem = (4218, 3567)
    told, untold = strict.Hidden(4, 0.6, 0.3), strict.Untold(4, 0.6, 0.3)
    key = told.answer_key(problem)
    assert key == untold.answer_key(problem) and key[:-1] == "07785"
    assert told.prompt(problem, key).startswith(f"[{key[-1]} 5 8 7 7 0]")
    assert untold.prompt(problem, key).startswith("[5 8 7 7 0]")


@pytest.mark.parametrize("rate", [0.0, 0.05, 1.0])
def test_the_averaged_teacher_moves_by_the_rate_towards_the_student(rate):
    student, mine = (torch.nn.Linear(2, 2) for _ in range(2))
    before = mine.weight.detach().clone()
    teacher.average(None, 1, student, mine, rate)
    torch.testing.assert_close(mine.weight, (1 - rate) * before + rate * student.weight)


# ==== The film ====


@pytest.mark.parametrize(
    "problem, tokens, places",
    [
        ("478+356", [*"4c3c8-=0834."], []),  # right
        ("478+356", [*"4c2c8-=0824."], [2]),  # a carry is forgotten
        ("478+356", [*"4c3c9-=0934."], [4]),
        ("478+356", ["<see key>", *"=0834."], []),  # no working
        ("50-38", [*"21-40=80"], []),  # another task
    ],
)
def test_the_wrong_digits_of_a_working_are_framed(problem, tokens, places):
    assert film.wrong_digits({"problem": problem, "tokens": tokens}) == places


def test_the_film_has_a_frame_per_evaluation_and_a_png_beside_it(tmp_path, toy, capsys):
    for mode in ("rlvr", "opsd"):
        write_run(tmp_path, mode, mode=mode, steps=20)
    toy("film", str(tmp_path), "--out", "film.gif")
    with Image.open("film.gif") as picture:
        assert picture.n_frames == 2 and picture.width == 900
    with Image.open("film.png") as picture:
        assert picture.width == 900
    assert "film   film.gif" in capsys.readouterr().out


def test_a_film_with_a_name_needs_runs_with_the_same_settings(tmp_path, toy, capsys):
    write_run(tmp_path, "one", mode="rlvr")
    write_run(tmp_path, "other", mode="rlvr", eps_w=1.0)
    with pytest.raises(SystemExit) as exit:
        toy("film", str(tmp_path), "--out", "film.gif")
    assert exit.value.code == 2 and "2 different settings" in capsys.readouterr().err


def test_the_filtered_wrong_key_is_never_the_key_unless_nothing_else_was_rejected():
    task, rng = rlsd.Config(digits=2).make_task(), random.Random(0)
    texts = ["=046.", "=047.", "=048.", "no answer", "=047."]
    chosen = set()
    for _ in range(50):
        chosen.add(variants.filtered_wrong_key(task, texts, [1, 0, 0, 0, 0], "047", rng))
    assert chosen == {"048"}
    assert variants.filtered_wrong_key(task, texts, [1, 0, 1, 0, 0], "047", rng) == "047"


def test_a_study_can_put_the_filtered_wrong_key_into_the_page(toy):
    config = rlsd.Config(mode="cepo", digits=2, steps=1, **study.error_rates(0.5))
    filtered = mock.Mock(wraps=variants.filtered_wrong_key)
    with mock.patch.object(rlsd, "choose_wrong_key", filtered):
        study.curves_of_run(config, rlsd.method_loss)
    assert filtered.call_count > config.problems


# ==== Comparing runs ====


def a_run(mode: str, seed: int, steps: list[int]) -> list[dict]:
    """Records with random shares."""
    rng = random.Random(f"{mode} {seed}")
    shown = {
        "problem": "1+2",
        "tokens": ["3", "."],
        "token_advantage": [0.5, -0.5],
        "right": True,
        "group_size": 8,
        "group_right": 4,
        "group_rewarded": 4,
    }
    records = []
    for step in steps:
        record = {"step": step, "mode": mode, "seed": seed, "shown": shown}
        records.append(record | {name: rng.random() for name in compare.MEASURED})
    return records


def test_the_table_has_the_mean_over_steps_20_40_and_so_on_and_leads_are_paired_by_seed():
    runs, means = {}, {}
    for mode, seed in itertools.product(("rlvr", "rlsd"), (4, 3)):
        records = a_run(mode, seed, list(range(0, 61, 10)))
        counted = [record["accuracy"] for record in records if record["step"] in (20, 40, 60)]
        runs[mode, seed] = records
        means[mode, seed] = sum(counted) / 3
    found = compare.curves(runs)
    rows = compare.table(found)
    assert len(rows) == 4
    for mode, row in zip(("rlvr", "rlsd"), rows[2:]):
        one, other = sorted((means[mode, 3], means[mode, 4]))
        mean = f"{(one + other) / 2:.3f} ({one:.3f} to {other:.3f})"
        assert f"| {compare.NAMES[mode]} |" in row and f"| {mean} |" in row
    _, *leads = re.findall(r"[+-]\d\.\d+", compare.lead(found, "rlsd", "rlvr"))
    by_hand = [means["rlsd", seed] - means["rlvr", seed] for seed in (3, 4)]
    assert leads == [f"{lead:+.3f}" for lead in by_hand]


def test_seeds_are_cut_to_the_steps_that_all_have_and_a_lead_needs_the_same_seeds():
    runs = {
        ("rlvr", 0): a_run("rlvr", 0, [0, 20, 40]),
        ("rlvr", 1): a_run("rlvr", 1, [0, 20]),
        ("cepo", 0): a_run("cepo", 0, [0, 20]),
    }
    found = compare.curves(runs)
    assert found["rlvr"]["step"].tolist() == [0, 20]
    assert found["rlvr"]["accuracy"].shape == (2, 2)
    assert "unknown" in compare.lead(found, "cepo", "rlvr")


def test_the_mean_over_a_run_without_step_20_is_that_of_the_steps_it_has():
    assert compare.mean_over_run([0, 7], [[0.2, 0.4]]).tolist() == [0.4]
    assert compare.mean_over_run([0], [[0.2]]).tolist() == [0.2]
    assert compare.mean_over_run([0, 10, 20, 30], [[0.1, 0.2, 0.3, 0.4]]).tolist() == [0.3]


def write_run(folder: Path, name: str, **settings) -> None:
    config = rlsd.Config(**settings)
    records = a_run(config.mode, config.seed, [0, config.steps])
    lines = [rlsd.first_line(config, "cpu"), *map(json.dumps, records)]
    text = "\n".join(lines) + "\n"
    rlsd.write_whole(folder / "runs" / f"{name}.jsonl", lambda part: part.write_text(text))


def test_runs_belong_together_by_their_settings_and_not_by_their_names(toy, capsys):
    for mode, seed in itertools.product(("cepo", "rlvr"), (0, 1)):
        write_run(Path("one"), f"any-{mode}{seed}", mode=mode, seed=seed, steps=40)
        write_run(Path("one"), f"{mode}{seed}-other", mode=mode, seed=seed, eps_w=1.0)
    write_run(Path("two"), "more", mode="rlvr", seed=2, eps_w=1.0)
    Path("one/runs/study.jsonl").write_bytes(
        (ROOT / "plots/reference/runs/lesson.jsonl").read_bytes()
    )
    Path("one/runs/other.jsonl").write_text("[]\n")
    toy("compare", "one", "two")
    out = capsys.readouterr().out
    figures = re.findall("^figure (.*)$", out, re.MULTILINE)
    assert figures == ["one/carry-all-s0-1-steps=40.png", "one/carry-all-s0-2-eps_w=1.png"]
    for figure in figures:
        assert Path(figure).read_bytes().startswith(b"\x89PNG")
    assert out.count("| RLVR |") == 2 and out.count("| CEPO |") == 2
    assert out.count("lead of CEPO over RLVR") == 2 and out.count("unknown") == 1


def test_of_two_runs_with_the_same_settings_mode_and_seed_the_longer_one_is_taken(tmp_path):
    write_run(tmp_path, "a", steps=40)
    write_run(tmp_path, "b", steps=60)
    write_run(tmp_path, "c", steps=50)
    ((config, runs),) = compare.groups([tmp_path])
    assert config.steps == 60
    assert runs["rlsd", 0][-1]["step"] == 60


def test_a_class_counts_equal_seeds_of_two_students_separately(tmp_path, toy, capsys):
    for student, mode in itertools.product(("one", "other"), ("rlvr", "opsd")):
        write_run(tmp_path / student, mode, mode=mode, seed=3)
    toy("compare", "--class", str(tmp_path))
    said = capsys.readouterr().out
    assert "| RLVR | 2 |" in said and "| OPSD | 2 |" in said
    [figure] = tmp_path.glob("*.png")
    assert f"figure {figure}" in said


def test_a_class_without_logs_is_told_where_they_were_looked_for(tmp_path, toy, capsys):
    with pytest.raises(SystemExit) as exit:
        toy("compare", "--class", str(tmp_path))
    assert (
        exit.value.code == 2 and f"no logs of runs in {tmp_path}/*/runs" in capsys.readouterr().err
    )


# ==== The studies ====


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Runs a study in an empty folder, with bases that have learned nothing and a small exam."""
    exam = Task.exam

    def small_exam(task: Task) -> tuple[list, list]:
        problems, keys = exam(task)
        return problems[:8], keys[:8]

    def run(name: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *words])
        module = importlib.import_module(f"plots.{name}")
        monkeypatch.setattr(module, "CONTINUATIONS", 4, raising=False)
        study.command(module.main)

    monkeypatch.setattr(Task, "exam", small_exam)
    monkeypatch.setattr(rlsd, "pretrain", lambda *_: None)
    monkeypatch.setattr(rlsd, "CACHE", tmp_path / ".cache")
    monkeypatch.setattr(rlsd, "cores", lambda: 1)  # a worker would know nothing of this
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, handler)


def toy_flags(name: str) -> list[str]:
    words = ["--digits", "2", "--quick"]
    return words if name in UNTRAINED else [*words, "--steps", "2", "--seeds", "1"]


@pytest.mark.filterwarnings("ignore:divide by zero")  # this base has no signal
@pytest.mark.parametrize("name", MODULES)
def test_every_study_runs_at_a_toy_size_and_leaves_a_figure_and_a_log(name, toy, capsys):
    toy(name, *toy_flags(name))
    said, complaints = capsys.readouterr()
    log = Path(f"plots/runs/{name}.jsonl")
    assert study.read_lines(log) and f"log    {log}\n" in said
    assert complaints == ""
    figures = re.findall("^figure (.*)$", said, re.MULTILINE)
    assert figures == ([] if name == "lesson" else [f"plots/{name}.png"])
    for figure in figures:
        assert Path(figure).read_bytes().startswith(b"\x89PNG")


DRAWN = [name for name in LOGGED if name != "lesson"]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", DRAWN)
def test_nothing_in_the_figure_of_a_committed_log_is_cut_off(name, tmp_path, monkeypatch):
    committed = study.read_lines(ROOT / f"plots/reference/runs/{name}.jsonl")
    figures = []

    def lines_of(_, flags, runs, *measure) -> list[dict]:
        labels = [label for label, _, _ in runs]
        return [line for line in committed if line["label"] in labels]

    monkeypatch.setattr(study, "run_all", lines_of)
    monkeypatch.setattr(study, "finish", lambda figure, *_: figures.append(figure))
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path)])
    MODULES[name].main()
    [figure] = figures
    figure.draw_without_rendering()
    ticks = [text for panel in figure.axes for text in panel.get_xticklabels()]
    ticks += [text for panel in figure.axes for text in panel.get_yticklabels()]
    boxes = []
    for text in figure.findobj(Text):
        if text.get_text().strip() and text not in ticks:
            box = text.get_window_extent()
            assert figure.bbox.padded(1).contains(box.x0, box.y0), text.get_text()
            assert figure.bbox.padded(1).contains(box.x1, box.y1), text.get_text()
            boxes.append((text, box))
    for (one, box), (other, its_box) in itertools.combinations(boxes, 2):
        overlap = Bbox.intersection(box.padded(-1), its_box.padded(-1))
        assert one.axes is other.axes or overlap is None, (one.get_text(), other.get_text())


def some_curves(config: rlsd.Config, method) -> dict:
    """In the place of study.curves_of_run, which would train."""
    steps = list(range(0, config.steps + 1, config.evaluate_every))
    records = a_run(config.mode, config.seed, steps)
    return study.columns(records, study.CURVES)


@pytest.mark.parametrize("name", ["ahead", "bandwidth", "baselines", "drift"])
def test_the_long_form_of_a_study_has_a_table_and_a_figure_too(name, toy, monkeypatch, capsys):
    monkeypatch.setattr(study, "curves_of_run", some_curves)
    toy(name, "--digits", "2", "--steps", "60", "--seeds", "2")
    out, complaint = capsys.readouterr()
    assert complaint == "" and f"figure plots/{name}.png" in out
    if name == "ahead":
        assert " ± " in out and "mean over the run at the rate" in out


def test_resume_keeps_the_runs_that_the_log_has(toy, monkeypatch):
    monkeypatch.setattr(study, "curves_of_run", some_curves)
    toy("lesson", *toy_flags("lesson"))
    log = Path("plots/runs/lesson.jsonl")
    whole = log.read_text("utf-8").splitlines()
    log.write_text("\n".join([whole[3], *whole[:2]]) + "\n", "utf-8")
    train = mock.Mock(wraps=some_curves)
    monkeypatch.setattr(study, "curves_of_run", train)
    toy("lesson", *toy_flags("lesson"), "--resume")
    assert train.call_count == len(whole) - 3
    assert study.labels_of(study.read_lines(log))[0] == json.loads(whole[3])["label"]
    assert len(study.read_lines(log)) == len(whole)


@pytest.mark.parametrize(
    "command, said",
    [
        ("drift --digits 77", "digits is 77"),
        ("floor --steps 0", "--steps is 0"),
        ("baselines --seeds -1", "--seeds is -1"),
        ("belief --out /dev/null/x", "/dev/null/x"),
        ("push --no", "--no"),
        ("compare nowhere", "nowhere/runs"),
        ("credit 1234+5678 --digits 2", "1234+5678"),
        ("credit 078+56", "078+56"),
        ("credit 1+2+3", "1+2+3"),
        ("credit 50-38", "50-38"),
        ("credit 478+356 --seed -1", "--seed is -1"),
        ("credit", "no/file.pt"),
    ],
)
def test_bad_input_is_one_line_on_standard_error_and_exit_code_2(command, said, toy, capsys):
    name, *words = command.split()
    if said == "no/file.pt":
        words = ["--weights", said]
    with pytest.raises(SystemExit) as end:
        toy(name, *words)
    out, complaint = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert said in complaint and re.fullmatch(r"[\w.]+: [^\n]+\n", complaint), complaint


def test_a_damaged_log_is_refused_in_one_line(toy, capsys):
    log = Path("plots/runs/lesson.jsonl")
    for text in ("{", "[]\n", '{"label": "RLSD"}\n'):
        rlsd.write_whole(log, lambda part, text=text: part.write_text(text))
        with pytest.raises(SystemExit):
            toy("lesson", *toy_flags("lesson"), "--resume")
        assert f"{log} is not the log of a study" in capsys.readouterr().err


def test_credit_prints_a_problem_of_yours_from_the_weights_of_a_run(toy, capsys):
    config = rlsd.Config(digits=2, steps=1, lr=0.01)
    ((_, base, _), (_, student, _)) = study.training(config)
    saved = {"config": rlsd.asdict(config), "student": student.state_dict()}
    torch.save(saved, "run.pt")
    toy("credit", "78+56", "--weights", "run.pt")
    out, complaint = capsys.readouterr()
    assert complaint == "" and "78+56, run.pt: key 134" in out
    assert "| response | token | P_S" in out

    torch.save({"student": student.state_dict()}, "run.pt")
    with pytest.raises(SystemExit):
        toy("credit", "78+56", "--weights", "run.pt")
    assert "does not hold the weights of a run" in capsys.readouterr().err


# ==== README.md ====

README = (ROOT / "README.md").read_text("utf-8")
SWEEPS = {
    (config.false_negatives, config.eps_w): compare.curves(runs)
    for config, runs in compare.groups([ROOT / "plots" / "reference"])
}
EXACT, NOISY = SWEEPS[0.0, 0.2], SWEEPS[0.4, 1.0]
EXACT_HELD, NOISY_FALLING = SWEEPS[0.0, 1.0], SWEEPS[0.4, 0.2]  # of RLSD only
COIN = SWEEPS[0.5, 0.2]  # of RLSD and RLVR only


def end(sweep: dict, mode: str):
    return sweep[mode]["accuracy"][:, -1]


def leakage(sweep: dict, mode: str):
    return compare.highest(sweep[mode]["leakage"])


CONTRAST = study.read_lines(ROOT / "plots/reference/runs/contrast.jsonl")
STRICT = study.read_lines(ROOT / "plots/reference/runs/strict.jsonl")


def strictly(method: str, rate: float = 0.5) -> tuple:
    """Accuracy at the end and highest leakage at a rate of false negatives."""
    label = strict.label_of(rate, method)
    return study.ends(STRICT, label), study.leaks(STRICT, label)


def of_sweep(sweep: dict, mode: str) -> tuple:
    return end(sweep, mode), leakage(sweep, mode)


def test_the_readmes_table_is_that_of_the_sweeps_and_of_strict():
    rows = [("exact, 160 steps", compare.NAMES[mode], of_sweep(EXACT, mode)) for mode in EXACT]
    rows += [("exact, 160 steps", "RLSD, held", of_sweep(EXACT_HELD, "rlsd"))]
    rows += [("noisy, 160 steps", "RLVR", of_sweep(NOISY, "rlvr"))]
    rows += [("noisy, 160 steps", "RLSD, held", of_sweep(NOISY, "rlsd"))]
    rows += [("noisy, 160 steps", "RLSD", of_sweep(NOISY_FALLING, "rlsd"))]
    rows += [("noisy, 160 steps", "CEPO, held", of_sweep(NOISY, "cepo"))]
    rows += [("strict, 480 steps", method, strictly(method)) for method in ("RLVR", "RLSD, held")]
    rows += [("strict, 480 steps", "RLSD", strictly("RLSD, paper"))]
    rows += [("strict, 480 steps", "CEPO, held", strictly("CEPO, held"))]
    for method in ("RLVR + OPSD, falling", "RLVR, regraded"):
        label = f"verifier noise 0.4: {method}"
        found = study.ends(CONTRAST, label), study.leaks(CONTRAST, label)
        rows += [("noisy, 160 steps", method, found)]
    for verifier, method, (ends, leaks) in rows:
        count = f"{(leaks > study.LEAKS).sum()} of {len(leaks)}"
        cells = verifier, method, compare.spread(ends), compare.spread(leaks), count
        row = f"| {' | '.join(cells)} |"
        assert row in README, row


def test_the_sweeps_have_ten_seeds_each():
    for sweep in SWEEPS.values():
        assert all(list(curve["seed"]) == list(range(10)) for curve in sweep.values())


def test_the_readmes_findings_have_the_numbers_of_the_logs():
    level = abs(end(EXACT, "rlsd") - end(EXACT, "rlvr"))
    lead = end(NOISY, "cepo") - end(NOISY, "rlvr")
    falling = end(NOISY_FALLING, "rlsd") - end(NOISY, "rlvr")
    held, leaks = strictly("RLSD, held")
    rlvr, _ = strictly("RLVR")
    noisy = leakage(NOISY, "rlsd")
    for said in (
        f"RLSD ends at {end(EXACT, 'rlsd').mean():.3f} and RLVR at {end(EXACT, 'rlvr').mean():.3f}",
        f"on no seed do they differ by more than {level.max():.3f}.",
        f"Held RLSD ends at {end(EXACT_HELD, 'rlsd').mean():.3f} as well",
        f"In the strict setting it leaks on {(leaks > 0.1).sum()} of {len(leaks)} seeds",
        f"ends at {held.mean():.3f}, where RLVR ends at {rlvr.mean():.3f}",
        f"In the noisy one it leaks on {(noisy > 0.1).sum()} of {len(noisy)}.",
        f"CEPO, held, by {lead.mean():.2f} (on {(lead > 0).sum()} of {len(lead)} seeds)",
        f"RLSD with the paper's settings by {falling.mean():.2f} (on {(falling > 0).sum()} of 10)",
    ):
        assert said in README, said


def test_the_readmes_push_on_the_shared_first_token_is_the_mean_of_eq_15():
    advantage = rlsd.group_advantage(torch.tensor([1.0] * 3 + [0.0] * 5), 8)
    gain = torch.tensor(0.758 / 0.999).log().expand(8, 1)
    push = rlsd.rlsd_token_advantage(gain, advantage, 1.0, 1.0).mean()
    for page in (README, PAGES["LESSON"]):
        assert f"is {push:.2f}" in page


def test_the_page_has_the_falls_of_leakage_with_a_frozen_teacher():
    lines = study.read_lines(ROOT / "plots/reference/runs/teacher.jsonl")
    for condition in ("RLSD, noise 0.4", "RLSD, false negatives 0.5", "OPSD, exact"):
        copied, frozen = (study.leaks(lines, f"{condition}: {n}") for n in ("copied", "frozen"))
        count = (frozen > study.LEAKS).sum()
        said = f"- from {copied.mean():.3f} to {frozen.mean():.3f} for {condition[:4]}"
        [line] = [line for line in PAGES["README"].splitlines() if line.startswith(said)]
        told = f"still leaks on {count} of 8 seeds" if count else "no seed leaks any more"
        assert told in line


def test_the_readmes_experiment_has_the_counts_of_cause():
    lines = study.read_lines(ROOT / "plots/reference/runs/cause.jsonl")
    cures = "plain cites", "balanced", "neither push"
    highest = max(study.leaks(lines, f"false negatives 0.5: {name}").max() for name in cures)
    assert highest < study.LEAKS and "no seed leaks if either push is off." in README
    counts = []
    for name in ("RLSD", *cures):
        counts.append((study.leaks(lines, f"noise 0.4: {name}") > study.LEAKS).sum())
    rlsds, plain, balanced, neither = counts
    said = (
        f"of the first 8 seeds, {rlsds} leak with both pushes, {plain} without the cite push, "
        f"{balanced} without the shared push, and none with both off."
    )
    assert neither == 0 and said in README


def test_the_page_counts_the_falls_without_a_cite_push():
    lines = study.read_lines(ROOT / "plots/reference/runs/cause.jsonl")
    counts = []
    for name in ("plain cites", "neither push"):
        ends, leaks = (of(lines, f"noise 0.4: {name}") for of in (study.ends, study.leaks))
        counts.append(((ends < 0.5).sum(), ((ends < 0.5) & (leaks < study.LEAKS)).sum()))
    (plain, plain_without_leak), (both, both_without_leak) = counts
    assert (plain_without_leak, both_without_leak) == (3, both)
    said = f"RLSD with plain cites collapses on {plain} of 8 seeds, on three of them without a leak"
    assert said in PAGES["README"]
    assert f"With neither push it collapses on {both} of 8, on both" in PAGES["README"]


def test_the_pages_count_of_leaks_under_an_exact_verifier_is_that_of_the_hidden_digit():
    leaks = study.leaks(STRICT, "hidden digit, shown to no one: RLSD, held") > 0.1
    assert f"held RLSD also leaks on {leaks.sum()} of {len(leaks)} seeds" in README


def test_the_readmes_objection_has_the_counts_of_contrast():
    leaks = study.leaks(CONTRAST, "choosy cite, noise 0.4: CEPO") > 0.1
    assert f"CEPO, held, leaks on {leaks.sum()} of {len(leaks)} seeds" in README
    regraded, cepo = (
        study.ends(CONTRAST, f"verifier noise 0.4: {name}") for name in ("RLVR, regraded", "CEPO")
    )
    assert f"is ahead of CEPO on {(regraded > cepo).sum()} of {len(cepo)} seeds" in README


def test_held_rlsd_falls_without_a_planted_cite_on_as_many_seeds_as_the_page_says():
    ends = study.ends(CONTRAST, "noise 0.4, cite 0: RLSD")
    assert f"collapses [on {(ends < 0.5).sum()} of {len(ends)} seeds]" in PAGES["README"]


def test_the_readmes_count_of_leaks_at_higher_rates_is_that_of_ahead():
    lines = study.read_lines(ROOT / "plots/reference/runs/ahead.jsonl")
    counts, without = [], 0
    for method in ("RLSD, paper", "RLVR"):
        tried = [line for line in lines if line["label"] == f"tuning, {method}, noise 0.4"]
        tried = [line for line in tried if line["config"]["lr"] > rlsd.Config.lr]
        leaky = [line for line in tried if max(line["leakage"]) > study.LEAKS]
        counts.append(len(leaky))
        without += sum(line["accuracy"][-1] < 0.01 for line in leaky)
    assert f"leaked in [{counts[0]} of {len(tried)} noisy runs]" in README and counts[1] == 1
    assert f"RLVR, which has no teacher, in 1 of {len(tried)}." in README
    assert without == 4 and "(Four of these five leaking runs ended at an accuracy of 0.)" in README


def test_the_readme_says_what_is_left_of_cepos_lead_after_480_steps():
    lines = study.read_lines(ROOT / "plots/reference/runs/baselines.jsonl")
    cepo, rlvr = (study.ends(lines, f"noise 0.4: {name}") for name in ("CEPO, held", "RLVR"))
    ahead = f"{(cepo > rlvr).sum()} of {len(cepo)} seeds"
    lead = f"{(cepo - rlvr).mean():.2f}"
    assert f"the lead averages {lead}, and CEPO is ahead on {ahead}" in README


def test_the_readme_says_how_rlsds_lead_under_noise_shrinks():
    rlsds, rlvrs = NOISY_FALLING["rlsd"], NOISY["rlvr"]
    early, late = ((rlsds["accuracy"] - rlvrs["accuracy"])[:, n].mean() for n in (9, -1))
    assert rlsds["step"][9] == 90
    assert f"from {early:.2f} at step 90 to {late:.2f} at step 160" in README


def test_the_page_says_how_far_rlvr_which_has_no_teacher_has_leaked():
    noisy, coin = leakage(NOISY, "rlvr").max(), leakage(COIN, "rlvr").max()
    assert f"of {noisy:.3f} at noise 0.4, and of {coin:.3f} with a coin" in PAGES["README"]


def test_the_pages_say_on_how_many_seeds_the_papers_settings_leak_with_a_coin():
    rlsds, rlvrs = leakage(COIN, "rlsd"), (leakage(COIN, "rlvr") > study.LEAKS).sum()
    count = f"on {(rlsds > study.LEAKS).sum()} of {len(rlsds)}"
    said = f"it leaked {count} seeds (RLVR, which has no teacher, on {rlvrs})"
    assert said in README
    said = f"{count} (up to {rlsds.max():.3f}). But RLVR then leaks on {rlvrs} of 10, too."
    assert said in PAGES["README"]


def test_the_verdicts_that_cite_the_exact_sweep_have_its_numbers():
    opsd, opd = EXACT["opsd"], EXACT["opd"]
    peaks = opsd["step"][opsd["accuracy"].argmax(1)]
    rises = opsd["leakage"][:, 1:] >= opsd["leakage"][:, :-1]
    kl = opsd["kl"].mean(0)
    highest = opsd["accuracy"].max(1).mean()
    for said in (
        f"peaks at steps {peaks.min()} to {peaks.max()}, at {highest:.2f} in the mean;",
        f"averages {end(EXACT, 'opsd').mean():.3f} at the end",
        f"leakage rises or stays in {rises.sum()} of {rises.size} intervals",
        f"KL of OPSD {kl[0]:.2f} at the base, {kl.min():.2f} at its lowest",
        f"KL at the end: OPD {opd['kl'][:, -1].mean():.3f}, OPSD {kl[-1]:.3f}",
    ):
        assert said in PAGES["README"], said


def test_with_an_exact_verifier_four_methods_learn_without_a_leak():
    for mode in ("rlvr", "opd", "rlsd", "cepo"):
        assert end(EXACT, mode).min() >= 0.85
        assert leakage(EXACT, mode).max() <= 0.02


def test_with_an_exact_verifier_opsd_rises_then_leaks_and_falls_on_every_seed():
    accuracy = EXACT["opsd"]["accuracy"]
    assert (accuracy.max(1) - accuracy[:, 0] >= 0.2).all()
    assert (accuracy.max(1) - accuracy[:, -1] >= 0.2).all()
    assert (leakage(EXACT, "opsd") > 0.2).all()


def test_the_lesson_says_on_how_many_seeds_the_fall_of_opsd_is_its_leak():
    leaks = []
    for accuracy, leakage in zip(EXACT["opsd"]["accuracy"], EXACT["opsd"]["leakage"]):
        best = accuracy.argmax()
        halved = best + (accuracy[best:] < accuracy[best] / 2).argmax()
        leaks.append(leakage[halved])
    exception, *others = leaks  # seed 0 comes first
    assert (
        len(others) == 9
        and f"leakage is at least {math.floor(100 * min(others)) / 100}" in PAGES["LESSON"]
    )
    assert f"while leakage is only {exception:.2f}" in PAGES["LESSON"]


def test_the_readmes_sample_is_what_the_run_prints():
    _, records = rlsd.read_log(ROOT / "plots/reference/runs/carry-rlsd-s0.jsonl")
    header = rlsd.HEADER.format(problem=records[0]["shown"]["problem"])
    printed = [f"{rlsd.PRETRAINING}base, seed 0", *header.splitlines()]
    printed += map(rlsd.format_record, records)
    sample = (
        README.split("    live page (open it in a browser): ")[1]
        .split("\n    figure ")[0]
        .splitlines()[1:]
    )
    assert len(sample) == 8
    assert all(line.strip() in ["...", *printed] for line in sample)


def test_each_equation_of_the_readme_links_to_the_line_of_its_function():
    lines = (ROOT / "rlsd.py").read_text("utf-8").splitlines()
    links = re.findall(r"\[`(\w+)`\]\(rlsd\.py#L(\d+)\)", README)
    assert len(links) >= 7
    for name, line in links:
        assert lines[int(line) - 1].startswith(f"def {name}("), name
        assert name == "collect" or "Eq " in getattr(rlsd, name).__doc__


def test_the_links_and_pictures_of_the_readme_exist():
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
