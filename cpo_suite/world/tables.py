"""The world's vocabulary: every name and value, one word each, each word of one kind only.

Words of one kind only is what makes the oracle's parser small: a word says what it is, so a
sentence becomes a pattern of kinds that is looked up, never guessed.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SHE = _words(
    "Mira Asa Tilde Runa Berit Sanna Orla Nell Hedda Juno Alva Petra Esme Freya Kaia Signe Una Zora"
)
HE = _words(
    "Osk Bram Tomas Ivo Henk Rolf Anton Jory Lars Piet Emil Otto Silas Hugo Egon Finn Magnus Viktor"
)

WORDS: dict[str, tuple[str, ...]] = {
    "person": SHE + HE,
    "town": _words(
        "Tolan Berin Marrow Kestle Dunmere Halvik Orsted Pellam Quorn Rosby "
        "Selwick Tarnby Ulvers Varda Wexcombe Yarrow Brenn Calder Fenwick Garth"
    ),
    "region": _words("Norvale Sundmark Estria Westerly Highfell Lowmoor"),
    "river": _words("Ors Lenn Tamber Wick Siler Dove Marn Ebbe"),
    "good": _words("glass rope paper bells candles cloth knives pots barrels ink soap tiles"),
    "dish": _words(
        "figs dumplings porridge trout pancakes onions cherries noodles cheese lentils "
        "pears waffles"
    ),
    "season": ("spring", "summer", "autumn", "winter"),
    "year": tuple(str(year) for year in range(310, 610, 30)),
    "job": _words("baker smith tailor miller sailor teacher doctor potter farmer weaver"),
    "jobs": _words(
        "bakers smiths tailors millers sailors teachers doctors potters farmers weavers"
    ),
    "instrument": ("fiddle", "drum", "flute", "harp", "horn", "lute"),
    "animal": _words(
        "gorrel pimlet tarrow moxen luddle brindler fennit wark sibble crandle "
        "dorrow jibbet kollop vimble"
    ),
    "thing": _words(
        "tammel lunnet driscop bodger fasker gimmon hobble jarrock kenner nobbin packle rastle"
    ),
    "class": ("bird", "beast", "lizard", "moth"),
    "classes": ("birds", "beasts", "lizards", "moths"),
    "habitat": ("forest", "marsh", "hills", "caves", "meadows", "dunes"),
    "food": ("seeds", "worms", "moss", "reeds", "berries", "nuts", "roots", "snails"),
    "colour": ("red", "grey", "white", "black", "brown", "yellow", "green", "blue"),
    "time": ("dawn", "noon", "dusk", "midnight"),
    "material": ("wood", "iron", "clay", "leather", "stone", "brass"),
    "use": ("fishing", "cooking", "writing", "digging", "sewing", "sailing", "hunting", "cleaning"),
    "number": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "mood": ("happy", "tired", "wet", "merry", "hungry", "late"),
}

GENDER: dict[str, str] = {**dict.fromkeys(SHE, "she"), **dict.fromkeys(HE, "he")}

KIND: dict[str, str] = {word: kind for kind, words in WORDS.items() for word in words}
if len(KIND) != sum(len(words) for words in WORDS.values()):
    raise AssertionError("a word of the world's tables belongs to two kinds")

#: Plural forms that stand for a singular value: "bakers" states the value "baker".
SINGULAR: dict[str, str] = {
    **dict(zip(WORDS["jobs"], WORDS["job"], strict=True)),
    **dict(zip(WORDS["classes"], WORDS["class"], strict=True)),
}
PLURAL: dict[str, str] = {one: many for many, one in SINGULAR.items()}

#: Kinds named with "the" when they are the subject of a sentence.
COMMON_NOUNS = frozenset({"animal", "thing"})


def pronoun(name: str) -> str:
    """The subject pronoun of a name: she or he for people, it for everything else."""
    return GENDER.get(name, "it")


def number(word: str) -> int:
    """The value of a number word or of a year in digits."""
    return int(word) if word.isdigit() else WORDS["number"].index(word) + 1
