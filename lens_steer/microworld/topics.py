"""The words that a topic colours: places, things and verbs of the twelve topics.

A word that two topics share in the same kind of place is a homograph: the topic decides its sense ("bank" by the river,
"bank" with the money). `HOMOGRAPHS` lists them with the topics that give their senses.
"""

from __future__ import annotations

PLACES: dict[str, str] = {
    "film": "cinema theatre studio set premiere",
    "music": "concert stage festival opera club",
    "sport": "stadium gym court arena field",
    "money": "bank market vault exchange treasury",
    "river": "bank bridge shore dock waterfall",
    "kitchen": "pantry bakery stove cafe cellar",
    "garden": "greenhouse lawn hedge orchard pond",
    "school": "classroom library playground campus lecture",
    "hospital": "clinic ward pharmacy surgery ambulance",
    "travel": "airport station hotel harbour beach",
    "farm": "barn stable meadow mill pasture",
    "office": "desk lobby meeting warehouse elevator",
}

THINGS: dict[str, str] = {
    "film": "movie camera actor scene script trailer popcorn director comedy thriller costume spotlight",
    "music": "guitar song note drum piano melody violin band organ flute scale singer",
    "sport": "match ball bat team trophy racket goal coach pitcher helmet referee medal",
    "money": "coin note loan cheque wallet budget price tax profit debt purse invoice",
    "river": "boat canoe fish current raft paddle heron otter ferry anchor trout reed",
    "kitchen": "soup match pitcher spoon oven bread scale pan recipe sauce kettle cake",
    "garden": "flower trunk seed shovel tulip fence rake bush weed blossom spade vine",
    "school": "lesson exam pupil textbook pencil essay grade blackboard homework quiz professor diploma",
    "hospital": "patient bandage organ tablet needle fever vaccine bed surgeon stretcher wound medicine",
    "travel": "train trunk ticket passport suitcase map flight taxi luggage cruise tour backpack",
    "farm": "cow bat mouse sheep tractor hay horse goat chicken plough harvest pig",
    "office": "computer mouse tablet printer report keyboard screen folder email contract memo stapler",
}

VERBS: dict[str, str] = {
    "film": "direct film rehearse dub:dubs:dubbed",
    "music": "play tune compose strum:strums:strummed",
    "sport": "kick score tackle train",
    "money": "invest earn spend:spends:spent deposit",
    "river": "row cross splash float",
    "kitchen": "cook taste stir:stirs:stirred boil",
    "garden": "plant water prune trim:trims:trimmed",
    "school": "study teach:teaches:taught learn solve",
    "hospital": "treat cure diagnose heal",
    "travel": "book board explore tour",
    "farm": "feed:feeds:fed milk herd breed:breeds:bred",
    "office": "print type file scan:scans:scanned",
}

TOPICS: tuple[str, ...] = tuple(PLACES)


def _homographs() -> dict[str, tuple[str, ...]]:
    senses: dict[str, list[str]] = {}
    for table in (PLACES, THINGS):
        for topic, words in table.items():
            for word in words.split():
                senses.setdefault(word, []).append(topic)
    return {word: tuple(topics) for word, topics in senses.items() if len(topics) > 1}


HOMOGRAPHS: dict[str, tuple[str, ...]] = _homographs()
