"""The arithmetic: problems, workings with their habits, answer keys, the verifier, the tokenizer.

Everything here works on text; rlsd.py works on tokens.
"""

import random
import re
import zlib
from functools import cache

import tiktoken

END = "."
SEE_KEY = "<see key>"  # one token, which says: "I skip the working and copy the answer key"
# Of the homework (pretraining texts with bad habits) without a key, the share that cites one.
CITE_WITHOUT_KEY = 0.002


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints it in one line and exits with 2."""


class Tokenizer:
    """One token per character, and one token for SEE_KEY. It is built offline from an alphabet."""

    def __init__(self, alphabet: str):
        if END not in alphabet:
            raise UserError(f"the alphabet lacks {END!r}, which ends a response")
        ranks = {}
        for character in alphabet:
            ranks.setdefault(character.encode(), len(ranks))
        self.encoding = tiktoken.Encoding(
            "tiny_tasks",
            pat_str=r"[\s\S]",
            mergeable_ranks=ranks,
            special_tokens={SEE_KEY: len(ranks)},
        )
        self.alphabet = set(alphabet)
        self.vocabulary_size = len(ranks) + 1
        self.end = ranks[END.encode()]

    def encode(self, text: str) -> list[int]:
        """The token ids of a text. UserError names the first character that is unknown."""
        for character in text.replace(SEE_KEY, ""):
            if character not in self.alphabet:  # tiktoken itself would panic
                raise UserError(
                    f"{character!r} in {text!r} is not in the task's alphabet: add it there"
                )
        return self.encoding.encode(text, allowed_special="all")

    def decode(self, tokens: list[int]) -> str:
        return self.encoding.decode(tokens)


make_tokenizer = cache(Tokenizer)


class Task:
    """What rlsd.py needs from a task.

    A new task is a subclass with the members below. Add it to TASKS at the end of this file.

    name              what --task calls it
    alphabet          every character that its texts contain, END included
    response_length   the number of tokens of its longest working

    problem(rng)           a random problem: a tuple of whole numbers
    show(problem)          the problem as a person writes it
    prompt(problem, key)   the problem as the student reads it (key is None), or as a teacher
                           reads it, with the answer key in front
    working(problem, rng, homework, key_open)
                           a response and its answer key. In the textbook (homework is False)
                           both are right. Homework has bad habits, and its key may be wrong.
                           key_open says whether the writer is shown the key.
    answer_key(problem, rng)   a right answer
    answer(response)           the answer that a response gives, or None if it has no proper form
    verify(problem, response)  whether the answer is right; the working is ignored

    The parameters of the constructor must be names of settings of rlsd.py, whose values it is
    given; defaults of its own are not used. A working ends with END. All prompts without a key have
    one length in tokens; all prompts with a key have one length, which may be another.
    """

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        self.digits = digits
        self.slip = slip  # homework: probability of the slip, a mistake of the task's own
        self.cite = cite  # homework: share that cites the key when it is shown

    @property
    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self.alphabet)

    def leaks(self, response: str) -> bool:
        """Does the response cite the key? That is a leak if no key is shown."""
        return SEE_KEY in response

    def draws_cite(self, rng: random.Random, key_open: bool) -> bool:
        """Draws whether a piece of homework cites the key."""
        return rng.random() < (self.cite if key_open else CITE_WITHOUT_KEY)

    def held_out_group(self, problem: tuple) -> tuple:
        """Problems for which this is equal are either all held out or all used for training."""
        return problem

    def is_held_out(self, problem: tuple) -> bool:
        """About one problem in eight is never trained on. A hash decides which."""
        return zlib.crc32(repr(self.held_out_group(problem)).encode()) % 8 == 0

    def sample(self, rng: random.Random, held_out: bool = False) -> tuple:
        """A random problem for training, or one that is held out."""
        for _ in range(10_000):
            problem = self.problem(rng)
            if self.is_held_out(problem) == held_out:
                return problem
        side = "held out" if held_out else "left for training"
        raise UserError(f"task {self.name}: none of 10,000 problems is {side}: vary problem() more")

    @cache
    def exam(self) -> tuple[list, list]:
        """512 draws of held-out problems and a key to each, the same for every seed and mode."""
        rng = random.Random("exam")
        problems = [self.sample(rng, held_out=True) for _ in range(512)]
        return problems, [self.answer_key(problem, rng) for problem in problems]

    def check(self) -> None:
        """UserError for the mistakes that a new task is likely to have."""
        if not self.name.isidentifier():
            raise UserError(
                f"its name is {self.name!r}, but must be a word of letters, digits and _"
            )
        if "name" not in vars(type(self)):
            raise UserError(f"class {type(self).__name__} must have a name of its own")
        if not isinstance(self.problem(random.Random(0)), tuple):
            raise UserError("problem must return a tuple")
        if self.verify(self.sample(random.Random(0)), ""):
            raise UserError("verify accepts an empty response")
        rng = random.Random(0)
        lengths = set()
        kinds = [(homework, key_open) for homework in (False, True) for key_open in (False, True)]
        for homework, key_open in 10 * kinds:
            problem = self.sample(rng)
            shown = self.show(problem)
            written = self.working(problem, rng, homework, key_open)
            if not isinstance(written, tuple):
                raise UserError("working must return its text and a key")
            working, key = written
            if not homework:
                verdict = self.verify(problem, working)
                if type(verdict) is not bool:
                    raise UserError(f"verify({shown}) is {verdict!r}, but must be True or False")
                if not verdict or self.answer(working) != key:
                    raise UserError(
                        f"the textbook's {working!r} of {shown}: verify says {verdict}, answer "
                        f"gives {self.answer(working)!r}, the key is {key!r}, and answer_key gives "
                        f"{self.answer_key(problem, rng)!r}"
                    )
            if len(self.tokenizer.encode(working)) > self.response_length:
                raise UserError(
                    f"{working!r} is longer than response_length, {self.response_length}"
                )
            for text in ("", END, working[:-1]):  # a network may write anything
                self.verify(problem, text)
            keys = None, key, self.answer_key(problem, rng)
            prompts = [self.prompt(problem, one) for one in keys]
            lengths.add(tuple(len(self.tokenizer.encode(prompt)) for prompt in prompts))
        # There must be one entry: the length without a key, with one, and with another. Its last
        # two numbers must be equal.
        if len(lengths) > 1 or len(set(min(lengths)[1:])) > 1:
            raise UserError(
                "pad the prompts: all without a key must have one length, and all with a key too. "
                f"Now (without a key, with one, with another) they have {sorted(lengths)} tokens"
            )


class Carry(Task):
    """Column addition as on squared paper, from the right.

        478+356, no key shown               867543: | 4c3c8-=0834.
        478+356, key shown         [4 3 8 0]867543: | 4c3c8-=0834.
        citing the key             [4 3 8 0]867543: | <see key>=0834.
                                            prompt  | response

    `867543:` are the columns: 8 over 6, 7 over 5, 4 over 3. `4c` means "write 4, carry 1", `8-`
    means "write 8, carry nothing". The answer follows after `=`. The key, too, comes from the
    right.

    Problem, key and working have two characters per column. So a digit of the key, its column and
    its place in the working are always the same number of tokens apart; a network as small as ours
    needs that.

    Homework has two bad habits. With probability `slip` a carry is written down and then forgotten
    in the next column. When a key is shown, a share `cite` of the responses copies it without any
    working. When no key is shown, a share CITE_WITHOUT_KEY cites one all the same. That keeps the
    token possible: a token that is never sampled cannot be rewarded. The key of a piece of homework
    is the answer of this very response, even if it is wrong.

    One more trick makes the network read the key. In homework, when a key is shown, each column's
    digit is replaced by a random one with probability RANDOM_DIGIT, in the working and in the key
    alike. Such a digit cannot be computed from the problem; it can only be read off the key.
    """

    name = "carry"
    alphabet = "0123456789: c-=[]" + END
    RANDOM_DIGIT = 0.25

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        super().__init__(digits, slip, cite)
        columns, answer = 2 * digits, digits + 1
        self.response_length = columns + len("=") + answer + len(END)

    def problem(self, rng):
        return rng.randrange(10**self.digits), rng.randrange(10**self.digits)

    def held_out_group(self, problem):
        return tuple(sorted(problem))  # a+b is not new to someone who has practised b+a

    def show(self, problem):
        return f"{problem[0]}+{problem[1]}"

    def columns(self, problem):
        """Pairs of digits, from the right."""
        top, bottom = (f"{number:0{self.digits}d}" for number in problem)
        return list(zip(reversed(top), reversed(bottom)))

    def prompt(self, problem, key=None):
        shown = "" if key is None else f"[{' '.join(reversed(key))}]"
        return shown + "".join(top + bottom for top, bottom in self.columns(problem)) + ":"

    def working(self, problem, rng, homework, key_open):
        carry, columns, answer = 0, "", ""
        for top, bottom in self.columns(problem):
            if homework and carry and rng.random() < self.slip:
                carry = 0  # it was written down, and is forgotten
            carry, digit = divmod(int(top) + int(bottom) + carry, 10)
            if homework and key_open and rng.random() < self.RANDOM_DIGIT:
                digit = rng.randrange(10)
            columns += f"{digit}{'c' if carry else '-'}"
            answer = f"{digit}{answer}"
        if homework and self.draws_cite(rng, key_open):
            columns = SEE_KEY
        return f"{columns}={carry}{answer}{END}", f"{carry}{answer}"

    def answer_key(self, problem, rng=None):
        return f"{sum(problem):0{self.digits + 1}d}"

    def answer(self, response):
        form = rf"[^=]*=([0-9]{{{self.digits + 1}}})" + re.escape(END)
        match = re.fullmatch(form, response)
        return match[1] if match else None

    def verify(self, problem, response):
        return self.answer(response) == self.answer_key(problem)


@cache
def ways(total: int, digits: int) -> int:
    """In how many ways a total can be written as a sum of so many digits."""
    if digits == 0:
        return int(total == 0)
    return sum(ways(total - digit, digits - 1) for digit in range(10))


class Split(Task):
    """Subtract two numbers, and split the difference into `digits` digits: 50-38 = 12 = 4+5+3.

    In the problem and in the working, numbers have two digits and are written backwards: `05-83=`
    is 50-38=, and `21-40=80` is 12-4=8. In the key, and after `<see key>`, 4, 5 and 3 have one
    digit.

        50-38, no key shown                    05-83= | 21-40=80-50=30-30=00.
        50-38, key shown       [4     5     3] 05-83= | 21-40=80-50=30-30=00.
        citing the key         [4     5     3] 05-83= | <see key>-4-5-3.
                                               prompt | response

    The first response reads: 12, minus 4 is 8, minus 5 is 3, minus 3 is 0. Any split is right, and
    the key shows one of them. So the key says more than the problem does, unlike in Carry: no
    student can know which split is meant.

    Homework has two bad habits. With probability `slip` the last digit is off by one, if it stays
    within 0 and 9; the response still ends in 00. Citing works as in Carry.

    One more trick. The student's split is rarely that of the key, and yet the teacher must judge
    its digits. So the network has to learn to go on from a text that contradicts the key. When a
    key is shown, then at each digit, with probability PUT_ASIDE, the response stops following the
    key: its remaining digits are drawn anew, so that the split is right. The prompt still shows the
    old split, with its slip if it had one.
    """

    name = "split"
    alphabet = "0123456789-= []" + END
    PUT_ASIDE = 0.25

    def __init__(self, digits: int = 4, slip: float = 0.6, cite: float = 0.3):
        super().__init__(digits, slip, cite)
        self.response_length = 2 + 6 * digits + len(END)

    def problem(self, rng):
        rest = rng.randrange(9 * self.digits + 1)
        first = rng.randrange(100 - rest)
        return first + rest, first

    def show(self, problem):
        return f"{problem[0]}-{problem[1]}"

    def from_the_right(self, number):
        """Two digits, the last one first, so that a borrow is known when it is needed."""
        return f"{number:02d}"[::-1]

    def prompt(self, problem, key=None):
        # Five blanks: the digits of the key have the distance that they have in the response.
        shown = "" if key is None else "[" + "     ".join(key.split("+")) + "] "
        first, second = map(self.from_the_right, problem)
        return f"{shown}{first}-{second}="

    def a_split(self, total, digits, rng):
        """A random split of a total. If there is none, the nearest one: all 0 or all 9."""
        total = max(0, min(9 * digits, total))
        parts = []
        for left in range(digits - 1, -1, -1):
            weights = [ways(total - digit, left) for digit in range(10)]
            parts += rng.choices(range(10), weights)
            total -= parts[-1]
        return parts

    def write(self, problem, parts):
        """The working of a split. It ends with 00, even after a slip."""
        rest = problem[0] - problem[1]
        text = self.from_the_right(rest)
        for place, part in enumerate(parts, 1):
            rest = max(0, rest - part) if place < len(parts) else 0
            text += f"-{self.from_the_right(part)}={self.from_the_right(rest)}"
        return text + END

    def working(self, problem, rng, homework, key_open):
        rest = problem[0] - problem[1]
        parts = self.a_split(rest, self.digits, rng)
        if homework and rng.random() < self.slip:
            parts[-1] = max(0, min(9, parts[-1] + rng.choice((-1, 1))))
        key = "+".join(map(str, parts))
        if homework and self.draws_cite(rng, key_open):
            return SEE_KEY + "".join(f"-{part}" for part in parts) + END, key
        if homework and key_open:
            for place in range(self.digits):
                if rng.random() < self.PUT_ASIDE:
                    left = rest - sum(parts[:place])
                    parts[place:] = self.a_split(left, self.digits - place, rng)
                    break
        return self.write(problem, parts), key

    def answer_key(self, problem, rng):
        return "+".join(map(str, self.a_split(problem[0] - problem[1], self.digits, rng)))

    def answer(self, response):
        step = r"-([0-9])0?(?:=[0-9][0-9])?"
        form = rf"(?:{SEE_KEY}|[0-9][0-9])(?:{step}){{{self.digits}}}" + re.escape(END)
        if not re.fullmatch(form, response):
            return None
        return "+".join(re.findall(r"-([0-9])", response))

    def verify(self, problem, response):
        answer = self.answer(response)
        if answer is None:
            return False
        return sum(map(int, answer.split("+"))) == problem[0] - problem[1]


TASKS = {task.name: task for task in (Carry, Split)}
