"""The example for TRL in plots/README.md does what rlsd.py says. It needs TRL, and no network."""

import os
import sys
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # before TRL is imported
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "plots/README.md"
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"  # the example's, replaced by a tiny random one
WORDS = "<pad> <eos> <unk> 1 2 3 user assistant plus answer is . step".split()
SHORT = {  # in the place of the example's settings that make it long, or need a GPU
    "max_steps": 4,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def block() -> str:
    """The first ```python block of the page that contains GRPOTrainer."""
    blocks = PAGE.read_text("utf-8").split("```python\n")[1:]
    return next(text.split("```")[0] for text in blocks if "GRPOTrainer" in text)


def problems() -> list[dict]:
    found = []
    for count in (1, 2, 3):
        question = " plus ".join(["1"] * count)
        found += [{"question": question, "answer": f"so #### {count}"}] * 4
    return found


def save_tiny_model(folder: Path):
    """Returns the tokenizer. Its words have 1, 2 and 3: a random answer is often right."""
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}assistant"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer


def own_log_probs(model, prompt: list[int], response: list[int]):
    """By one full forward pass, without padding. (T,)"""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    tokens = torch.tensor(response).unsqueeze(1)
    return logits.log_softmax(-1).gather(1, tokens).squeeze(1)


def last_number(text: str) -> str | None:
    numbers = [character for character in text if character.isdigit()]
    return numbers[-1] if numbers else None


class Expectation:
    """What the example must do, from the texts of its batches alone."""

    def __init__(self, mode: str, tokenizer, twin, namespace: dict):
        self.mode, self.tokenizer, self.twin = mode, tokenizer, twin
        self.namespace = namespace  # of the example
        self.steps = 0
        self.wrong_keys = []

    def tokens_of(self, question: str, key: str | None = None) -> list[int]:
        content = self.namespace["prompt"](question, key)[0]["content"]
        return self.tokenizer(f"user {content} assistant")["input_ids"]

    @torch.no_grad()
    def token_advantage(self, trainer, inputs: list[dict], batch: dict) -> dict:
        """{(prompt, response): A_t (T,)} of a batch."""
        self.twin.load_state_dict(trainer.model.state_dict())
        lengths = batch["completion_mask"].sum(1).tolist()
        responses = []
        for ids, length in zip(batch["completion_ids"].tolist(), lengths):
            responses.append(ids[:length])
        lam = 0.5 * (1 - self.steps / 50)
        self.steps += 1
        found = {}
        for n in range(0, len(inputs), 8):
            assert all(row["question"] == inputs[n]["question"] for row in inputs[n : n + 8])
            found |= self.of_group(
                inputs[n]["question"], inputs[n]["key"], responses[n : n + 8], lam
            )
        return found

    def of_group(self, question: str, key: str, responses: list[list[int]], lam: float) -> dict:
        from rlsd import rlsd_token_advantage

        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
        answers = [last_number(text) for text in texts]
        right = torch.tensor([float(answer == key) for answer in answers])
        rejected = []
        for answer in answers:
            if right.any() and answer is not None and answer != key:
                rejected.append(answer)
        self.wrong_keys += rejected[:1]
        contrast = None
        if self.mode == "cepo":
            contrast = rejected[0] if rejected else key

        found, shown = {}, self.tokens_of(question, key)
        for response, advantage in zip(responses, (right - right.mean()) / (right.std() + 1e-4)):
            teacher = own_log_probs(self.twin, shown, response)
            other = own_log_probs(self.twin, self.tokens_of(question, contrast), response)
            gain = (teacher - other).unsqueeze(0)
            token_advantage = rlsd_token_advantage(gain, advantage.view(1), 0.2, lam)[0]
            found[tuple(self.tokens_of(question)), tuple(response)] = token_advantage
        return found


@pytest.mark.parametrize("mode", ["rlsd", "cepo"])
def test_the_example_for_trl_has_the_token_advantage_and_the_loss_of_the_page(
    mode, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    torch.set_num_threads(1)
    tokenizer = save_tiny_model(tmp_path / "model")
    # TRL changes the forward pass of its own model.
    twin = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model")
    namespace = {"__name__": "__main__"}
    expectation = Expectation(mode, tokenizer, twin, namespace)
    seen = []  # the A_t of each response

    class Recorder(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            self.expected = expectation.token_advantage(self, inputs, batch)
            return batch

        def _compute_loss(self, model, inputs):
            loss, means = super()._compute_loss(model, inputs), []
            assert inputs["advantages"].shape == inputs["completion_ids"].shape
            for n, token_advantage in enumerate(inputs["advantages"]):
                written = inputs["completion_mask"][n] == 1
                response = tuple(inputs["completion_ids"][n][written].tolist())
                prompt = tuple(inputs["prompt_ids"][n][inputs["prompt_mask"][n] == 1].tolist())
                wanted = self.expected[prompt, response]
                torch.testing.assert_close(token_advantage[written], wanted, atol=1e-4, rtol=0)
                seen.append(wanted)
                means.append(wanted.mean())
            half_of_a_batch = -torch.stack(means).mean() / 2
            torch.testing.assert_close(loss, half_of_a_batch, atol=1e-4, rtol=0)
            return loss

    real_config = trl.GRPOConfig
    monkeypatch.setattr(
        trl,
        "GRPOConfig",
        lambda out, **settings: real_config(str(tmp_path / out), **settings | SHORT),
    )
    monkeypatch.setattr(trl, "GRPOTrainer", Recorder)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(problems())
    )
    monkeypatch.setattr(sys, "argv", ["example", mode])
    assert MODEL in block()
    code = block().replace(MODEL, (tmp_path / "model").as_posix())
    exec(compile(code, str(PAGE), "exec"), namespace)

    assert expectation.steps == 4 and len(seen) == 4 * 2 * 8
    mixed = [one for one in seen if one.any()]  # of groups with right and wrong responses
    assert len(mixed) >= 16
    assert sum(len(one.unique()) > 1 for one in mixed) > len(mixed) / 2
    assert len({len(one) for one in seen}) > 3  # so that padding was there to be masked
    assert mode == "rlsd" or len(expectation.wrong_keys) >= 2


def test_the_examples_wrong_key_is_a_rejected_answer_even_if_it_is_the_key(monkeypatch):
    """That happens only if the verifier errs; with none rejected it is the key."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    namespace = {"__name__": "example"}
    exec(compile(block(), str(PAGE), "exec"), namespace)
    trainer = object.__new__(namespace["CEPOTrainer"])
    texts = ["it is 7", "none", "it is 5", "it is 6", "no 4", "no 3"]

    class Decoder:
        def batch_decode(self, ids, skip_special_tokens):
            return texts

    trainer.processing_class, trainer.num_generations = Decoder(), 2
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0, 0.0])
    batch = {"completion_ids": None, "advantages": advantage}
    rows = [{"key": "5"}] * 6
    assert trainer.contrast(batch, rows) == ["5"] * 6
    batch["advantages"] = -advantage
    assert trainer.contrast(batch, rows) == ["7", "7", "6", "6", "5", "5"]
