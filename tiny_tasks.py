"""The arithmetic: problems, workings with their habits, answer keys, the verifier and the tokenizer. Text only."""

import json
import random
import re
import zlib
from functools import cache
from itertools import product

import tiktoken

END = "."
SEE_KEY = "<see key>"  # one token: "I skip the working and copy the answer key"
COVERED_CITE = 0.002  # share of the homework that cites a covered key: what is never sampled can never be learned from


class UserError(ValueError):
    """Something the user can mend; the command line prints it in one line and exits with code 2."""


class Tokenizer:
    """One token per character, and one for SEE_KEY: a tiktoken.Encoding that is built offline."""

    def __init__(self, alphabet: str):
        ranks = {character.encode(): rank for rank, character in enumerate(dict.fromkeys(alphabet))}
        self.encoding = tiktoken.Encoding("tiny_tasks", pat_str=r"[\s\S]", mergeable_ranks=ranks,
                                          special_tokens={SEE_KEY: len(ranks)})
        self.known = re.compile(f"(?:{re.escape(SEE_KEY)}|[{re.escape(alphabet)}])*")
        self.vocabulary_size, self.end, self.decode = len(ranks) + 1, ranks[END.encode()], self.encoding.decode

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; ValueError names the first character that is not in the alphabet."""
        known = self.known.match(text).end()  # tiktoken itself panics on unknown text, so it never sees any
        if known < len(text):
            raise ValueError(f"character {text[known]!r} at position {known} is not in the alphabet")
        return self.encoding.encode(text, allowed_special="all")


class Task:
    """What rlsd.py asks of a task. To add one, put a subclass with the following into TASKS.

        name, alphabet, response_length    its --task; every character it uses; tokens of its longest working
        problem(rng) -> tuple              any problem, from either side of the split
        prompt(problem, key=None) -> str   the problem as the student sees it; given a key, as the teacher sees it
        working(problem, rng, homework, key_open) -> (str, str)   a response, textbook (clean) or with habits; its key
        reference(problem, rng) -> str     a right answer, as a key; the generator is for tasks that have several
        answer(response) -> str | None     the answer that a response gives, as a key; None if not in the proper form
        verify(problem, response) -> bool  the reward: is the answer right? The working is not looked at
        show(problem), read(text)          the problem as a person writes it, and back; ValueError says what is wrong

    The constructor's parameters must be names of settings of rlsd.py. A working ends with END. All prompts have one
    length in tokens, and so have all with a key. The textbook must be learnable to 99 % within 2,000 steps.
    """

    def leaks(self, response: str) -> bool:
        """Does the response cite the key? With the key covered, nothing in the prompt justifies it."""
        return SEE_KEY in response

    def split_key(self, problem: tuple) -> tuple:
        return problem  # problems with equal split keys fall on one side of the split

    def is_held_out(self, problem: tuple) -> bool:
        """One problem in eight is for evaluation only, chosen by a hash: the two sides never overlap."""
        return zlib.crc32(repr(self.split_key(problem)).encode()) % 8 == 0

    def sample(self, rng: random.Random, held_out: bool = False) -> tuple:
        """A random problem from one side of the split; UserError if 10,000 draws find none."""
        for _ in range(10_000):
            if self.is_held_out(problem := self.problem(rng)) == held_out:
                return problem
        raise UserError(f"none of 10,000 problems is {'held out' if held_out else 'left for training'}")

    def exam(self) -> tuple[list, list]:
        """512 held-out problems and a key to each, the same for every seed and mode."""
        rng = random.Random("exam")
        problems = [self.sample(rng, held_out=True) for _ in range(512)]
        return problems, [self.reference(problem, rng) for problem in problems]

    def check(self) -> None:
        """UserError says in one line what is wrong with the task, seen on 200 problems with each kind of working."""
        def need(fine, fault):
            if not fine:
                raise UserError(fault)

        at, rng, lengths = "attributes", random.Random(0), (set(), set())
        try:
            need(END in self.alphabet and self.response_length > 0, f"alphabet lacks {END!r}, or response_length is 0")
            at, tokenizer, _ = "problems", Tokenizer(self.alphabet), json.dumps(vars(self))
            problems = [self.sample(rng, held_out) for held_out in [False, True] * 100]
            need([self.read(self.show(one)) for one in problems] == problems, "read(show(problem)) is another one")
            for problem, homework, key_open in product(problems, (False, True), (False, True)):
                at = f"working({problem}, {homework=}, {key_open=})"
                text, key = self.working(problem, rng, homework, key_open)
                need(text.partition(END)[1:] == (END, ""), f"{text!r} must end with END, {END!r}, its only one")
                need(len(tokenizer.encode(text)) <= self.response_length, f"{text!r} is longer than response_length")
                for response in "", END, text[:-1], text:  # a model writes anything
                    at = f"response {response!r} to {problem}"
                    answer, right, leaks = self.answer(response), self.verify(problem, response), self.leaks(response)
                    need({type(right), type(leaks)} == {bool}, f"verify says {right!r}, leaks {leaks!r}, no bool")
                need(homework or right and answer is not None, f"textbook, but verify says {right}, answer {answer}")
                keys = [key, self.reference(problem, rng), key if answer is None else answer]
                need({*map(type, keys)} == {str}, f"working, reference and answer give {keys}, not str only")
                for key in [None, *keys]:
                    at, known = f"prompt({problem}, {key!r})", lengths[key is None]
                    known.add(len(tokenizer.encode(self.prompt(problem, key))))
                    need(len(known) == 1 and max(known) + self.response_length <= 256,
                         f"such prompts need one length, with a response at most 256 tokens, but have {sorted(known)}")
        except Exception as error:
            fault = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise UserError(" ".join(f"task {getattr(self, 'name', '')}: {at}: {fault}".splitlines())) from error


class Carry(Task):
    """Column addition as on squared paper, from the right, one column at a time, by a class that forgets to carry.

        478+356, key covered           867543:4c3c8-=0834.    the columns 8 over 6, 7 over 5, 4 over 3; then "write 4,
        the same, key open    [4 3 8 0]867543:4c3c8-=0834.    carry 1", ..., "write 8, carry nothing"; the answer

    Problem, key and working have two characters per column, so that its digits are always the same distance away: a key
    written `[0834]` is never read whole. The key is what this very working arrives at: a label in hindsight. Habits of
    the homework: with probability `slip` a carry is written down but forgotten in the next column; with the key open, a
    share `cite` copies the key at once, and a digit is drawn anew with probability DIGIT_SLIP, or the key is not read.
    """

    name = "carry"
    alphabet = "0123456789: c-=[]" + END
    DIGIT_SLIP = 0.25

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        self.digits, self.slip, self.cite = digits, slip, cite
        self.response_length = 2 * digits + 1 + (digits + 1) + 1  # columns, "=", the answer, the end

    def problem(self, rng):
        return rng.randrange(10**self.digits), rng.randrange(10**self.digits)

    def split_key(self, problem):
        return tuple(sorted(problem))  # a+b is not new to someone who has practised b+a

    def columns(self, problem):
        return zip(*(f"{number:0{self.digits}d}"[::-1] for number in problem))  # pairs of digits, from the right

    def prompt(self, problem, key=None):
        opened = "" if key is None else f"[{' '.join(reversed(key))}]"
        return opened + "".join(f"{top}{bottom}" for top, bottom in self.columns(problem)) + ":"

    def working(self, problem, rng, homework, key_open):
        carry, columns, answer = 0, "", ""
        for top, bottom in self.columns(problem):
            forgotten = homework and carry and rng.random() < self.slip
            carry, digit = divmod(int(top) + int(bottom) + (0 if forgotten else carry), 10)
            if homework and key_open and rng.random() < self.DIGIT_SLIP:
                digit = rng.randrange(10)
            columns += f"{digit}{'c' if carry else '-'}"
            answer = f"{digit}{answer}"
        if homework and rng.random() < (self.cite if key_open else COVERED_CITE):
            columns = SEE_KEY
        return f"{columns}={carry}{answer}{END}", f"{carry}{answer}"

    def reference(self, problem, rng=None):
        return f"{sum(problem):0{self.digits + 1}d}"

    def answer(self, response):
        return (re.fullmatch(rf"[^=]*=([0-9]{{{self.digits + 1}}})\{END}", response) or [None] * 2)[1]

    def verify(self, problem, response):
        return self.answer(response) == self.reference(problem)

    def show(self, problem):
        return f"{problem[0]}+{problem[1]}"

    def read(self, text):
        if not re.fullmatch(rf"[0-9]{{1,{self.digits}}}\+[0-9]{{1,{self.digits}}}", text):
            raise ValueError(f"write it like 478+356, with at most {self.digits} digits per number (--digits)")
        return tuple(map(int, text.split("+")))


@cache
def ways(total: int, digits: int) -> int:  # in how many ways a total is a sum of so many digits
    return sum(ways(total - digit, digits - 1) for digit in range(10)) if digits else int(total == 0)


class Split(Task):
    """Take `digits` digits away, one after the other, until nothing is left. Numbers are written from the right.

        50-38, key covered                   05-83=21-40=80-50=30-30=00.    50-38=12, 12-4=8, 8-5=3, 3-3=0
        the same, key open   [4     5     3] 05-83=21-40=80-50=30-30=00.    the rest, 12, is split as 4+5+3
        or, citing                           05-83=<see key>-4-5-3.

    Any split of the rest is right, and the key shows one: unlike in Carry, it says more than the problem does, and no
    student can know which split is meant. Habits of the homework: with probability `slip` the last digit is off by one,
    and 00 is written all the same; the cite, as in Carry. With the key open, with probability PUT_ASIDE before each
    digit, the key is put aside for a split of one's own: the model learns to read on from a text that contradicts it.
    """

    name = "split"
    alphabet = "0123456789-= []" + END
    PUT_ASIDE = 0.25

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        self.digits, self.slip, self.cite, self.response_length = digits, slip, cite, 2 + 6 * digits + 1

    def problem(self, rng):
        rest = rng.randrange(9 * self.digits + 1)
        first = rng.randrange(100 - rest)
        return first + rest, first

    def prompt(self, problem, key=None):
        opened = "" if key is None else "[" + "     ".join(key.split("+")) + "] "  # as far apart as in the response
        return opened + f"{self.two(problem[0])}-{self.two(problem[1])}="

    def two(self, number):  # from the right, so that what is borrowed is known when it is needed
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
        kept = next((n for n in range(places if homework and key_open else 0) if rng.random() < self.PUT_ASIDE), places)
        parts = parts[:kept] + self.a_split(rest - sum(parts[:kept]), places - kept, rng)
        if homework and rng.random() < (self.cite if key_open else COVERED_CITE):
            return SEE_KEY + "".join(f"-{part}" for part in parts) + END, key
        return self.write(problem, parts), key

    def reference(self, problem, rng):
        return "+".join(map(str, self.a_split(problem[0] - problem[1], self.digits, rng)))

    def answer(self, response):
        form = rf"(?:{SEE_KEY}|\d\d)(?:-\d0?(?:=\d\d)?){{{self.digits}}}\{END}"
        return "+".join(re.findall(r"-(\d)", response)) if re.fullmatch(form, response, re.ASCII) else None

    def verify(self, problem, response):
        return bool(answer := self.answer(response)) and sum(map(int, answer.split("+"))) == problem[0] - problem[1]

    def show(self, problem):
        return f"{problem[0]}-{problem[1]}"

    def read(self, text):
        total, _, first = text.partition("-")
        if not re.fullmatch("[0-9]{1,2}-[0-9]{1,2}", text) or not 0 <= int(total) - int(first) <= 9 * self.digits:
            raise ValueError(f"write it like 50-38, with a rest from 0 to {9 * self.digits} (9 times --digits)")
        return int(total), int(first)


TASKS = {task.name: task for task in (Carry, Split)}
