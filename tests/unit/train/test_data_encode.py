"""From samples to tokens: what is learned is the answers, exactly, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.config.sections import ModelConfig
from submitrain.errors import DataError
from submitrain.train.data.columns import Chat, Message, Pair, Sample, Text, Tokens
from submitrain.train.data.encode import Encoder, _token_at, tokenize
from submitrain.train.data.prepare import (
    END_OF_TEXT,
    _spread,
    fingerprint,
    load_tokenizer,
    open_tokenizer,
    train_tokenizer,
)
from submitrain.train.data.render import Renderer, read_template
from tests.data_parts import CHATML, CHATML_MARKED, LAST_TURN_DIFFERS, TEXTS, make_tokenizer

CHAT = Chat(
    (
        Message("system", "Be brief."),
        Message("user", "1 + 1?"),
        Message("assistant", "2"),
        Message("user", "And 2 + 2?"),
        Message("assistant", "It is 4."),
    )
)


def make_encoder(template: str | None = None, max_length: int = 512, **keys: Any) -> Encoder:
    tokenizer = make_tokenizer(template)
    return Encoder(tokenizer, Renderer(tokenizer), max_length, **keys)


def learned(encoder: Encoder, sample: Sample) -> list[str]:
    """The learned stretches of a sample, as text."""
    (document,) = encoder.encode([sample])
    stretches: list[list[int]] = []
    before = False
    for token, is_label in zip(document.ids.tolist(), document.is_label.tolist(), strict=True):
        if is_label and not before:
            stretches.append([])
        if is_label:
            stretches[-1].append(token)
        before = is_label
    return [encoder.tokenizer.decode(stretch) for stretch in stretches]


def whole(encoder: Encoder, sample: Sample) -> str:
    (document,) = encoder.encode([sample])
    return str(encoder.tokenizer.decode(document.ids.tolist()))


def test_plain_template_is_the_documented_one() -> None:
    assert whole(make_encoder(), Pair("Add.", "3", context="1 2")) == (
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3<|endoftext|>"
    )


def test_plain_template_of_a_chat_ends_every_answer() -> None:
    assert whole(make_encoder(), CHAT) == (
        "### System:\nBe brief.\n\n### Instruction:\n1 + 1?\n\n### Response:\n2<|endoftext|>"
        "### Instruction:\nAnd 2 + 2?\n\n### Response:\nIt is 4.<|endoftext|>"
    )


def test_verbatim_pair_stays_as_it_is_even_with_a_chat_template() -> None:
    assert whole(make_encoder(CHATML), Pair("a =", " 1", verbatim=True)) == "a = 1<|endoftext|>"


def test_pair_goes_into_the_chat_template() -> None:
    assert whole(make_encoder(CHATML), Pair("Add.", "3", context="1 2")) == (
        "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("template", "sample", "expected"),
    [
        (None, Pair("p", "r"), ["r<|endoftext|>"]),
        (None, Pair("def f():", "\n    x", verbatim=True), ["\n    x<|endoftext|>"]),
        (None, CHAT, ["2<|endoftext|>", "It is 4.<|endoftext|>"]),
        (CHATML, Pair("p", "r"), ["r<|im_end|>"]),
        (CHATML, CHAT, ["2<|im_end|>", "It is 4.<|im_end|>"]),
        (CHATML_MARKED, CHAT, ["2<|im_end|>", "It is 4.<|im_end|>"]),
        (LAST_TURN_DIFFERS, CHAT, ["2<|im_end|>", "<think>\n\n</think>\n\nIt is 4.<|im_end|>"]),
        (CHATML, Chat(CHAT.messages[:-1]), ["2<|im_end|>"]),
    ],
)
def test_only_answers_are_learned_with_their_end(
    template: str | None, sample: Sample, expected: list[str]
) -> None:
    """Where the generation prompt stops before the thinking, that is learned as well."""
    assert learned(make_encoder(template), sample) == expected


def test_template_without_end_of_turn_gets_eos() -> None:
    bare = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}{% if "
    bare += "add_generation_prompt %}[assistant] {% endif %}"
    sample = Chat(CHAT.messages[1:3])
    assert learned(make_encoder(bare), sample) == ["2" + END_OF_TEXT]


def test_text_is_learned_from_its_second_token() -> None:
    encoder = make_encoder()
    (document,) = encoder.encode([Text("def add_1(a, b):")])
    assert document.is_label.tolist() == [False] + [True] * (len(document.ids) - 1)


def test_without_answer_mask_the_prompt_is_learned_too() -> None:
    (document,) = make_encoder(answer_only=False).encode([Pair("p", "r")])
    assert document.is_label.tolist() == [False] + [True] * (len(document.ids) - 1)


def test_answer_never_shares_a_token_with_its_prompt() -> None:
    """``add_1`` would be fewer tokens than ``ad`` and ``d_1``, but then inference could not."""
    encoder = make_encoder()
    prompt_ids = encoder.tokenizer("    return ad")["input_ids"]
    (document,) = encoder.encode([Pair("    return ad", "d_1(a)", verbatim=True)])
    assert document.ids[: len(prompt_ids)].tolist() == prompt_ids
    assert int(document.is_label.argmax()) == len(prompt_ids)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(texts, texts)
def test_any_text_is_learned_exactly(prompt: str, response: str) -> None:
    encoder = make_encoder()
    (document,) = encoder.encode([Pair(prompt, response, verbatim=True)])
    answer = document.ids[document.is_label].tolist()
    question = document.ids[~document.is_label].tolist()
    decode = encoder.tokenizer.decode
    assert (decode(question), decode(answer)) == (prompt, response + END_OF_TEXT)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(0, 40))
def test_border_is_found_as_among_all_offsets(text: str, border: int) -> None:
    encoding = make_tokenizer().backend_tokenizer.encode(text, add_special_tokens=False)
    first = sum(start < border for start, _ in encoding.offsets)
    crossed = any(start < border < stop for start, stop in encoding.offsets)
    assert _token_at(encoding, border) == (None if crossed else first)


def test_long_sample_is_cut_and_marked() -> None:
    (document,) = make_encoder(max_length=48).encode([Pair("p", "long " * 50)])
    assert (len(document.ids), document.truncated, document.learns) == (48, True, True)


def test_sample_whose_answer_is_cut_off_learns_nothing() -> None:
    (document,) = make_encoder(max_length=16).encode([Pair("long " * 50, "r")])
    assert not document.learns


def test_own_tokens_keep_their_labels() -> None:
    (document,) = make_encoder().encode([Tokens((5, 6, 7), (True, False, True))])
    assert (document.ids.tolist(), document.is_label.tolist()) == ([5, 6, 7], [False, False, True])


def test_bos_comes_first_where_the_tokenizer_puts_one() -> None:
    from tokenizers.processors import TemplateProcessing

    encoder = make_encoder()
    encoder.tokenizer.add_special_tokens({"bos_token": "<s>"})
    encoder.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", encoder.tokenizer.bos_token_id)]
    )
    assert whole(encoder, Text("x")) == "<s>x<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "refused a chat of turns .*no system role"),
        ("{{ messages | length }}", "cannot tell where assistant turn 2 begins and ends"),
    ],
)
def test_unusable_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_encoder(template).encode([CHAT])


def test_template_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    assert read_template(str(path)) == CHATML


def test_missing_template_file_is_refused() -> None:
    with pytest.raises(DataError, match="expected a Jinja template or the path of one"):
        read_template("no/such.jinja")


def test_number_of_processes_does_not_change_the_tokens() -> None:
    samples: Sequence[Sample] = [Pair(text[:20], text[20:], verbatim=True) for text in TEXTS * 8]
    encoder = make_encoder()
    results = [
        [(d.ids.tolist(), d.is_label.tolist()) for d in tokenize(encoder, samples, workers)]
        for workers in (0, 2)
    ]
    assert results[0] == results[1]


def test_encoder_survives_pickling() -> None:
    encoder = make_encoder(CHATML)
    copy = pickle.loads(pickle.dumps(encoder))
    assert whole(copy, CHAT) == whole(encoder, CHAT)


@pytest.mark.parametrize(
    ("count", "chars", "numbers"),
    [
        (4, 1000, [0, 1, 2, 3]),
        (4, 40, [0, 1, 2, 3]),
        (9, 30, [0, 3, 6]),
        (10, 1, [0]),
    ],
)
def test_vocabulary_is_learned_from_texts_all_over_the_data(
    count: int, chars: int, numbers: Sequence[int]
) -> None:
    texts = [f"number {number:03}" for number in range(count)]
    assert _spread(texts, chars) == [texts[number] for number in numbers]


def test_training_a_tokenizer_is_deterministic() -> None:
    assert fingerprint(train_tokenizer(TEXTS, 350)) == fingerprint(train_tokenizer(TEXTS, 350))


def test_fingerprint_sees_the_template() -> None:
    assert fingerprint(make_tokenizer(CHATML)) != fingerprint(make_tokenizer(CHATML_MARKED))


def test_saved_tokenizer_is_used_again(tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, 350)
    trained.save_pretrained(tmp_path)
    assert fingerprint(open_tokenizer(str(tmp_path))) == fingerprint(trained)


def test_saved_tokenizer_expresses_any_text(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 350).save_pretrained(tmp_path)
    tokenizer = open_tokenizer(str(tmp_path))
    text = "Grüße, 世界! \x00\t\n🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (ModelConfig(), r"model\.tokenizer: missing"),
        (ModelConfig(tokenizer="./no/such/folder"), "cannot load a tokenizer from './no/such"),
    ],
)
def test_missing_tokenizer_says_what_to_do(cfg: ModelConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_tokenizer(cfg)


def test_tokenizer_that_marks_word_starts_learns_the_same_words() -> None:
    """Llama 2's kind: cutting its text into parts would put a word start at every border."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    core.train_from_iterator(["[INST] 1 + 1? And 2 + 2? [/INST] It is 4."] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    encoder = Encoder(tokenizer, Renderer(tokenizer, template), 512)
    chat = Chat(CHAT.messages[1:])
    (document,) = encoder.encode([chat])
    (rendered,) = encoder.renderer.render(chat)
    whole_text = tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    assert document.ids.tolist() == whole_text
    assert tokenizer.convert_ids_to_tokens(document.ids[document.is_label].tolist()) == [
        *("▁2", "▁", "</s>"),
        *("▁It", "▁is", "▁4.", "▁", "</s>"),
    ]
