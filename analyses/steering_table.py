"""The table of steering methods on real language models: every method, several jobs, two scorers of different kind.

A model with a chat template is asked in it; another goes on from the beginning of a text.

`python -m analyses.steering_table --model smollm2 --job woman --out rows.csv` runs one job and writes its rows;
`--only` and `--seed` split the work over processes, and the same command goes on with one that was broken off.
`--seeds 1 2 3 4 5` runs the job with each of them, and adds what they say together (OUT_seeds.csv).
`--job base_rates` says how much of each concept the unedited model shows: a job is worth running at 20 to 80 %.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses import method_comparison
from analyses.real_models import SHARED

WORDS = {
    "sad": ["sad", "sadly", "sadness", "cried", "cry", "crying", "tears", "upset", "lonely", "grief", "heartbroken"],
    "happy": ["happy", "happily", "glad", "smiled", "smile", "smiles", "laughed", "joy", "excited", "delighted"],
    "dog": ["dog", "dogs", "puppy", "puppies"],
    "water": ["water", "rain", "river", "pond", "lake", "sea", "swim", "swam", "wet", "ocean", "pool"],
    "woman": ["she", "her", "hers", "herself", "woman", "women", "female"],
    "football": ["football", "soccer", "quarterback", "touchdown", "goalkeeper", "NFL", "FIFA"],
}
_WHO = ["a boy", "a girl", "an old man", "a teacher", "a sailor", "a nurse", "two brothers", "a farmer"]
_LOSS = ["a lost toy", "a broken window", "a rainy day", "a long goodbye", "a missed train", "a sick cat"]
_FUN = ["a birthday", "a new bicycle", "a day at the park", "a letter from a friend", "a big cake", "a small garden"]
_PETS = ["pet that barks", "loyal pet", "furry friend", "pet at the door", "animal on a leash", "pet in the park"]
_PLACES = ["a boat", "a harbor", "a fishing trip", "a bridge", "a storm", "a glass of lemonade"]
_JOBS = (
    "nurse teacher librarian secretary dancer cleaner hairdresser florist cashier tailor baker cook student writer "
    "painter doctor lawyer pharmacist photographer singer psychologist waiter journalist artist scientist chemist "
    "editor designer musician gardener manager actor banker clerk dentist judge guard receptionist veterinarian "
    "counselor assistant neighbor cousin customer passenger visitor patient"
).split()
_SPORTS = ["Saturday afternoons", "team sports", "a famous match", "school sports", "a stadium", "a great coach"]
_PLAYED = ["a village", "a city", "1980", "Brazil", "a small town", "summer", "Europe", "the old days"]
_QUESTIONS = [
    "Tell me about {}?",
    "Write two sentences about {}?",
    "Explain in two sentences why people like {}?",
    "What is special about {}?",
]
_BEGINNINGS = [
    "This page is about {}. It says that",
    "This is the history of {}. In the beginning",
    "People say many things about {}. One is that",
    "This is for children who like {}. They will",
]
_PLAIN = ["the moon", "bread", "trains", "the number seven", "paper", "glass", "mountains", "clocks", "salt", "bridges"]
_PLAIN += ["libraries", "maps", "wood", "the alphabet", "chess", "steam engines", "coins", "bees", "tea", "windows"]
REPLY_TOKENS, MOST_NEUTRAL = 40, 80
ENDINGS = {"methods": "", "against_random": "_random", "seeds": "_seeds"}  # of the names of the tables' files
METHODS = 17  # whose intervals hold at once
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}


@dataclass(frozen=True)
class Job:
    """A concept to take away: its texts, what a model is asked or goes on from, and the words that show it."""

    read: Callable[[], ls.ContrastSet]
    questions: tuple[str, ...]
    beginnings: tuple[str, ...]
    words: tuple[str, ...]

    def prompts(self, model: Any) -> tuple[str, ...]:
        """Return the questions for a model with a chat template, the beginnings for another."""
        return self.questions if has_chat_template(model) else self.beginnings


def has_chat_template(model: Any) -> bool:
    """Return whether a model has a chat template."""
    return bool(model.tokenizer.chat_template)


def _stories(name: str) -> Callable[[], ls.ContrastSet]:
    return lambda: ls.read_contrast(SHARED / "data" / "story_concepts" / f"{name}.json")


def _concept(name: str) -> Callable[[], ls.ContrastSet]:
    return lambda: ls.read_contrast(SHARED / "data" / "concepts_selfcond" / f"{name}.json", n=400)


def _asked(form: str, *parts: Sequence[str]) -> tuple[str, ...]:
    asked = [form.format(*chosen) for chosen in product(*parts)]
    return tuple(random.Random(0).sample(asked, len(asked)))  # every second one chooses, the others are reported on


def _job(
    name: str,
    read: Callable[[], ls.ContrastSet],
    form: str,
    beginning: str,
    *parts: Sequence[str],
    of_beginnings: Sequence[Sequence[str]] = (),
) -> Job:
    """Return a job whose questions and beginnings vary the same parts, unless beginnings have their own."""
    questions, beginnings = _asked(f"Write two {form}.", *parts), _asked(beginning, *(of_beginnings or parts))
    return Job(read, questions, beginnings, tuple(WORDS[name]))


JOBS: dict[str, Job] = {
    "sad": _job(
        "sad",
        _stories("sad"),
        "sad sentences about {} and {}",
        "This is about {} and {}. It hurt so much that",
        _WHO,
        _LOSS,
    ),
    "happy": _job(
        "happy",
        _stories("happy"),
        "cheerful sentences about {} and {}",
        "This is about {} and {}. It was so good that",
        _WHO,
        _FUN,
    ),
    "dog": _job(
        "dog", _stories("dog"), "sentences about {} and the {}", "This is about {} and the {}. One day the", _WHO, _PETS
    ),
    "water": _job(
        "water", _stories("water"), "sentences about {} and {}", "This is about {} and {}. Down there,", _WHO, _PLACES
    ),
    "woman": _job(
        "woman",
        _concept("woman"),
        "sentences about what the {} did today",
        "One evening the {} came home late and",
        _JOBS,
    ),
    "football": _job(
        "football",
        _concept("football"),
        "sentences about {} in {}",
        "This is about {} in {}. Every boy there loves",
        _SPORTS,
        _PLAYED[:3],
        of_beginnings=(_SPORTS, _PLAYED),
    ),
}


def neutral_pairs(
    model: Any, *, most: int | None = None, reply_tokens: int = REPLY_TOKENS, seed: int = 0
) -> tuple[tuple[str, str], ...]:
    """Return plain prompts with what the unedited model makes of them: what an edit costs is measured on these.

    `most` is how many prompts there are; all when left out.
    """
    forms = _QUESTIONS if has_chat_template(model) else _BEGINNINGS
    prompts = _asked("{}", [form.format(thing) for form in forms for thing in _PLAIN])[:most]
    replies = _replies(model, prompts, reply_tokens, seed)
    return tuple((prompt, reply) for prompt, reply in zip(prompts, replies, strict=True) if len(reply.split()) > 3)


def _replies(model: Any, asked: Sequence[str], tokens: int, seed: int) -> list[str]:
    settings: dict[str, Any] = {"max_new_tokens": tokens, "progress": False, **SAMPLING}
    return ls.generate(model, list(asked), chat=has_chat_template(model) or None, seed=seed, **settings)


def prepared(job: Job, *, chat: bool) -> tuple[ls.ContrastSet, tuple[ls.Scorer, ls.ConceptClassifier]]:
    """Return the job's contrast and its scorers: a word list, and a classifier.

    The classifier is fitted on texts that take no part in the fits: a third of the contrast.
    """
    contrast = job.read()
    rest, judged = contrast.split(test=1 / 3, seed=17)
    classifier = ls.ConceptClassifier.fit(judged, seed=0)
    return replace(rest, chat=chat or None), (ls.WordList(job.words, name=f"{contrast.name} words"), classifier)


def base_rates(model: Any, reply_tokens: int = REPLY_TOKENS) -> pd.DataFrame:
    """Return how much of its concept every job's replies show without an edit, by both scorers."""
    rows = []
    for name, job in JOBS.items():
        _, (words, classifier) = prepared(job, chat=has_chat_template(model))
        texts = _replies(model, job.prompts(model), reply_tokens, 0)
        scores = {"words": float(np.mean(words(texts))), "classifier": float(np.mean(classifier(texts)))}
        rows.append({"job": name, "prompts": len(texts), **scores, "classifier_auroc": classifier.heldout_auroc})
    return pd.DataFrame(rows)


def run(
    model: Any,
    name: str,
    *,
    out: Path | None,
    seed: int,
    only: tuple[str, ...],
    random_edits: int = 0,
    reply_tokens: int = REPLY_TOKENS,
    most_neutral: int = MOST_NEUTRAL,
) -> ls.Study:
    """Run the study of one job: every method at its best strength under the budget, at its paper's sites.

    With `random_edits` each method stands beside that many random edits that write as far. The run folder is `out`;
    what is done of a run that was broken off is taken over by the same call.
    """
    contrast, (words, classifier) = prepared(JOBS[name], chat=has_chat_template(model))
    return method_comparison.run(
        model,
        contrast,
        out=out,
        seed=seed,
        sites=None,
        only=only,
        looks=METHODS,
        strengths=(0.5, 1.0, 2.0),
        budget=1.25,
        steps=100,
        random_edits=random_edits,
        scorer=words,
        second_scorer=classifier,
        **measurement(model, name, reply_tokens=reply_tokens, most_neutral=most_neutral),
    )


def measurement(
    model: Any, name: str, *, reply_tokens: int = REPLY_TOKENS, most_neutral: int = MOST_NEUTRAL
) -> dict[str, Any]:
    """Return the job's prompts and neutral texts, and how they are continued, for any study (see `Measurement`)."""
    prompts = JOBS[name].prompts(model)
    return {
        "prompts": prompts,
        "most_prompts": len(prompts),
        "neutral": neutral_pairs(model, most=most_neutral, reply_tokens=reply_tokens),
        "most_neutral": most_neutral,
        "samples": 2,
        "max_new_tokens": reply_tokens,
        **SAMPLING,
    }


def methods(model: Any, name: str, *, out: Path, seed: int, **settings: Any) -> dict[str, pd.DataFrame]:
    """Return the rows of one job: `methods`, and with `random_edits` `against_random`; the rest is as in `run`."""
    frames = run(model, name, out=out, seed=seed, **settings).frames
    kept = [table for table in ("methods", "against_random") if table in frames]
    return {table: frames[table].assign(job=name, seed=seed) for table in kept}


def over_seeds(model: Any, name: str, *, out: Path, seeds: Sequence[int], **settings: Any) -> dict[str, pd.DataFrame]:
    """Return the rows of one job over several seeds: `methods`, one row each, and `seeds`, those that hold for all.

    `settings` are those of `methods`. Prompts and neutral texts are the same for all seeds. What is done of a call that
    was broken off lies beside `out`, and is taken over by the same call. LensSteerError unless there are two seeds or
    more, all different: one run twice would say that seeds do not vary.
    """
    if len(set(seeds)) != len(seeds) or len(seeds) < 2:
        raise ls.LensSteerError(f"seeds {' '.join(map(str, seeds))}: give two or more, all different")
    plan = {"job": name, "seeds": list(seeds), "settings": settings}
    with ls.resumable(out, model=model, plan=plan):
        studies = [run(model, name, out=None, seed=seed, **settings) for seed in seeds]
        pooled = method_comparison.over_seeds(studies).assign(seed=" ".join(map(str, seeds)))
    by_seed = [study.frames["methods"].assign(seed=seed) for seed, study in zip(seeds, studies, strict=True)]
    return {"methods": pd.concat(by_seed).assign(job=name), "seeds": pooled.assign(job=name)}


def main() -> None:
    """Run what the arguments name and write its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--job", choices=[*JOBS, "base_rates"], required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="several, in place of --seed; into OUT_seeds.csv"
    )
    parser.add_argument("--random-edits", type=int, default=0, help="how many beside each method, into OUT_random.csv")
    parser.add_argument("--reply-tokens", type=int, default=REPLY_TOKENS)
    parser.add_argument("--most-neutral", type=int, default=MOST_NEUTRAL)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, required=True, help="the rows; the run folder lies beside it: OUT_run")
    given = parser.parse_args()
    try:
        _write(given)
    except ls.LensSteerError as error:
        parser.error(str(error))


def _write(given: argparse.Namespace) -> None:
    if given.seeds and given.random_edits:
        raise ls.LensSteerError("--random-edits stand beside the edits of one seed: give --seed in place of --seeds")
    model = ls.load_model(given.model, device=given.device, dtype=given.dtype)
    about = {"model": given.model, "dtype": given.dtype}
    if given.job == "base_rates":
        frame = base_rates(model, given.reply_tokens).assign(**about)
        frame.to_csv(given.out, index=False)
        print(json.dumps({"rows": len(frame), "out": str(given.out)}))
        return
    folder = given.out.with_name(f"{given.out.stem}_run")
    settings = {
        "only": tuple(given.only),
        "random_edits": given.random_edits,
        "reply_tokens": given.reply_tokens,
        "most_neutral": given.most_neutral,
    }
    if given.seeds:
        tables = over_seeds(model, given.job, out=folder, seeds=given.seeds, **settings)
    else:
        tables = methods(model, given.job, out=folder, seed=given.seed, **settings)
    for table, frame in tables.items():
        path = given.out.with_stem(f"{given.out.stem}{ENDINGS[table]}")
        frame.assign(**about).to_csv(path, index=False)
    print(json.dumps({"rows": len(tables["methods"]), "out": str(given.out)}))


if __name__ == "__main__":
    main()
