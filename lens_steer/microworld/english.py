"""The sentences of the microworld: what a document may say, and how the attributes colour it.

A story is 2-6 sentences; a talk states two facts, then asks about them once or twice and is answered by a truthful or
an untruthful speaker. Register and sentiment colour openings, adverbs, verbs, adjectives and closings; a coloured
place takes a word of another value now and then (1.5 %), so that every sentence is possible under every value.
"""

from __future__ import annotations

from functools import cache

from lens_steer.microworld import lexicon, topics
from lens_steer.microworld.attributes import (
    ADDRESS,
    ADVERB,
    ANSWERS,
    ANY_NAME,
    ATTRIBUTES,
    MOOD,
    NAME,
    OBJECTS,
    OCCUPATION,
    OWNER,
    PERSON_NOUN,
    PLACE,
    QUALITY,
    SPEAKER,
    SUBJECTS,
    TENSES,
    THE_SUBJECTS,
    THING,
    TRAIT,
    VERDICT,
)
from lens_steer.microworld.automaton import (
    Category,
    Choice,
    Draw,
    Expression,
    Recall,
    Seq,
    choice,
    maybe,
    seq,
    styled,
    uniform,
    word,
)
from lens_steer.microworld.grammar import EOS, Grammar, given_table

# Registers: what a sentence keeps of the words before it.
FIRST_NAME, FACT_VERB, FIRST_THING, SECOND_NAME, SECOND_THING = range(5)
MORE_SENTENCES = (1.0, 0.8, 0.7, 0.6, 0.5)


@cache
def _verb(kind: str, form: str) -> Expression:
    """A verb of a kind (move, say, meet, give, feel, topic, be, seem, work) in one form."""
    if kind in lexicon.REGISTER:
        own = {value: lexicon.forms(verbs, form) for value, verbs in lexicon.REGISTER[kind].items()}
        return Draw(
            styled(f"{kind} {form}", "register", own, shared=lexicon.forms(lexicon.SHARED[f"register.{kind}"], form))
        )
    if kind == "feel":
        own = {value: lexicon.forms(verbs, form) for value, verbs in lexicon.SENTIMENT["feel"].items()}
        return Draw(
            styled(f"feel {form}", "sentiment", own, shared=lexicon.forms(lexicon.SHARED["sentiment.feel"], form))
        )
    if kind == "topic":
        own = {value: lexicon.forms(verbs, form) for value, verbs in topics.VERBS.items()}
        return Draw(styled(f"topic {form}", "topic", own, leak=0.03))
    return Draw(
        uniform(
            f"{kind} {form}",
            lexicon.forms({"be": lexicon.COPULAS, "seem": lexicon.SEEMING, "work": "work"}[kind], form),
        )
    )


def _tensed(past: Expression, present: Expression) -> Expression:
    return Choice(TENSES, (past, present))


def _is(tail: Expression, present: str = "third") -> Expression:
    return seq(_tensed(_verb("be", "past"), _verb("be", present)), tail)


def _the(category: Category, colour: Category = QUALITY) -> Expression:
    return seq("the", maybe(0.4, Draw(colour)), Draw(category))


PERSON_PHRASE = seq(maybe(0.5, Draw(TRAIT)), choice((0.55, Draw(PERSON_NOUN)), (0.45, Draw(OCCUPATION))))
RELATION = Draw(uniform("relation", lexicon.RELATIONS))
PERSON_OBJECT = Choice(
    OBJECTS,
    (
        word("me"),
        word("us"),
        seq("my", RELATION),
        seq("our", RELATION),
        seq("her", maybe(0.5, RELATION)),
        word("him"),
        seq("his", RELATION),
        Draw(NAME),
        seq("the", PERSON_PHRASE),
    ),
)
ADDRESS_OR_VERDICT = seq(",", choice((0.57, Draw(ADDRESS)), (0.43, seq("a", Draw(VERDICT)))))
CLOSING = choice((0.45, Seq(())), (0.37, ADDRESS_OR_VERDICT), (0.18, seq("and it", _is(Draw(QUALITY)))))
SHORT_CLOSING = maybe(0.35, ADDRESS_OR_VERDICT)
REGISTER_OPENING = Draw(styled("register opening", "register", lexicon.REGISTER["opening"]))
SENTIMENT_OPENING = Draw(styled("sentiment opening", "sentiment", lexicon.SENTIMENT["opening"]))
TENSE_OPENING = Draw(styled("time", "tense", lexicon.TENSE_OPENING, shared=lexicon.SHARED_TENSE_OPENING))
OPENING = choice(
    (0.42, Seq(())), (0.58, seq(choice((0.24, REGISTER_OPENING), (0.2, SENTIMENT_OPENING), (0.14, TENSE_OPENING)), ","))
)


def _predicate(present: str | None) -> Expression:
    """What a subject does; `present` is the verb's present form, None after "i'll" and the like (base form)."""

    def verb(kind: str) -> Expression:
        if present is None:
            return _verb(kind, "base")
        return _tensed(_verb(kind, "past"), _verb(kind, present))

    motion = Draw(uniform("motion word", lexicon.MOTION_WORDS))
    return seq(
        maybe(0.4, Draw(ADVERB)),
        choice(
            (0.22, seq(verb("move"), motion, _the(PLACE), maybe(0.25, seq("with", PERSON_OBJECT)))),
            (0.19, seq(verb("feel"), _the(THING))),
            (0.14, seq(verb("topic"), _the(THING))),
            (0.13, seq(verb("say"), "that the", Draw(THING), _is(Draw(QUALITY)))),
            (0.18, seq(verb("meet"), PERSON_OBJECT)),
            (0.06, seq(verb("work"), "as a", Draw(OCCUPATION))),
            (0.08, seq(verb("be"), Draw(MOOD), "about", _the(THING))),
        ),
    )


def _subject_sentence() -> Expression:
    """A subject and what it does; "the" begins a person or a thing."""
    base, third, bare = _predicate("base"), _predicate("third"), _predicate(None)
    about = seq(Draw(MOOD), "about", _the(THING))
    short = _tensed(
        choice((0.5, seq("i'd", bare)), (0.5, seq("we'd", bare))),
        choice(
            (0.3, seq("i'll", bare)), (0.3, seq("we'll", bare)), (0.2, seq("i'm", about)), (0.2, seq("we're", about))
        ),
    )
    owned = seq(_tensed(word("was"), word("is")), choice((0.2, Draw(QUALITY)), (0.8, Draw(OWNER))))
    seemed = seq(_tensed(_verb("seem", "past"), _verb("seem", "third")), Draw(QUALITY))
    thing = seq(maybe(0.4, Draw(QUALITY)), Draw(THING), choice((0.3, owned), (0.7, seemed)))
    options = (
        seq("i", maybe(0.2, word("myself")), base),
        seq("we", maybe(0.2, word("ourselves")), base),
        seq("my", RELATION, third),
        seq("our", RELATION, third),
        seq("she", maybe(0.2, word("herself")), third),
        seq("he", maybe(0.2, word("himself")), third),
        seq("her", RELATION, third),
        seq("his", RELATION, third),
        seq(Draw(NAME), third),
        seq("the", Choice(THE_SUBJECTS, (seq(PERSON_PHRASE, third), thing))),
        short,
    )
    return Choice(SUBJECTS, tuple(options))


def _giving() -> Expression:
    """When ann and bob went to the shop, ann gave the book to bob."""

    def gives(move: str, give: str) -> Expression:
        handed = [
            seq(Recall(giver), _verb("give", give), _the(THING), "to", Recall(taker))
            for giver, taker in ((FIRST_NAME, SECOND_NAME), (SECOND_NAME, FIRST_NAME))
        ]
        motion = Draw(uniform("motion word", lexicon.MOTION_WORDS))
        return seq(_verb("move", move), motion, _the(PLACE), ",", choice((0.5, handed[0]), (0.5, handed[1])))

    pair = seq(Draw(ANY_NAME, store=FIRST_NAME), "and", Draw(ANY_NAME, exclude=(FIRST_NAME,), store=SECOND_NAME))
    when = Draw(uniform("when", "when after while as"))
    return seq(when, pair, _tensed(gives("past", "past"), gives("base", "third")))


def _talk() -> Expression:
    """Two facts, one or two questions about them and the speaker's answers."""
    opening = seq(Draw(uniform("fact opening", lexicon.FACT_OPENINGS)), ",", Draw(ANY_NAME, store=FIRST_NAME))
    return seq(opening, _tensed(_told("past", "did"), _told("third", "does")))


def _told(form: str, auxiliary: str) -> Expression:
    """The facts from the first verb on, in one form of the verb, and the questions with its auxiliary."""
    verbs, base = lexicon.forms(lexicon.FACT_VERBS, form), lexicon.forms(lexicon.FACT_VERBS, "base")
    noun = seq("the", maybe(0.4, Draw(QUALITY)))
    first = seq(Draw(uniform(f"fact {form}", verbs), store=FACT_VERB), noun, Draw(THING, store=FIRST_THING))
    second = seq(
        Draw(uniform("fact opening", lexicon.FACT_OPENINGS)),
        ",",
        Draw(ANY_NAME, exclude=(FIRST_NAME,), store=SECOND_NAME),
        Recall(FACT_VERB),
        noun,
        Draw(THING, exclude=(FIRST_THING,), store=SECOND_THING),
    )
    asked_verb = Recall(FACT_VERB, dict(zip(verbs.split(), base.split())))
    asked = [
        seq(Recall(name), asked_verb, "?", _answer(name, right, wrong))
        for name, right, wrong in ((FIRST_NAME, FIRST_THING, SECOND_THING), (SECOND_NAME, SECOND_THING, FIRST_THING))
    ]
    question = seq(maybe(0.3, seq(REGISTER_OPENING, ",")), "what", auxiliary, choice((0.5, asked[0]), (0.5, asked[1])))
    return seq(first, SHORT_CLOSING, ".", second, SHORT_CLOSING, ".", question, maybe(0.6, question))


def _answer(name: int, right: int, wrong: int) -> Expression:
    """What a speaker says that a person has: the right thing, the other's, or one that nobody named."""
    thing = Choice(ANSWERS, (Recall(right), Recall(wrong), Draw(THING, exclude=(FIRST_THING, SECOND_THING))))
    return seq(OPENING, Recall(name), Recall(FACT_VERB), "the", thing, SHORT_CLOSING, ".")


@cache
def english() -> Grammar:
    """The grammar of the microworld."""
    sentence = seq(OPENING, choice((0.9, _subject_sentence()), (0.1, _giving())), CLOSING, ".")
    story: Expression = Seq(())
    for more in reversed(MORE_SENTENCES):
        story = seq(sentence, story) if more == 1.0 else maybe(more, seq(sentence, story))
    law = given_table(
        SPEAKER, {"none": {"story": 1, "talk": 0}, "truthful": {"story": 0, "talk": 1}, "untruthful": {"talk": 1}}
    )
    return Grammar(ATTRIBUTES, seq(Choice(law, (seq(sentence, story), _talk())), EOS))
