"""Turns: requests of several threads are answered as alone; streams go on; two threads never edit at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import TextIteratorStreamer

from lens_steer.errors import ModelError
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import text_losses
from tests.handles import handles
from tests.host.test_attach import random_edit

SETTINGS: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12, "progress": False}


def in_threads(*calls: Callable[[], Any]) -> list[list[Any]]:
    """Run each call six times in a thread of its own, all at once; what is raised is an answer, too."""
    start, answers = threading.Barrier(len(calls)), [[] for _ in calls]

    def request(call: Callable[[], Any], into: list[Any]) -> None:
        start.wait()
        for _ in range(6):
            try:
                into.append(call())
            except ModelError as error:
                into.append(str(error))

    threads = [threading.Thread(target=request, args=pair) for pair in zip(calls, answers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_requests_of_several_threads_are_answered_as_alone(tiny: Any) -> None:
    prompts = ["the dog", "a cat ran"]
    edits = [None, random_edit(tiny, seed=1).scoped("last"), random_edit(tiny, seed=2)]

    def call(edit: Any) -> Any:
        texts = generate(tiny, prompts, intervention=edit, **SETTINGS)
        return texts, text_losses(tiny, prompts, intervention=edit, progress=False).sums.tolist()

    alone = [call(edit) for edit in edits]
    assert len({str(texts) for texts, _ in alone}) == len(edits)
    hanging = handles(tiny)
    answers = in_threads(*(lambda edit=edit: call(edit) for edit in edits))
    assert answers == [[expected] * 6 for expected in alone]
    assert handles(tiny) == hanging


def test_a_second_thread_is_refused_a_context_of_its_own(tiny: Any) -> None:
    ids, edit, other = torch.tensor([[1, 5, 9]]), random_edit(tiny, seed=1), random_edit(tiny, seed=2)

    def attached() -> Any:
        with other.on(tiny):
            return None

    with edit.on(tiny):
        expected = tiny(ids)
        (answers,) = in_threads(attached)
        assert all("the thread 'MainThread' is on this model" in str(answer) for answer in answers)
        assert torch.equal(tiny(ids), expected)
    assert in_threads(attached) == [[None] * 6]


def test_a_stream_that_is_started_under_an_edit_goes_on_under_it(tiny: Any) -> None:
    ids = tiny.to_tokens("the dog was")
    own: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    edit = random_edit(tiny).scoped("generated")
    with edit.on(tiny):
        expected = tiny.original_model.generate(ids, **own)[0, ids.shape[1] :]
        streamer = TextIteratorStreamer(tiny.tokenizer, skip_prompt=True)
        thread = threading.Thread(
            target=tiny.original_model.generate, args=(ids,), kwargs={"streamer": streamer, **own}
        )
        thread.start()
        streamed = "".join(streamer)
        thread.join()
    assert streamed.split() == tiny.tokenizer.decode(expected).split()
    assert edit.touched.generated_tokens.tolist() == [2 * 11] * 2
