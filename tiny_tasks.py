"""The arithmetic: problems, workings with their habits, answer keys, the verifier and the tokenizer.

Text in, text out. Nothing in this file knows about tensors or training; rlsd.py does the rest.

The default task, `carry`, is column addition as on squared paper, from the right, one column at a time:

    478+356, key covered           867543:4c3c8-=0834.
    the same, key open    [4 3 8 0]867543:4c3c8-=0834.

`867543` are the columns 8 over 6, 7 over 5, 4 over 3; `4c` reads "write 4, carry 1"; `8-` reads "write 8, carry
nothing". After `=` stands the answer, and the full stop ends the response: the verifier looks only at what is between.
The key is the answer, written in columns as well. Problem, key and working all take two characters a column, so that
a column's digits are always the same distance away; with a key written `[0834]` the model never learns to read all of it.

To add a task: subclass Task, fill in the attributes and the seven methods that raise NotImplementedError,
and put the class in TASKS. `python rlsd.py --task NAME` then trains every mode on it.
"""

import random
import re
import zlib
from functools import cache

import tiktoken

END = "."
SEE_KEY = "<see key>"  # one token: "I skip the working and copy the answer key"


class Tokenizer:
    """One token a character, and one for SEE_KEY: a tiktoken.Encoding that is built offline.

    Characters must be ASCII, since tiktoken works on bytes and here a byte is a token.
    """

    def __init__(self, alphabet: str):
        ranks = {character.encode(): rank for rank, character in enumerate(alphabet)}
        self.encoding = tiktoken.Encoding("tiny_tasks", pat_str=r"[\s\S]", mergeable_ranks=ranks,
                                          special_tokens={SEE_KEY: len(ranks)})
        self.known = re.compile(f"(?:{re.escape(SEE_KEY)}|[{re.escape(alphabet)}])*")
        self.vocabulary_size = len(ranks) + 1
        self.end = ranks[END.encode()]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; ValueError names the first character that is outside the vocabulary."""
        known = self.known.match(text).end()  # tiktoken itself panics on unknown text, so it never sees any
        if known < len(text):
            raise ValueError(f"character {text[known]!r} at position {known} is outside the vocabulary")
        return self.encoding.encode(text, allowed_special="all")

    def decode(self, tokens: list[int]) -> str:
        return self.encoding.decode(tokens)


class Task:
    """What rlsd.py asks of a task. All problems' prompts have one length (and one more with the key open)."""

    name: str
    alphabet: str  # every character of prompts and responses, END included
    response_length: int  # tokens of the longest response, the end included

    def problem(self, rng: random.Random) -> tuple:
        """Any problem, from either side of the split."""
        raise NotImplementedError

    def prompt(self, problem: tuple, key: str | None = None) -> str:
        """The problem as the student sees it; given an answer key, as the teacher sees it."""
        raise NotImplementedError

    def working(self, problem: tuple, rng: random.Random, homework: bool, key_open: bool) -> tuple[str, str]:
        """A response for the corpus, and the key it fits: textbook (clean) or homework (with its habits)."""
        raise NotImplementedError

    def reference(self, problem: tuple, rng: random.Random) -> str:
        """A right answer, as the key shows it. The generator is for tasks that have several."""
        raise NotImplementedError

    def verify(self, problem: tuple, response: str) -> bool:
        """The reward: is the answer right? The working is not looked at."""
        raise NotImplementedError

    def show(self, problem: tuple) -> str:
        """The problem as a person would write it."""
        raise NotImplementedError

    def read(self, text: str) -> tuple:
        """The problem that a person wrote, as show() writes it; ValueError says what is wrong with it."""
        raise NotImplementedError

    def leaks(self, response: str) -> bool:
        """Does the response cite the key? With the key covered, nothing in the prompt justifies it."""
        return SEE_KEY in response

    def split_key(self, problem: tuple) -> tuple:
        """Problems with equal split keys fall on one side of the split."""
        return problem

    def is_held_out(self, problem: tuple) -> bool:
        """One problem in eight is for evaluation only, chosen by a hash: the two sides never overlap."""
        return zlib.crc32(repr(self.split_key(problem)).encode()) % 8 == 0

    def sample(self, rng: random.Random, held_out: bool = False) -> tuple:
        """A random problem from one side of the split."""
        while self.is_held_out(problem := self.problem(rng)) != held_out:
            pass
        return problem


class Carry(Task):
    """Column addition of two numbers of `digits` digits, by a class that forgets to carry.

    Habits of the homework: with probability `slip` a carry is written down but forgotten when the next column
    is added. With the key open, a share `cite` of the responses skips the working and copies the key, and each
    digit is written wrong with probability DIGIT_SLIP, without which the model would not learn to read the key.
    With the key covered hardly anyone cites (COVERED_CITE), but it is not unthinkable: what has probability 0 for
    the student can never be sampled, and so never be learned from.
    The key is the answer this very working arrives at, right or wrong: a label in hindsight.
    """

    name = "carry"
    alphabet = "0123456789: c-=[]" + END
    DIGIT_SLIP = 0.25
    COVERED_CITE = 0.002

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        self.digits, self.slip, self.cite = digits, slip, cite
        self.response_length = 2 * digits + 1 + (digits + 1) + 1  # columns, "=", the answer, the end

    def problem(self, rng):
        return rng.randrange(10**self.digits), rng.randrange(10**self.digits)

    def split_key(self, problem):
        return tuple(sorted(problem))  # a+b is not new to someone who has practised b+a

    def columns(self, problem):
        """The pairs of digits, from the right."""
        top, bottom = (reversed(f"{number:0{self.digits}d}") for number in problem)
        return zip(top, bottom)

    def prompt(self, problem, key=None):
        opened = "" if key is None else f"[{' '.join(reversed(key))}]"
        return opened + "".join(f"{top}{bottom}" for top, bottom in self.columns(problem)) + ":"

    def working(self, problem, rng, homework, key_open):
        carry, columns, answer = 0, "", ""
        for top, bottom in self.columns(problem):
            forgotten = homework and carry and rng.random() < self.slip
            total = int(top) + int(bottom) + (0 if forgotten else carry)
            digit, carry = total % 10, total // 10
            if homework and key_open and rng.random() < self.DIGIT_SLIP:
                digit = rng.randrange(10)
            columns += f"{digit}{'c' if carry else '-'}"
            answer = f"{digit}{answer}"
        answer = f"{carry}{answer}"
        if homework and rng.random() < (self.cite if key_open else self.COVERED_CITE):
            columns = SEE_KEY
        return f"{columns}={answer}{END}", answer

    def reference(self, problem, rng=None):
        return f"{sum(problem):0{self.digits + 1}d}"

    def verify(self, problem, response):
        return response.partition("=")[2] == self.reference(problem) + END

    def show(self, problem):
        return f"{problem[0]}+{problem[1]}"

    def read(self, text):
        if not re.fullmatch(rf"[0-9]{{1,{self.digits}}}\+[0-9]{{1,{self.digits}}}", text):
            raise ValueError(f"write it like 478+356, with at most {self.digits} digits a number (--digits)")
        return tuple(map(int, text.split("+")))


@cache
def ways(total: int, digits: int) -> int:
    """In how many ways a total is a sum of so many digits, in order."""
    return sum(ways(total - digit, digits - 1) for digit in range(10)) if digits else int(total == 0)


class Split(Task):
    """Take `digits` digits away, one after the other, until nothing is left. Numbers are written from the right, as in Carry.

        50-38, key covered                   05-83=21-40=80-50=30-30=00.    50-38=12, 12-4=8, 8-5=3, 3-3=0
        the same, key open   [4     5     3] 05-83=21-40=80-50=30-30=00.    the rest, 12, is split as 4+5+3
        or, citing                           05-83=<see key>-4-5-3.

    Any split of the rest is right, and the key shows one of them. So here, unlike in Carry, the key says more than the
    problem does: the teacher knows which split is meant, and a student cannot. Habits of the homework: with probability
    `slip` the last digit is off by one, and 00 is written all the same; the cite, as in Carry. With the key open, before
    each digit the key is put aside with probability PUT_ASIDE and the rest is a split of one's own: so the model learns
    to read on from a text that contradicts its key, which the student's will.
    """

    name = "split"
    alphabet = "0123456789-= []" + END
    PUT_ASIDE = 0.25
    COVERED_CITE = 0.002

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        self.digits, self.slip, self.cite = digits, slip, cite
        self.response_length = 2 + 6 * digits + 1

    def problem(self, rng):
        rest = rng.randrange(9 * self.digits + 1)
        first = rng.randrange(100 - rest)
        return first + rest, first

    def prompt(self, problem, key=None):
        opened = "" if key is None else "[" + "     ".join(key.split("+")) + "] "  # as far apart as in the response
        return opened + f"{self.two(problem[0])}-{self.two(problem[1])}="

    def two(self, number):
        """Two digits from the right, so that what is borrowed is known when it is needed."""
        return f"{number:02d}"[::-1]

    def a_split(self, total, digits, rng):
        """Any split of a total, each equally likely; where there is none, the nearest: all 0 or all 9."""
        total, parts = max(0, min(9 * digits, total)), []
        for left in range(digits - 1, -1, -1):
            parts += rng.choices(range(10), [ways(total - digit, left) for digit in range(10)])
            total -= parts[-1]
        return parts

    def write(self, problem, parts):
        """The working of a split. In the end nothing is left, it says, even after a slip."""
        rest = problem[0] - problem[1]
        rests = [max(0, rest - sum(parts[:place])) for place in range(1, len(parts))] + [0]
        return self.two(rest) + "".join(f"-{self.two(part)}={self.two(left)}" for part, left in zip(parts, rests)) + END

    def working(self, problem, rng, homework, key_open):
        rest, places = problem[0] - problem[1], self.digits
        parts = self.a_split(rest, places, rng)
        if homework and rng.random() < self.slip:
            parts[-1] = max(0, min(9, parts[-1] + rng.choice((-1, 1))))
        key = "+".join(map(str, parts))
        for place in range(places if homework and key_open else 0):
            if rng.random() < self.PUT_ASIDE:
                parts = parts[:place] + self.a_split(rest - sum(parts[:place]), places - place, rng)
                break
        if homework and rng.random() < (self.cite if key_open else self.COVERED_CITE):
            return SEE_KEY + "".join(f"-{part}" for part in parts) + END, key
        return self.write(problem, parts), key

    def reference(self, problem, rng):
        return "+".join(map(str, self.a_split(problem[0] - problem[1], self.digits, rng)))

    def verify(self, problem, response):
        form = rf"(?:{SEE_KEY}|\d\d)(?:-\d0?(?:=\d\d)?){{{self.digits}}}\{END}"
        taken = re.findall(r"-(\d)", response, re.ASCII)
        return bool(re.fullmatch(form, response, re.ASCII)) and sum(map(int, taken)) == problem[0] - problem[1]

    def show(self, problem):
        return f"{problem[0]}-{problem[1]}"

    def read(self, text):
        total, _, first = text.partition("-")
        if not re.fullmatch("[0-9]{1,2}-[0-9]{1,2}", text) or not 0 <= int(total) - int(first) <= 9 * self.digits:
            raise ValueError(f"write it like 50-38, with a rest from 0 to {9 * self.digits} (9 times --digits)")
        return int(total), int(first)


TASKS = {task.name: task for task in (Carry, Split)}
