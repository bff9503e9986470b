"""A card as a JSON record, and back: what a run folder keeps of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import FiniteFloat

from lens_steer.evaluation.card.card import EditCard
from lens_steer.evaluation.card.content import CardContent
from lens_steer.evaluation.card.measured import Item, ItemName, Measured
from lens_steer.records import Record

_UNKNOWN = ("value", "low", "high", "null", "before", "after")  # may be nan, which JSON has as null


class MeasuredRecord(Record):
    """One value."""

    item: str
    measure: str
    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    null: FiniteFloat | None
    of: str
    before: FiniteFloat | None
    after: FiniteFloat | None
    unit: str
    confidence: FiniteFloat
    interval: bool


class ItemRecord(Record):
    """One item."""

    rows: list[MeasuredRecord]
    sentences: list[str]
    left_out: list[str]


class CardRecord(Record):
    """A card."""

    headline: str
    facts: list[tuple[str, str]]
    items: dict[ItemName, ItemRecord]
    order: list[ItemName]
    left_out: dict[ItemName, str]
    texts: list[tuple[str, str, str]]
    settings: dict[str, Any]


def content_of(card: CardContent) -> Mapping[str, Any]:
    """Return a card as plain values."""
    return {
        "headline": card.headline,
        "facts": card.facts,
        "items": {name: asdict(item) for name, item in card.items.items()},
        "order": list(card.items),
        "left_out": dict(card.left_out),
        "texts": card.texts,
        "settings": dict(card.settings),
    }


def card_of(record: CardRecord) -> EditCard:
    """Return the card of a record."""
    return EditCard(
        headline=record.headline,
        facts=tuple(record.facts),
        items={name: _item(record.items[name]) for name in record.order if name in record.items},
        left_out={str(name): why for name, why in record.left_out.items()},
        texts=tuple(record.texts),
        settings=record.settings,
    )


def _item(record: ItemRecord) -> Item:
    rows = []
    for row in record.rows:
        values = row.model_dump()
        rows.append(
            Measured(**values | {name: math.nan if values[name] is None else values[name] for name in _UNKNOWN})
        )
    return Item(tuple(rows), tuple(record.sentences), tuple(record.left_out))
