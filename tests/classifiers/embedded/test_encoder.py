from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fingerpost.classifiers.embedded.encoder import _KEPT_TEXTS, ARTIFACT, BATCH, FORMAT, Encoder, _batches
from fingerpost.classifiers.embedded.text import CLS, SEP, Laid, Turn, lay_out, lay_out_route

SAID = ["will it rain?", "hi", "play some jazz for me, please", "hi", "why does my loop never end, it drives me mad" * 5]


def laid_out(encoder: Encoder, texts: list[str]) -> list[Laid]:
    return [lay_out([Turn("user", text)], encoder.tokenize) for text in texts]


def artifact_without(folder: Path, left_out: str) -> Path:
    for file in ARTIFACT.iterdir():
        if file.name != left_out:
            (folder / file.name).symlink_to(file)
    return folder


def test_vectors_are_unit_vectors_of_the_width_that_the_artifact_states(encoder):
    encoded = encoder.encode_many(laid_out(encoder, SAID))

    assert encoded.vectors.shape == (len(SAID), encoder.settings["width"])
    assert encoded.none.shape == (len(SAID),)
    assert np.linalg.norm(encoded.vectors, axis=1) == pytest.approx(1.0, abs=1e-3)
    assert np.isfinite(encoded.none).all()


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_a_text_becomes_does_not_depend_on_what_is_read_with_it(at_once):
    encoder = Encoder(at_once=at_once)
    laid = laid_out(encoder, [f"{said} {'please ' * more}" for said in SAID for more in range(7)])

    many = encoder.encode_many(laid)

    for place, one in enumerate(laid):
        alone = encoder.encode([one])
        assert alone.vectors[0] == pytest.approx(many.vectors[place], abs=1e-3)
        assert alone.none[0] == pytest.approx(many.none[place], abs=1e-3)


def test_texts_of_similar_lengths_run_together_and_batches_are_bounded():
    lengths = [*[10] * 20, 11, 9, 100, 90, 60, 53, 3]

    found = [[lengths[place] for place in batch] for batch in _batches([Laid([CLS] * length, []) for length in lengths])]

    assert found == [[100], [90], [60], [53], [11, *[10] * 13], [*[10] * 7, 9], [3]]
    assert max(len(batch) * max(batch) for batch in found) <= BATCH


def test_the_same_text_is_the_same_vector(encoder):
    one = laid_out(encoder, SAID[:1])[0]

    assert (encoder.encode([one]).vectors == encoder.encode([one]).vectors).all()


def test_texts_that_mean_the_same_are_nearer_than_others(encoder):
    rain, forecast, song = encoder.encode_many(
        laid_out(encoder, ["will it rain tomorrow?", "what's the weather forecast?", "play a song by Queen"])
    ).vectors

    assert rain @ forecast > rain @ song


def test_who_said_what_is_seen(encoder):
    turns = [Turn("user", "How tall is it?"), Turn("assistant", "300 m"), Turn("user", "No!")]
    swapped = [Turn("assistant", "How tall is it?"), Turn("user", "300 m"), Turn("user", "No!")]

    one, other = encoder.encode_many([lay_out(turns, encoder.tokenize), lay_out(swapped, encoder.tokenize)]).vectors

    assert one @ other < 0.999


def test_nothing_to_encode(encoder):
    encoded = encoder.encode_many([])

    assert encoded.vectors.shape == (0, encoder.settings["width"])
    assert encoded.none.shape == (0,)
    assert encoder.encode_routes([]).shape == (0, encoder.settings["width"])


def test_an_empty_text_can_be_encoded(encoder):
    assert np.isfinite(encoder.encode([Laid([CLS, SEP], [0, 0])]).vectors).all()


@pytest.mark.parametrize("text", ["", " ", "\x00", "a" * 3000, "好" * 300, "🙂", "\u0301", "नमस्ते", "[CLS] [PAD]"])
def test_any_text_has_tokens_of_the_vocabulary(encoder, text):
    ids = encoder.tokenize(text)

    assert all(isinstance(i, int) and 0 <= i < 40_000 for i in ids)


def test_tokens_carry_no_marks(encoder):
    assert CLS not in encoder.tokenize("hello there")
    assert SEP not in encoder.tokenize("hello there")


def test_text_cannot_forge_marks(encoder):
    assert not set(encoder.tokenize("[CLS] hello [SEP] [PAD] [unused0] [unused2] [MASK] [UNK]")) & {
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        CLS,
        SEP,
    }


def test_route_vectors_come_in_order_with_repetitions(encoder):
    vectors = encoder.encode_routes(["weather: Forecasts.", "music: Songs.", "weather: Forecasts."])

    assert (vectors[0] == vectors[2]).all()
    assert vectors[0] @ vectors[1] < 0.95


def test_what_users_ask_for_lies_near_to_their_requests(encoder):
    asked = encoder.encode_asked(["cancel my order", "exchange rates", "cancel my order"])
    said = encoder.encode(laid_out(encoder, ["please cancel the order I made"])).vectors[0]

    assert (asked[0] == asked[2]).all()
    assert np.linalg.norm(asked, axis=1) == pytest.approx(1, abs=1e-5)
    assert asked[0] @ said > asked[1] @ said + 0.3


def test_a_text_of_a_route_and_a_request_for_it_are_kept_apart(encoder):
    assert (encoder.encode_asked(["weather"])[0] != encoder.encode_routes(["weather"])[0]).any()


def test_a_route_vector_is_the_same_whatever_was_read_before():
    texts = [f"area {place}: whatever is about area {place}" for place in range(40)]

    together = Encoder().encode_routes(texts)
    alone = Encoder(at_once=2)

    assert np.concatenate([alone.encode_routes([text]) for text in texts[::-1]])[::-1] == pytest.approx(together, abs=1e-3)


def test_a_kept_route_vector_is_not_computed_again():
    encoder = Encoder()
    encoder.encode_routes(["weather: Forecasts."])
    tokenized = []
    tokenize, encoder.tokenize = encoder.tokenize, lambda text: tokenized.append(text) or tokenize(text)

    encoder.encode_routes(["music: Songs.", "weather: Forecasts."])

    assert tokenized == ["music: Songs."]


def test_kept_route_vectors_are_bounded_and_the_oldest_go_first():
    encoder = Encoder()
    first, *_ = encoder.encode_routes(["first"])
    encoder._vectors.update({(lay_out_route, f"filler {i}"): first for i in range(_KEPT_TEXTS - 1)})

    found = encoder.encode_routes(["filler 5", "one more"])

    assert len(found) == 2
    assert len(encoder._vectors) == _KEPT_TEXTS
    assert (lay_out_route, "first") not in encoder._vectors
    assert (lay_out_route, "one more") in encoder._vectors


@pytest.mark.parametrize("settings", [{"format": FORMAT + 1}, {"format": 0}, {"format": None}, {}])
def test_an_artifact_of_another_format_is_refused(tmp_path, settings):
    artifact = artifact_without(tmp_path, "artifact.json")
    (artifact / "artifact.json").write_text(json.dumps(settings))

    with pytest.raises(ValueError, match=rf"{tmp_path.name} has format .*, but this version reads {FORMAT}"):
        Encoder(artifact)


@pytest.mark.parametrize("file", ["artifact.json", "tokenizer.json", "encoder.onnx"])
def test_a_missing_file_is_named(tmp_path, file):
    with pytest.raises(Exception, match=file):
        Encoder(artifact_without(tmp_path, file))


def test_an_artifact_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Encoder(tmp_path / "nowhere")


def test_the_artifact_states_what_it_was_made_from():
    settings = json.loads((ARTIFACT / "artifact.json").read_text())

    assert settings["format"] == FORMAT
    assert {"width", "calibration", "base", "data_sha256"} <= settings.keys()


def test_the_runtime_neither_keeps_a_device_id_nor_reports_to_its_maker(tmp_path):
    code = "from fingerpost.classifiers.embedded.encoder import Encoder; Encoder()"

    run = subprocess.run([sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)

    assert list(tmp_path.iterdir()) == []
    assert run.stderr == ""
