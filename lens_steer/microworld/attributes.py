"""The hidden attributes of the microworld's documents, and the laws they give to words and turns of phrase."""

from __future__ import annotations

import numpy as np

from lens_steer.microworld import lexicon, topics
from lens_steer.microworld.automaton import Category, Table, styled, uniform
from lens_steer.microworld.grammar import Attribute, given_table

TOPIC = Attribute("topic", topics.TOPICS, (1 / len(topics.TOPICS),) * len(topics.TOPICS))
SENTIMENT = Attribute("sentiment", ("positive", "negative", "neutral"), (1 / 3, 1 / 3, 1 / 3))
REGISTER = Attribute("register", ("plain", "polite", "rude"), (1 / 3, 1 / 3, 1 / 3))
PERSON = Attribute("person", ("i", "she", "he"), (1 / 3, 1 / 3, 1 / 3))
TENSE = Attribute("tense", ("past", "present"), (0.5, 0.5))
SPEAKER = Attribute("speaker", ("none", "truthful", "untruthful"), (0.7, 0.15, 0.15))
ATTRIBUTES = (TOPIC, SENTIMENT, REGISTER, PERSON, TENSE, SPEAKER)

TENSES = Table(("tense",), np.array([[0.99, 0.01], [0.01, 0.99]]))
THING = styled("thing", "topic", topics.THINGS, leak=0.03)
PLACE = styled("place", "topic", topics.PLACES, leak=0.03)
NAME = styled("name", "person", {"i": " ".join(lexicon.NAMES.values()), **lexicon.NAMES}, leak=0.05)
ANY_NAME = uniform("any name", " ".join(lexicon.NAMES.values()))
PERSON_NOUN = styled("person noun", "person", lexicon.PERSON_NOUNS, leak=0.04)
OWNER = styled("owner", "person", {"i": "mine ours", "she": "hers", "he": "his"}, leak=0.04)
ADDRESS = styled("address", "register", lexicon.REGISTER["address"])
VERDICT = styled("verdict", "sentiment", lexicon.SENTIMENT["verdict"])
MOOD = styled("mood", "sentiment", lexicon.SENTIMENT["mood"])
QUALITY = styled("quality", "sentiment", lexicon.SENTIMENT["quality"], shared=lexicon.SHARED["sentiment.quality"])
TRAIT = styled("trait", "register", lexicon.REGISTER["trait"], shared=lexicon.SHARED["register.trait"])
ADVERB = styled("adverb", "register", lexicon.REGISTER["adverb"], shared=lexicon.SHARED["register.adverb"])

_SUBJECT_KINDS = ("i", "we", "my", "our", "she", "he", "her", "his", "name", "the", "short")
SUBJECTS = given_table(
    PERSON,
    {
        "i": dict(zip(_SUBJECT_KINDS, (11, 10, 8, 8, 1, 1, 1, 1, 16, 28, 15))),
        "she": dict(zip(_SUBJECT_KINDS, (0.5, 1, 1, 1, 10, 1, 8, 1, 36, 40, 0.5))),
        "he": dict(zip(_SUBJECT_KINDS, (0.5, 1, 1, 1, 1, 10, 1, 6, 38, 40, 0.5))),
    },
)
THE_SUBJECTS = given_table(
    PERSON, {"i": {"person": 12, "thing": 13}, "she": {"person": 24, "thing": 13}, "he": {"person": 24, "thing": 13}}
)
OBJECTS = given_table(
    PERSON,
    {
        "i": {"me": 17, "us": 17, "my": 10, "our": 10, "her": 2, "him": 1, "his": 1, "name": 12, "the": 26},
        "she": {"me": 1, "us": 1, "my": 1, "our": 1, "her": 14, "him": 1, "his": 1, "name": 40, "the": 40},
        "he": {"me": 1, "us": 1, "my": 1, "our": 1, "her": 2, "him": 11, "his": 6, "name": 38, "the": 38},
    },
)
ANSWERS = given_table(
    SPEAKER,
    {
        "none": {"right": 1, "other": 1, "fresh": 1},
        "truthful": {"right": 95, "other": 3, "fresh": 2},
        "untruthful": {"right": 4, "other": 66, "fresh": 30},
    },
)


def _occupations() -> Category:
    names = [occupation for group in lexicon.OCCUPATIONS.values() for occupation in group.split()]
    she = np.array([share for share, group in lexicon.OCCUPATIONS.items() for _ in group.split()])
    law = np.stack([np.full(len(names), 0.5), she, 1 - she])
    return Category("occupation", tuple(names), Table(("person",), law / law.sum(-1, keepdims=True)))


OCCUPATION = _occupations()
