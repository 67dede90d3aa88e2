"""Building, saving and loading routers, and the TF-IDF baseline against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from dynamorouter.errors import ConfigError, RouterError
from dynamorouter.routing.base import RouterData, RouterInput
from dynamorouter.routing.complexity import TierRouter
from dynamorouter.routing.lexical import TfIdf, joined
from dynamorouter.routing.mlp import TaskMLP
from dynamorouter.routing.serialization import build, load, save

TEXTS = [
    ("what a lovely film", None), ("the plot is thin and dull", None), ("an actor at his best", None),
    ("shares rose on monday", None), ("the bank cut its forecast", None), ("oil fell to a new low", None),
    ("who built the bridge", "The bridge was built by Romans."), ("when was it lost", "It was lost in May."),
    ("where did they go", "They went to Rome."),
]  # fmt: skip
TARGETS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])


def batch(texts: list[tuple[str, str | None]]) -> RouterInput:
    return RouterInput({}, torch.ones(len(texts), 1), texts)


def tfidf(**options: object) -> TfIdf:
    router = TfIdf(**options)  # type: ignore[arg-type]
    router.fit(RouterData([batch(TEXTS[:4]), batch(TEXTS[4:])], TARGETS, generator=torch.Generator()))
    return router


@pytest.mark.parametrize("experts", [3, 2])
def test_tfidf_equals_scikit_learn_before_and_after_saving(tmp_path: Path, experts: int) -> None:
    rows = 3 * experts
    router = TfIdf()
    router.fit(RouterData([batch(TEXTS[:rows])], TARGETS[:rows], generator=torch.Generator()))
    plain = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", max_features=50_000),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    plain.fit(joined(TEXTS[:rows]), TARGETS[:rows].numpy())
    expected = plain.predict_proba(joined(TEXTS))
    np.testing.assert_allclose(router.probabilities(TEXTS).numpy(), expected, atol=1e-12)
    save(router, tmp_path)
    again = load(tmp_path)
    assert isinstance(again, TfIdf)
    assert torch.equal(again.probabilities(TEXTS), router.probabilities(TEXTS))


def test_tfidf_gives_an_unseen_expert_nothing() -> None:
    router = TfIdf()
    router.fit(RouterData([batch(TEXTS[:6])], TARGETS[:6] * 2, generator=torch.Generator(), experts=4))
    probabilities = router.probabilities(TEXTS)
    assert probabilities[:, [1, 3]].eq(0).all()
    assert probabilities[:6].argmax(1).tolist() == [0, 0, 0, 2, 2, 2]
    router.fit(RouterData([batch(TEXTS[:3])], TARGETS[:3], generator=torch.Generator(), experts=2))
    assert router.probabilities(TEXTS)[:, 0].eq(1).all()


def test_tfidf_without_words_says_so() -> None:
    with pytest.raises(RouterError, match="no words"):
        TfIdf().fit(RouterData([batch([("", None), ("!", None)])], torch.tensor([0, 1]), generator=torch.Generator()))


def test_build_names_every_mistake() -> None:
    with pytest.raises(ConfigError, match="did you mean 'centroids'"):
        build("centroid", {})
    with pytest.raises(ConfigError) as error:
        build("mlp", {"hiden": 3, "epoch": 2})
    assert "did you mean 'hidden'" in str(error.value)
    assert "did you mean 'epochs'" in str(error.value)
    with pytest.raises(RouterError, match=r"hidden: got -1.*top_k: got True; should be a number"):
        build("mlp", {"hidden": -1, "top_k": True})
    with pytest.raises(ConfigError, match="allowed: none"):
        build("uniform", {"top_k": 2})


def test_truncated_tensors_are_named(tmp_path: Path) -> None:
    save(tfidf(), tmp_path)
    path = tmp_path / "router.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RouterError, match=r"router\.safetensors is damaged.*copy the folder again, or fit"):
        load(tmp_path)


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    save(tfidf(), tmp_path)
    path = tmp_path / "router.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RouterError, match="checksum"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: "{", "not JSON"),
        (lambda record: "[]", "JSON list without 'format'"),
        (lambda record: json.dumps(record | {"options": 1, "kind": None}), "'kind' is NoneType, 'options' is int"),
        (lambda record: json.dumps(record | {"format": 9}), "has format 9"),
        (lambda record: json.dumps(record | {"kind": "tfidff"}), "did you mean 'tfidf'"),
        (lambda record: json.dumps(record | {"kind": "mlp"}), "does not make a 'mlp'"),
        (lambda record: json.dumps(record | {"options": {"top_k": 1}}), "does not make a 'tfidf'"),
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "tensors"}), "'tensors' is missing"),
    ],
)
def test_damaged_options_are_named(tmp_path: Path, change: object, message: str) -> None:
    save(tfidf(), tmp_path)
    path = tmp_path / "router.json"
    path.write_text(change(json.loads(path.read_text())))  # type: ignore[operator]
    with pytest.raises(RouterError, match=message) as error:
        load(tmp_path)
    assert "router.json" in str(error.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match=r"cannot read .*router\.json"):
        load(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_router_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tfidf()
    save(first, tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RouterError, match="No space left on device; free some space"):
        save(tfidf(max_features=5), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.json", "router.safetensors"]
    again = load(tmp_path)
    assert isinstance(again, TfIdf)
    assert torch.equal(again.probabilities(TEXTS), first.probabilities(TEXTS))


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(RouterError, match="cannot write the router into"):
        save(tfidf(), tmp_path / "taken")


def test_networks_are_saved_by_the_option_names_that_they_always_had() -> None:
    network = "pooling hidden dropout epochs learning_rate weight_decay batch_rows patience"
    shared = {*network.split(), "top_k", "abstain_below", "layers", "held_out"}
    assert set(TaskMLP().options()) == shared  # as commit 557703c writes them
    assert set(TierRouter().options()) == shared | {"complexity_weight", "balance_weight"}
    router = TaskMLP(num_train_epochs=3, layers=[0, 2], top_k=2)
    assert (router.options()["epochs"], router.layers, router.top_k) == (3, (0, 2), 2)
    router.abstain_below = 0.5
    assert router.options()["abstain_below"] == 0.5


def test_saved_options_that_a_router_does_not_take_are_named_with_their_file(tmp_path: Path) -> None:
    save(tfidf(), tmp_path)
    path = tmp_path / "router.json"
    record = json.loads(path.read_text())
    record["options"]["min_rows"] = 0
    path.write_text(json.dumps(record))
    with pytest.raises(RouterError, match=r"router\.json is damaged.*min_rows: got 0; should be greater than or equal"):
        load(tmp_path)
