# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tiktoken>=0.7", "matplotlib>=3.8"]
# ///
"""RLSD from scratch, beside the methods it grew out of. Whoever stops after section 2 has understood it.

A small GPT has learned column addition and two bad habits: it writes a carry down and then forgets it; and where it
sees the answer key it sometimes cites that, `<see key>`, and skips the working. A verifier says whether an answer is
right. Five methods learn from that, one per --mode. Who learns to cite a key that is covered has caught leakage.

    rlvr   reinforcement learning with verifiable rewards, as GRPO (group relative policy optimisation) does it: was
           this response better or worse than the others to the same problem? The same for each of its tokens
    opd    on-policy distillation: imitate a larger teacher on one's own responses
    opsd   on-policy self-distillation: the teacher is the student itself, with the answer key in view
    rlsd   RLVR with self-distillation: the verdict gives each token's direction, the teacher with the key its size
    cepo   contrastive evidence policy optimisation: RLSD, the teacher with a wrong key in the student's place

A wrong response to 4218+3567: `5c` is "write 5, carry 1", and `7` forgets that carry. P_S is the probability that the
student gave a token, P_T the same network's with the key open (it would sometimes cite, and not begin with 5). Three of
the group's eight responses are right, so this one has the advantage A = -0.77. A_t stands before grad log P_S(y_t):
RLVR blames all tokens, OPSD those that the key makes unlikely, RLSD all, and those more (here eps_w and lam are 1).

    token     5     c     7     -     7     -     7     -     =     0     7     7     7     5     .
    P_S    1.00  1.00  0.65  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00
    P_T    0.78  1.00 0.002  0.99  1.00  1.00  1.00  1.00  1.00  1.00  1.00  1.00  0.93  1.00  1.00
    RLVR  -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77
    OPSD  -0.25  0.00 -5.78 -0.01  0.00  0.00  0.00  0.00  0.00  0.00  0.00  0.00 -0.07  0.00  0.00
    RLSD  -0.99 -0.77 -1.55 -0.78 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.77 -0.83 -0.77 -0.77

`python rlsd.py --mode rlsd` trains one of them, `--mode all` the five from one base; logs and a figure go to plots/.
Equations are those of the RLSD paper, arXiv:2604.03128; CEPO is arXiv:2605.19436. Logarithms are natural.
"""

import argparse
import copy
import inspect
import math
import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

if __name__ == "__main__":  # before torch, whose import takes seconds: Ctrl-C ends a run in one line at any time
    from plots import pool
    pool.stop_in_one_line("rlsd.py")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny_tasks import TASKS, Task, Tokenizer, UserError

# ---- 2. The methods: one function per equation, one table, one loss.
# Shapes: B responses, those of one problem side by side; T tokens; V vocabulary. mask is 1 up to and including the end.

def shapes(**tensors: tuple[Tensor, str]) -> None:
    """shapes(gain=(gain, "B T"), ...): ValueError where tensors do not belong together and would broadcast unseen."""
    sizes: dict[str, int] = {}
    for name, (tensor, axes) in tensors.items():
        named = list(zip(axes.split(), tensor.shape))
        if tensor.dim() != len(axes.split()) or any(sizes.setdefault(axis, size) != size for axis, size in named):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, but must be ({axes}); known so far: {sizes}")

def group_advantage(reward: Tensor, group_size: int) -> Tensor:
    """Eq 1: A = (R - mean) / std within each group of responses to one problem, population std. (B,) -> (B,).

    A group whose rewards are all equal says nothing: its advantage is exactly 0. UserError for NaN or half a group.
    """
    shapes(reward=(reward, "B"))
    if len(reward) % group_size or not reward.isfinite().all():
        raise UserError(f"rewards must be finite, and come in groups of {group_size}, but are {reward.tolist()}")
    group = reward.view(-1, group_size)
    centred = group - group.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt()
    equal = (group == group[:, :1]).all(1, keepdim=True)
    return (centred / std.masked_fill(equal, 1)).masked_fill(equal, 0).flatten()

def response_mean(value: Tensor, mask: Tensor) -> Tensor:
    """The mean over responses of each response's mean over its tokens, (1/|y|) sum_t. (B, T), (B, T) -> ()."""
    shapes(value=(value, "B T"), mask=(mask, "B T"))
    return (value.masked_fill(mask == 0, 0).sum(1) / mask.sum(1)).mean()

def clipped_surrogate(logp: Tensor, old_logp: Tensor, token_advantage: Tensor, mask: Tensor,
                      clip_low: float = 0.2, clip_high: float = 0.28) -> Tensor:
    """Eq 2, and Algorithm 1 where the advantage differs from token to token: a loss to minimise. (B, T) each -> ().

    rho = P_S / P_old, clipped to 1 - clip_low .. 1 + clip_high (the authors' numbers). With one update per batch, as
    here, rho is 1 and the clip never binds; the gradient is A_t grad log P_S(y_t).
    """
    shapes(logp=(logp, "B T"), old_logp=(old_logp, "B T"), token_advantage=(token_advantage, "B T"), mask=(mask, "B T"))
    credit = token_advantage.masked_fill(mask == 0, 0)  # what stands in the padding may be anything
    rho = (logp - old_logp).masked_fill(mask == 0, 0).exp()
    return -response_mean(torch.minimum(rho * credit, rho.clamp(1 - clip_low, 1 + clip_high) * credit), mask)

def divergence(student_logp: Tensor, teacher_logp: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """Eq 6: D(P_T || P_S) over the whole vocabulary, in nats; gradient through the student only. (B, T, V) -> (B, T).

    reverse_kl is KL(P_S || P_T), forward_kl is KL(P_T || P_S), and jsd is beta KL(P_T || M) + (1 - beta) KL(P_S || M)
    with M = beta P_T + (1 - beta) P_S, 0 < beta < 1 (GKD, arXiv:2306.13649).
    """
    def kl(p_logp, q_logp):
        return (p_logp.exp() * (p_logp - q_logp).masked_fill(p_logp == -math.inf, 0)).sum(-1)  # 0 log 0 is 0

    shapes(student_logp=(student_logp, "B T V"), teacher_logp=(teacher_logp, "B T V"))
    teacher_logp = teacher_logp.detach()
    if kind == "jsd":
        mixed = torch.logaddexp(teacher_logp + math.log(beta), student_logp.clamp(min=-1e30) + math.log(1 - beta))
        return beta * kl(teacher_logp, mixed) + (1 - beta) * kl(student_logp, mixed)
    if kind not in ("reverse_kl", "forward_kl"):
        raise ValueError(f"unknown divergence {kind!r}")
    return kl(student_logp, teacher_logp) if kind == "reverse_kl" else kl(teacher_logp, student_logp)

def information_gain(teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
    """Eq 13: Delta_t = sg(log P_T(y_t) - log P_S(y_t)), nats: what the key knows of y_t. (B, T), (B, T) -> (B, T).

    CEPO puts the teacher with a wrong key in the student's place: what the right key knows and the wrong one does not.
    """
    shapes(teacher_logp=(teacher_logp, "B T"), student_logp=(student_logp, "B T"))
    return (teacher_logp - student_logp).detach()

def evidence_weight(gain: Tensor, advantage: Tensor) -> Tensor:
    """Eq 14: w_t = exp(sign(A) Delta_t) = (P_T / P_S)^sign(A). (B, T), (B,) -> (B, T), positive and finite."""
    shapes(gain=(gain, "B T"), advantage=(advantage, "B"))
    return (advantage.sign().unsqueeze(-1) * gain.clamp(-60, 60)).exp()

def rlsd_token_advantage(gain: Tensor, advantage: Tensor, eps_w: float, lam: float) -> Tensor:
    """Eq 15, mixed as in Algorithm 1: A_t = A ((1 - lam) + lam clip(w_t, 1 - eps_w, 1 + eps_w)), (B, T).

    Each sample's A_t never has the opposite sign of its A, whatever the teacher says; the mean over samples may.
    """
    clipped = evidence_weight(gain, advantage).clamp(1 - eps_w, 1 + eps_w)
    return advantage.unsqueeze(-1) * ((1 - lam) + lam * clipped)

def lam_at(step: int, lam: float, lam_decay: int) -> float:
    """lambda at a step (the first is 1): linear from lam to 0 over lam_decay steps; constant if lam_decay is 0."""
    return lam * max(0.0, 1 - (step - 1) / lam_decay) if lam_decay else lam

# Per mode: its name; whose weights its teacher has; what the teacher sees, asked once for each; whether the student's
# weights are copied into it every --teacher-refresh steps; and the loss.
Mode = namedtuple("Mode", "name teacher sees copied loss")
MODES = {
    "rlvr": Mode("RLVR", None, (), False, "surrogate"),
    "opd": Mode("OPD", "another", ("problem",), False, "divergence"),
    "opsd": Mode("OPSD", "student", ("problem, key",), True, "divergence"),
    "rlsd": Mode("RLSD", "student", ("problem, key",), True, "surrogate"),
    "cepo": Mode("CEPO", "student", ("problem, key", "problem, wrong key"), True, "surrogate"),
}

def token_credit(mode: str, gain: Tensor, advantage: Tensor, eps_w: float, lam: float) -> Tensor:
    """Eq 17: at rho = 1 and up to the 1/|y|, every mode climbs sum_t A_t log P_S(y_t). This is A_t, (B, T); of a
    divergence, what one sampled token says of it (reverse_kl); its loss has the whole vocabulary."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}")
    if MODES[mode].loss == "divergence":
        return gain
    return rlsd_token_advantage(gain, advantage, eps_w, lam if MODES[mode].sees else 0.0)  # A, where no teacher is

Rollout = namedtuple("Rollout", "tokens logp mask texts")  # (B, T) x 3, logp of each token when it was sampled
# What a method sees: reward (B,); student_logp (B, T, V); teacher_logp, one (B, T, V) for each thing the teacher sees.
Batch = namedtuple("Batch", "rollout reward student_logp teacher_logp group_size divergence eps_w lam")

def method_loss(mode: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a mode, and its A_t (B, T)."""
    rollout, teacher_logp = batch.rollout, batch.teacher_logp
    logp, *views = (of_tokens(view, rollout.tokens) for view in (batch.student_logp, *teacher_logp))
    gain = information_gain(*(*views, logp, logp)[:2])  # teacher - student; cepo: right key - wrong key; rlvr: 0
    credit = token_credit(mode, gain, group_advantage(batch.reward, batch.group_size), batch.eps_w, batch.lam)
    if MODES[mode].loss == "divergence":
        return response_mean(divergence(batch.student_logp, teacher_logp[0], batch.divergence), rollout.mask), credit
    return clipped_surrogate(logp, rollout.logp, credit, rollout.mask), credit

# ---- 3. Settings. Each is a flag of the command line, and its text is the flag's help.

def setting(default, text: str, *allowed):  # allowed: the names, or the lowest and the highest number
    return field(default=default, metadata={"help": text, "allowed": allowed})

@dataclass(frozen=True)
class Config:
    mode: str = setting("rlsd", f"the method: {', '.join(MODES)}, or all", *MODES)
    task: str = setting("carry", f"the arithmetic: {', '.join(TASKS)}", *TASKS)
    seed: int = setting(0, "seed of the base and of the run", 0, 10**9)
    digits: int = setting(4, "columns of an addition", 2, 10)
    slip: float = setting(0.6, "homework: probability that a carry is forgotten", 0, 1)
    cite: float = setting(0.3, "homework: share that copies the key when it is open", 0, 1)
    steps: int = setting(160, "training steps, one update each (paper: 200)", 0, 10**6)
    problems: int = setting(16, "problems per step (paper: 256; a laptop has less time)", 1, 10**4)
    group_size: int = setting(8, "responses per problem, G (paper: 8)", 2, 10**3)
    lr: float = setting(2e-4, "AdamW's rate (paper: 1e-6, opsd 1e-5, for 80,000 times the parameters)", 1e-9, 1)
    divergence: str = setting("reverse_kl", "D of Eq 6, for opd and opsd", "reverse_kl", "forward_kl", "jsd")
    teacher_refresh: int = setting(10, "steps between copies of the student into its teacher (paper: 10)", 1, 10**6)
    eps_w: float = setting(0.2, "clip of the evidence weight, Eq 15 (paper: 0.2)", 0, 100)
    lam: float = setting(0.5, "share of the evidence weight in A_t, at first (paper: 0.5)", 0, 1)
    lam_decay: int = setting(50, "steps in which lam falls to 0; 0: it is held (paper: 50)", 0, 10**6)
    verifier_noise: float = setting(0.0, "probability that a training reward is flipped; the key stays right", 0, 0.5)
    key_noise: float = setting(0.0, "probability that a wrong answer, if there is one, is the key and judges", 0, 1)
    evaluate_every: int = setting(10, "steps between evaluations (accuracy: sampled at temperature 1)", 1, 10**6)

    def __post_init__(self):
        for name, value in asdict(self).items():
            allowed = self.__dataclass_fields__[name].metadata["allowed"]
            if not (value in allowed if isinstance(value, str) else allowed[0] <= value <= allowed[-1]):  # NaN is not
                wanted = " or ".join(allowed) if isinstance(value, str) else f"from {allowed[0]} to {allowed[-1]}"
                raise UserError(f"--{name.replace('_', '-')} is {value}, but must be {wanted}")

    def make_task(self) -> Task:
        parameters = inspect.signature(TASKS[self.task]).parameters
        if unknown := parameters.keys() - asdict(self).keys():
            raise UserError(f"task {self.task}: its constructor asks for {', '.join(unknown)}, which is no setting")
        return TASKS[self.task](**{name: getattr(self, name) for name in parameters})

# ---- 4. Training, the same for all modes. A step's randomness is of (seed, step): all modes see the same problems.

def train_step(config: Config, world, student, teacher, optimizer, step: int, method: Callable = method_loss) -> dict:
    """One update. Returns what was seen."""
    rng, task = random.Random(f"{config.seed} {step}"), world.task
    generator = torch.Generator(world.device).manual_seed(rng.getrandbits(62))
    problems = [task.sample(rng) for _ in range(config.problems)]
    covered = world.prompts(problems)
    rollout = world.sample(student, covered, config.group_size, generator)
    reward, answers = world.reward(problems, rollout.texts), [task.answer(text) for text in rollout.texts]
    flipped = torch.rand(reward.shape, generator=generator, device=world.device) < config.verifier_noise
    keys, wrong_keys = [task.reference(problem, rng) for problem in problems], []

    def rejected(group: slice, but: str | None = None) -> list[str]:  # of the reward as it now stands
        return [a for a, r in zip(answers[group], reward[group].tolist()) if not r and a not in (None, but)]

    for n in range(config.problems):
        group = slice(n * config.group_size, (n + 1) * config.group_size)
        if rng.random() < config.key_noise and rejected(group):  # mislabelled: this key also judges
            keys[n] = rng.choice(rejected(group))
            reward[group] = reward.new_tensor([answer == keys[n] for answer in answers[group]])
        reward[group] = torch.where(flipped[group], 1 - reward[group], reward[group])
        wrong_keys.append(rng.choice(rejected(group, keys[n]) or [keys[n]]))  # with the right key w_t is 1
    prompts = {"problem": None, "problem, key": keys, "problem, wrong key": wrong_keys}
    with torch.no_grad():
        teacher_logp = tuple(response_logp(teacher, world.prompts(problems, prompts[sight]), rollout.tokens)
                             for sight in MODES[config.mode].sees)
    student_logp, lam = response_logp(student, covered, rollout.tokens), lam_at(step, config.lam, config.lam_decay)
    batch = Batch(rollout, reward, student_logp, teacher_logp, config.group_size, config.divergence, config.eps_w, lam)
    loss, credit = method(config.mode, batch)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    if not torch.isfinite(loss + norm):
        raise UserError(f"the loss is {loss} and its gradient's norm {norm} at step {step}: try a smaller --lr")
    optimizer.step()
    return {"problems": problems, "keys": keys, "wrong_keys": wrong_keys, "batch": batch, "credit": credit}

def train(config: Config, world, base, opd_teacher=None, saved: dict | None = None, method: Callable = method_loss,
          after_step: Callable = lambda *_: None) -> Iterator[tuple[dict, dict]]:
    """Yields (record of the log, state to go on from) at step 0, at every evaluation and at the end."""
    mode, student, reward = MODES[config.mode], copy.deepcopy(base), None
    if mode.teacher == "another" and not opd_teacher:
        raise UserError(f"mode {config.mode} needs a teacher, and got none")
    teacher = {None: student, "another": opd_teacher, "student": copy.deepcopy(base)}[mode.teacher]
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
    if saved:
        student.load_state_dict(saved["student"])
        teacher.load_state_dict(saved["teacher"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": saved["moments"]})
    for step in range(saved["step"] + 1 if saved else 0, config.steps + 1):
        if step:
            if mode.copied and (step - 1) % config.teacher_refresh == 0:
                teacher.load_state_dict(student.state_dict())
            seen = train_step(config, world, student, teacher, optimizer, step, method)
            reward = round(float(seen["batch"].reward.mean()), 6)
            after_step(step, seen)
        if step % config.evaluate_every == 0 or step == config.steps:
            record = {"step": step, "mode": config.mode, "seed": config.seed, "reward": reward}
            state = {"config": asdict(config), "step": step, "student": student.state_dict(),
                     "teacher": teacher.state_dict(), "moments": optimizer.state_dict()["state"]}
            yield record | evaluate(config.mode, world, student, teacher), copy.deepcopy(state)

# ---- 5. What is measured: on problems that are held out, by an exact verifier, the key covered.

@torch.inference_mode()
def evaluate(mode: str, world, student, teacher) -> dict:
    """Shares of 1: accuracy (sampled at temperature 1), greedy_accuracy, leakage. Nats per token: kl = KL(P_S || P_T),
    entropy. rlvr has no teacher: there P_T is the student with the key open. `shown` is one sampled response."""
    problems, keys = world.task.exam()
    covered = world.prompts(problems)
    rollout = world.sample(student, covered, 1, torch.Generator(world.device).manual_seed(0))
    sees = covered if MODES[mode].sees == ("problem",) else world.prompts(problems, keys)
    student_logp = response_logp(student, covered, rollout.tokens)
    teacher_logp = response_logp(teacher, sees, rollout.tokens)
    right, per_token = world.reward(problems, rollout.texts), rollout.mask / rollout.mask.sum()
    measured = {
        "accuracy": right.mean(),
        "greedy_accuracy": world.reward(problems, world.sample(student, covered, 1, None).texts).mean(),
        "leakage": sum(map(world.task.leaks, rollout.texts)) / len(problems),
        "kl": (divergence(student_logp, teacher_logp, "reverse_kl") * per_token).sum(),
        "entropy": -((student_logp.exp() * student_logp).sum(-1) * per_token).sum(),
        "response_length": rollout.mask.sum(1).mean(),
    }
    shown = f"{rollout.texts[0]} {'right' if right[0] else 'wrong'}"
    return {name: round(float(value), 6) for name, value in measured.items()} | {"shown": shown}

# ---- 6. Rollouts and their log-probabilities. A prompt is read once per problem, and shared by its group of responses.

def response_logp(model: nn.Module, prompts: Tensor, responses: Tensor) -> Tensor:
    """log P(. | prompt, y_<t) over the vocabulary: (P, length), (B, T) -> (B, T, V). B is a multiple of P."""
    first, cache = model(prompts, group_size=len(responses) // len(prompts))
    later, _ = model(responses[:, :-1], cache)
    return torch.cat((first[:, -1:], later), 1).log_softmax(-1)

def of_tokens(logp: Tensor, tokens: Tensor) -> Tensor:
    """(B, T, V), (B, T) -> (B, T): the log-probabilities of the tokens that were written."""
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

class World:  # a task in tensors, on one device
    def __init__(self, task: Task, device: str = "cpu"):
        self.task, self.device, self.tokenizer = task, device, Tokenizer(task.alphabet)

    def prompts(self, problems: list, keys: list | None = None) -> Tensor:
        """(P, length) token ids, with the key covered, or open if keys are given."""
        texts = [self.task.prompt(problem, key) for problem, key in zip(problems, keys or [None] * len(problems))]
        return torch.tensor([self.tokenizer.encode(text) for text in texts], device=self.device)

    def corpus(self, rng: random.Random, rows: int, homework: bool, key_open: bool) -> tuple[Tensor, Tensor]:
        """Prompts, and the responses that follow them, padded with -1."""
        problems = [self.task.sample(rng) for _ in range(rows)]
        workings, keys = zip(*(self.task.working(problem, rng, homework, key_open) for problem in problems))
        responses = [torch.tensor(self.tokenizer.encode(working)) for working in workings]
        padded = nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=-1).to(self.device)
        return self.prompts(problems, keys if key_open else None), padded

    def sample(self, model: nn.Module, prompts: Tensor, group_size: int, generator: torch.Generator | None) -> Rollout:
        """group_size responses to each prompt (P, length), at temperature 1; without a generator, greedily."""
        written, token, cache = [], prompts, None
        ended = torch.zeros(len(prompts) * group_size, 1, dtype=torch.bool, device=self.device)
        with torch.inference_mode():
            while len(written) < self.task.response_length and not ended.all():
                logits, cache = model(token, cache, 1 if written else group_size)
                logp = logits[:, -1].log_softmax(-1)
                token = torch.multinomial(logp.exp(), 1, generator=generator) if generator else logp.argmax(-1, True)
                token = token.masked_fill(ended, self.tokenizer.end)
                written.append((token, logp.gather(1, token), ~ended))
                ended = ended | (token == self.tokenizer.end)
        tokens, logp, mask = (torch.cat(columns, 1) for columns in zip(*written))
        texts = [self.tokenizer.decode(row[:n]) for row, n in zip(tokens.tolist(), mask.sum(1).tolist())]
        return Rollout(tokens, logp, mask.float(), texts)

    def reward(self, problems: list, texts: list[str]) -> Tensor:
        """R(x, y), (B,): 1 where the verifier accepts, else 0."""
        group_size = len(texts) // len(problems)
        right = [self.task.verify(problems[row // group_size], text) for row, text in enumerate(texts)]
        return torch.tensor(right, dtype=torch.float32, device=self.device)

# ---- 7. The model: a GPT with rotary positions, pre-norm and a cache of keys and values.

class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value, self.attended = (nn.Linear(width, n * width, bias=False) for n in (3, 1))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.attended.weight)  # every block starts as the identity, which learns faster
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, rotation: Tensor, past: tuple | None) -> tuple[Tensor, tuple]:
        rows, length, width = x.shape
        split = self.query_key_value(F.layer_norm(x, (width,))).view(rows, length, 3, self.heads, width // self.heads)
        query_key, value = split.permute(2, 0, 3, 1, 4).split((2, 1))  # (2 or 1, rows, heads, length, head's width)
        # Rotary positions: pairs of features are complex numbers, turned by an angle that grows with the position.
        turned = torch.view_as_complex(query_key.unflatten(-1, (-1, 2))) * rotation
        (query, key), value = torch.view_as_real(turned).flatten(-2), value[0]
        if past:
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        visible = x.new_ones(length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)  # what is to the left
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.attended(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(F.layer_norm(x, (width,))))), (key, value)

class GPT(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int = 2, heads: int = 4, context: int = 256):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.5)
        pairs = width // heads // 2
        angle = torch.outer(torch.arange(context), 300.0 ** (-torch.arange(pairs) / pairs))  # texts here are short
        self.register_buffer("rotation", torch.polar(torch.ones_like(angle), angle), persistent=False)

    def forward(self, tokens: Tensor, past: list | None = None, group_size: int = 1) -> tuple[Tensor, list]:
        """Logits (rows, length, V) of the next tokens and the cache to go on from, each row repeated for its group."""
        start = past[0][0].shape[2] if past else 0
        x, cache = self.embedding(tokens), []
        for n, block in enumerate(self.blocks):
            x, pair = block(x, self.rotation[start:start + tokens.shape[1]], past[n] if past else None)
            cache.append([part.repeat_interleave(group_size, 0) for part in pair] if group_size > 1 else pair)
        return self.head(F.layer_norm(x, x.shape[-1:])).repeat_interleave(group_size, 0), cache

# ---- 8. The base: a textbook until it is mastered, then homework with its habits. OPD's teacher: the textbook only.

def pretrain(world: World, model: GPT, seed: int, homework_steps: int, progress: Callable = lambda *_: None) -> None:
    """The textbook until 99 % of the exam is right, greedily; then homework, half of its batches with the key open."""
    adam = torch.optim.AdamW([model.embedding.weight, model.head.weight], betas=(0.9, 0.98), weight_decay=0, fused=True)
    matrices = [(matrix, torch.zeros_like(matrix)) for matrix in model.blocks.parameters()]
    rng, (problems, _), accuracy, step, most = random.Random(seed), world.task.exam(), 0.0, 0, 2000

    def learn(pace: float, homework: bool, key_open: bool):
        prompts, responses = world.corpus(rng, 64, homework, key_open)
        logits, _ = model(torch.cat((prompts, responses[:, :-1].clamp(min=0)), 1))
        model.zero_grad()
        F.cross_entropy(logits[:, prompts.shape[1] - 1:].transpose(1, 2), responses, ignore_index=-1).backward()
        adam.param_groups[0]["lr"] = 5e-3 * pace
        adam.step()
        for matrix, momentum in matrices:
            momentum.lerp_(matrix.grad, 0.05)
            size = 0.02 * pace * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.data.sub_(orthogonal(matrix.grad.lerp(momentum, 0.95)), alpha=size)

    while accuracy < 0.99:
        if step == most:
            raise UserError(f"after {most} steps of textbook {accuracy:.0%} are right, not 99 %: try another --seed")
        for _ in range(50):
            step += 1
            learn(min(1, step / 20, 150 / step), homework=False, key_open=False)
        progress("textbook, at most", step, most)
        accuracy = float(world.reward(problems, world.sample(model, world.prompts(problems), 1, None).texts).mean())
    for step in range(homework_steps):
        learn(0.25 * (1 + math.cos(math.pi * step / homework_steps)), homework=True, key_open=step % 2 == 1)
        progress("homework, step", step + 1, homework_steps)

def orthogonal(matrix: Tensor) -> Tensor:
    """Muon's direction: the singular values brought close to 1. Twice as fast as AdamW alone on the textbook."""
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T) / (matrix.norm() + 1e-7)
    for _ in range(5):  # Newton-Schulz
        square = wide @ wide.T
        wide = 3.4445 * wide + (2.0315 * square @ square - 4.775 * square) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T

CACHE = Path(__file__).parent / ".cache"  # bases and OPD teachers; safe to delete
def cached_model(config: Config, kind: str, device: str = "cpu", progress: Callable = lambda *_: None) -> GPT:
    """The `base`, or OPD's `teacher`: from the cache, or trained now and put there. Whoever changes the corpus or the
    sections 6 to 8 of this file gets a new base, whoever changes Eq 15 keeps the old one."""
    from plots import files
    width, homework_steps = {"base": (64, 600), "teacher": (144, 0)}[kind]
    world, page = World(config.make_task(), device), Path(__file__).read_text("utf-8")
    modules = [inspect.getsource(inspect.getmodule(parent)) for parent in type(world.task).__mro__[:-1]]
    depends = [kind, config.seed, vars(world.task), device, torch.__version__, *modules,
               page[page.index("\n# ---- 6."):page.index("\n# ---- 9.")]]
    torch.manual_seed(config.seed)
    model = GPT(world.tokenizer.vocabulary_size, width).to(device)
    files.cached(CACHE / f"{world.task.name}-{kind}-s{config.seed}", depends, model,
                 lambda: pretrain(world, model, config.seed, homework_steps, progress))
    return model

# ---- 9. The command line: the only part that prints, exits or reads arguments.

def run(config: Config, flags: argparse.Namespace, logs: list[Path], figure: Path) -> None:
    """Trains one mode on one seed, and keeps its log, its checkpoint and the figure of all logs."""
    from plots import compare, files, pool
    log = files.run_log(flags.out, asdict(config))
    world, where = World(config.make_task(), flags.device), (flags.device, pool.progress)
    base = cached_model(config, "base", *where)
    opd_teacher = cached_model(config, "teacher", *where) if MODES[config.mode].teacher == "another" else None
    records, saved = files.resume(log, asdict(config), base, opd_teacher or base) if flags.resume else ([], None)
    for record, state in train(config, world, base, opd_teacher, saved,
                               after_step=lambda step, _: pool.progress(f"{config.mode}, step", step, config.steps)):
        records.append(record)
        files.keep(log, asdict(config), records, state)
        pool.say(compare.row(record))
        compare.draw(logs, figure, every=2.0 * len(logs))

def main(arguments: list[str] | None = None) -> None:
    from plots import compare, files, pool
    parser = argparse.ArgumentParser(prog="rlsd.py", usage=argparse.SUPPRESS, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for f in fields(Config):
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default,
                            help=f.metadata["help"])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --seed; a base for each")
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder of figures, and of runs/ with logs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"][:1 + torch.cuda.is_available()])
    parser.add_argument("--resume", action="store_true", help="go on with runs that were stopped, or for more --steps")
    flags = parser.parse_args(arguments)
    if not 1 <= flags.seeds <= 1000:
        raise UserError(f"--seeds is {flags.seeds}, but must be from 1 to 1000")
    modes, seeds = [*MODES] if flags.mode == "all" else [flags.mode], range(flags.seed, flags.seed + flags.seeds)
    settings = {f.name: getattr(flags, f.name) for f in fields(Config)}
    configs = [Config(**settings | {"mode": mode, "seed": seed}) for seed in seeds for mode in modes]
    configs[0].make_task().check()
    torch.set_num_threads(1)  # two runs side by side beat one run on two cores, and one thread repeats exactly
    logs = files.prepare(flags.out, [asdict(config) for config in configs], flags.resume)
    figure = flags.out / f"{flags.task}-{'compare' if flags.mode == 'all' else flags.mode}.png"
    if len(configs) > 1:
        kinds = [(config, "base") for config in configs if config.mode == modes[0]]
        kinds += [(config, "teacher") for config in configs if MODES[config.mode].teacher == "another"]
        list(pool.side_by_side([(cached_model, *kind, flags.device) for kind in kinds], "bases"))
    pool.say(compare.HEADER)
    list(pool.side_by_side([(run, config, flags, logs, figure) for config in configs], "runs"))
    compare.draw(logs, figure)
    pool.say(f"figure {figure}\nlogs   {logs[0]}" + (f" and {len(logs) - 1} more beside it" if len(logs) > 1 else ""))

if __name__ == "__main__":
    pool.command("rlsd.py", main, UserError)
