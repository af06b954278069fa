"""Prompts by a chat template: those of published models id for id, one BOS, the ends of turns."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from roma_ds.config import parse_run_config
from roma_ds.config.chat import ChatConfig
from roma_ds.config.schema import DataConfig
from roma_ds.config.sources import DatasetConfig
from roma_ds.data.chat import ChatTemplate, described, templated, user_texts
from roma_ds.data.chat.source import dated
from roma_ds.data.message import Message
from roma_ds.data.sample import Sample
from roma_ds.data.store import load_samples, save_samples
from roma_ds.data.templates import render
from roma_ds.errors import UserError
from roma_ds.evaluation.answers import read_answer
from roma_ds.pipeline.data import chat_of as chat_in_run
from roma_ds.pipeline.folders import Folders
from roma_ds.sequences.batches import collate, routing_positions
from roma_ds.sequences.encoding import Encoded, encode, require_user_ends
from roma_ds.sequences.request_set import requests_of
from roma_ds.testing.chats import NAMES, NO_SYSTEM, OLMOE, chat_tokenizer, template_of

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("ROMA_DS_TEST_DATA") or ROOT.parent / "shared" / "data").resolve() / "tokenizers"
ROW = {"id": "7", "question": "Which is red?", "choices": ["sky", "blood"], "answer": 1}
SWITCHES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content | trim }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_of(tokenizer: Any, day: date | None = None, **settings: Any) -> ChatTemplate:
    return ChatTemplate(tokenizer, ChatConfig(**settings), day or date.today())


def sample_of(row: dict[str, Any] | None = None, form: Any = "letter", **more: Any) -> Sample:
    return render(row or ROW, form, "t", "train", directly=True, **more)


def ids_of(tokenizer: Any, turns: list[dict[str, Any]], **arguments: Any) -> list[int]:
    """What the library makes of the turns."""
    found = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, **arguments)
    return list(found["input_ids"])


@pytest.mark.parametrize("kwargs", SWITCHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_published_templates_are_the_library_s_id_for_id(
    name: str, kwargs: dict[str, Any]
) -> None:
    tokenizer = chat_tokenizer(template_of(name))
    sample = sample_of()
    turns = [{"role": "user", "content": sample.prompt}]
    shots = (Message("user", "Which is blue?\nAnswer:"), Message("assistant", "A"))
    listed = [{"role": "user", "content": "Which is blue?\nAnswer:"}, {"role": "assistant", "content": "A"}]
    for system in (None, "Be brief."):
        chat = chat_of(tokenizer, kwargs=kwargs, system=system)
        first = [{"role": "system", "content": system}] if system else []
        for before, given in (((), []), (shots, listed)):
            (prompt,) = encode([templated(sample, chat, before)], tokenizer, 4000)
            assert list(prompt.prompt) == ids_of(tokenizer, [*first, *given, *turns], **kwargs)
            assert prompt.target == prompt.options[1] == tuple(tokenizer("B")["input_ids"])
            assert prompt.single_token_options


@pytest.mark.parametrize("kwargs", SWITCHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_user_s_last_token_is_found_in_published_templates(name: str, kwargs: dict[str, Any]) -> None:
    tokenizer = chat_tokenizer(template_of(name))
    chat = chat_of(tokenizer, kwargs=kwargs)
    for text in (
        "Answer:",
        "Answer: ",
        "two\nlines\n\n",
        "  ends with café",
        "ends with 鱼",
        "Zed",
        "so /nothink",
    ):
        sample = replace(sample_of(), prompt=text)
        (prompt,) = encode([templated(sample, chat)], tokenizer, 4000)
        (place,) = prompt.users
        said = tokenizer.decode(list(prompt.prompt[: place + 1]))
        assert said.rstrip().endswith(text.strip())
        assert text.strip() not in tokenizer.decode(list(prompt.prompt[place + 1 :]))
        assert not tokenizer.decode(list(prompt.prompt[:place])).endswith(text)


def test_real_tokenizers_have_one_text_and_one_bos() -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not REAL.is_dir():
        pytest.skip("ROMA_DS_TEST_DATA names no folder with tokenizers")
    for file, template in (("olmoe_tokenizer", OLMOE), ("qwen3_reconstructed_tokenizer", CHATML)):
        made = Tokenizer.from_str(gzip.decompress((REAL / f"{file}.json.gz").read_bytes()).decode())
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
        )
        tokenizer.chat_template = template
        sample = templated(sample_of(), chat_of(tokenizer))
        (prompt,) = encode([sample], tokenizer, 4000)
        turns = [{"role": "user", "content": sample_of().prompt}]
        assert list(prompt.prompt) == ids_of(tokenizer, turns)
        assert tokenizer.decode([prompt.prompt[prompt.users[0]]]) == ":"


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("template", [OLMOE, CHATML], ids=["writes BOS", "writes none"])
def test_bos_is_what_the_template_writes(template: str, adds_bos: bool) -> None:
    tokenizer = chat_tokenizer(template, adds_bos)
    (prompt,) = encode([templated(sample_of(), chat_of(tokenizer))], tokenizer, 4000)
    bos = tokenizer.bos_token_id
    assert prompt.prompt.count(bos) == (template == OLMOE)
    (plain,) = encode([render(ROW, "letter", "t", "train")], tokenizer, 4000)
    assert plain.prompt.count(bos) == adds_bos
    for continuation in (*prompt.options, prompt.target):
        assert bos not in continuation


def test_the_last_prompt_token_is_behind_an_empty_thought() -> None:
    tokenizer = chat_tokenizer(template_of("qwen3"))
    ends = {}
    for kwargs in SWITCHES:
        sample = templated(sample_of(), chat_of(tokenizer, kwargs=kwargs))
        (prompt,) = encode([sample], tokenizer, 4000)
        (last,) = routing_positions(len(prompt.prompt), "last1")
        assert last == len(prompt.prompt) - 1
        ends[bool(kwargs)] = sample.prompt
        assert collate(requests_of([prompt]).sequences, "last1").routing_positions.tolist() == [[last]]
    assert ends[False].endswith("<|im_start|>assistant\n")
    assert ends[True] == ends[False] + "<think>\n\n</think>\n\n"
    assert chat_of(tokenizer).answer_place.opening == "<think>\n\n</think>\n\n"
    assert chat_of(tokenizer, kwargs={"enable_thinking": False}).answer_place.opening == ""


def test_an_answer_that_would_join_the_prompt_stays_apart() -> None:
    tokenizer = chat_tokenizer(CHATML)
    sample = templated(sample_of({"id": "1", "question": "?", "answer": "x"}), chat_of(tokenizer))
    (prompt,) = encode([replace(sample, target="\n\nno")], tokenizer, 4000)
    turns = [{"role": "user", "content": "Question: ?\nAnswer:"}]
    assert list(prompt.prompt) == ids_of(tokenizer, turns)
    assert tokenizer.decode(list(prompt.target)) == "\n\nno"


def test_answers_follow_without_a_space_and_take_none_from_the_prompt() -> None:
    letter, text = sample_of(), sample_of(form="text")
    assert (letter.options, letter.target) == (("A", "B"), "B")
    assert (text.options, text.target) == (("sky", "blood"), "blood")
    free = sample_of({"id": "1", "question": "6 x 12?", "answer": "72"})
    assert (free.prompt, free.target) == ("Question: 6 x 12?\nAnswer:", "72")
    bare = sample_of({**ROW, "question": "Red is  "}, "text", layout="bare")
    assert (bare.prompt, bare.options) == ("Red is  ", ("sky", "blood"))
    gap = {"id": "1", "question": "The _ is red.", "choices": ["sky", "blood"], "answer": 1}
    filled = sample_of(gap, "text", layout="gap")
    assert (filled.contexts, filled.options) == (("The sky", "The blood"), ("is red.", "is red."))


def test_letters_without_a_space_are_read_as_letters() -> None:
    sample = sample_of()
    assert read_answer(sample, "The answer is B.").correct
    assert read_answer(sample, "blood").correct
    assert read_answer(sample, "(B)", "flexible-extract").correct


def test_options_in_contexts_of_their_own() -> None:
    tokenizer = chat_tokenizer(CHATML)
    row = {"id": "1", "question": "The _ is red.", "choices": ["sky", "blood"], "answer": 1}
    sample = templated(sample_of(row, "text", layout="gap"), chat_of(tokenizer))
    (prompt,) = encode([sample], tokenizer, 4000)
    assert user_texts(sample) == ("The sky", "The blood")
    for number, text in enumerate(("The sky", "The blood")):
        assert list(prompt.before(number)) == ids_of(tokenizer, [{"role": "user", "content": text}])
        place = prompt.user_before(number)
        assert tokenizer.decode(list(prompt.before(number)[: place + 1])).endswith(text)
    sequences = requests_of([prompt]).sequences
    assert [one.user for one in sequences] == list(prompt.users)
    starts = [0, sequences[0].length]
    positions = collate(sequences, "user1").routing_positions[:, 0].tolist()
    assert positions == [start + one.user for start, one in zip(starts, sequences, strict=True)]


def test_the_user_s_token_is_that_of_a_cut_prompt() -> None:
    tokenizer = chat_tokenizer(OLMOE)
    sample = templated(replace(sample_of(), prompt="red " * 200 + "Answer:"), chat_of(tokenizer))
    (whole,), (cut,) = encode([sample], tokenizer, 4000), encode([sample], tokenizer, 40)
    assert cut.truncated and len(cut.prompt) == 40
    assert cut.users[0] - 40 == whole.users[0] - len(whole.prompt)
    assert cut.prompt[cut.users[0]] == whole.prompt[whole.users[0]]
    (shorter,) = encode([sample], tokenizer, 3)
    with pytest.raises(UserError, match=r"sample t/train/7: .* or it is cut away") as refused:
        require_user_ends([shorter], lambda row: sample.id)
    assert "raise data.max_tokens" in refused.value.fix
    require_user_ends([whole, cut], lambda row: sample.id)


def test_a_turn_that_is_not_written_as_it_is_has_no_known_end() -> None:
    shortened = CHATML.replace("message.content", "message.content.split(':')[0]")
    tokenizer = chat_tokenizer(shortened)
    prompts = encode([templated(sample_of(), chat_of(tokenizer))], tokenizer, 4000)
    assert prompts[0].users == (-1,)
    with pytest.raises(UserError, match="does not write that turn as it is"):
        require_user_ends(prompts, lambda row: "t/train/7")
    with pytest.raises(ValueError, match="ends what the user says"):
        collate([Encoded(0, (1, 2), (3,))], "user1")


def test_slow_tokenizers_have_the_user_s_token_too() -> None:
    tokenizer = chat_tokenizer(CHATML)

    class Slow:
        def __call__(self, text: str, **settings: Any) -> dict[str, list[int]]:
            assert "return_offsets_mapping" not in settings
            return {"input_ids": tokenizer(text, **settings)["input_ids"]}

    sample = templated(sample_of(), chat_of(tokenizer))
    assert encode([sample], Slow(), 4000) == encode([sample], tokenizer, 4000)


def test_a_text_that_says_what_the_template_says() -> None:
    """The end is found where the turn ends, not where its text first occurs."""
    tokenizer = chat_tokenizer(CHATML)
    chat = chat_of(tokenizer)
    for text in ("<|im_end|>", "A<|im_end|>\n<|im_start|>assistant\n", "user", "assistant"):
        sample = templated(replace(sample_of(), prompt=text), chat, (Message("user", text),))
        assert sample.prompt[: len(sample.prompt) - sample.behind_user].endswith(text.strip())
        assert sample.behind_user == len("<|im_end|>\n<|im_start|>assistant\n")


def test_conversations_keep_their_turns() -> None:
    tokenizer = chat_tokenizer(CHATML)
    turns = (
        Message("user", "Hello"),
        Message("assistant", "Hi", train=False),
        Message("user", "And now?"),
        Message("tool", "42", extra=json.dumps({"name": "clock"})),
    )
    sample = templated(replace(sample_of(), messages=turns), chat_of(tokenizer, system="Be brief."))
    (prompt,) = encode([sample], tokenizer, 4000)
    listed = [{"role": one.role, "content": one.content} for one in turns]
    assert list(prompt.prompt) == ids_of(tokenizer, [{"role": "system", "content": "Be brief."}, *listed])
    assert tokenizer.decode(list(prompt.prompt[: prompt.users[0] + 1])).endswith("And now?")
    own = templated(replace(sample_of(), messages=(Message("system", "Own."), *turns)), chat_of(tokenizer))
    assert own.prompt.startswith("<|im_start|>system\nOwn.<|im_end|>")


def test_system_turns() -> None:
    tokenizer = chat_tokenizer(CHATML)
    described_task = (Message("system", "About red.\n\n"),)
    chat = chat_of(tokenizer, system="Be brief.")
    sample = templated(sample_of(), chat, described_task)
    assert sample.messages is not None
    assert sample.messages[0] == Message("system", "Be brief.\n\nAbout red.\n\n")
    strict = chat_tokenizer(NO_SYSTEM)
    with pytest.raises(UserError, match=r"data\.chat\.system is set, but .* takes no system turn"):
        chat_of(strict, system="Be brief.")
    # As lm-evaluation-harness: what the template does not take is left out.
    assert templated(sample_of(), chat_of(strict), described_task).prompt.startswith("<bos>[INST] Which")


def test_refusals_name_the_sample_and_the_template() -> None:
    tokenizer = chat_tokenizer(NO_SYSTEM)
    turns = (Message("system", "Own."), Message("user", "Hello"))
    with pytest.raises(UserError, match=r"sample t/train/7: .* refuses .* no system turn is taken"):
        templated(replace(sample_of(), messages=turns), chat_of(tokenizer))
    parts = "{% for message in messages %}{{ message.content[0].text }}{% endfor %}"
    with pytest.raises(UserError, match="does not write what the user says as text"):
        chat_of(chat_tokenizer(parts))
    with pytest.raises(UserError, match="refuses the turns user: "):
        chat_of(chat_tokenizer("{% for message in messages %}{{ message.content"))


def test_named_templates_and_files(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.chat_template = {"default": CHATML, "terse": "{{ messages[-1].content }}>", "tool_use": OLMOE}
    assert chat_of(tokenizer, template="terse").render((Message("user", "a"),)) == "a>"
    assert chat_of(tokenizer).render((Message("user", "a"),)).startswith("<|im_start|>")
    tools = json.dumps([{"type": "function", "function": {"name": "clock", "parameters": {}}}])
    assert chat_of(tokenizer).render((Message("user", "a"),), tools).startswith("<bos><|user|>")
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}!")
    chat = chat_of(tokenizer, template=str(tmp_path / "own.jinja"))
    assert chat.render((Message("user", "a"),)) == "a!"
    with pytest.raises(UserError, match="did you mean 'terse'") as refused:
        chat_of(tokenizer, template="ters")
    assert "the tokenizer's are default, terse, tool_use" in refused.value.fix
    del tokenizer.chat_template["default"]
    with pytest.raises(UserError, match="no default one"):
        chat_of(tokenizer)


def data_of(template: Any, **chat: Any) -> DataConfig:
    return DataConfig((DatasetConfig(path="train.jsonl"),), template=template, chat=ChatConfig(**chat))


def test_auto_takes_what_the_tokenizer_has() -> None:
    with_one, without = chat_tokenizer(CHATML), chat_tokenizer(CHATML)
    without.chat_template = None
    today = date.today()
    assert ChatTemplate.chosen(with_one, data_of("plain"), today) is None
    assert ChatTemplate.chosen(with_one, data_of("auto"), today) is not None
    assert ChatTemplate.chosen(without, data_of("auto"), today) is None
    with pytest.raises(UserError, match="has no chat template"):
        ChatTemplate.chosen(without, data_of("chat"), today)
    chat = ChatTemplate.chosen(with_one, data_of("auto"), today)
    assert described(with_one, data_of("auto"), chat) == "by the chat template (the tokenizer's)"
    assert "data.template=auto would use" in described(with_one, data_of("plain"), None)
    assert described(without, data_of("plain"), None) == "plain text"
    assert "has no chat template" in described(without, data_of("auto"), None)
    assert "data.chat is not used" in described(without, data_of("auto", system="x"), None)


def test_what_decides_the_texts_is_in_the_identity() -> None:
    tokenizer = chat_tokenizer(CHATML)
    base = chat_of(tokenizer).identity()
    assert base == chat_of(chat_tokenizer(CHATML), date(2000, 1, 1)).identity()
    assert json.loads(json.dumps(base)) == base
    other = chat_tokenizer(CHATML)
    other.chat_template = CHATML + " "
    assert chat_of(other).identity() != base
    assert chat_of(tokenizer, system="x").identity() != base
    assert chat_of(tokenizer, kwargs={"a": 1}).identity() != base
    other = chat_tokenizer(CHATML)
    other.eos_token = "<pad>"
    assert chat_of(other).identity() != base


def test_a_date_is_that_of_the_day_that_is_given() -> None:
    day = date(2024, 2, 29)
    tokenizer = chat_tokenizer(template_of("granite"))
    chat = chat_of(tokenizer, day)
    assert chat.identity()["day"] == "2024-02-29"
    assert "Today is February 29, 2024." in templated(sample_of(), chat).prompt
    assert dated('{{ strftime_now( "%d %b" ) }}{{ strftime_now(form) }}', day) == (
        '{{ "29 Feb" }}{{ strftime_now(form) }}'
    )


def test_a_run_goes_on_another_day_with_the_date_of_the_first(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(template_of("granite"))
    text = (
        "model: {path: demo}\ndata: {train: [{path: a.jsonl}], template: auto}\neval: {tasks: []}\n"
        "output_dir: out\n"
    )
    run = parse_run_config(text, tmp_path / "run.yaml")
    folders = Folders(Path(run.output_dir))
    new = chat_in_run(run, folders, tokenizer)
    assert new is not None and new.day == date.today()
    folders.stage("data").mkdir(parents=True)
    folders.record("data").finish({"template": {"day": "2024-02-29"}}, [], 0.0, {})
    kept = chat_in_run(run, folders, tokenizer)
    assert kept is not None and kept.day == date(2024, 2, 29)
    for inputs in ({}, {"template": None}, {"template": {"day": "never"}}):
        folders.record("data").finish(inputs, [], 0.0, {})
        other = chat_in_run(run, folders, tokenizer)
        assert other is not None and other.day == date.today()


def test_the_end_of_a_turn_ends_an_answer() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert tokenizer.convert_ids_to_tokens(list(chat_of(tokenizer).end_tokens)) == ["<|im_end|>"]
    assert chat_of(chat_tokenizer(CHATML.replace("<|im_end|>", ""))).end_tokens == frozenset()


def test_samples_survive_the_disk(tmp_path: Path) -> None:
    chat = chat_of(chat_tokenizer(CHATML))
    turns = (Message("user", "a", extra='{"name": "x"}'), Message("assistant", "b", train=False))
    plain = [render(ROW, "letter", "t", "train"), render({**ROW, "id": "8"}, "text", "t", "train")]
    chats = [
        templated(sample_of(), chat),
        replace(templated(sample_of(), chat, turns), tools="[]"),
        plain[0],
    ]
    for name, samples in (("plain", plain), ("chats", chats), ("none", [])):
        save_samples(tmp_path / name, samples)
        assert load_samples(tmp_path / name) == samples


def test_samples_of_before_are_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    save_samples(tmp_path / "plain", [render(ROW, "letter", "t", "train")])
    columns = pq.read_table(tmp_path / "plain").column_names
    assert columns == [
        "id", "task", "split", "prompt", "question", "choices", "answer", "target", "options", "passage",
        "subject", "contexts",
    ]  # fmt: skip
