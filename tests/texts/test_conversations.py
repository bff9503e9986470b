"""Conversations as rows of a contrast: kept, hashed, blocked, known again, read."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lens_steer.activations.collect import collect
from lens_steer.errors import ContrastError
from lens_steer.evaluation.evaluation import evaluate
from lens_steer.methods.caa import CAA
from lens_steer.texts.beginnings import beginnings
from lens_steer.texts.blocks import blocks_of, pooled_text, row_parts
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.messages import ConversationRow, messages_of
from lens_steer.texts.readers import read_contrast
from lens_steer.texts.seen import known_forms, leave_out_seen, seen_forms, was_seen
from tests.families import make_tiny, sentences


def chat(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["system"] * (first == "system") + ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


ANSWERED = [chat(f"question {n}", f"answer {n}") for n in range(8)]


def test_rows_are_kept_as_values_that_cannot_change() -> None:
    contrast = ContrastSet(ANSWERED[:4], [{"messages": row} for row in ANSWERED[4:]])
    assert contrast.source[0] == (("user", "question 0"), ("assistant", "answer 0"))
    assert all(isinstance(row, ConversationRow) for row in contrast.source + contrast.target)
    assert messages_of(contrast.source[0]) == ANSWERED[0]
    assert contrast == ContrastSet(contrast.source, contrast.target)
    assert {contrast} == {pickle.loads(pickle.dumps(contrast))}
    ANSWERED[0][0]["content"] = "changed"
    try:
        assert contrast.source[0][0][1] == "question 0"
    finally:
        ANSWERED[0][0]["content"] = "question 0"


def test_the_hash_knows_roles_contents_and_pairs_apart() -> None:
    variants = [
        ANSWERED[:2],
        [chat("question 0", "answer 0"), chat("question 1", "answer 2")],
        [[{"role": "system", "content": "question 0"}, ANSWERED[0][1]], ANSWERED[1]],
        [chat("hello", "hi", "question 0", "answer 0"), ANSWERED[1]],
    ]
    pairs, others = ([(f"question {n}", f"answer {n}") for n in part] for part in ((0, 1), (2, 3)))
    hashes = {ContrastSet(rows, ANSWERED[2:4]).data_hash for rows in variants}
    assert len(hashes | {ContrastSet(pairs, others).data_hash}) == 5
    assert ContrastSet(variants[0], ANSWERED[2:]).data_hash == ContrastSet(variants[0], ANSWERED[2:]).data_hash
    assert ContrastSet(ANSWERED[:2], ANSWERED[2:4]).labelled.data_hash != ContrastSet(pairs, others).labelled.data_hash


def test_answers_to_one_question_are_of_one_block_whatever_the_system_says() -> None:
    rows = [
        chat("why?", "so"),
        chat("why?", "thus"),
        chat("how?", "so"),
        chat("be kind", "why?", "so", first="system"),
        chat("be kind", "how?", "so", first="system"),
        chat("why?"),
    ]
    assert blocks_of(rows).tolist() == [0, 0, 1, 2, 3, 4]
    contrast = ContrastSet(
        [chat(f"q{n}", f"good {n}") for n in range(10)], [chat(f"q{n}", f"bad {n}") for n in range(10)]
    )
    for part in contrast.split(0.5, seed=1):
        assert {row.asked for row in part.source} == {row.asked for row in part.target}  # type: ignore[union-attr]
    assert len(contrast.subsample(4).source) == 4
    assert {*contrast.shuffled(3).source, *contrast.shuffled(3).target} == {*contrast.source, *contrast.target}
    assert contrast.labelled.contrast("contrast").source == contrast.source


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (
            [*ANSWERED[:1], "a text"],
            {},
            r"1 of 6 rows are texts, the others conversations that end with an answer.*: source\[1\]",
        ),
        ([*ANSWERED[:2], chat("only a question")], {}, r"1 of 7 rows are .* a question, the others .*: source\[2\]"),
        ([*ANSWERED[:2], ("a", "b")], {}, r"1 of 7 rows are \(prompt, completion\) pairs.*source\[2\]"),
        ([chat("why?", "  ")], {}, r"blank.*source\[0\]"),
        ([[{"role": "user"}]], {}, r"source\[0\]: a message has a role and a text"),
        (ANSWERED[0], {}, r"source\[0\]: a conversation is a list of messages"),
        ([[]], {}, r"neither a text.*source\[0\]"),
        (ANSWERED[:2], {"chat": "User: {text}"}, "leave chat away"),
    ],
)
def test_what_is_no_conversation_or_conflicts_is_refused(source: Any, settings: Any, message: str) -> None:
    with pytest.raises(ContrastError, match=message):
        ContrastSet(source, ANSWERED[4:], **settings)
    assert ContrastSet(ANSWERED[:4], ANSWERED[4:], chat=True).chat is True


def test_they_are_known_again_by_question_and_answer_in_whatever_form() -> None:
    seen = seen_forms(known_forms(ContrastSet(ANSWERED[:4], ANSWERED[4:6]).source))
    asked: list[tuple[Any, bool]] = [
        (ANSWERED[0], True),
        (ConversationRow.of(ANSWERED[1]), True),
        (("question 0", "answer 0"), True),  # the same text, as chat=True lays it out
        ("question 3", True),
        (chat("question 3"), True),
        (chat("question 3", "another answer"), True),
        (chat("question 9", "answer 0"), False),
        (chat("be kind", "question 0", first="system"), False),
        ("answer 0", False),
    ]
    assert was_seen([row for row, _ in asked], seen).tolist() == [known for _, known in asked]
    left = leave_out_seen(ContrastSet(ANSWERED[2:7], ANSWERED[7:]), seen)
    assert left.source == ContrastSet(ANSWERED[4:7], ANSWERED[7:]).source


def test_parts_words_and_beginnings() -> None:
    long = ConversationRow.of(chat("be kind", "why?", "so", first="system"))
    assert long is not None
    assert row_parts(long) == ("system: be kind\nuser: why?", "so")
    assert [pooled_text(row) for row in (long, chat("why?"), ("p", "c"), "t")] == ["so", "why?", "c", "t"]
    question, beginning = beginnings([ConversationRow.of(chat("why?")) or "", long], words=1)
    assert messages_of(beginning) == [{"role": "system", "content": "be kind"}, *chat("why?")]
    assert messages_of(question) == chat("why?")


def test_tables_hold_them(tmp_path: Path) -> None:
    records = [{"messages": row, "label": n % 2} for n, row in enumerate(ANSWERED)]
    expected = ContrastSet(ANSWERED[1::2], ANSWERED[::2])
    lines, arrow = tmp_path / "chats.jsonl", tmp_path / "chats.parquet"
    lines.write_text("\n".join(map(json.dumps, records)))
    pd.DataFrame(records).to_parquet(arrow)
    for place in (lines, arrow, records, pd.DataFrame(records)):
        contrast = read_contrast(place, text="messages")
        assert (contrast.source, contrast.target) == (expected.source, expected.target)
    sides = [{"prompt": row[:1], "chosen": row[1:], "rejected": chat("x", "no")[1:]} for row in ANSWERED]
    read = read_contrast(sides, prompt="prompt", source_text="rejected", target_text="chosen")
    assert read.paired
    assert read.target == ContrastSet(ANSWERED, [chat("x", "y")]).source
    assert [pooled_text(row) for row in read.source] == ["no"] * 8
    half = [{**row, "prompt": "p"} for row in sides]
    with pytest.raises(ContrastError, match="a text beside a list of messages"):
        read_contrast(half, prompt="prompt", source_text="rejected", target_text="chosen")
    broken = [*records[:3], {"messages": [{"role": "user", "content": 3}], "label": 1}]
    with pytest.raises(ContrastError, match=r"'messages' in row 3: a message has a role"):
        read_contrast(broken, text="messages")


@pytest.fixture(scope="module")
def chatty() -> Any:
    model = make_tiny("gpt2")
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }} the {% endfor %}"
        "{% if add_generation_prompt %}cat {% endif %}"
    )
    return model


def test_a_contrast_of_them_is_one_of_pairs_in_the_template(chatty: Any) -> None:
    """Collected values are those of (prompt, completion) pairs that the tokenizer's template lays out."""
    questions, answers = sentences(9, seed=1, length=(3, 5)), sentences(9, seed=2, length=(2, 4))
    pairs = list(zip(questions, answers, strict=True))
    rows = [chat(*pair) for pair in pairs]
    conversations = ContrastSet(rows[:4], rows[4:8])
    one = collect(chatty, conversations, "hook_resid_post", pool="mean")
    other = collect(chatty, ContrastSet(pairs[:4], pairs[4:8], chat=True), "hook_resid_post", pool="mean")
    for site in one.sites:
        np.testing.assert_array_equal(one.values[site].numpy(), other.values[site].numpy())
    edit = CAA(sites="hook_resid_post").fit(chatty, conversations)
    measured: dict[str, Any] = {"neutral": [chat("a dog", "ran"), chat("a cat", "ran")], "max_new_tokens": 2}
    measured |= {"scorer": lambda texts: np.zeros(len(texts)), "progress": False}
    result = evaluate(chatty, edit, prompts=[chat(questions[8]), chat("a dog")], **measured)
    assert len(result.texts) == 2
    with pytest.raises(ContrastError, match="was made from 1 of these 2 texts"):
        evaluate(chatty, edit, prompts=[chat(questions[1]), chat("a dog")], **measured)
