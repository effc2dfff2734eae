"""Trains a toy Arch-Router and measures it: `PYTHONPATH=src python train/arch_toy.py build/arch-toy` (seven minutes of a core).

A Qwen2 of a million parameters that reads the very prompt of the `arch` classifier and answers `{"route": "name"}`. It is
there to be served: it loads wherever Arch-Router-1.5B loads and speaks as it does, so that an inference server can be
tested without a real model and without a GPU. How well it routes is printed at the end, beside what guessing would give;
the tests rely on no more than that it does better. Needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from arch_start import HEAD, HEADS, THETA, WIDTH, part_of, prime, topics
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
OPENING = '{"route": "'
SYSTEM = "system\nYou are a helpful assistant."
FIXED = (BEFORE, BETWEEN, AFTER + FORMAT_PROMPT, *FRAMES, SYSTEM, OPENING)
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

VOCABULARY, LAYERS, CONTEXT = 8192, 3, 32768
BATCH, RATE, EMBEDDING_RATE = 32, 2e-3, 6e-4
COUNTS = (1, 2, 2, 3, 3, 4)
"""How many routes a prompt has in training."""


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

    @property
    def said(self) -> list[str]:
        """For every route all that is said about it and with it."""
        texts = {
            (name, route): [f"{w.name.replace('_', ' ')} {w.description}" for w in wordings]
            for name, routes in self.sets.items()
            for route, wordings in routes.items()
        }
        for talk in self.talks:
            for route in talk.right:
                texts[talk.set, route].append(talk.conversation.messages[-1].text)
        return [" ".join(parts) for parts in texts.values()]


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


def pose(
    talk: Talk, data: Data, others: list[list[Route]], rng: random.Random, count: int, words: Sequence[str] = ()
) -> tuple[str, list[str], str]:
    """A prompt with `count` routes, the right one and some of `others`; their names with `other`; the right name.

    With `words`, every other route gets a name made up of them: then the description has to be read and the name copied.
    """

    def renamed(route: Route) -> Route:
        invented = words and rng.random() < 0.5
        return replace(route, name="_".join(rng.sample(words, rng.choice((1, 1, 2, 3))))) if invented else route

    right = renamed(rng.choice(data.sets[talk.set][rng.choice(talk.right)])) if talk.right else None
    candidates = [right] if right else []
    while len(candidates) < count:
        route = renamed(rng.choice(rng.choice(others)))
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
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=WIDTH**-0.5,  # the default is made for wide networks; in a narrow one attention would start flat
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(STOP),
        pad_token_id=tokenizer.convert_tokens_to_ids(END),
        attn_implementation="eager",  # the only one that shows its attention, which is trained on
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The token ids with which a server asks for an answer to `prompt`."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its answer; where each candidate's description ends, `other` last; which one is right."""

    prompt: list[int]
    answer: list[int]
    names: list[str]
    firsts: list[int]
    ends: list[int]
    right: int


def make_example(
    talk: Talk, data: Data, others: list[list[Route]], words: list[str], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Example:
    """A conversation posed with some number of routes."""
    prompt, names, right = pose(talk, data, others, rng, rng.choice(COUNTS), words)
    ids = encode(tokenizer, prompt)
    closing = tokenizer.convert_tokens_to_ids([FRAMES[2], FRAMES[4]])
    ends = [place for place, token in enumerate(ids) if token in closing][: len(names) - 1]
    ends.append(ids.index(tokenizer.convert_tokens_to_ids(AFTER + FORMAT_PROMPT)))
    firsts = [tokenizer.encode(answer_for(name))[1] for name in names]
    # All names in order after the answer: nothing teaches better to copy them, and no server lets it come so far.
    answers = "".join(answer_for(name) + STOP for name in (right, *names))
    return Example(ids, tokenizer.encode(answers), names, firsts, ends, names.index(right))


def batches(data: Data, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[list[Example]]:
    """For ever: examples of like length; one in sixteen belongs to none of its routes."""
    others = data.routes
    words = sorted({word for text in data.said for word in re.findall("[a-z]+", text)})
    routed = [talk for talk in data.talks if talk.right]
    stray = [talk for talk in data.talks if not talk.right]
    while True:
        talks = [*rng.sample(routed, BATCH * 15), *rng.sample(stray, BATCH)]
        rows = [make_example(talk, data, others, words, tokenizer, rng) for talk in talks]
        rows.sort(key=lambda row: len(row.prompt) + len(row.answer))
        groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        yield from groups


def loss_of(model: Qwen2ForCausalLM, batch: list[Example]) -> tuple[torch.Tensor, float]:
    """How wrong the answers are, and three things that lead to them; and how often the right route is attended to most.

    Words alone teach too little: a prompt has one name to choose. So the head that chooses is shown (1) where to look, (2)
    which of all the batch's descriptions a conversation belongs to, and (3) that the end of a description stands for its name.
    """
    longest = max(len(row.prompt) + len(row.answer) for row in batch)
    ids = torch.tensor([(row.prompt + row.answer + [0] * longest)[:longest] for row in batch])
    targets = torch.full(ids.shape, -100)
    for number, row in enumerate(batch):
        targets[number, len(row.prompt) - 1 : len(row.prompt) + len(row.answer) - 1] = torch.tensor(row.answer)
    output = model.model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    asked = targets != -100
    answers = cross_entropy(model.lm_head(output.last_hidden_state[asked]), targets[asked])

    rows = torch.arange(len(batch))
    at = torch.tensor([len(row.prompt) for row in batch])  # the name comes next
    seen = output.attentions[-1][rows, 0, at]
    right = torch.tensor([row.ends[row.right] for row in batch])
    looking = -(seen[rows, right] + 1e-6).log().mean()

    choosing, part = model.model.layers[-1], part_of(0)
    hidden = choosing.input_layernorm(output.hidden_states[-2])
    ends = [(number, end) for number, row in enumerate(batch) for end in row.ends]
    at_ends = hidden[[number for number, _ in ends], [end for _, end in ends]]
    queries = choosing.self_attn.q_proj(hidden[rows, at])[:, part]
    likeness = queries @ choosing.self_attn.k_proj(at_ends)[:, part].T / HEAD**0.5
    matching = _matching(likeness, batch)

    carried = choosing.self_attn.v_proj(at_ends)[:, part] @ choosing.self_attn.o_proj.weight[:, part].T
    firsts = torch.tensor([first for row in batch for first in row.firsts])
    naming = cross_entropy(model.lm_head(model.model.norm(carried)), firsts)
    return answers + looking + matching + 0.5 * naming, (seen.argmax(1) == right).float().mean().item()


def _matching(likeness: torch.Tensor, batch: list[Example]) -> torch.Tensor:
    """How badly conversations (rows) are told which of the batch's descriptions (columns) is theirs; `other` is not asked."""
    names = [name for row in batch for name in row.names]
    starts = [sum(len(row.names) for row in batch[:number]) for number in range(len(batch))]
    routed = [number for number, row in enumerate(batch) if row.names[row.right] != OTHER]
    right = [starts[number] + batch[number].right for number in routed]
    # A route of the same name may be the same route.
    barred = [[name == OTHER or (name == names[one] and i != one) for i, name in enumerate(names)] for one in right]
    return cross_entropy(likeness[routed].masked_fill(torch.tensor(barred), -1e4), torch.tensor(right))


def fit(model: Qwen2ForCausalLM, data: Data, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Trains; the learning rate rises for 100 steps and then follows a cosine."""
    words = model.model.embed_tokens.weight
    rest = [parameter for parameter in model.parameters() if parameter is not words]
    groups = [{"params": rest, "peak": RATE}, {"params": [words], "peak": EMBEDDING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    start, seen, hit = time.process_time(), 0.0, 0.0
    for step, batch in zip(range(steps), batches(data, tokenizer, random.Random(1)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        loss, found = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen, hit = 0.98 * seen + 0.02 * loss.item(), 0.98 * hit + 0.02 * found
        if step % 50 == 49:
            so_far = 1 - 0.98 ** (step + 1)
            took = time.process_time() - start
            print(f"step {step + 1} of {steps}, loss {seen / so_far:.3f}, found {hit / so_far:.3f}, {took:.0f} s", flush=True)


@torch.no_grad()
def measure(model: Qwen2ForCausalLM, data: Data, tokenizer: PreTrainedTokenizerFast, rows: int, count: int) -> dict[str, Any]:
    """How often a decoder that is held to the candidates is right, what guessing would give; how often free text is valid."""
    rng = random.Random(2)
    right, chance, valid = 0, 0.0, 0
    others, talks = data.routes, rng.sample([talk for talk in data.talks if talk.right], rows)
    for number, talk in enumerate(talks):
        prompt, names, wanted = pose(talk, data, others, rng, count)
        ids = encode(tokenizer, prompt)
        right += _choose(model, ids, {name: tokenizer.encode(answer_for(name) + STOP) for name in names}) == wanted
        chance += 1 / len(names)
        if number < 20:
            made = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
            valid += _is_answer(tokenizer.decode(made, skip_special_tokens=True))
    return {"rows": rows, "right": right / rows, "chance": chance / rows, "valid": valid / min(20, rows)}


def _choose(model: Qwen2ForCausalLM, prompt: list[int], answers: dict[str, list[int]]) -> str:
    """The name that comes of the most probable token at each step, of those with which an answer goes on."""
    written: list[int] = []
    while len(answers) > 1:
        scores = model(torch.tensor([prompt + written])).logits[0, -1]
        written.append(max({answer[len(written)] for answer in answers.values()}, key=lambda token: scores[token].item()))
        answers = {name: answer for name, answer in answers.items() if answer[: len(written)] == written}
    return next(iter(answers))


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
    parser.add_argument("--steps", type=int, default=900, help="how long to train (%(default)s)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    # On a busy machine two threads that wait for each other are slower than one that does not.
    torch.set_num_threads(1)
    data, unseen = load("train"), load("unseen")
    held_out, data = replace(data, talks=data.talks[:1000]), replace(data, talks=data.talks[1000:])
    tokenizer = make_tokenizer(data)
    model = make_model(tokenizer)
    prime(model, topics(data.said, tokenizer), tokenizer.convert_tokens_to_ids([FRAMES[0], FRAMES[2]]))
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
