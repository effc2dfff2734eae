"""The artifact: ONNX encoder, tokenizer, one JSON, and the model card that says what it can do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from fingerpost.classifiers.embedded.encoder import FORMAT
from fingerpost.classifiers.embedded.matcher import Calibration
from fingerpost.classifiers.embedded.text import Laid
from fingerpost.train.graph import encoder_model
from fingerpost.train.network import Reader
from fingerpost.train.ranges import ranges_of


def export_encoder(
    reader: Reader, tokenizer: Tokenizer, words: Sequence[str], typical: Sequence[Laid], out: Path, about: Mapping[str, Any]
) -> None:
    """Writes the encoder, the tokenizer, `words` that are no slips either, and a JSON that lacks calibration and figures.

    `typical` are texts like those that the encoder will read.

    Precedents are made with what this writes (`fingerpost.train.precedents`).
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().numpy() for name, value in reader.encoder.state_dict().items()}
    weigh, none, bias = (value.detach().cpu().numpy() for value in (reader.weigh.weight, reader.none.weight, reader.none.bias))
    onnx.save(encoder_model(weights, weigh, none, bias, ranges_of(reader, typical)), str(out / "encoder.onnx"))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = {"format": FORMAT, "width": weights["words.weight"].shape[1], **about}
    write_settings(out, settings)


def write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes the artifact's JSON."""
    (out / "artifact.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_settings(out: Path) -> dict[str, Any] | None:
    """The artifact's JSON, or None where there is no artifact."""
    path = out / "artifact.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def with_calibration(settings: Mapping[str, Any], calibration: Calibration) -> dict[str, Any]:
    """The settings with a calibration in them."""
    return {**settings, "calibration": asdict(calibration)}


def digest(*paths: Path) -> str:
    """One SHA-256 over the contents of files and folders, in the order of their names."""
    hasher = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                hasher.update(file.name.encode())
                hasher.update(hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()
