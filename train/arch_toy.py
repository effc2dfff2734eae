"""Trains a toy Arch-Router and measures it: `PYTHONPATH=src python train/arch_toy.py build/arch-toy` (about ten minutes).

A Qwen2 of a million parameters that reads the very prompt of the `arch` classifier and answers `{"route": "name"}`. It is
there to be served: it loads wherever Arch-Router-1.5B loads and speaks as it does, so that an inference server can be
tested without a real model and without a GPU. How well it routes is printed at the end, beside what guessing would give;
nothing relies on it. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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

DATA = Path(__file__).parent / "data"
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

BEFORE, REST = TASK_INSTRUCTION.split("{routes}")
BETWEEN, AFTER = REST.split("{conversation}")
FRAMES = ('[{"name": "', '", "description": "', '"}, {"name": "', '[{"role": "user", "content": "', '"}]')
SYSTEM = "system\nYou are a helpful assistant."
FIXED = (BEFORE, BETWEEN, AFTER + FORMAT_PROMPT, *FRAMES, SYSTEM)
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

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 4096, 128, 3, 4, 32768
BATCH, RATE = 16, 3e-3
COUNTS = (1, 1, 2, 3)
"""How many routes a prompt has in training; with one alone the model learns to copy a name, before it learns which."""


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

    @property
    def routes(self) -> list[list[Route]]:
        """The wordings of every route of every set."""
        return [wordings for routes in self.sets.values() for wordings in routes.values()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def load(split: str) -> Data:
    """Short English requests, with their route sets; of the routes' wordings the short ones."""
    sets = {}
    for row in read_lines(DATA / "route_sets.jsonl"):
        if row["split"] == split:
            sets[row["set"]] = {route["wordings"][0]["name"]: _short(route["wordings"]) for route in row["routes"]}
    talks = []
    for row in read_lines(DATA / "conversations.jsonl"):
        if row["set"] in sets and row["lang"] == "en" and len(row["messages"]) == 1 and len(str(row["messages"])) < 85:
            right = () if row["route"] == OTHER else (row["route"], *row["also"])
            talks.append(Talk(ChatRequest.from_messages(row["messages"]).conversation, row["set"], right))
    random.Random(0).shuffle(talks)
    return Data(talks, sets)


def _short(wordings: list[dict[str, str]]) -> list[Route]:
    routes = sorted((Route(w["name"], w["description"]) for w in wordings), key=lambda route: len(route.description))
    return [route for route in routes if len(route.description) < 50] or routes[:1]


def pose(talk: Talk, data: Data, others: list[list[Route]], rng: random.Random, count: int) -> tuple[str, list[str], str]:
    """A prompt with `count` routes, the right one and some of `others`; their names with `other`; the right name."""
    right = rng.choice(data.sets[talk.set][rng.choice(talk.right)]) if talk.right else None
    candidates = [right] if right else []
    while len(candidates) < count:
        route = rng.choice(rng.choice(others))
        if route.name not in [OTHER, *(one.name for one in candidates)]:
            candidates.append(route)
    rng.shuffle(candidates)
    names = [*(route.name for route in candidates), OTHER]
    return render(talk.conversation, candidates, 2048)[0], names, right.name if right else OTHER


def make_tokenizer(data: Data) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the prompts' changing parts, with Qwen2's way of cutting and its marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, START, STOP])
    rng = random.Random(0)
    others = data.routes
    posed = [pose(talk, data, others, rng, 2) for talk in data.talks]
    texts = [part for prompt, _, right in posed for part in (_changing(prompt), answer_for(right))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(FIXED),
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "user\nassistant\n"], trainer)
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
        initializer_range=WIDTH**-0.5,  # the default is made for wide networks; in a narrow one attention would start flat
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
    others = data.routes
    while True:
        rows = []
        for talk in rng.sample(data.talks, BATCH * 32):
            prompt, names, right = pose(talk, data, others, rng, rng.choice(COUNTS))
            # All names in order after the answer: nothing teaches better to copy them, and no server lets it come so far.
            answers = "".join(answer_for(name) + STOP for name in (right, *names))
            rows.append((encode(tokenizer, prompt), tokenizer.encode(answers)))
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


def fit(model: Qwen2ForCausalLM, data: Data, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Trains; the learning rate rises for 100 steps and then follows a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    start, seen = time.perf_counter(), 0.0
    for step, (ids, targets) in zip(range(steps), batches(data, tokenizer, random.Random(1)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        hidden = model.model(input_ids=ids).last_hidden_state
        asked = targets != -100
        loss = cross_entropy(model.lm_head(hidden[asked]), targets[asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen = 0.98 * seen + 0.02 * loss.item()
        if step % 100 == 99:
            average = seen / (1 - 0.98 ** (step + 1))
            print(f"step {step + 1} of {steps}, loss {average:.3f}, {time.perf_counter() - start:.0f} s", flush=True)


@torch.no_grad()
def measure(model: Qwen2ForCausalLM, data: Data, tokenizer: PreTrainedTokenizerFast, rows: int, count: int) -> dict[str, Any]:
    """How often the most probable candidate is right, what guessing would give, and how often free text is a valid answer."""
    rng = random.Random(2)
    right, chance, valid = 0, 0.0, 0
    others, talks = data.routes, rng.sample([talk for talk in data.talks if talk.right], rows)
    for number, talk in enumerate(talks):
        prompt, names, wanted = pose(talk, data, others, rng, count)
        ids = encode(tokenizer, prompt)
        right += max(names, key=lambda name: _likelihood(model, ids, tokenizer.encode(answer_for(name) + STOP))) == wanted
        chance += 1 / len(names)
        if number < 20:
            made = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
            valid += _is_answer(tokenizer.decode(made, skip_special_tokens=True))
    return {"rows": rows, "right": right / rows, "chance": chance / rows, "valid": valid / min(20, rows)}


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
    parser.add_argument("--steps", type=int, default=2500, help="how long to train (%(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    # On a busy machine two threads that wait for each other are slower than one that does not.
    torch.set_num_threads(1)
    data, unseen = load("train"), load("unseen")
    held_out, data = replace(data, talks=data.talks[:1000]), replace(data, talks=data.talks[1000:])
    tokenizer = make_tokenizer(data)
    model = make_model(tokenizer)
    print(f"{len(data.talks)} conversations, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    fit(model, data, tokenizer, options.steps)
    model.eval()
    figures = {
        f"{count} {kind} routes": measure(model, data, tokenizer, 200, count)
        for kind, data in (("known", held_out), ("unseen", unseen))
        for count in (2, 3)
    }
    print(json.dumps(figures, indent=1))
    model.to(torch.bfloat16).save_pretrained(options.into)
    tokenizer.save_pretrained(options.into)
    (options.into / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
