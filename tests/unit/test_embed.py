"""The text-embedding model: encoders as people have them, and samples that cannot be told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import run_on

from roma_ds.comm import World
from roma_ds.comm.ranks import Ranks
from roma_ds.config import EmbedConfig
from roma_ds.data.sample import Sample
from roma_ds.embed.encoder import Encoder, load_encoder
from roma_ds.embed.encoder_files import check_encoder
from roma_ds.embed.stage import check_embeddings, embed, embed_settings
from roma_ds.embed.texts import FORMS, text_of
from roma_ds.errors import UserError

CPU = torch.device("cpu")
ALONE = World(Ranks(), CPU)
WORDS = 60
POSITIONS = 24
LIMIT = 16
"""Tokens of a text that the encoders here read, the first and the last of which are special."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without modules: as people train it with transformers alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoders") / "plain"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(WORDS))]
    tokens = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, "[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=LIMIT, **special).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(names), max_position_embeddings=POSITIONS, initializer_range=0.5, **sizes
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(plain: Path) -> Path:
    """The same, saved by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    folder = plain.parent / "whole"
    prompts = {"query": "w1 w2 ", "document": ""}
    SentenceTransformer(str(plain), device="cpu", prompts=prompts).save(str(folder))
    return folder


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


def loaded(folder: Path, **keys: Any) -> Encoder:
    return load_encoder(EmbedConfig(model=str(folder), **keys), CPU)


def refusal(folder: Path, *says: str, **keys: Any) -> str:
    """The fix that is given where `folder` cannot be used."""
    with pytest.raises(UserError) as caught:
        loaded(folder, **keys)
    for words in says:
        assert words in caught.value.message
    return str(caught.value.fix)


def text(count: int, *, last: str = "w0") -> str:
    return " ".join([*(f"w{place % 7}" for place in range(count - 1)), last])


def sample(number: int, question: str, passage: str = "", **more: Any) -> Sample:
    choices = more.pop("choices", ("w8", "w9"))
    prompt = " ".join([passage, question, *choices]) + f" {number}"
    fields = {"id": f"a/train/{number}", "task": "a", "split": "train", "subject": "", "options": choices}
    return Sample(
        prompt=prompt,
        question=question,
        choices=choices,
        answer=0,
        target=" A",
        passage=passage,
        **fields,
        **more,
    )


def embedded(
    folder: Path, samples: list[Sample], tmp_path: Path, *keys: str
) -> tuple[dict[str, Any], np.ndarray]:
    """The stage's facts and the training samples' vectors."""
    run = run_on(tmp_path, f"embed.model={folder}", "embed.batch_size=5", *keys)
    facts = embed(ALONE, run, samples, samples[:1], tmp_path / "embed")
    return facts, np.load(tmp_path / "embed" / "embeddings.npy")


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


def test_the_parts_that_are_embedded() -> None:
    one = sample(0, "q?", "p.", choices=("a", "b"))
    assert [text_of(one, form) for form in FORMS] == ["q?", "q? a b", "p. q?", "p. q? a b", "p. q? a b 0"]
    assert text_of(sample(0, "q?"), "passage_question") == "q?"


def test_one_question_over_many_passages_is_told(whole: Path, tmp_path: Path) -> None:
    samples = [sample(number, "w1 w2", f"w3 w{10 + number}") for number in range(32)]
    facts, vectors = embedded(whole, samples, tmp_path)
    assert len(np.unique(vectors, axis=0)) == 1
    assert facts["training"] == {
        "samples": 32, "distinct_vectors": 1, "shared_vectors": 32, "cut_texts": 0,
    }  # fmt: skip
    [counts, warning, evaluated] = facts["notes"]
    assert counts == "training: 32 samples, 1 distinct vector, 0 texts of more than 16 tokens"
    assert warning.startswith("warning: 32 of 32 training samples (100%) share their vector")
    assert warning.endswith("fix: embed.text=passage_question: 32 distinct texts in place of 1")
    assert evaluated == "evaluation: 1 sample, 1 distinct vector, 0 texts of more than 16 tokens"
    facts, vectors = embedded(whole, samples, tmp_path, "embed.text=passage_question")
    assert len(np.unique(vectors, axis=0)) == 32
    assert not [note for note in facts["notes"] if "warning" in note]


def test_the_narrowest_text_that_tells_samples_apart_is_advised(whole: Path, tmp_path: Path) -> None:
    options = [sample(number, "w1", choices=("w3", f"w{10 + number}")) for number in range(9)]
    facts, _ = embedded(whole, options, tmp_path)
    assert facts["notes"][1].endswith("embed.text=question_choices: 9 distinct texts in place of 1")
    both = [
        sample(number, "w1", f"w{number // 3}", choices=("w3", f"w{10 + number % 3}")) for number in range(9)
    ]
    facts, _ = embedded(whole, both, tmp_path)
    assert "fix: embed.text=passage_question_choices: 9 " in facts["notes"][1]


def test_texts_that_differ_behind_the_limit_are_counted(whole: Path, tmp_path: Path) -> None:
    long = [sample(number, text(20, last=f"w{20 + number}")) for number in range(16)]
    short = [sample(100 + number, text(3, last=f"w{20 + number}")) for number in range(20)]
    facts, vectors = embedded(whole, long + short, tmp_path)
    assert len(np.unique(vectors, axis=0)) == 21
    assert facts["training"]["cut_texts"] == facts["training"]["shared_vectors"] == 16
    apart, cut = facts["notes"][1:3]
    assert "warning: 16 of 36 training samples (44%) share their vector" in apart
    assert "(44%) have texts of up to 22 tokens, of which the encoder reads the first 16" in cut
    assert apart.endswith("fix: embed.max_tokens=22") and cut.endswith("fix: embed.max_tokens=22")
    facts, vectors = embedded(whole, long + short, tmp_path, "embed.max_tokens=22")
    assert len(np.unique(vectors, axis=0)) == 36 and facts["tokens_read"] == 22
    assert facts["training"]["cut_texts"] == 0 and len(facts["notes"]) == 2


def test_what_no_key_can_mend_needs_another_model(whole: Path, tmp_path: Path) -> None:
    longer = [sample(number, text(40, last=f"w{20 + number}")) for number in range(4)]
    facts, _ = embedded(whole, longer, tmp_path)
    assert facts["notes"][1].endswith(f"fix: embed.max_tokens=24, as many as {whole} can read")
    facts, _ = embedded(whole, longer, tmp_path, "embed.max_tokens=24")
    assert facts["notes"][1].endswith("fix: an embed.model that reads longer texts")
    unknown = [sample(number, f"unheard{number}") for number in range(4)]
    facts, _ = embedded(whole, unknown, tmp_path)
    assert facts["notes"][1].endswith("fix: another embed.model: this one reads different texts alike")


def test_few_shared_vectors_and_equal_prompts_are_no_warning(whole: Path, tmp_path: Path) -> None:
    many = [sample(number, f"w{number % 60} w{number // 60}") for number in range(300)]
    few = [*many, sample(300, "w0 w0")]
    facts, _ = embedded(whole, few, tmp_path)
    assert facts["training"]["shared_vectors"] == 2
    assert not [note for note in facts["notes"] if "warning" in note]
    facts, _ = embedded(whole, [many[0]] * 9, tmp_path)
    assert facts["training"]["distinct_vectors"] == 1 and facts["training"]["shared_vectors"] == 0


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


def test_zero_vectors_are_named() -> None:
    with pytest.raises(UserError, match="1 of 2 embeddings are zero, first for sample b"):
        check_embeddings(np.array([[1, 0], [0, 0]], np.float32), ["a", "b"])


def test_only_what_is_set_makes_embeddings_anew(tmp_path: Path) -> None:
    assert embed_settings(run_on(tmp_path, "embed.batch_size=3").embed) == {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "text": "question",
    }
    for key, value in (
        ("dtype", "float32"),
        ("prompt", "query"),
        ("max_tokens", 99),
        ("trust_remote_code", True),
    ):
        said = str(value).lower() if value is True else value
        assert embed_settings(run_on(tmp_path, f"embed.{key}={said}").embed)[key] == value
