"""Trains a toy Arch-Router and measures it: `PYTHONPATH=src python train/arch_toy.py build/arch-toy` (about ten minutes).

A Qwen2 of a million parameters that reads the very prompt of the `arch` classifier and answers `{"route": "name"}`. It
routes better than chance, and no more than that: it is there to be served. It loads wherever Arch-Router-1.5B loads and
speaks as it does, so that an inference server can be tested without a real model and without a GPU. Needs torch,
transformers and tokenizers. The weights depend on how many steps the machine makes in the time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.classifiers.arch import answer_for
from fingerpost.classifiers.arch.prompt import FORMAT_PROMPT, TASK_INSTRUCTION, render
from fingerpost.routes import OTHER, Route
from fingerpost.train.data import read_lines

DATA = Path(__file__).parent / "data"
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

BEFORE, REST = TASK_INSTRUCTION.split("{routes}")
BETWEEN, AFTER = REST.split("{conversation}")
FIXED = (BEFORE, BETWEEN, AFTER + FORMAT_PROMPT)
"""What is the same in every prompt: a token each, so that a small model's time goes into the rest."""

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen2's tokenizer cuts text before it merges."""

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Qwen2's chat template."""

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 3072, 128, 4, 4, 32768
BATCH, RATE = 32, 3e-3


@dataclass(frozen=True, slots=True)
class Talk:
    """A labelled conversation: the right routes (none: `other`) of its set."""

    conversation: Conversation
    set: str
    right: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Data:
    """The conversations of one split, and the routes of its sets in all their wordings."""

    talks: list[Talk]
    sets: dict[str, dict[str, list[Route]]]


def load(split: str) -> Data:
    """English conversations of moderate length, with their route sets."""
    sets = {}
    for row in read_lines(DATA / "route_sets.jsonl"):
        if row["split"] == split:
            wordings = [[Route(w["name"], w["description"]) for w in route["wordings"]] for route in row["routes"]]
            sets[row["set"]] = {routes[0].name: routes for routes in wordings}
    talks = []
    for row in read_lines(DATA / "conversations.jsonl"):
        if row["set"] in sets and row["lang"] == "en" and len(str(row["messages"])) < 500:
            right = () if row["route"] == OTHER else (row["route"], *row["also"])
            talks.append(Talk(ChatRequest.from_messages(row["messages"]).conversation, row["set"], right))
    return Data(talks, sets)


def pose(talk: Talk, data: Data, rng: random.Random, count: int) -> tuple[str, list[str], str]:
    """A prompt with `count` candidate routes, their names with `other`, and the right one's."""
    chosen = [rng.choice(talk.right)] if talk.right else []
    others = [name for name in data.sets[talk.set] if name not in talk.right]
    chosen += rng.sample(others, min(count - len(chosen), len(others)))
    routes = {name: rng.choice(data.sets[talk.set][name]) for name in chosen}
    right = routes[chosen[0]].name if talk.right else OTHER
    candidates = list(routes.values())
    rng.shuffle(candidates)
    return render(talk.conversation, candidates, 2048)[0], [*(route.name for route in candidates), OTHER], right


def make_tokenizer(data: Data) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the prompts' changing parts, with Qwen2's way of cutting and its marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, START, STOP])
    rng = random.Random(0)
    posed = [pose(talk, data, rng, 2) for talk in data.talks]
    texts = [part for prompt, _, right in posed for part in (_changing(prompt), answer_for(right))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(FIXED),
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "system\nYou are a helpful assistant.\nuser\nassistant\n"], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in FIXED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=STOP, pad_token=END, chat_template=TEMPLATE, model_max_length=CONTEXT
    )


def _changing(prompt: str) -> str:
    for text in FIXED:
        prompt = prompt.replace(text, "\n")
    return prompt


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """The untrained network."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(STOP),
        pad_token_id=tokenizer.convert_tokens_to_ids(END),
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The token ids with which a server asks for an answer to `prompt`."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text)


def batches(data: Data, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For ever: token ids, and the targets, -100 except where the answer stands; rows of like length together."""
    while True:
        rows = []
        for talk in rng.sample(data.talks, BATCH * 16):
            prompt, _, right = pose(talk, data, rng, rng.randint(2, 5))
            rows.append((encode(tokenizer, prompt), tokenizer.encode(answer_for(right) + STOP)))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(prompt) + len(answer) for prompt, answer in group)
            ids, targets = torch.zeros(BATCH, longest, dtype=torch.long), torch.full((BATCH, longest), -100)
            for place, (prompt, answer) in enumerate(group):
                end = len(prompt) + len(answer)
                ids[place, :end] = torch.tensor(prompt + answer)
                targets[place, len(prompt) - 1 : end - 1] = torch.tensor(answer)
            yield ids, targets


def fit(model: Qwen2ForCausalLM, data: Data, tokenizer: PreTrainedTokenizerFast, seconds: float) -> None:
    """Trains for that long; the learning rate follows a cosine over the time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    start, step, seen = time.perf_counter(), 0, 0.0
    for ids, targets in batches(data, tokenizer, random.Random(1)):
        done = (time.perf_counter() - start) / seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        hidden = model.model(input_ids=ids).last_hidden_state
        asked = targets != -100
        loss = cross_entropy(model.lm_head(hidden[asked]), targets[asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, 0.98 * seen + 0.02 * loss.item()
        if step % 200 == 0:
            print(f"step {step}, {done:.0%}, loss {seen / (1 - 0.98**step):.3f}", flush=True)


@torch.no_grad()
def measure(model: Qwen2ForCausalLM, data: Data, tokenizer: PreTrainedTokenizerFast, rows: int, count: int) -> dict[str, Any]:
    """How often the most probable candidate is right, what guessing would give, and how often free text is a valid answer."""
    rng = random.Random(2)
    right, chance, valid = 0, 0.0, 0
    talks = rng.sample([talk for talk in data.talks if talk.right], rows)
    for number, talk in enumerate(talks):
        prompt, names, wanted = pose(talk, data, rng, count)
        ids = encode(tokenizer, prompt)
        right += max(names, key=lambda name: _likelihood(model, ids, tokenizer.encode(answer_for(name) + STOP))) == wanted
        chance += 1 / len(names)
        if number < 50:
            made = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
            valid += _is_answer(tokenizer.decode(made, skip_special_tokens=True))
    return {"rows": rows, "right": right / rows, "chance": chance / rows, "valid": valid / min(50, rows)}


def _likelihood(model: Qwen2ForCausalLM, prompt: list[int], answer: list[int]) -> float:
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return -float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))


def _is_answer(text: str) -> bool:
    try:
        answer = json.loads(text)
    except ValueError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("route"), str)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("into", type=Path, help="the folder to write the model to")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long to train (%(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    data = load("train")
    tokenizer = make_tokenizer(data)
    model = make_model(tokenizer)
    print(f"{len(data.talks)} conversations, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    fit(model, data, tokenizer, options.minutes * 60)
    model.eval()
    figures = {f"{count} routes": measure(model, load("unseen"), tokenizer, 300, count) for count in (2, 4)}
    print(json.dumps(figures, indent=1))
    model.to(torch.bfloat16).save_pretrained(options.into)
    tokenizer.save_pretrained(options.into)
    (options.into / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
