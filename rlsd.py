# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tiktoken>=0.7", "matplotlib>=3.8"]
# ///
"""RLSD from scratch, beside the methods it grew out of. This file is the whole algorithm; the rest is arithmetic.

A small GPT learns column addition from a textbook, then bad habits from homework. Four methods try to cure it:

    rlvr   a verifier's reward, spread evenly over the response                     (GRPO)
    opd    a larger teacher that sees what the student sees                         (on-policy distillation)
    opsd   the student's own weights as the teacher, with the answer key open       (on-policy self-distillation)
    rlsd   the reward gives the direction, the teacher with the key open the size   (RLVR with self-distillation)

    python rlsd.py --mode rlsd        one method, two minutes at first, ends with a log and a figure under plots/
    python rlsd.py --mode all         the four from the same base, in one figure

Read it downwards: settings, files, model, rollouts, base, THE METHODS, training, figures, command line.
Equation numbers are those of the RLSD paper, arXiv:2604.03128. Logarithms are natural; information is in nats.
"""

import argparse
import contextlib
import copy
import dataclasses
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny_tasks import TASKS, Task, Tokenizer

MODES = ("rlvr", "opd", "opsd", "rlsd")
CACHE = Path(__file__).parent / ".cache"  # bases and OPD teachers; safe to delete


class UserError(Exception):
    """Something the user can mend. The command line prints it in one line and exits with code 2."""


# ---------------------------------------------------------------------------------------------------------------
# Settings. Each field is a flag of the command line, and its text is the flag's help.


def setting(default, text: str, valid: Callable = lambda value: True, wanted: str = ""):
    return field(default=default, metadata={"help": text, "valid": valid, "wanted": wanted})


@dataclass(frozen=True)
class Config:
    mode: str = setting("rlsd", f"the method: {', '.join(MODES)}")
    task: str = setting("carry", f"the arithmetic: {', '.join(TASKS)}", lambda v: v in TASKS, f"one of {', '.join(TASKS)}")
    seed: int = setting(0, "seed of the base and of the run", lambda v: 0 <= v < 2**31, "0 or more")
    digits: int = setting(4, "columns of an addition", lambda v: 2 <= v <= 10, "2 to 10")
    slip: float = setting(0.5, "homework: probability that a carry is forgotten", lambda v: 0 <= v <= 1, "0 to 1")
    cite: float = setting(0.3, "homework: share that copies the key when it is open", lambda v: 0 <= v <= 1, "0 to 1")
    steps: int = setting(160, "training steps, one update each", lambda v: v >= 0, "0 or more")
    problems: int = setting(16, "problems a step (paper: 32; its released script: 256)", lambda v: v >= 1, "1 or more")
    group_size: int = setting(8, "responses a problem, G (paper: 8)", lambda v: v >= 2, "2 or more")
    lr: float = setting(2e-4, "AdamW's learning rate (paper: 1e-6, for a model 80,000 times this size)",
                        lambda v: 0 < v < math.inf, "a positive number")
    divergence: str = setting("reverse_kl", "D of Eq 6: reverse_kl, forward_kl, jsd",
                              lambda v: v in ("reverse_kl", "forward_kl", "jsd"), "reverse_kl, forward_kl or jsd")
    teacher_refresh: int = setting(0, "steps between two copies of the student into its teacher; 0: rlsd 20 (paper: 20), "
                                      "opsd 10 (so that 160 steps show where it leads)", lambda v: v >= 0, "0 or more")
    eps_w: float = setting(0.2, "clip of the evidence weight, Eq 15 (paper: 0.2)", lambda v: 0 <= v < math.inf, "0 or more")
    lam: float = setting(0.5, "share of the evidence weight in the credit, at first (paper: 0.5)", lambda v: 0 <= v <= 1, "0 to 1")
    lam_decay: int = setting(60, "steps in which lam goes to 0 linearly; 0: lam is constant (paper: 50 to 60)",
                             lambda v: v >= 0, "0 or more")
    verifier_noise: float = setting(0.0, "probability that a training reward is flipped", lambda v: 0 <= v <= 0.5, "0 to 0.5")
    evaluate_every: int = setting(10, "steps between two evaluations", lambda v: v >= 1, "1 or more")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            if not f.metadata["valid"](getattr(self, f.name)):
                raise UserError(f"--{f.name.replace('_', '-')} is {getattr(self, f.name)}, but must be {f.metadata['wanted']}")

    def make_task(self) -> Task:
        knobs = inspect.signature(TASKS[self.task]).parameters
        return TASKS[self.task](**{name: getattr(self, name) for name in knobs})


# ---------------------------------------------------------------------------------------------------------------
# Files: written whole or not at all, and distrusted when they are read.


def write_whole(path: Path, content: bytes | Callable) -> None:
    """Writes beside the file and then renames, so that nobody ever sees half a file."""
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content(beside) if callable(content) else beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def write_checkpoint(path: Path, state: dict) -> None:
    write_whole(path, lambda beside: torch.save(state, beside))


def read_checkpoint(path: Path) -> dict:
    """A dictionary of tensors and numbers; weights_only refuses a pickle that would run code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
    except Exception:  # torch.load has as many exceptions as there are ways to damage a file
        pass
    raise UserError(f"{path} is damaged or not a checkpoint of this program: remove it to train anew")


def load_state(model: nn.Module, state, path: Path) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(f"{path} does not fit the model: remove it to train anew") from None


# ---------------------------------------------------------------------------------------------------------------
# The model: a GPT with rotary positions, pre-norm and a cache of keys and values.


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.attended.weight)  # every block starts as the identity, which learns faster
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, rotation: Tensor, past: tuple | None) -> tuple[Tensor, tuple]:
        rows, length, width = x.shape
        split = self.query_key_value(F.layer_norm(x, (width,))).view(rows, length, 3, self.heads, width // self.heads)
        query_key, value = split.permute(2, 0, 3, 1, 4).split((2, 1))  # (2 or 1, rows, heads, length, width of a head)
        # Rotary positions: pairs of features are complex numbers, turned by an angle that grows with the position.
        turned = torch.view_as_complex(query_key.unflatten(-1, (-1, 2))) * rotation
        (query, key), value = torch.view_as_real(turned).flatten(-2), value[0]
        if past is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:  # everything cached is visible; among the new tokens, only those to the left
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
            visible = None
            if length > 1:
                visible = torch.ones(length, key.shape[2], dtype=torch.bool, device=x.device).tril(key.shape[2] - length)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.attended(mixed.transpose(1, 2).reshape(rows, length, width))
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, (width,)))))
        return x, (key, value)


class GPT(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.5)
        pairs = width // heads // 2
        angle = torch.outer(torch.arange(context), 300.0 ** (-torch.arange(pairs) / pairs))  # texts here are short
        self.register_buffer("rotation", torch.polar(torch.ones_like(angle), angle), persistent=False)

    def forward(self, tokens: Tensor, past: list | None = None) -> tuple[Tensor, list]:
        """Logits (rows, length, vocabulary) of the token after each token, and the cache to go on from."""
        start = past[0][0].shape[2] if past else 0
        rotation = self.rotation[start:start + tokens.shape[1]]
        x, cache = self.embedding(tokens), []
        for block, block_past in zip(self.blocks, past or [None] * len(self.blocks)):
            x, block_cache = block(x, rotation, block_past)
            cache.append(block_cache)
        return self.head(F.layer_norm(x, x.shape[-1:])), cache


# ---------------------------------------------------------------------------------------------------------------
# Rollouts: responses sampled from the student, and their log-probabilities.


class Rollout(NamedTuple):
    tokens: Tensor  # (B, T), rows of one problem side by side
    logp: Tensor  # (B, T), of each token when it was sampled
    mask: Tensor  # (B, T), 1 up to and including the end token
    texts: list[str]


def once_per_problem(model: GPT, prompts: Tensor, group_size: int) -> tuple[Tensor, list]:
    """The prompt's pass is made once a problem; its last logits and its cache are then shared by the whole group."""
    logits, cache = model(prompts)
    return (logits[:, -1:].repeat_interleave(group_size, 0),
            [tuple(part.repeat_interleave(group_size, 0) for part in pair) for pair in cache])


@torch.no_grad()
def sample(model: GPT, tokenizer: Tokenizer, prompts: Tensor, group_size: int, length: int,
           generator: torch.Generator | None) -> Rollout:
    """group_size responses to each prompt (P, length of prompt), at temperature 1; without a generator, greedily."""
    logits, cache = once_per_problem(model, prompts, group_size)
    ended = torch.zeros(len(logits), 1, dtype=torch.bool, device=prompts.device)
    tokens, logps, mask = [], [], []
    for position in range(length):
        logp = logits[:, 0].log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1, generator=generator) if generator else logp.argmax(-1, keepdim=True)
        token = token.masked_fill(ended, tokenizer.end)
        tokens.append(token), logps.append(logp.gather(1, token)), mask.append(~ended)
        ended = ended | (token == tokenizer.end)
        if position + 1 == length or ended.all():
            break
        logits, cache = model(token, cache)
    tokens, logps, mask = torch.cat(tokens, 1), torch.cat(logps, 1), torch.cat(mask, 1).float()
    texts = [tokenizer.decode(row[:int(n)]) for row, n in zip(tokens.tolist(), mask.sum(1).tolist())]
    return Rollout(tokens, logps, mask, texts)


def response_logp(model: GPT, prompts: Tensor, responses: Tensor) -> Tensor:
    """log P(. | prompt, y_<t) over the vocabulary: (P, length), (B, T) -> (B, T, V). B is a multiple of P."""
    first, cache = once_per_problem(model, prompts, len(responses) // len(prompts))
    rest, _ = model(responses[:, :-1], cache)
    return torch.cat((first, rest), 1).log_softmax(-1)


def of_tokens(logp: Tensor, tokens: Tensor) -> Tensor:
    """(B, T, V), (B, T) -> (B, T): the log-probabilities of the tokens that were written."""
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# ---------------------------------------------------------------------------------------------------------------
# The base: a textbook until it is mastered, then the homework with its habits. OPD's teacher: the textbook only.


class World:
    """A task in tensors: prompts, corpus batches and rewards, on one device."""

    def __init__(self, task: Task, device: str = "cpu"):
        self.task, self.device, self.tokenizer = task, device, Tokenizer(task.alphabet)

    def prompts(self, problems: list, keys: list | None = None) -> Tensor:
        """(P, length) token ids, with the key covered, or open if keys are given."""
        texts = [self.task.prompt(problem, key) for problem, key in zip(problems, keys or [None] * len(problems))]
        return torch.tensor([self.tokenizer.encode(text) for text in texts], device=self.device)

    def corpus(self, rng: random.Random, rows: int, homework: bool, key_open: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts, the responses that follow them, and 1 where a response has a token."""
        problems = [self.task.sample(rng) for _ in range(rows)]
        workings = [self.task.working(problem, rng, homework, key_open) for problem in problems]
        responses = [self.tokenizer.encode(response) for response, _ in workings]
        length = max(map(len, responses))
        mask = [[1.0] * len(response) + [0.0] * (length - len(response)) for response in responses]
        padded = [response + [self.tokenizer.end] * (length - len(response)) for response in responses]
        return (self.prompts(problems, [key for _, key in workings] if key_open else None),
                torch.tensor(padded, device=self.device), torch.tensor(mask, device=self.device))

    def sample(self, model: GPT, prompts: Tensor, group_size: int, generator: torch.Generator | None) -> Rollout:
        return sample(model, self.tokenizer, prompts, group_size, self.task.response_length, generator)

    def reward(self, problems: list, texts: list[str]) -> Tensor:
        """R(x, y): 1 where the verifier accepts, else 0. The rows of one problem stand side by side."""
        group_size = len(texts) // len(problems)
        right = [self.task.verify(problems[row // group_size], text) for row, text in enumerate(texts)]
        return torch.tensor(right, dtype=torch.float32, device=self.device)

    def new_model(self, seed: int, **size) -> GPT:
        torch.manual_seed(seed)
        rng = random.Random(seed)
        problem = self.task.sample(rng)
        longest = len(self.tokenizer.encode(self.task.prompt(problem, self.task.reference(problem, rng))))
        return GPT(self.tokenizer.vocabulary_size, longest + self.task.response_length, **size).to(self.device)

    def exam(self) -> tuple[list, list]:
        """512 held-out problems and a key to each, the same for every seed and mode."""
        rng = random.Random("exam")
        problems = [self.task.sample(rng, held_out=True) for _ in range(512)]
        return problems, [self.task.reference(problem, rng) for problem in problems]


def no_progress(label: str, done: int, total: int) -> None:
    pass


def pretrain(world: World, model: GPT, seed: int, homework_steps: int, progress: Callable = no_progress) -> GPT:
    """The textbook until 99 % of the exam is right, greedily; then homework, half of its batches with the key open."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rng = random.Random(seed)
    problems, _ = world.exam()
    exam_prompts = world.prompts(problems)

    def learn(lr: float, homework: bool, key_open: bool):
        prompts, responses, mask = world.corpus(rng, 64, homework, key_open)
        logits, _ = model(torch.cat((prompts, responses[:, :-1]), 1))
        logp = of_tokens(logits[:, prompts.shape[1] - 1:].log_softmax(-1), responses)
        loss = -(logp * mask).sum() / mask.sum()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    most, accuracy = 3000, 0.0
    for step in range(most):
        learn(5e-3 * min(1, (step + 1) / 20), homework=False, key_open=False)
        progress(f"textbook ({accuracy:.0%} right, until 99 %)", step + 1, most)
        if (step + 1) % 50 == 0:
            accuracy = float(world.reward(problems, world.sample(model, exam_prompts, 1, None).texts).mean())
            if accuracy >= 0.99:
                break
    else:
        raise UserError(f"the textbook was not mastered in {most} steps ({accuracy:.0%} right, 99 % wanted): "
                        "try another --seed or fewer --digits")
    for step in range(homework_steps):
        learn(5e-3 * 0.5 * (1 + math.cos(math.pi * step / homework_steps)), homework=True, key_open=step % 2 == 1)
        progress("homework", step + 1, homework_steps)
    return model


def cached_model(world: World, kind: str, seed: int, progress: Callable = no_progress) -> GPT:
    """The `base`, or OPD's `teacher`: from the cache, or trained now and put there.

    The file's name is a fingerprint of all it depends on, this file's relevant code included: whoever changes the
    corpus or the model gets a new base, whoever changes Eq 15 keeps the old one.
    """
    size, homework_steps = {"base": ({}, 1200), "teacher": ({"width": 144}, 0)}[kind]
    model = world.new_model(seed, **size)
    source = [inspect.getsource(part) for part in (inspect.getmodule(Task), Block, GPT, sample, World, pretrain, cached_model)]
    depends = json.dumps([kind, seed, vars(world.task), world.device, torch.__version__, source])
    path = CACHE / f"{world.task.name}-{kind}-s{seed}-{hashlib.sha256(depends.encode()).hexdigest()[:12]}.pt"
    if path.exists():
        load_state(model, read_checkpoint(path).get("model"), path)
    else:
        pretrain(world, model, seed, homework_steps, progress)
        write_checkpoint(path, {"model": model.state_dict()})
    return model


# ---------------------------------------------------------------------------------------------------------------
# THE METHODS: one function an equation, then the one place where they differ.
# Shapes: B responses, T tokens, V vocabulary. mask is 1 up to and including the end token.


def group_advantage(reward: Tensor, group_size: int) -> Tensor:
    """Eq 1: A = (R - mean) / std within each group of responses to one problem, population std. (B,) -> (B,).

    A group whose rewards are all equal says nothing: its advantage is exactly 0.
    """
    group = reward.view(-1, group_size)
    centred = group - group.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt()
    equal = (group == group[:, :1]).all(1, keepdim=True)
    return (centred / std.masked_fill(equal, 1)).masked_fill(equal, 0).flatten()


def response_mean(value: Tensor, mask: Tensor) -> Tensor:
    """The mean over responses of each response's mean over its tokens, (1/|y|) sum_t. (B, T), (B, T) -> ()."""
    return ((value * mask).sum(1) / mask.sum(1)).mean()


def clipped_surrogate(logp: Tensor, old_logp: Tensor, token_advantage: Tensor, mask: Tensor,
                      clip_low: float = 0.2, clip_high: float = 0.28) -> Tensor:
    """Eq 2, and Eq 16 when the advantage differs from token to token: a loss to minimise. (B, T) each -> ().

    rho = P_S / P_old of the sampled token is clipped to 1 - clip_low .. 1 + clip_high (the authors' numbers). With
    one update a batch, as here, rho is 1 and the clip never binds; the gradient is A_t grad log P_S(y_t).
    """
    rho = (logp - old_logp).exp()
    clipped = rho.clamp(1 - clip_low, 1 + clip_high)
    return -response_mean(torch.minimum(rho * token_advantage, clipped * token_advantage), mask)


def divergence(student_logp: Tensor, teacher_logp: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """Eq 6: D(P_T || P_S) over the whole vocabulary, in nats; gradient through the student only. (B, T, V) -> (B, T).

    reverse_kl is KL(P_S || P_T), forward_kl is KL(P_T || P_S), and jsd is beta KL(P_T || M) + (1 - beta) KL(P_S || M)
    with M = beta P_T + (1 - beta) P_S, 0 < beta < 1 (GKD, arXiv:2306.13649).
    """
    def kl(p_logp, q_logp):
        return (p_logp.exp() * (p_logp - q_logp)).sum(-1)

    teacher_logp = teacher_logp.detach()
    if kind == "reverse_kl":
        return kl(student_logp, teacher_logp)
    if kind == "forward_kl":
        return kl(teacher_logp, student_logp)
    if kind == "jsd":
        mixed = torch.logaddexp(teacher_logp + math.log(beta), student_logp + math.log(1 - beta))
        return beta * kl(teacher_logp, mixed) + (1 - beta) * kl(student_logp, mixed)
    raise ValueError(f"unknown divergence {kind!r}")


def information_gain(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Eq 13: Delta_t = sg(log P_T(y_t) - log P_S(y_t)), nats. What the answer key knows of y_t. (B, T) -> (B, T)."""
    return (teacher_logp - student_logp).detach()


def evidence_weight(gain: Tensor, advantage: Tensor) -> Tensor:
    """Eq 14: w_t = exp(sign(A) Delta_t) = (P_T / P_S)^sign(A). (B, T), (B,) -> (B, T), positive and finite."""
    return (advantage.sign().unsqueeze(-1) * gain.clamp(-60, 60)).exp()


def rlsd_token_advantage(gain: Tensor, advantage: Tensor, eps_w: float, lam: float) -> Tensor:
    """Eq 15 with the authors' mixing: A_t = A ((1 - lam) + lam clip(w_t, 1 - eps_w, 1 + eps_w)). (B, T), (B,) -> (B, T).

    The sign of A_t is that of A, whatever the teacher says: the reward alone decides the direction.
    """
    clipped = evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)
    return advantage.unsqueeze(-1) * ((1 - lam) + lam * clipped)


def lam_at(step: int, lam: float, lam_decay: int) -> float:
    """lambda at a step (the first is 1): linear from lam to 0 over lam_decay steps; constant if lam_decay is 0."""
    return lam * max(0.0, 1 - (step - 1) / lam_decay) if lam_decay else lam


def method_loss(mode: str, rollout: Rollout, reward: Tensor, student_logp: Tensor, teacher_logp: Tensor | None,
                group_size: int, kind: str, eps_w: float, lam: float) -> Tensor:
    """The one place where the modes differ. student_logp and teacher_logp are (B, T, V); reward is (B,).

    At rho = 1 each is sum_t A_t grad log P_S(y_t) (Eq 17). RLVR: A_t = A. RLSD: Eq 15. OPSD, in expectation over y_t
    and for reverse KL: A_t = Delta_t, in which no reward appears.
    """
    if mode in ("opd", "opsd"):  # Eq 4-6; the teacher is another network, or the student's weights with the key open
        return response_mean(divergence(student_logp, teacher_logp, kind), rollout.mask)
    logp = of_tokens(student_logp, rollout.tokens)
    advantage = group_advantage(reward, group_size)
    if mode == "rlvr":
        token_advantage = advantage.unsqueeze(-1).expand_as(logp)
    if mode == "rlsd":
        gain = information_gain(of_tokens(teacher_logp, rollout.tokens), logp)
        token_advantage = rlsd_token_advantage(gain, advantage, eps_w, lam)
    return clipped_surrogate(logp, rollout.logp, token_advantage, rollout.mask)


# ---------------------------------------------------------------------------------------------------------------
# Training: one loop for all modes. Each step draws its randomness from (seed, step), so all modes see the same
# problems, and a run that was stopped goes on exactly as it would have.


def train_step(config: Config, world: World, student: GPT, teacher: GPT, optimizer, step: int) -> float:
    """One update; returns the mean training reward, after the verifier's noise."""
    rng = random.Random(f"{config.seed} {step}")
    generator = torch.Generator(world.device).manual_seed(rng.getrandbits(62))
    problems = [world.task.sample(rng) for _ in range(config.problems)]
    covered = world.prompts(problems)
    rollout = world.sample(student, covered, config.group_size, generator)
    reward = world.reward(problems, rollout.texts)
    flipped = torch.rand(reward.shape, generator=generator, device=world.device) < config.verifier_noise
    reward = torch.where(flipped, 1 - reward, reward)

    teacher_logp = None
    if config.mode != "rlvr":
        keys = [world.task.reference(problem, rng) for problem in problems]
        with torch.no_grad():
            teacher_sees = covered if config.mode == "opd" else world.prompts(problems, keys)
            teacher_logp = response_logp(teacher, teacher_sees, rollout.tokens)
    student_logp = response_logp(student, covered, rollout.tokens)
    loss = method_loss(config.mode, rollout, reward, student_logp, teacher_logp, config.group_size, config.divergence,
                       config.eps_w, lam_at(step, config.lam, config.lam_decay))
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    if not torch.isfinite(loss + norm):
        raise UserError(f"loss {loss.item()} and gradient norm {norm.item()} at step {step}: the run stops here; "
                        "the last evaluation and its checkpoint are kept. Try a smaller --lr")
    optimizer.step()
    return float(reward.mean())


@torch.no_grad()
def evaluate(config: Config, world: World, student: GPT, teacher: GPT) -> dict:
    """What is measured, on the exam, with an exact verifier. Shares of 1; kl and entropy in nats per token."""
    problems, keys = world.exam()
    covered, opened = world.prompts(problems), world.prompts(problems, keys)
    generator = torch.Generator(world.device).manual_seed(0)
    rollout = world.sample(student, covered, 1, generator)
    greedy = world.sample(student, covered, 1, None)
    with_key = world.sample(student, opened, 1, generator)
    student_logp = response_logp(student, covered, rollout.tokens)
    teacher_logp = response_logp(teacher, covered if config.mode == "opd" else opened, rollout.tokens)
    per_token = rollout.mask / rollout.mask.sum()
    measured = {
        "accuracy": world.reward(problems, rollout.texts).mean(),
        "greedy_accuracy": world.reward(problems, greedy.texts).mean(),
        "leakage": sum(map(world.task.leaks, rollout.texts)) / len(problems),
        "key_accuracy": world.reward(problems, with_key.texts).mean(),
        "key_citing": sum(map(world.task.leaks, with_key.texts)) / len(problems),
        "kl": (divergence(student_logp, teacher_logp, "reverse_kl") * per_token).sum(),
        "entropy": -((student_logp.exp() * student_logp).sum(-1) * per_token).sum(),
        "response_length": rollout.mask.sum(1).mean(),
    }
    return {name: round(float(value), 6) for name, value in measured.items()}


def train(config: Config, world: World, base: GPT, opd_teacher: GPT | None, saved: dict | None = None,
          progress: Callable = no_progress):
    """Yields (record of the log, state to resume from) at step 0, at every evaluation and at the end."""
    student = copy.deepcopy(base)
    # rlvr has no teacher; what is measured against is the student itself with the key open.
    teacher = {"rlvr": student, "opd": opd_teacher}.get(config.mode) or copy.deepcopy(base)
    refresh = config.teacher_refresh or {"opsd": 10, "rlsd": 20}.get(config.mode)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
    if saved:
        student.load_state_dict(saved["student"])
        teacher.load_state_dict(saved["teacher"])
        optimizer.load_state_dict(saved["optimizer"])
    reward = None
    for step in range(saved["step"] + 1 if saved else 0, config.steps + 1):
        if step:
            if config.mode in ("opsd", "rlsd") and (step - 1) % refresh == 0:
                teacher.load_state_dict(student.state_dict())
            reward = round(train_step(config, world, student, teacher, optimizer, step), 6)
            progress(f"{config.mode} seed {config.seed}", step, config.steps)
        if step % config.evaluate_every == 0 or step == config.steps:
            record = {"step": step, "mode": config.mode, "seed": config.seed, **evaluate(config, world, student, teacher),
                      "reward": reward}
            yield record, {"step": step, "student": student.state_dict(), "teacher": teacher.state_dict(),
                           "optimizer": optimizer.state_dict()}


# ---------------------------------------------------------------------------------------------------------------
# Logs and figures. A figure is always drawn from logs, so --plot-only needs nothing else.

RECORD = ("step", "seed", "accuracy", "greedy_accuracy", "leakage", "key_accuracy", "kl", "entropy", "response_length")


def run_path(out: Path, config: Config, ending: str) -> Path:
    return out / "runs" / f"{config.task}-{config.mode}-s{config.seed}{ending}"


def write_log(path: Path, config: Config, records: list[dict]) -> None:
    lines = [{"config": dataclasses.asdict(config)}, *records]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_log(path: Path) -> tuple[Config, list[dict]]:
    number = 0
    try:
        lines = path.read_text().splitlines()
        config = Config(**json.loads(lines[0])["config"])
        records = []
        for number, line in enumerate(lines[1:], 1):
            records.append(json.loads(line))
            if not all(math.isfinite(records[-1][key]) for key in RECORD):
                raise ValueError
        return config, records
    except FileNotFoundError:
        raise UserError(f"there is no log {path}: run the same command without --plot-only first") from None
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError, UserError):
        raise UserError(f"{path} is damaged or not a log of this program (line {number + 1})") from None


NAMES = {"rlvr": "RLVR", "opd": "OPD", "opsd": "OPSD", "rlsd": "RLSD"}
COLOURS = {"rlvr": "#0072B2", "opd": "#009E73", "opsd": "#D55E00", "rlsd": "#000000"}  # told apart by the colour-blind
LINES = {"rlvr": (0, (4, 1.5)), "opd": (0, (1, 1)), "opsd": "solid", "rlsd": "solid"}


def curves_of(logs: list[tuple[Config, list[dict]]]) -> dict[str, dict[str, np.ndarray]]:
    """mode -> quantity -> (seeds, evaluations), up to the evaluation that every seed has reached."""
    curves = {}
    for mode in MODES:
        runs = [records for config, records in logs if config.mode == mode and records]
        if runs:
            shared = min(map(len, runs))
            curves[mode] = {key: np.array([[record[key] for record in run[:shared]] for run in runs]) for key in RECORD}
    return curves


def findings(curves: dict) -> dict[str, str]:
    """The panels' titles, in words that follow from the curves."""
    mean = {mode: {key: value.mean(0) for key, value in quantity.items()} for mode, quantity in curves.items()}
    fall = {mode: quantity["accuracy"].max() - quantity["accuracy"][-1] for mode, quantity in mean.items()}
    faller, best = max(fall, key=fall.get), max(mean, key=lambda mode: mean[mode]["accuracy"][-1])
    leaker = max(mean, key=lambda mode: mean[mode]["leakage"][-1])
    peak, end = mean[faller]["accuracy"].max(), mean[faller]["accuracy"][-1]
    leak = mean[leaker]["leakage"][-1]
    kept = {mode: quantity["kl"][-1] / max(quantity["kl"][0], 1e-9) for mode, quantity in mean.items()}
    return {
        "accuracy": f"{NAMES[faller]} peaks at {peak:.2f}, ends at {end:.2f}" if fall[faller] > 0.1
        else f"{NAMES[best]} ends at {mean[best]['accuracy'][-1]:.2f} right",
        "leakage": f"{NAMES[leaker]} cites a key it cannot see" if leak > 0.02 else "No citing of a key that is covered",
        "kl": "Left of the first KL: " + ", ".join(f"{NAMES[mode]} {share:.0%}" for mode, share in kept.items()),
        "both": "Right answers against leaks",
    }


def spread_out(heights: list[float], gap: float) -> list[float]:
    """The heights of labels, moved up where they would stand closer than gap."""
    order, placed = sorted(range(len(heights)), key=heights.__getitem__), list(heights)
    for below, above in zip(order, order[1:]):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed


def draw(logs: list[tuple[Config, list[dict]]], path: Path) -> None:
    """Accuracy, leakage and KL against the step, and leakage against accuracy. Line: mean over seeds; band: range."""
    from matplotlib.figure import Figure  # imported late: a second that a run without figures need not wait

    curves = curves_of(logs)
    if not curves:
        return
    titles = findings(curves)
    config, seeds = logs[0][0], len({config.seed for config, _ in logs})
    figure = Figure(figsize=(11, 7.4), dpi=110, layout="constrained")
    panels = dict(zip(("accuracy", "leakage", "kl", "both"), figure.subplots(2, 2).flat))
    labels = {"accuracy": "right answers, sampled (share)", "leakage": "responses that cite the key (share)",
              "kl": "KL(student || teacher), nats per token", "both": "responses that cite the key (share)"}
    for key, axes in panels.items():
        axes.set_title(titles[key], loc="left", fontsize=11)
        axes.set_xlabel("right answers, sampled (share)" if key == "both" else "training step")
        axes.set_ylabel(labels[key])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for key in ("accuracy", "leakage", "kl"):
        ends = []
        for mode, quantity in curves.items():
            step, value = quantity["step"][0], quantity[key]
            style = dict(color=COLOURS[mode], linestyle=LINES[mode], linewidth=2)
            panels[key].plot(step, value.mean(0), **style)
            panels[key].fill_between(step, value.min(0), value.max(0), color=COLOURS[mode], alpha=0.15, linewidth=0)
            ends.append((mode, step[-1], value.mean(0)[-1]))
        panels[key].set_ylim(0, 1.02 if key != "kl" else None)
        panels[key].set_xlim(0, max(config.steps, 1))
        gap = 0.06 * panels[key].get_ylim()[1]
        for (mode, step, _), height in zip(ends, spread_out([end for *_, end in ends], gap)):
            panels[key].annotate(NAMES[mode], (step, height), (6, 0), textcoords="offset points", va="center",
                                 color=COLOURS[mode], fontsize=10, fontweight="bold", annotation_clip=False)
    for mode, quantity in curves.items():
        accuracy, leakage = quantity["accuracy"].mean(0), quantity["leakage"].mean(0)
        panels["both"].plot(accuracy, leakage, color=COLOURS[mode], linestyle=LINES[mode], linewidth=2)
        for one_accuracy, one_leakage in zip(quantity["accuracy"], quantity["leakage"]):
            panels["both"].plot(one_accuracy, one_leakage, color=COLOURS[mode], linewidth=0.6, alpha=0.35)
        panels["both"].plot(accuracy[0], leakage[0], "o", color=COLOURS[mode], markerfacecolor="white", markersize=8)
        panels["both"].plot(accuracy[-1], leakage[-1], "o", color=COLOURS[mode], markersize=8)
    ends = [(quantity["accuracy"].mean(0)[-1], quantity["leakage"].mean(0)[-1]) for quantity in curves.values()]
    for mode, (x, _), height in zip(curves, ends, spread_out([y for _, y in ends], 0.06)):
        panels["both"].annotate(NAMES[mode], (x, min(height, 0.92)), (10, 4), textcoords="offset points", va="bottom",
                                color=COLOURS[mode], fontsize=10, fontweight="bold")
    panels["both"].set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
    panels["both"].text(1, 0.98, "white dot: the base\nfull dot: the end", fontsize=9, va="top", ha="right", color="#444444")
    noise = f", verifier noise {config.verifier_noise:g}" if config.verifier_noise else ""
    figure.suptitle(f"{config.task}: {', '.join(NAMES[mode] for mode in curves)}{noise}; "
                    + (f"mean of {seeds} seeds, band from lowest to highest" if seeds > 1 else f"seed {config.seed}"))
    write_whole(path, lambda beside: figure.savefig(beside))


# ---------------------------------------------------------------------------------------------------------------
# The command line: the only part that prints, exits or reads arguments.


class Progress:
    """One line on a terminal that is written over: what is done, how fast, how long still."""

    def __init__(self):
        self.label, self.shown, self.width = None, 0.0, 0

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label.split("(")[0] != self.label:
            self.label, self.began, self.first = label.split("(")[0], now, done
        if sys.stderr.isatty() and (now - self.shown > 0.2 or done == total):
            rate = (done - self.first) / max(now - self.began, 1e-9)
            left = f"{(total - done) / rate:.0f} s left" if rate else ""
            line = f"{label} {done}/{total}  {rate:.1f} a second  {left}"[:79]
            print(f"\r{line:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.shown, self.width = now, len(line)

    def say(self, text: str) -> None:
        """Prints a lasting line in place of the progress line."""
        if self.width:
            print(f"\r{'':{self.width}}\r", end="", file=sys.stderr, flush=True)
            self.width = 0
        print(text, flush=True)


def record_line(record: dict) -> str:
    return (f"{record['mode']:4} seed {record['seed']}  step {record['step']:4}  accuracy {record['accuracy']:.3f}  "
            f"greedy {record['greedy_accuracy']:.3f}  leakage {record['leakage']:.3f}  kl {record['kl']:.3f}")


def introduce(config: Config, world: World, base: GPT) -> str:
    """One problem with the key covered and open, and the four numbers that describe the base."""
    problems, keys = world.exam()
    problem, key = problems[0], keys[0]
    lines = [f"The base on {world.task.show(problem)} (answer {key}), sampled:"]
    generator = torch.Generator(world.device).manual_seed(config.seed)
    for state, shown in (("covered", None), ("open", [key])):
        for text in world.sample(base, world.prompts([problem], shown), 3, generator).texts:
            verdict = "right" if world.task.verify(problem, text) else "wrong"
            verdict += ", cites the key" if world.task.leaks(text) else ""
            lines.append(f"  key {state:7}  {world.task.prompt(problem, shown and key)}{text}  {verdict}")
    number = evaluate(dataclasses.replace(config, mode="rlvr"), world, base, base)
    return "\n".join(lines + [f"Base: accuracy {number['key_accuracy']:.3f} with the key open, {number['accuracy']:.3f} covered; "
                              f"cites {number['key_citing']:.3f} open, {number['leakage']:.3f} covered"])


def prepare(config: Config, kind: str, device: str) -> None:
    cached_model(World(config.make_task(), device), kind, config.seed)


def run(config: Config, out: Path, device: str, progress: Callable = no_progress):
    """Trains one mode on one seed; keeps log and checkpoint up to date; yields each record."""
    world = World(config.make_task(), device)
    base = cached_model(world, "base", config.seed, progress)
    opd_teacher = cached_model(world, "teacher", config.seed, progress) if config.mode == "opd" else None
    path, records = run_path(out, config, ".jsonl"), []
    if path.exists():
        os.replace(path, path.with_suffix(".old.jsonl"))
    for record, state in train(config, world, base, opd_teacher, progress=progress):
        records.append(record)
        write_log(path, config, records)
        write_checkpoint(path.with_suffix(".pt"), state)
        yield record


def finish(config: Config, out: Path, device: str) -> None:
    for _ in run(config, out, device):
        pass


def worker_begins() -> None:
    """One thread a worker; it ends with its parent, and leaves Ctrl-C to it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_side_by_side(configs: list[Config], out: Path, device: str, figure: Path, progress: Progress) -> None:
    """All runs, one process a core, bases first. Records are read from the logs as they grow."""
    models = {("base", config.seed): config for config in configs}
    models.update({("teacher", config.seed): config for config in configs if config.mode == "opd"})
    paths = {run_path(out, config, ".jsonl"): 0 for config in configs}  # and how many records were shown
    for path in paths:
        if path.exists():
            os.replace(path, path.with_suffix(".old.jsonl"))
    with ProcessPoolExecutor(min(os.cpu_count(), len(configs)), multiprocessing.get_context("spawn"), worker_begins) as pool:
        try:
            waiting = {pool.submit(prepare, config, kind, device) for (kind, _), config in models.items()}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                [future.result() for future in done]
                progress("bases and teachers", len(models) - len(waiting), len(models))
            waiting = {pool.submit(finish, config, out, device) for config in configs}
            while waiting:
                done, waiting = wait(waiting, timeout=2, return_when=FIRST_COMPLETED)
                [future.result() for future in done]
                logs, fresh = [read_log(path) for path in paths if path.exists()], False
                for config, records in logs:
                    path = run_path(out, config, ".jsonl")
                    for record in records[paths[path]:]:
                        progress.say(record_line(record))
                        fresh = True
                    paths[path] = len(records)
                if fresh:
                    draw(logs, figure)
                done_steps = sum(records[-1]["step"] for _, records in logs)
                progress("steps of all runs", done_steps, sum(config.steps for config in configs))
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, not a page of usage
        raise UserError(f"{message} (see --help)")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """The flags, and the settings of Config that were given."""
    parser = Parser(prog="rlsd.py", description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    for f in dataclasses.fields(Config):
        text = f.metadata["help"] + (", or all" if f.name == "mode" else "")
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=argparse.SUPPRESS,
                            help=f"{text} [{f.default}]".replace("%", "%%"))
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --seed; each has its own base [1]")
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder of the figures, and of runs/ with logs [plots]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    parser.add_argument("--plot-only", action="store_true", help="draw the figure again from the logs, without training")
    given = vars(parser.parse_args(arguments))
    settings = {f.name: given.pop(f.name) for f in dataclasses.fields(Config) if f.name in given}
    return argparse.Namespace(**given), settings


def check_machine(flags: argparse.Namespace) -> None:
    try:
        torch.zeros(1, device=flags.device)
    except Exception:  # a name that is none, a build without it, a card that is not there
        raise UserError(f"--device {flags.device} is not there: use cpu, or cuda on a machine that has it") from None
    probe = flags.out / "runs" / ".probe"
    write_whole(probe, b"")
    probe.unlink()


def main(arguments: list[str] | None = None) -> None:
    flags, settings = parse(arguments)
    modes = MODES if settings.get("mode") == "all" else (settings.get("mode", Config.mode),)
    if modes[0] not in MODES:
        raise UserError(f"--mode is {modes[0]}, but must be one of {', '.join(MODES)} or all")
    if flags.seeds < 1:
        raise UserError(f"--seeds is {flags.seeds}, but must be 1 or more")
    first = Config(**{**settings, "mode": modes[0]})
    configs = [dataclasses.replace(first, mode=mode, seed=first.seed + n) for n in range(flags.seeds) for mode in modes]
    figure = flags.out / f"{first.task}-{'compare' if len(modes) > 1 else first.mode}.png"
    if flags.plot_only:
        logs = [read_log(run_path(flags.out, config, ".jsonl")) for config in configs]
        for config, (logged, _) in zip(configs, logs):
            for name in {**dataclasses.asdict(logs[0][0]), "mode": 0, "seed": 0}:
                wanted = getattr(config if name in (*settings, "mode", "seed") else logs[0][0], name)
                if getattr(logged, name) != wanted:
                    raise UserError(f"{run_path(flags.out, config, '.jsonl')} is of another run: its {name} is "
                                    f"{getattr(logged, name)}, not {wanted}")
        draw(logs, figure)
        print(f"figure {figure}")
        return

    check_machine(flags)
    torch.set_num_threads(1)  # two runs side by side on two cores beat one run on both, and one thread repeats itself
    progress = Progress()
    if len(configs) > 1:
        run_side_by_side(configs, flags.out, flags.device, figure, progress)
    else:
        world = World(first.make_task(), flags.device)
        progress.say(introduce(first, world, cached_model(world, "base", first.seed, progress)))
        records = []
        for record in run(first, flags.out, flags.device, progress):
            records.append(record)
            progress.say(record_line(record))
            draw([(first, records)], figure)
    print(f"figure {figure}\nlogs   " + run_path(flags.out, first, ".jsonl").as_posix()
          + (f" and {len(configs) - 1} more beside it" if len(configs) > 1 else ""))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"rlsd.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nrlsd.py: stopped; every evaluation made so far is in the logs", file=sys.stderr)
        sys.exit(130)
