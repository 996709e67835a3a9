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

    python rlsd.py --mode rlsd        one method; ends with a log and a figure under plots/
    python rlsd.py --mode all         the four from the same base, in one figure

Read it downwards: settings, files, model, rollouts, base, THE METHODS, training, figures, command line.
Equation numbers are those of the RLSD paper, arXiv:2604.03128. Logarithms are natural; information is in nats.
"""

import argparse
import contextlib
import copy
import hashlib
import inspect
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny_tasks import TASKS, Task, Tokenizer

MODES = ("rlvr", "opd", "opsd", "rlsd")
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
CACHE = Path(__file__).parent / ".cache"  # bases and OPD teachers; safe to delete
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun


class UserError(Exception):
    """Something the user can mend. The command line prints it in one line and exits with code 2."""


def nothing(*_) -> None:
    """What is done on progress where nobody looks."""


# ---- Settings. Each is a flag of the command line, and its text is the flag's help.

def setting(default, text: str, allowed: tuple):
    """allowed: the names, or the lowest and the highest number."""
    return field(default=default, metadata={"help": text, "allowed": allowed})


@dataclass(frozen=True)
class Config:
    mode: str = setting("rlsd", f"the method: {', '.join(MODES)}", MODES)
    task: str = setting("carry", f"the arithmetic: {', '.join(TASKS)}", tuple(TASKS))
    seed: int = setting(0, "seed of the base and of the run", (0, 10**9))
    digits: int = setting(4, "columns of an addition", (2, 10))
    slip: float = setting(0.6, "homework: probability that a carry is forgotten", (0, 1))
    cite: float = setting(0.3, "homework: share that copies the key when it is open", (0, 1))
    steps: int = setting(160, "training steps, one update each", (0, 10**6))
    problems: int = setting(16, "problems a step (paper: 32; its released script: 256)", (1, 10**4))
    group_size: int = setting(8, "responses a problem, G (paper: 8)", (2, 10**3))
    lr: float = setting(2e-4, "AdamW's learning rate (paper: 1e-6, for a model 80,000 times this size)", (1e-9, 1))
    divergence: str = setting("reverse_kl", f"D of Eq 6: {', '.join(DIVERGENCES)}", DIVERGENCES)
    teacher_refresh: int = setting(20, "opsd, rlsd: steps between copies of the student into its teacher (paper: 20)", (1, 10**6))
    eps_w: float = setting(0.2, "clip of the evidence weight, Eq 15 (paper: 0.2)", (0, 100))
    lam: float = setting(0.5, "share of the evidence weight in the credit, at first (paper: 0.5)", (0, 1))
    lam_decay: int = setting(60, "steps in which lam goes to 0; 0: lam is constant (paper: 50 to 60)", (0, 10**6))
    verifier_noise: float = setting(0.0, "probability that a training reward is flipped", (0, 0.5))
    evaluate_every: int = setting(10, "steps between two evaluations", (1, 10**6))

    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if isinstance(f.default, str):
                fits, wanted = value in allowed, f"one of {', '.join(allowed)}"
            else:  # a number that is none, like nan, fails both comparisons
                fits = isinstance(value, (type(f.default), int)) and allowed[0] <= value <= allowed[1]
                wanted = f"from {allowed[0]:g} to {allowed[1]:g}"
            if not fits:
                raise UserError(f"--{f.name.replace('_', '-')} is {value}, but must be {wanted}")

    def make_task(self) -> Task:
        knobs = inspect.signature(TASKS[self.task]).parameters
        return TASKS[self.task](**{name: getattr(self, name) for name in knobs})


# ---- Files: written whole or not at all, and distrusted when they are read.

def write_whole(path: Path, content: bytes | dict) -> None:
    """Bytes, or a checkpoint. Writes beside the file and then renames, so that nobody ever sees half a file."""
    if isinstance(content, dict):
        torch.save(content, buffer := io.BytesIO())
        content = buffer.getvalue()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def distrust(path: Path):
    """What is read from a file may be anything, and may fail in any way."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: run the same command without --plot-only and --resume first") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not of this program: move it away to start anew") from error


def read_checkpoint(path: Path) -> dict:
    """Tensors and numbers; weights_only refuses a pickle that would run code."""
    with distrust(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on what a damaged file might be
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def write_log(path: Path, config: Config, records: list[dict]) -> None:
    lines = [{"config": asdict(config)}, *records]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_log(path: Path) -> tuple[Config, list[dict]]:
    with distrust(path):
        first, *records = [json.loads(line) for line in path.read_text().splitlines()]
        config = Config(**first["config"])
        if not records:
            raise ValueError
        for record in records:
            if record["mode"] != config.mode or not all(math.isfinite(record[key]) for key in MEASURED):
                raise ValueError
        return config, records


# ---- The model: a GPT with rotary positions, pre-norm and a cache of keys and values.

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


# ---- Rollouts and their log-probabilities. A prompt is read once a problem, and shared by its group of responses.

class Rollout(NamedTuple):
    tokens: Tensor  # (B, T), rows of one problem side by side
    logp: Tensor  # (B, T), of each token when it was sampled
    mask: Tensor  # (B, T), 1 up to and including the end token
    texts: list[str]


def once_per_problem(model: GPT, prompts: Tensor, group_size: int) -> tuple[Tensor, list]:
    """The logits after each prompt and the cache, each repeated for the group."""
    logits, cache = model(prompts)
    return (logits[:, -1:].repeat_interleave(group_size, 0),
            [tuple(part.repeat_interleave(group_size, 0) for part in pair) for pair in cache])


def response_logp(model: GPT, prompts: Tensor, responses: Tensor) -> Tensor:
    """log P(. | prompt, y_<t) over the vocabulary: (P, length), (B, T) -> (B, T, V). B is a multiple of P."""
    first, cache = once_per_problem(model, prompts, len(responses) // len(prompts))
    rest, _ = model(responses[:, :-1], cache)
    return torch.cat((first, rest), 1).log_softmax(-1)


def of_tokens(logp: Tensor, tokens: Tensor) -> Tensor:
    """(B, T, V), (B, T) -> (B, T): the log-probabilities of the tokens that were written."""
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# ---- The base: a textbook until it is mastered, then the homework with its habits. OPD's teacher: the textbook only.

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
        workings, keys = zip(*(self.task.working(problem, rng, homework, key_open) for problem in problems))
        responses = [self.tokenizer.encode(working) for working in workings]
        length = torch.tensor([[len(response)] for response in responses], device=self.device)
        padded = [response + [self.tokenizer.end] * (int(length.max()) - len(response)) for response in responses]
        responses = torch.tensor(padded, device=self.device)
        mask = (torch.arange(responses.shape[1], device=self.device) < length).float()
        return self.prompts(problems, keys if key_open else None), responses, mask

    def sample(self, model: GPT, prompts: Tensor, group_size: int, generator: torch.Generator | None) -> Rollout:
        """group_size responses to each prompt (P, length of prompt), at temperature 1; without a generator, greedily."""
        tokens, logps, mask = [], [], []
        with torch.inference_mode():  # less work a call than no_grad, a tenth of the whole
            logits, cache = once_per_problem(model, prompts, group_size)
            ended = torch.zeros(len(logits), 1, dtype=torch.bool, device=self.device)
            for position in range(1, self.task.response_length + 1):
                logp = logits[:, 0].log_softmax(-1)
                token = torch.multinomial(logp.exp(), 1, generator=generator) if generator else logp.argmax(-1, keepdim=True)
                token = token.masked_fill(ended, self.tokenizer.end)
                tokens.append(token), logps.append(logp.gather(1, token)), mask.append(~ended)
                ended = ended | (token == self.tokenizer.end)
                if position == self.task.response_length or position % 4 == 0 and ended.all():  # asking makes a GPU wait
                    break
                logits, cache = model(token, cache)
        tokens, logps, mask = torch.cat(tokens, 1), torch.cat(logps, 1), torch.cat(mask, 1).float()
        texts = [self.tokenizer.decode(row[:int(n)]) for row, n in zip(tokens.tolist(), mask.sum(1).tolist())]
        return Rollout(tokens, logps, mask, texts)

    def reward(self, problems: list, texts: list[str]) -> Tensor:
        """R(x, y): 1 where the verifier accepts, else 0. The rows of one problem stand side by side."""
        group_size = len(texts) // len(problems)
        right = [self.task.verify(problems[row // group_size], text) for row, text in enumerate(texts)]
        return torch.tensor(right, dtype=torch.float32, device=self.device)

    def new_model(self, seed: int, **size) -> GPT:
        torch.manual_seed(seed)
        (problem, *_), (key, *_) = self.exam()
        longest = len(self.tokenizer.encode(self.task.prompt(problem, key))) + self.task.response_length
        return GPT(self.tokenizer.vocabulary_size, longest, **size).to(self.device)

    def exam(self) -> tuple[list, list]:
        """512 held-out problems and a key to each, the same for every seed and mode."""
        rng = random.Random("exam")
        problems = [self.task.sample(rng, held_out=True) for _ in range(512)]
        return problems, [self.task.reference(problem, rng) for problem in problems]


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought close to 1, by five Newton-Schulz steps: the direction of Muon."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (2.0315 * square @ square - 4.775 * square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def pretrain(world: World, model: GPT, seed: int, homework_steps: int, progress: Callable = nothing) -> GPT:
    """The textbook until 99 % of the exam is right, greedily; then homework, half of its batches with the key open.

    The blocks' matrices learn by Muon: it masters the textbook in 250 to 350 steps, where AdamW needs 500 to 1200.
    """
    adam = torch.optim.AdamW([model.embedding.weight, model.head.weight], betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    matrices = [(matrix, torch.zeros_like(matrix)) for matrix in model.blocks.parameters()]
    rng = random.Random(seed)
    problems, _ = world.exam()
    exam_prompts = world.prompts(problems)

    def learn(pace: float, homework: bool, key_open: bool):
        prompts, responses, mask = world.corpus(rng, 64, homework, key_open)
        logits, _ = model(torch.cat((prompts, responses[:, :-1]), 1))
        logp = of_tokens(logits[:, prompts.shape[1] - 1:].log_softmax(-1), responses)
        model.zero_grad()
        (-(logp * mask).sum() / mask.sum()).backward()
        adam.param_groups[0]["lr"] = 5e-3 * pace
        adam.step()
        with torch.no_grad():
            for matrix, momentum in matrices:
                momentum.lerp_(matrix.grad, 0.05)
                step = orthogonal(matrix.grad.lerp(momentum, 0.95))
                matrix.sub_(step, alpha=0.02 * pace * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5)

    most, accuracy = 2000, 0.0
    for step in range(1, most + 1):
        learn(min(1, step / 20, 150 / step), homework=False, key_open=False)
        progress("textbook, at most", step, most)
        if step % 50 == 0:
            accuracy = float(world.reward(problems, world.sample(model, exam_prompts, 1, None).texts).mean())
            if accuracy >= 0.99:
                break
    else:
        raise UserError(f"the textbook was not mastered in {most} steps ({accuracy:.0%} right, 99 % wanted): "
                        "try another --seed or fewer --digits")
    for step in range(homework_steps):
        learn(0.25 * (1 + math.cos(math.pi * step / homework_steps)), homework=True, key_open=step % 2 == 1)
        progress("homework", step + 1, homework_steps)
    return model


def cached_model(config: Config, kind: str, device: str = "cpu", progress: Callable = nothing) -> GPT:
    """The `base`, or OPD's `teacher`: from the cache, or trained now and put there.

    The file's name is a fingerprint of all it depends on, this file's relevant code included: whoever changes the
    corpus or the model gets a new base, whoever changes Eq 15 keeps the old one.
    """
    size, homework_steps = {"base": ({}, 600), "teacher": ({"width": 144}, 0)}[kind]
    world, seed = World(config.make_task(), device), config.seed
    model = world.new_model(seed, **size)
    parts = (Tokenizer, Task, type(world.task), Block, GPT, once_per_problem, World, orthogonal, pretrain, cached_model)
    depends = json.dumps([kind, seed, vars(world.task), world.device, torch.__version__, *map(inspect.getsource, parts)])
    path = CACHE / f"{world.task.name}-{kind}-s{seed}-{hashlib.sha256(depends.encode()).hexdigest()[:12]}.pt"
    if path.exists():
        with distrust(path):
            model.load_state_dict(read_checkpoint(path))
    else:
        pretrain(world, model, seed, homework_steps, progress)
        write_whole(path, model.state_dict())
    return model


# ---- THE METHODS: one function an equation, then the one place where they differ.
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

    The sign of A_t is never opposite to that of A, whatever the teacher says: the reward alone decides the direction.
    """
    clipped = evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)
    return advantage.unsqueeze(-1) * ((1 - lam) + lam * clipped)


def lam_at(step: int, lam: float, lam_decay: int) -> float:
    """lambda at a step (the first is 1): linear from lam to 0 over lam_decay steps; constant if lam_decay is 0."""
    return lam * max(0.0, 1 - (step - 1) / lam_decay) if lam_decay else lam


def token_credit(mode: str, gain: Tensor, advantage: Tensor, eps_w: float, lam: float) -> Tensor:
    """Eq 17: at rho = 1 and up to the 1/|y|, every mode climbs sum_t A_t log P_S(y_t). This is A_t, (B, T)."""
    if mode == "rlvr":
        return advantage.unsqueeze(-1).expand_as(gain)
    if mode == "rlsd":
        return rlsd_token_advantage(gain, advantage, eps_w, lam)
    return gain  # opd and opsd, seen one sampled token at a time with the reverse KL: no reward in it


def method_loss(mode: str, rollout: Rollout, reward: Tensor, student_logp: Tensor, teacher_logp: Tensor,
                group_size: int, kind: str, eps_w: float, lam: float) -> tuple[Tensor, Tensor]:
    """The one place where the modes differ: the loss, and A_t (B, T). Both logp are (B, T, V); reward is (B,)."""
    logp = of_tokens(student_logp, rollout.tokens)
    gain = information_gain(of_tokens(teacher_logp, rollout.tokens), logp)
    credit = token_credit(mode, gain, group_advantage(reward, group_size), eps_w, lam)
    if mode in ("opd", "opsd"):  # Eq 4-6; the teacher is another network, or the student's weights with the key open
        return response_mean(divergence(student_logp, teacher_logp, kind), rollout.mask), credit
    return clipped_surrogate(logp, rollout.logp, credit, rollout.mask), credit


# ---- Training: one loop for all modes. Each step draws its randomness from (seed, step), so all modes see the same
# problems, and a run that was stopped goes on exactly as it would have.

def train_step(config: Config, world: World, student: GPT, teacher: GPT, optimizer, step: int, method: Callable) -> dict:
    """One update. Returns what was seen: problems, rollout, reward after the verifier's noise, and credit."""
    rng = random.Random(f"{config.seed} {step}")
    generator = torch.Generator(world.device).manual_seed(rng.getrandbits(62))
    problems = [world.task.sample(rng) for _ in range(config.problems)]
    covered = world.prompts(problems)
    rollout = world.sample(student, covered, config.group_size, generator)
    reward = world.reward(problems, rollout.texts)
    flipped = torch.rand(reward.shape, generator=generator, device=world.device) < config.verifier_noise
    reward = torch.where(flipped, 1 - reward, reward)

    student_logp = teacher_logp = response_logp(student, covered, rollout.tokens)
    if config.mode != "rlvr":
        keys = [world.task.reference(problem, rng) for problem in problems]
        with torch.no_grad():
            teacher_sees = covered if config.mode == "opd" else world.prompts(problems, keys)
            teacher_logp = response_logp(teacher, teacher_sees, rollout.tokens)
    loss, credit = method(config.mode, rollout, reward, student_logp, teacher_logp, config.group_size,
                          config.divergence, config.eps_w, lam_at(step, config.lam, config.lam_decay))
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    if not torch.isfinite(loss + norm):
        raise UserError(f"loss {loss.item()} and gradient norm {norm.item()} at step {step}: the run stops here; "
                        "the last evaluation and its checkpoint are kept. Try a smaller --lr")
    optimizer.step()
    return {"problems": problems, "rollout": rollout, "reward": reward, "credit": credit}


MEASURED = ("step", "seed", "accuracy", "greedy_accuracy", "leakage", "key_accuracy", "key_citing", "kl", "entropy",
            "response_length")


@torch.inference_mode()
def evaluate(mode: str, world: World, student: GPT, teacher: GPT) -> dict:
    """What is measured, on the exam, with an exact verifier. Shares of 1; kl and entropy in nats per token."""
    problems, keys = world.exam()
    covered, opened = world.prompts(problems), world.prompts(problems, keys)
    generator = torch.Generator(world.device).manual_seed(0)
    rollout = world.sample(student, covered, 1, generator)
    greedy = world.sample(student, covered, 1, None)
    with_key = world.sample(student, opened, 1, generator)
    student_logp = response_logp(student, covered, rollout.tokens)
    teacher_logp = response_logp(teacher, covered if mode == "opd" else opened, rollout.tokens)
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


def at_once(work: Callable, *arguments) -> Future:
    """Does here and now what an executor would do in another process."""
    future = Future()
    future.set_result(work(*arguments))
    return future


def train(config: Config, world: World, base: GPT, opd_teacher: GPT | None = None, checkpoint: Path | None = None,
          method: Callable = method_loss, after_step: Callable = nothing, submit: Callable = at_once) -> Iterator[tuple[dict, dict]]:
    """Yields (record of the log, state to resume from) at step 0, at every evaluation and at the end.

    With another `submit` the evaluations, half of the work, are done in a second process while training goes on.
    """
    student = copy.deepcopy(base)
    # rlvr has no teacher; what is measured against is the student itself with the key open.
    teacher = {"rlvr": student, "opd": opd_teacher}.get(config.mode) or copy.deepcopy(base)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
    first, reward, waiting = 0, None, []
    if checkpoint:
        with distrust(checkpoint):
            saved = read_checkpoint(checkpoint)
            student.load_state_dict(saved["student"])
            teacher.load_state_dict(saved["teacher"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["moments"]})
            for weight, state in optimizer.state.items():
                weight + state["exp_avg"] + state["exp_avg_sq"].view_as(weight) + state["step"].view(())  # or they do not fit
            first = int(saved["step"]) + 1
    for step in range(first, config.steps + 1):
        if step:
            if config.mode in ("opsd", "rlsd") and (step - 1) % config.teacher_refresh == 0:
                teacher.load_state_dict(student.state_dict())
            seen = train_step(config, world, student, teacher, optimizer, step, method)
            reward = round(float(seen["reward"].mean()), 6)
            after_step(config, world, step, seen)
        if step % config.evaluate_every == 0 or step == config.steps:
            known = {"step": step, "mode": config.mode, "seed": config.seed, "reward": reward}
            state = copy.deepcopy({"step": step, "student": student.state_dict(), "teacher": teacher.state_dict(),
                                   "moments": optimizer.state_dict()["state"]})
            waiting.append((known, submit(evaluate, config.mode, world, student, teacher), state))
        while waiting and (waiting[0][1].done() or len(waiting) > 1 or step == config.steps):
            known, measured, state = waiting.pop(0)
            yield {**known, **measured.result()}, state


def run_path(out: Path, config: Config, ending: str) -> Path:
    return out / "runs" / f"{config.task}-{config.mode}-s{config.seed}{ending}"


def worker_begins() -> None:
    """One thread a worker, and it does not outlive its parent."""
    torch.set_num_threads(1)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def thaw(frozen: bytes):
    """Does in a worker what `run` froze for it."""
    work, arguments = pickle.loads(frozen)
    return work(*arguments)


def workers(count: int) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to their parent: they are started while it is ignored, and inherit that."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), worker_begins)
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _ in range(count):
        pool.submit(nothing)
    signal.signal(signal.SIGINT, earlier)
    return pool


def run(config: Config, out: Path, device: str, tell: Callable = nothing, after_step: Callable = nothing, alone: bool = False) -> None:
    """Trains one mode on one seed, from its checkpoint if there is one; keeps its log; tells each new record.

    A run that is alone on a machine of several cores leaves evaluations and figures to a second process.
    """
    world = World(config.make_task(), device)
    base = cached_model(config, "base", device)
    opd_teacher = cached_model(config, "teacher", device) if config.mode == "opd" else None
    log, checkpoint, records = run_path(out, config, ".jsonl"), run_path(out, config, ".pt"), []
    if checkpoint.exists():
        logged, records = read_log(log)
        for name, value in asdict(config).items():
            if getattr(logged, name) != value:
                raise UserError(f"{log} was made with --{name.replace('_', '-')} {getattr(logged, name)}, not {value}: "
                                "give the same settings, or leave out --resume to start anew")
    with workers(1) if alone and device == "cpu" and os.cpu_count() > 1 else contextlib.nullcontext() as second:
        def elsewhere(work: Callable, *arguments) -> Future:
            return second.submit(thaw, pickle.dumps((work, arguments)))  # frozen now, since training goes on to change them

        submit = elsewhere if second else at_once
        for record, state in train(config, world, base, opd_teacher, checkpoint if records else None, after_step=after_step, submit=submit):
            # The log is written before the checkpoint: after a kill it may be one evaluation ahead, never behind.
            records = [earlier for earlier in records if earlier["step"] < record["step"]] + [record]
            write_log(log, config, records)
            write_whole(checkpoint, state)
            tell(record, submit)


def side_by_side(jobs: list[tuple]) -> Iterator:
    """The results of all jobs (function, *arguments), in their order; a process of one thread on each core.

    Under torchrun: of this rank's share of the jobs, one after the other; then it waits for the other ranks.
    """
    if RANKS > 1 or len(jobs) == 1:
        yield from (work(*arguments) for work, *arguments in jobs[RANK::RANKS])
        if RANKS > 1:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
            torch.distributed.barrier()
        return
    with workers(min(os.cpu_count(), len(jobs))) as pool:
        try:
            for future in [pool.submit(*job) for job in jobs]:
                yield future.result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


# ---- Figures, always drawn from logs, so that --plot-only needs nothing else.

NAMES = {"rlvr": "RLVR", "opd": "OPD", "opsd": "OPSD", "rlsd": "RLSD"}
COLOURS = {"rlvr": "#0072B2", "opd": "#009E73", "opsd": "#D55E00", "rlsd": "#000000"}  # told apart by the colour-blind
LINES = {"rlvr": (0, (4, 1.5)), "opd": (0, (1, 1)), "opsd": "solid", "rlsd": "solid"}
AXIS = {"step": "training step", "accuracy": "right answers, sampled (share)",
        "leakage": "responses that cite the key (share)", "kl": "KL(student || teacher), nats per token"}


def curves_of(logs: list[tuple[Config, list[dict]]]) -> dict[str, dict[str, np.ndarray]]:
    """mode -> quantity -> (seeds, evaluations), up to the evaluation that every seed has reached."""
    curves = {}
    for mode in MODES:
        runs = [records for config, records in logs if config.mode == mode]
        if runs:
            shared = min(map(len, runs))
            curves[mode] = {key: np.array([[record[key] for record in run[:shared]] for run in runs]) for key in MEASURED}
    return curves


def findings(mean: dict) -> dict[str, str]:
    """The panels' titles, in words that follow from the curves' means over seeds."""
    right = []
    for mode, curve in mean.items():
        peak, end = curve["accuracy"].max(), curve["accuracy"][-1]
        right.append(f"{NAMES[mode]} {end:.2f}" + (f" after {peak:.2f}" if peak - end > 0.1 else ""))
    leak, leaker = max((curve["leakage"][-1], mode) for mode, curve in mean.items())
    distilled = [mode for mode in mean if mode in ("opd", "opsd")] or list(mean)
    kl = [f"{NAMES[mode]} {mean[mode]['kl'][0]:.2f} to {mean[mode]['kl'][-1]:.2f}" for mode in distilled]
    return {"accuracy": "Right at the end: " + ", ".join(right),
            "leakage": f"{NAMES[leaker]} cites a key it cannot see: {leak:.0%}" if leak > 0.02 else "No citing of a covered key",
            "kl": "KL from start to end: " + ", ".join(kl), "both": "Learning goes to the right, leaking goes up"}


def write_names(axes, ends: dict[str, tuple], names: dict = NAMES, colours: dict = COLOURS) -> None:
    """Each curve's name beside its end (x, y), moved towards the middle where two would overlap."""
    bottom, top = axes.get_ylim()
    middle, room = (bottom + top) / 2, 0.06 * (top - bottom)
    low, high = -math.inf, math.inf
    for mode, (x, height) in sorted(ends.items(), key=lambda end: -abs(end[1][1] - middle)):  # from either edge inwards
        if height < middle:
            height = low = max(height, low + room)
        else:
            height = high = min(height, high - room)
        axes.annotate(names[mode], (x, height), (10, 0), textcoords="offset points", va="center", color=colours[mode],
                      fontweight="bold", annotation_clip=False)


def draw(logs: list[tuple[Config, list[dict]]], path: Path) -> None:
    """Accuracy, leakage and KL against the step, and leakage against accuracy. Line: mean over seeds; band: range."""
    from matplotlib.figure import Figure  # takes a second

    curves, config, seeds = curves_of(logs), logs[0][0], len({config.seed for config, _ in logs})
    mean = {mode: {key: value.mean(0) for key, value in curve.items()} for mode, curve in curves.items()}
    figure = Figure(figsize=(11, 7.4), dpi=110)
    figure.subplots_adjust(left=0.06, right=0.93, top=0.91, bottom=0.07, wspace=0.28, hspace=0.27)  # automatic is slow
    for axes, (panel, title) in zip(figure.subplots(2, 2).flat, findings(mean).items()):
        across, up = ("accuracy", "leakage") if panel == "both" else ("step", panel)
        for mode, curve in curves.items():
            x, y, colour = mean[mode][across], mean[mode][up], COLOURS[mode]
            axes.plot(x, y, color=colour, linestyle=LINES[mode], linewidth=2)
            if panel == "both":
                axes.plot(curve[across].T, curve[up].T, color=colour, linewidth=0.6, alpha=0.35)
                axes.plot(x[0], y[0], "o", color=colour, markerfacecolor="white", markersize=8)
                axes.plot(x[-1], y[-1], "o", color=colour, markersize=8)
            else:
                axes.fill_between(x, curve[up].min(0), curve[up].max(0), color=colour, alpha=0.15, linewidth=0)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(xlabel=AXIS[across], ylabel=AXIS[up], xlim=(0, 1.02) if panel == "both" else (0, max(config.steps, 1)))
        axes.set_ylim(-0.02 if panel == "both" else 0, None if panel == "kl" else 1.02)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        write_names(axes, {mode: (curve[across][-1], curve[up][-1]) for mode, curve in mean.items()})
        if panel == "both":
            axes.text(1, 1, "white dot: the base\nfull dot: the end", transform=axes.transAxes, va="top", ha="right", color="#444444")
    noise = f", verifier noise {config.verifier_noise:g}" if config.verifier_noise else ""
    spread = f"mean of {seeds} seeds, band from lowest to highest" if seeds > 1 else f"seed {config.seed}"
    figure.suptitle(f"{config.task}: {', '.join(NAMES[mode] for mode in curves)}{noise}; {spread}")
    save_figure(figure, path)


def save_figure(figure, path: Path) -> None:
    figure.savefig(buffer := io.BytesIO())
    write_whole(path, buffer.getvalue())


# ---- The command line: the only part that prints, exits or reads arguments.

class Console:
    """What a user sees: lasting lines, and below them, on a terminal, one line that is written over."""

    def __init__(self, configs: list[Config], out: Path, figure: Path, watch: int):
        self.configs, self.out, self.figure, self.watch = configs, out, figure, watch
        self.label, self.shown, self.clear = "", 0.0, "\r\033[K" if sys.stderr.isatty() else ""

    def say(self, text: str) -> None:
        print(self.clear, end="", file=sys.stderr, flush=True)
        print(text, flush=True)

    def progress(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label != self.label:
            self.label, self.began, self.first = label, now, done
        if self.clear and (now - self.shown > 0.2 or done == total):
            rate = (done - self.first) / max(now - self.began, 1e-9)
            pace = f"  {rate:.3g} a second  {(total - done) / rate:.0f} s left" if rate else ""
            print(f"{self.clear}{label} {done}/{total}{pace}", end="", file=sys.stderr, flush=True)
            self.shown = now

    def tell(self, record: dict, submit: Callable) -> None:
        """A new record: its line, and the figure of all logs so far; it may be two seconds old while runs go side by side."""
        self.say(f"{record['mode']:4} seed {record['seed']}  step {record['step']:4}  accuracy {record['accuracy']:.3f}  "
                 f"greedy {record['greedy_accuracy']:.3f}  leakage {record['leakage']:.3f}  kl {record['kl']:.3f}")
        logs = [read_log(path) for config in self.configs if (path := run_path(self.out, config, ".jsonl")).exists()]
        if len(self.configs) == 1 or not self.figure.exists() or time.time() - self.figure.stat().st_mtime > 2:
            submit(draw, logs, self.figure)
        if len(self.configs) > 1:
            self.progress("all runs, step", sum(records[-1]["step"] for _, records in logs), sum(config.steps for config in self.configs))

    def after_step(self, config: Config, world: World, step: int, seen: dict) -> None:
        self.progress(f"{config.mode} seed {config.seed}", step, config.steps)
        if self.watch and step % self.watch == 0:
            from plots.credit import watched
            self.say(f"step {step}: {watched(world, **seen)}")


def introduce(config: Config, device: str, progress: Callable = nothing) -> str:
    """Makes the base; one problem with the key covered and open, and the four numbers that describe the base."""
    world = World(config.make_task(), device)
    base = cached_model(config, "base", device, progress)
    (problem, *_), (key, *_) = world.exam()
    lines = [f"seed {config.seed}: the base answers {world.task.show(problem)} ({key})"]
    generator = torch.Generator(device).manual_seed(config.seed)
    for state, shown in (("covered", None), ("open", [key])):
        for text in world.sample(base, world.prompts([problem], shown), 2, generator).texts:
            verdict = "right" if world.task.verify(problem, text) else "wrong"
            cites = ", cites the key" if world.task.leaks(text) else ""
            lines.append(f"  key {state:7} {world.task.prompt(problem, shown and key) + text:>36}  {verdict}{cites}")
    number = evaluate("rlvr", world, base, base)
    lines.append(f"  right {number['key_accuracy']:.3f} with the key open, {number['accuracy']:.3f} covered; "
                 f"cites {number['key_citing']:.3f} open, {number['leakage']:.3f} covered")
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, not a page of usage
        raise UserError(f"{message} (see --help)")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[Config]]:
    """The flags that are no settings, and a Config for every run that is asked for."""
    parser = Parser(prog="rlsd.py", description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    for f in fields(Config):
        text = f.metadata["help"] + (", or all" if f.name == "mode" else "")
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default,
                            help=f"{text} [{f.default}]".replace("%", "%%"))
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --seed; each has its own base [1]")
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder of the figures, and of runs/ with logs [plots]")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where everything is computed [cpu]")
    parser.add_argument("--explain", metavar="PROBLEM", help='answer a problem like "478+356", and show every token\'s credit')
    parser.add_argument("--watch", type=int, default=0, metavar="N", help="one run: show a response and its A_t every N steps")
    parser.add_argument("--resume", action="store_true", help="go on from the last evaluation of runs that were stopped")
    parser.add_argument("--plot-only", action="store_true", help="draw the figure again from the logs, without training")
    flags = parser.parse_args(arguments)
    modes = MODES if flags.mode == "all" else [flags.mode]
    for name, low in (("seeds", 1), ("watch", 0)):
        if not low <= getattr(flags, name) <= 1000:
            raise UserError(f"--{name} is {getattr(flags, name)}, but must be from {low} to 1000")
    first = Config(**{f.name: getattr(flags, f.name) for f in fields(Config)} | {"mode": modes[0]})
    return flags, [replace(first, mode=mode, seed=first.seed + n) for n in range(flags.seeds) for mode in modes]


def main(arguments: list[str] | None = None) -> None:
    flags, configs = parse(arguments)
    first, alone, device = configs[0], len(configs) == 1, flags.device
    torch.set_num_threads(1)  # two runs side by side beat one run on two cores, and one thread repeats itself
    figure = flags.out / f"{first.task}-{'compare' if flags.mode == 'all' else flags.mode}.png"
    paths, console = [run_path(flags.out, config, ".jsonl") for config in configs], Console(configs, flags.out, figure, flags.watch)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; --device cpu needs none")
    if flags.explain:
        from plots.credit import explain
        console.say(explain(flags.explain, first, flags.out, device))
        return
    if not flags.plot_only:
        if RANK == 0:
            write_whole(probe := flags.out / "runs" / ".writable", b"")  # better to fail now than after the base
            probe.unlink()
            # Earlier files are kept; the checkpoint goes first, so that none ever stands beside another run's log.
            for path in [run_path(flags.out, config, ending) for config in configs for ending in (".pt", ".jsonl")]:
                if path.exists() and not flags.resume:
                    os.replace(path, path.with_suffix(".old" + path.suffix))
        progress = [console.progress] + [nothing] * 2 * len(configs)  # of side-by-side work, one line shows the first
        bases = [(introduce, config, device) for config in configs if config.mode == first.mode]
        teachers = [(cached_model, config, "teacher", device) for config in configs if config.mode == "opd"]
        for result in side_by_side([(*job, shown) for job, shown in zip(bases + teachers, progress)]):
            if isinstance(result, str):
                console.say(result)
        for _ in side_by_side([(run, config, flags.out, device, console.tell, console.after_step if alone else nothing, alone)
                               for config in configs]):
            pass
        if RANK > 0:
            return
    logs = [read_log(path) for path in paths]
    for path, (config, _) in zip(paths, logs):
        if replace(config, mode=first.mode, seed=first.seed) != replace(logs[0][0], mode=first.mode, seed=first.seed):
            raise UserError(f"{path} was made with other settings than {paths[0]}")
    draw(logs, figure)
    console.say(f"figure {figure}\nlogs   {paths[0]}" + (f" and {len(paths) - 1} more beside it" if len(paths) > 1 else ""))


if __name__ == "__main__":
    sys.modules["rlsd"] = sys.modules["__main__"]  # for plots/credit.py, which imports this file
    try:
        main()
    except UserError as error:
        print(f"rlsd.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nrlsd.py: stopped; what was evaluated is kept, and --resume goes on from there", file=sys.stderr)
        sys.exit(130)
