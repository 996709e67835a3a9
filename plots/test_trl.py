"""The example for TRL in plots/README.md does what rlsd.py says. Where TRL is installed; no network, no GPU."""
import os
import sys
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # before TRL is imported
trl = pytest.importorskip("trl")

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "plots/README.md"
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"  # the example's, replaced by a tiny random one
PROBLEMS = [{"question": " plus ".join(terms), "answer": f"so #### {len(terms)}"}
            for terms in (["1"], ["1", "1"], ["1"] * 3) for _ in range(4)]

def block() -> str:
    """The first ```python block of the page that contains GRPOTrainer."""
    blocks = [part.split("```")[0] for part in PAGE.read_text("utf-8").split("```python\n")[1:]]
    return next(text for text in blocks if "GRPOTrainer" in text)

def save_tiny_model(folder: Path):
    """Returns the tokenizer. Words are tokens, and the numbers 1, 2 and 3: a random answer is often right."""
    words = ["<pad>", "<eos>", "<unk>", "1", "2", "3", "user", "assistant", "plus", "answer", "is", ".", "step"]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}assistant"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, initializer_range=0.1, pad_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer

def own_logp(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """One full forward pass, without padding. (T,)"""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1:-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)

@pytest.mark.parametrize("mode", ["rlsd", "cepo"])
def test_example_for_trl(mode, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from rlsd import rlsd_token_advantage
    torch.set_num_threads(1)
    tokenizer, namespace = save_tiny_model(tmp_path / "model"), {"__name__": "__main__"}
    twin = LlamaForCausalLM.from_pretrained(tmp_path / "model")  # TRL changes its own model's forward pass
    lams, credits, wrong_keys = [], [], []

    def tokens_of(question, key=None):
        content = namespace["prompt"](question, key)[0]["content"]
        return tokenizer(f"user {content} assistant")["input_ids"]

    @torch.no_grad()
    def expected(trainer, inputs, batch) -> dict:
        """{(prompt, response): A_t} of a batch, from its texts alone."""
        twin.load_state_dict(trainer.model.state_dict())
        lengths = batch["completion_mask"].sum(1).tolist()
        responses = [ids[:n] for ids, n in zip(batch["completion_ids"].tolist(), lengths)]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
        answers, found = [([c for c in text if c.isdigit()] or [None])[-1] for text in texts], {}
        lams.append(0.5 * (1 - len(lams) / 50))
        for n in range(0, len(inputs), 8):
            question, key = inputs[n]["question"], inputs[n]["key"]
            assert all(row["question"] == question for row in inputs[n:n + 8])
            right = torch.tensor([float(a == key) for a in answers[n:n + 8]])
            wrong = [a for a in answers[n:n + 8] if a not in (None, key)][:1] if right.any() else []
            wrong_keys.extend(wrong)
            for response, advantage in zip(responses[n:n + 8], (right - right.mean()) / (right.std() + 1e-4)):
                other = tokens_of(question, (wrong or [key])[0]) if mode == "cepo" else tokens_of(question)
                gain = own_logp(twin, tokens_of(question, key), response) - own_logp(twin, other, response)
                credit = rlsd_token_advantage(gain.unsqueeze(0), advantage.view(1), 0.2, lams[-1])[0]
                found[tuple(tokens_of(question)), tuple(response)] = credit
        return found

    class Recorder(trl.GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            self.expected = expected(self, inputs, batch)
            return batch

        def _compute_loss(self, model, inputs):
            loss, means = super()._compute_loss(model, inputs), []
            assert inputs["advantages"].shape == inputs["completion_ids"].shape
            for n, credit in enumerate(inputs["advantages"]):
                prompt, response = (tuple(inputs[f"{part}_ids"][n][inputs[f"{part}_mask"][n] == 1].tolist())
                                    for part in ("prompt", "completion"))
                wanted = self.expected[prompt, response]
                torch.testing.assert_close(credit[inputs["completion_mask"][n] == 1], wanted, atol=1e-4, rtol=0)
                credits.append(wanted)
                means.append(wanted.mean())
            torch.testing.assert_close(loss, -torch.stack(means).mean() / 2, atol=1e-4, rtol=0)  # half of a batch
            return loss

    def config(output_dir, **settings):  # the example's settings but for what makes it long, or needs a GPU
        return real_config(str(tmp_path / output_dir), **settings | {
            "max_steps": 4, "gradient_accumulation_steps": 2, "max_completion_length": 12, "learning_rate": 1e-3,
            "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True})

    real_config = trl.GRPOConfig
    monkeypatch.setattr(trl, "GRPOConfig", config)
    monkeypatch.setattr(trl, "GRPOTrainer", Recorder)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(PROBLEMS))
    monkeypatch.setattr(sys, "argv", ["example", mode])
    assert MODEL in block()
    code = block().replace(MODEL, (tmp_path / "model").as_posix())
    exec(compile(code, str(PAGE), "exec"), namespace)  # noqa: S102, it is the page's own code

    assert len(lams) == 4 and len(credits) == 4 * 2 * 8
    mixed = [credit for credit in credits if credit.any()]  # of groups with right and wrong responses
    assert len(mixed) >= 16 and sum(len(credit.unique()) > 1 for credit in mixed) > len(mixed) / 2
    assert len({len(credit) for credit in credits}) > 3  # so that padding was there to be masked
    assert mode == "rlsd" or len(wrong_keys) >= 2
