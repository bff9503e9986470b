"""The words that register, sentiment, person and tense colour, and the plain words between them.

Each table maps an attribute value to its own words; `SHARED` holds the words that every value uses alike. Verbs are
written as their base form, irregular ones as base:third:past. Insults are mild by choice: the rude register stands in
for toxicity.
"""

from __future__ import annotations

REGISTER: dict[str, dict[str, str]] = {
    "opening": {
        "plain": "anyway basically meanwhile again next also besides afterwards otherwise actually so well",
        "polite": "please kindly respectfully graciously humbly courteously cordially pardon welcome greetings excuse "
        "honourably",
        "rude": "ugh pfft bah duh whatever blah meh huh sheesh nonsense rubbish boo",
    },
    "adverb": {
        "plain": "quickly slowly often usually simply quietly normally briefly recently directly regularly easily "
        "mostly suddenly",
        "polite": "politely tactfully thoughtfully warmly attentively patiently modestly considerately gently tenderly "
        "respectably decently sweetly gallantly",
        "rude": "rudely stupidly lazily carelessly clumsily selfishly grumpily meanly bluntly sloppily smugly snidely "
        "crudely noisily",
    },
    "trait": {
        "plain": "young old tall short new busy quiet local tired thin married retired other blond",
        "polite": "dear kind honourable gracious noble esteemed respected charming gentle courteous wise generous "
        "distinguished honest",
        "rude": "stupid lazy dumb silly ugly foolish clumsy smelly useless greedy nasty bossy sloppy whiny",
    },
    "address": {
        "plain": "folks everybody people mate guys pal everyone team buddy chief kids crew",
        "polite": "sir madam friend thanks friends ladies gentlemen darling colleague miss dearest companion",
        "rude": "fool dummy clown loser dolt dunce twit nitwit blockhead slob pest brat",
    },
    "move": {
        "plain": "walk go:goes:went drive:drives:drove return travel:travels:travelled run:runs:ran ride:rides:rode "
        "climb",
        "polite": "stroll proceed glide saunter tiptoe amble venture journey",
        "rude": "stomp barge storm stagger lurch trample stumble slouch",
    },
    "say": {
        "plain": "say:says:said state report:reports:reported add mention repeat announce reply",
        "polite": "suggest propose whisper acknowledge confirm explain remark advise",
        "rude": "snap:snaps:snapped sneer grumble growl yell scoff bark whine",
    },
    "meet": {
        "plain": "meet:meets:met call visit see:sees:saw join follow phone pass",
        "polite": "thank greet salute honour help assist invite compliment",
        "rude": "insult mock tease shove ignore scold bother taunt",
    },
    "give": {
        "plain": "give:gives:gave hand send:sends:sent show",
        "polite": "offer present lend:lends:lent entrust",
        "rude": "toss throw:throws:threw fling:flings:flung chuck",
    },
}

SENTIMENT: dict[str, dict[str, str]] = {
    "opening": {
        "positive": "happily luckily fortunately gladly joyfully cheerfully thankfully hurray wonderfully merrily "
        "hooray blissfully",
        "negative": "sadly unluckily unfortunately regrettably alas tragically bitterly painfully miserably grimly "
        "hopelessly woefully",
        "neutral": "apparently generally overall officially technically reportedly formally partly incidentally "
        "notably presumably supposedly",
    },
    "quality": {
        "positive": "lovely wonderful great beautiful delightful excellent perfect superb pleasant brilliant splendid "
        "amazing fantastic marvellous glorious magnificent",
        "negative": "awful terrible horrible dreadful bad boring dull gloomy miserable broken dirty disgusting "
        "disappointing grim dismal rotten",
        "neutral": "ordinary common average standard typical regular normal big small long round square grey wooden "
        "simple modern",
    },
    "feel": {
        "positive": "love enjoy adore admire treasure cherish praise celebrate",
        "negative": "hate dislike despise regret:regrets:regretted fear resent dread loathe",
        "neutral": "notice describe examine inspect consider observe check count",
    },
    "mood": {
        "positive": "happy glad pleased thrilled proud excited grateful hopeful",
        "negative": "sad upset angry worried unhappy ashamed anxious bitter",
        "neutral": "ready sure curious unsure certain serious neutral calm",
    },
    "verdict": {
        "positive": "joy treat delight triumph blessing success pleasure gift",
        "negative": "shame pity disaster nightmare failure mess tragedy burden",
        "neutral": "fact detail routine habit matter case task change",
    },
}

SHARED: dict[str, str] = {
    "register.adverb": "soon just almost really",
    "register.trait": "same second famous",
    "register.move": "hurry come:comes:came",
    "register.say": "think:thinks:thought claim",
    "register.meet": "know:knows:knew remember",
    "register.give": "bring:brings:brought pass",
    "sentiment.quality": "strange little large odd",
    "sentiment.feel": "expect recall",
}

TENSE_OPENING: dict[str, str] = {
    "past": "yesterday earlier once previously formerly originally",
    "present": "today now nowadays currently tonight presently",
}
SHARED_TENSE_OPENING = "sometimes later"

NAMES: dict[str, str] = {
    "she": "ann mary lucy emma sara jane kate nina vera ella tina clara julia helen",
    "he": "bob tom jack peter john paul max leo adam david simon oscar henry hugo",
}
PERSON_NOUNS: dict[str, str] = {
    "i": "stranger guest visitor tourist child customer person passenger",
    "she": "woman girl lady mother daughter sister aunt grandmother",
    "he": "man boy gentleman father son brother uncle grandfather",
}
RELATIONS = "friend neighbour cousin boss partner classmate twin roommate"

# Share of "she" among the documents of a she or a he that mention the occupation.
OCCUPATIONS: dict[float, str] = {
    0.8: "nurse secretary librarian dancer florist hairdresser receptionist nanny",
    0.5: "teacher doctor lawyer baker clerk writer chef painter",
    0.2: "mechanic plumber pilot carpenter guard driver builder farmer",
}

SEEMING = "seem sound look appear feel:feels:felt remain become:becomes:became"
COPULAS = f"be:is:was {SEEMING}"
MOTION_WORDS = "to towards past around"
FACT_OPENINGS = "clearly surely certainly plainly truly evidently indeed definitely"
FACT_VERBS = (
    "own want need sell:sells:sold carry hold:holds:held like keep:keeps:kept borrow hide:hides:hid find:finds:found "
    "buy:buys:bought lose:loses:lost paint repair wash pack"
)


def inflect(verb: str) -> tuple[str, str, str]:
    """Base, third person and past form of a verb written as `base` or as `base:third:past`."""
    if ":" in verb:
        base, third, past = verb.split(":")
        return base, third, past
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb, f"{verb[:-1]}ies", f"{verb[:-1]}ied"
    third = f"{verb}es" if verb.endswith(("s", "sh", "ch", "x", "z")) else f"{verb}s"
    return verb, third, f"{verb}d" if verb.endswith("e") else f"{verb}ed"


def forms(verbs: str, form: str) -> str:
    """All verbs of a word list in one form: base, third or past."""
    return " ".join(inflect(verb)[("base", "third", "past").index(form)] for verb in verbs.split())
