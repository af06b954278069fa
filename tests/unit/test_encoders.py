"""Encoders as people have them: those that are read, and those that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import loaded, text, write_plain, write_whole

from roma_ds.config import EmbedConfig
from roma_ds.embed.encoder_files import check_encoder
from roma_ds.embed.stage import check_embeddings
from roma_ds.errors import UserError


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("encoders") / "plain")


@pytest.fixture(scope="module")
def whole(plain: Path) -> Path:
    return write_whole(plain)


@pytest.fixture
def altered(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of `whole` without some files, and with changes of one of its JSON files."""

    def make(*without: str, file: str = "", **changes: Any) -> Path:
        folder = tmp_path / "altered"
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("README.md"))
        for name in without:
            (folder / name).unlink()
        if file:
            path = folder / file
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return make


def refusal(folder: Path, *says: str, **keys: Any) -> str:
    """The fix that is given where `folder` cannot be used."""
    with pytest.raises(UserError) as caught:
        loaded(folder, **keys)
    for words in says:
        assert words in caught.value.message
    return str(caught.value.fix)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_an_encoder_stored_in_half_precision_works(whole: Path, tmp_path: Path, stored: torch.dtype) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(whole), device="cpu").to(stored).save(str(tmp_path / "half"))
    texts = [text(count) for count in range(1, 14)]
    reference = loaded(whole).embed(texts, 4)
    for keys, dtype, error in (({}, stored, 0.05), ({"dtype": "float32"}, torch.float32, 0.01)):
        encoder = loaded(tmp_path / "half", **keys)
        assert encoder.dtype == dtype
        vectors = encoder.embed(texts, 4)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(vectors, reference, atol=error)
        check_embeddings(vectors, texts)


def test_an_encoder_reads_no_more_than_its_positions(whole: Path, altered: Callable[..., Path]) -> None:
    fix = refusal(whole, "embed.max_tokens=25", "has 24 positions", max_tokens=25)
    assert "embed.max_tokens=24 or less" in fix
    assert "embed.max_tokens to 3" in refusal(whole, "embed.max_tokens=2 leaves no room", max_tokens=2)
    assert len(loaded(whole, max_tokens=3).embed([text(9)], 1)) == 1
    folder = altered(file="tokenizer_config.json", model_max_length=99)
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": 99}))
    encoder = loaded(folder)
    assert encoder.notes == (
        f"{folder} asks for 99 tokens of a text but has 24 positions: texts are cut at 24",
    )
    vectors = encoder.embed([text(60, last="w1"), text(60, last="w2")], 2)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert encoder.read([text(60)]).lengths.tolist() == [62]


def test_positions_behind_the_padding_token_are_not_counted(plain: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    shutil.copytree(plain, tmp_path / "roberta")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=64, max_position_embeddings=18, pad_token_id=1, type_vocab_size=2, **sizes
    )
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "roberta")
    encoder = loaded(tmp_path / "roberta", max_tokens=16)
    assert encoder.positions == 16
    assert np.isfinite(encoder.embed([text(30)], 1)).all()
    assert "embed.max_tokens=16" in refusal(tmp_path / "roberta", "has 16 positions", max_tokens=17)


def test_a_prompt_is_one_of_the_encoders(whole: Path, plain: Path, altered: Callable[..., Path]) -> None:
    texts = ["w3 w4", "w5"]
    bare, query = loaded(whole), loaded(whole, prompt="query")
    np.testing.assert_array_equal(query.embed(texts, 2), bare.embed([f"w1 w2 {item}" for item in texts], 2))
    assert query.read(texts).lengths.tolist() == [6, 5]
    assert "document, query" in refusal(whole, "no prompt 'qury'; did you mean 'query'?", prompt="qury")
    assert "leave embed.prompt out" in refusal(plain, "has no prompts", prompt="query")
    usual = altered(file="config_sentence_transformers.json", default_prompt_name="query")
    np.testing.assert_array_equal(loaded(usual).embed(texts, 2), query.embed(texts, 2))
    np.testing.assert_array_equal(loaded(usual, prompt="document").embed(texts, 2), bare.embed(texts, 2))


def test_a_guessed_pooling_is_told_and_a_lost_one_is_named(plain: Path, altered: Callable[..., Path]) -> None:
    [note] = loaded(plain).notes
    assert "no modules.json: its tokens become a vector by mean pooling" in note
    folder = altered("1_Pooling/config.json")
    with pytest.raises(UserError, match=r"names 1_Pooling/config\.json, which is not there"):
        check_encoder(EmbedConfig(model=str(folder)))


def test_an_encoder_with_code_of_its_own_names_the_key(altered: Callable[..., Path]) -> None:
    folder = altered()
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[1]["type"] = "own_pooling.Own"
    path.write_text(json.dumps(modules))
    (folder / "own_pooling.py").write_text(
        "from sentence_transformers.sentence_transformer.modules import Pooling\n\nclass Own(Pooling): ...\n"
    )
    fix = refusal(folder, "runs code that comes with it: the module own_pooling.Own")
    assert "embed.trust_remote_code=true" in fix
    assert type(loaded(folder, trust_remote_code=True).model[1]).__name__ == "Own"


def test_a_model_class_of_its_own_names_the_key(altered: Callable[..., Path]) -> None:
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    folder = altered(file="config.json", model_type="no_such_type", auto_map=classes)
    with pytest.raises(UserError, match=r"own\.OwnModel, which config\.json names") as caught:
        check_encoder(EmbedConfig(model=str(folder)))
    assert "embed.trust_remote_code=true" in str(caught.value.fix)
    # What transformers has itself needs nobody's code.
    known = json.loads((folder / "config.json").read_text()) | {"model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(known))
    check_encoder(EmbedConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (("model.safetensors",), "cannot be loaded: Error no file named model.safetensors"),
        (("tokenizer.json", "tokenizer_config.json"), "'"),
        (("config.json",), "cannot be loaded"),
    ],
)
def test_a_folder_that_is_not_whole_ends_in_a_message(
    altered: Callable[..., Path], without: tuple[str, ...], says: str
) -> None:
    assert "give a sentence-transformers folder" in refusal(altered(*without), "embed.model: '", says)


def test_a_file_that_is_not_json_ends_in_a_message(altered: Callable[..., Path]) -> None:
    for name in ("modules.json", "config.json"):
        folder = altered()
        for content in ("{", '{"a": 1}') if name == "modules.json" else ("{",):
            (folder / name).write_text(content)
            refusal(folder, "cannot be loaded", name)
        shutil.rmtree(folder)


def test_a_failing_encoder_names_itself(whole: Path) -> None:
    encoder = loaded(whole)
    encoder.model[0].model.embeddings.word_embeddings.num_embeddings = 5
    encoder.model[0].model.embeddings.word_embeddings.weight.data = torch.zeros(5, 32)
    with pytest.raises(UserError, match=r"fails on texts of up to 5 tokens: index out of range") as caught:
        encoder.embed(["w40 w41 w42"], 4)
    assert "another embed.model" in str(caught.value.fix)
