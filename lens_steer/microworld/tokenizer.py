"""The fast tokenizer of the microworld: one token per word, in the grammar's own id order.

It adds no special tokens by itself (GPT-2's habit); a text decodes to the very same string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import BOS, EOS, PAD, UNK, Grammar

if TYPE_CHECKING:
    from pathlib import Path

POSITIONS = 160


def build_tokenizer(grammar: Grammar | None = None) -> Any:
    """A transformers fast tokenizer over the grammar's vocabulary."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    grammar = grammar or english()
    fast = Tokenizer(WordLevel(dict(grammar.ids), unk_token=UNK))
    fast.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=fast,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and its configuration."""
    build_tokenizer().save_pretrained(folder)
