"""What README.md and plots/*.md say of the committed logs is what these logs say."""

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rlsd
from plots import ahead, compare, direction, files, study
from plots import coin as coins

ROOT = Path(__file__).parent.parent
PAGES = {page.stem: page.read_text("utf-8") for page in ROOT.glob("plots/*.md")}
README = (ROOT / "README.md").read_text("utf-8")


def sweep(folder: str) -> dict:
    return compare.curves(compare.read(sorted((ROOT / folder / "runs").glob("carry-*-s?.jsonl"))))


STUDIES = sorted({path.stem for path in ROOT.glob("plots/reference/runs/*.jsonl")
                  if not path.stem.startswith("carry-")} - {"credit", "speed"})
EXACT_AND_NOISY = sweep("plots/reference"), sweep("plots/reference/noisy")


def log(name: str) -> list[dict]:
    lines = files.read_log(ROOT / f"plots/reference/runs/{name}.jsonl")
    return [line for line in lines if not line["label"].startswith("tuning")]


def span(values) -> str:
    return f"{np.mean(values):.2f} ({np.min(values):.2f} to {np.max(values):.2f})"


def test_the_readmes_table_is_that_of_the_two_sweeps():
    exact, noisy = EXACT_AND_NOISY
    assert all(len(curve["seed"]) == 5 for curve in (*exact.values(), *noisy.values()))
    for mode, row, other in zip(exact, compare.table(exact)[2:], compare.table(noisy)[2:], strict=True):
        name = compare.NAMES[mode]
        assert row in README and (row == other if mode in ("opd", "opsd") else
                                  other.replace(f"| {name} |", f"| {name}, noise 0.4 |") in README)


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_tables_are_those_of_their_logs(name):
    rows = importlib.import_module(f"plots.{name}").table(log(name))
    assert len(rows) > 2 and all(row in PAGES["LESSON" if name == "lesson" else "README"] for row in rows)


def test_the_readmes_sentences_have_the_numbers_of_the_logs():
    _, noisy = EXACT_AND_NOISY
    contrast, coin = log("contrast"), [line for line in log("lesson") if line["label"] == "coin, RLSD"]
    both = {(n, mode): curve for n, found in enumerate(EXACT_AND_NOISY) for mode, curve in found.items()}
    end = {run: curve["accuracy"][:, -1] for run, curve in both.items()}
    leak = {run: compare.highest(curve["leakage"]) for run, curve in both.items()}
    lead = compare.mean_over_run(noisy["rlvr"]["step"], noisy["cepo"]["accuracy"] - noisy["rlvr"]["accuracy"])
    choosy, wrong = "choosy cite, noise 0.4: ", "key noise 0.4: "
    still, falling = (study.leaks(contrast, label) for label in (wrong + "RLSD", "verifier noise 0.4: RLSD, falling"))
    learned = np.mean([max(line["accuracy"]) for line in coin])
    said = [
        f"**: {end[0, 'rlsd'].mean():.3f} and {end[0, 'rlvr'].mean():.3f} at the end.",
        f"CEPO leads RLVR by {lead.mean():.3f} in the mean over the run, in {(lead > 0).sum()} seeds of 5;",
        f"tuned for each, by {ahead.lead(log('ahead'), 'CEPO, held', 0.4)[1].removeprefix('+')} on ten fresh seeds",
        f"learns even from a coin ({np.mean([line['accuracy'][0] for line in coin]):.2f} to {learned:.2f} on the way",
        f"its leakage reaches {span(leak[1, 'rlsd'])} and it ends at {end[1, 'rlsd'].mean():.2f}.",
        f"its leakage is {leak[1, 'cepo'].max():.3f} at most in any seed, and it ends at {end[1, 'cepo'].mean():.2f}.",
        f"{sum(map(coins.fell, log('coin')))} of {len(log('coin'))} runs fall,",
        f"without a leak above {max(max(line['leakage']) for line in log('coin')):.3f}",
        f"CEPO leaks {span(study.leaks(contrast, choosy + 'CEPO'))}.",
        f"CEPO has {study.means(contrast, wrong + 'CEPO').mean():.3f} in the mean over the run, RLVR ",
        f"RLVR {study.means(contrast, wrong + 'RLVR').mean():.3f}; RLSD still leaks, {still.mean():.2f}.",
        f"where no leak is measured ({leak[0, 'rlsd'].max():.3f} at most).",
        f"RLSD leaks {leak[1, 'rlsd'].mean():.2f} at noise 0.4;",
        f"with lam falling to 0 in 50 steps, {falling.mean():.2f}.",
        f"CEPO ends higher, {end[1, 'cepo'].mean():.3f} against {end[1, 'rlvr'].mean():.3f}.",
        f"RLSD rises fast, then leaks and falls in {(leak[1, 'rlsd'] > 0.5).sum()} seeds of 5; CEPO stays up"]
    assert [text for text in said if text not in README] == []
    logs = (ROOT / f"plots/reference/runs/carry-{mode}-s0.jsonl" for mode in ("rlsd", "cepo", "rlvr"))
    shown, *others = [files.read_run(path)[1] for path in logs]
    assert all(compare.row(record) in README for record in shown if record["step"] in (0, 10, 160))
    greedy = [record["greedy_accuracy"] for records in (shown, *others) for record in records if record["step"] == 30]
    assert min(greedy) > 0.99 and "reach 0.99 after 30 steps" in README
    cosine, _ = direction.seen(log("direction"), "base")
    assert f"{cosine[:, 1:4].mean(0).min():.3f}" == "0.999" and "cosine 0.999" in README
    step, alone = (sum(column) for column in zip(*log("speed")[0]["parts"].values()))
    assert f"{1e3 * step:.0f} ms, {step / alone:.1f} times its bare matrix products" in PAGES["README"]


def test_every_number_of_a_verdict_on_the_paper_is_in_the_tables_of_the_study_that_gave_it():
    verdicts = PAGES["README"].split("## The paper's claims")[1].split("\n## ")[0].splitlines()
    rows = [row.split("|")[1:-1] for row in verdicts if row.startswith("| ")][1:]
    for *_, seen, by in rows:
        names = [name for name in STUDIES if name in by]
        tables = "\n".join(row for name in names for row in importlib.import_module(f"plots.{name}").table(log(name)))
        assert not names or all(number in tables for number in re.findall(r"\d+\.\d+|\d+ of \d+", seen)), seen
    opd, opsd = (EXACT_AND_NOISY[0][mode] for mode in ("opd", "opsd"))
    peaks, rises = opsd["step"][0][opsd["accuracy"].argmax(1)], np.diff(opsd["leakage"]) >= 0
    said = (f"highest at step {peaks.min()} to {peaks.max()}, {opsd['accuracy'].max(1).mean():.2f}",
            f"{opsd['accuracy'][:, -1].mean():.2f} at the end",
            f"leakage rises or stays in {rises.sum()} of {rises.size} intervals",
            f"KL of OPSD {opsd['kl'].mean(0)[0]:.2f} at the base, {opsd['kl'].mean(0).min():.2f} at its lowest",
            f"KL at the end: OPD {opd['kl'][:, -1].mean():.3f}, OPSD {opsd['kl'][:, -1].mean():.3f}")
    assert len(rows) == 13 and [text for text in said if text not in "\n".join(verdicts)] == []


def test_with_an_exact_verifier_all_but_opsd_learn_without_leaking_and_opsd_rises_leaks_and_falls_in_every_seed():
    found, _ = EXACT_AND_NOISY
    for mode in ("rlvr", "opd", "rlsd", "cepo"):
        assert found[mode]["accuracy"][:, -1].min() >= 0.85 and found[mode]["leakage"].max() <= 0.02
        assert abs(compare.mean_over_run(found["rlvr"]["step"], found["rlvr"]["accuracy"]
                                         - found[mode]["accuracy"]).mean()) < (0.02 if mode == "opd" else 0.002)
    accuracy, third = found["opsd"]["accuracy"], found["opsd"]["step"][0] <= 160 / 3
    assert (accuracy[:, third].max(1) - accuracy[:, 0] >= 0.2).all()
    assert (accuracy.max(1) - accuracy[:, -1] >= 0.2).all() and (found["opsd"]["leakage"][:, -1] > 0.2).all()


def test_when_the_verifier_errs_and_weights_are_held_rlsd_leaks_and_cepo_is_ahead_of_rlvr_in_every_seed():
    _, found = EXACT_AND_NOISY
    leads = {mode: compare.mean_over_run(found["rlvr"]["step"], found[mode]["accuracy"] - found["rlvr"]["accuracy"])
             for mode in ("rlsd", "cepo")}
    assert (leads["cepo"] > 0).all() and leads["rlsd"].mean() < 0
    assert found["cepo"]["leakage"].max() < 0.02 and (compare.highest(found["rlsd"]["leakage"]) > 0.5).sum() == 4


def test_the_readmes_task_is_complete_and_trains(tmp_path):
    for part in ("rlsd", "tiny_tasks", "plots/__init__", "plots/compare", "plots/files", "plots/pool"):
        name = f"{part}.py"
        (copy := tmp_path / name).parent.mkdir(exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    example = README.split("```python\n")[1].split("```")[0]
    before, listed, after = (tmp_path / "tiny_tasks.py").read_text("utf-8").partition("\n\nTASKS = ")
    after = after.replace("(Carry, Split)", "(Carry, Split, Plain)")
    (tmp_path / "tiny_tasks.py").write_text(f"{before}\n\n{example}{listed}{after}", "utf-8")
    words = ["--task", "plain", "--digits", "2", "--steps", "2", "--problems", "2"]
    subprocess.run([sys.executable, "rlsd.py", *words], cwd=tmp_path, check=True, timeout=600)
    _, (base, *_) = files.read_run(tmp_path / "plots/runs/plain-rlsd-s0.jsonl")
    assert 0.5 < base["accuracy"] < 0.9 and "c" not in base["shown"]  # it has learned to add, and to forget


def test_with_a_coin_for_a_reward_rlsds_mean_update_is_opsds_times_what_the_readme_says():  # all coins, all tokens
    logits = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    student = logits.log_softmax(0)
    teacher = (logits.detach() + 1e-4 * torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])).log_softmax(0)
    gain, update, size = rlsd.information_gain(teacher.view(-1, 1), student.view(-1, 1)), 0, 0
    for rewards in itertools.product((0.0, 1.0), repeat=4):
        advantage = rlsd.group_advantage(torch.tensor(rewards, dtype=torch.float64), 4)[0].expand(5)
        credit = rlsd.rlsd_token_advantage(gain, advantage, 0.2, 0.5).flatten()
        update = update + torch.autograd.grad(student, logits, student.exp() * credit / 16, retain_graph=True)[0]
        share = sum(rewards) / 4
        size += 2 * 0.5 * (share * (1 - share)) ** 0.5 / 16
    loss = rlsd.divergence(student.view(1, 1, -1), teacher.view(1, 1, -1), "reverse_kl").sum()
    torch.testing.assert_close(update, -size * torch.autograd.grad(loss, logits)[0], rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("eps_w, lam, noise", [*itertools.product((0.1, 0.5, 0.9), (0.3, 1.0), (0.1, 0.3, 0.44, 0.5))])
def test_a_cite_is_pushed_up_where_the_readme_says_so(eps_w, lam, noise):  # half of the group is rewarded
    gain, rewarded = torch.full((2, 1), 5.0), torch.tensor([1.0, 0.0])
    up, down = rlsd.rlsd_token_advantage(gain, rlsd.group_advantage(rewarded, 2), eps_w, lam).flatten().tolist()
    assert (noise * up + (1 - noise) * down > 1e-6) == (lam * eps_w > 1 - 2 * noise)


def test_a_studys_text_has_no_number_that_its_table_has_not():  # of three decimals
    for section in PAGES["README"].split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        names = [name for name in STUDIES if name in title.partition(":")[0].split()]
        tables = "\n".join(row for name in names for row in importlib.import_module(f"plots.{name}").table(log(name)))
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
        assert [number for number in re.findall(r"\b\d\.\d{3}\b", prose) if names and number not in tables] == [], title
    lesson, planted = "\n".join(importlib.import_module("plots.lesson").table(log("lesson"))), ("0.95", "0.3")
    answers = PAGES["LESSON"].split("The answers:")[1]
    prose = "\n".join(line for line in answers.splitlines() if not line.startswith("|"))
    assert all(number in lesson or number in planted for number in re.findall(r"\b\d\.\d+\b", prose))
