"""The words that may follow a number without making it another number.

A list, not a pattern: `5 squared`, `5 million`, `5 thirds` and `5 is wrong` are built like
`5 apples`, and no pattern can tell them apart. A word that is missing here costs a right answer
its format; a word too many would make a wrong answer right. `dozen` and `quarters` are
missing on purpose: a unit or 12, a coin or 1/4.
"""

from __future__ import annotations

import re

# canonical name: its spellings, singular; those with a power are matched by `measure`
_SPELLINGS = {
    "%": "percent percentage pct",
    "degree": "deg",
    "radian": "rad",
    "dollar": "usd buck",
    "cent": "",
    "euro": "eur",
    "pound": "lb",
    "ounce": "oz",
    "ton": "tonne",
    "km": "kilometer kilometre",
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "mile": "mi",
    "yard": "yd",
    "foot": "feet ft",
    "inch": "in",
    "kg": "kilogram kilo",
    "g": "gram gm",
    "mg": "milligram",
    "liter": "l L litre",
    "ml": "milliliter millilitre",
    "gallon": "gal",
    "quart": "qt",
    "pint": "pt",
    "cup": "",
    "tablespoon": "tbsp",
    "teaspoon": "tsp",
    "year": "yr",
    "month": "",
    "week": "wk",
    "day": "",
    "hour": "hr h",
    "minute": "min",
    "second": "sec s",
    "mph": "",
    "watt": "",
    "volt": "",
    "amp": "ampere",
    "kmh": "kph",
    "acre": "",
    "unit": "",
    "byte": "",
    "kb": "kilobyte",
    "mb": "megabyte",
    "gb": "gigabyte",
}
_MEASURES = {word: name for name, words in _SPELLINGS.items() for word in (name, *words.split())}
# what is measured: by which units, and words that tell of it without one; a unit that is not here
# measures something of its own
_KINDS = {
    "length": "km m cm mm mile yard foot inch acre mph kmh long far tall high wide deep distance",
    "weight": "kg g mg ton ounce pound weigh weight heavy",
    "volume": "liter ml gallon quart pint cup tablespoon teaspoon ounce",
    "time": "year month week day hour minute second mph kmh long old older age clock",
    "money": "dollar cent euro pound money coin penny pennies nickel dime pay price cost",
    "data": "byte kb mb gb",
}
_POWERS = {"square": 2, "squared": 2, "sq": 2, "cubic": 3, "cu": 3}

# what is counted in the problems of GSM8K, SVAMP and ASDiv, singular
_THINGS = """
acorn adult album all altogether animal ant apart apple appointment apricot aquarium arrangement
arrow art article baby backpack badge bag bagel bale ball balloon banana band bar barrel baseball
basket basketball bat batch bathroom battery bead bean bear beaver bed bedroom bee beetle bell
berry bicycle big bike bill bird biscuit black block blouse blue boat book bookcase bookmark
bookshelf bookshelves boot bottle bouquet bowl box boy bracelet branch bread brick bridge broom
brother brown brownie bucket bug building bulb bullet bunch bundle bunny burger bus bush butterfly
button cabbage cage cake calculator calf call caller calorie camera candle candy cans cap capful
car card carrot cart carton cartridge case cat caterpillar cd cell chair chalk change chapter
cherry chick chicken child children chip chocolate choice christmas church cigarette circle city
clam class classmate classroom client clip clock clothes clothing clown coat coin color coloring
colour combination comic computer cone container cookie copy cost couch counter course cow crab
cracker crate crayon cream cricket croissant crop cube cucumber cupcake customer cut cyclist dancer
date deer degree desk diamond digit dime dinner dinosaur dish distance dog doll dolphin donut door
dot doughnut drawing dress drink driver drop drum ds duck dvd each eagle ear easter edge egg
elephant email employee engineer entry envelope episode every extra eye face factory family fan
farmer feather feet female fence figurine file fish flag flavor flea flock floor flour flower fly
folder follower foot fork fowl friend frog fruit full game garden geese gene gerbil gift girl glass
glove goal goat gold goldfish golf goose grade grain grandchild grandchildren granola grape graph
grasshopper green group guest guitar gum gumball gumdrop guppy hair hamburger hammer hand handful
hat haystack head helmet hen hero holder hole homework hook horse hotdog house ice ingredient
insect instrument invitation item jacket jar jelly job joke journey juice jump kick kid kilometer
kind kit kitten knife knives ladybug lake lamb lamp lap laptop large lawn layer leaf leaves left
leg lego lemon lesson letter life light line lion liter lives load loaf loaves lollipop long lot
lunch machine magazine magnet male man map marble mark marker marshmallow match matchbox math
mattress meal meat meatball medal meeting melon member men message metal mice mile milkshake
miniature minion mirror model money monkey more mosquito mother mouse movie muffin mug mushroom
nail napkin necklace nest new newspaper nickel night noodle nose note notebook nut oak old olive
onion option orange order origami outfit owl oyster pack package packet page painting pair pallet
pan pancake panda pant paper parent park parrot part participant passenger pastry path patient
pattern peach peanut pear pebble pen penalty pencil penguin pennies penny people pepper performance
person pet petal phone photo photograph picture pie piece pig pigeon pile pill pillow pin pineapple
pink pitcher pizza plane plant plastic plate platter player plum pocket poem point pole pond pony
popcorn popsicle portfolio portion post poster pot potato present pretzel price printer prize
problem product profit program project pudding pumpkin pupil puppy purchase purple push puzzle
question quilt rabbit raccoon race radish raisin rat recipe record red remaining repetition
reptile restaurant revenue ribbon riddle ride ring robot rock roll room rope rose round row rug
ruler sack salad salary sale sand sandwich sapling saving scarf scarves school science score screw
seashell seat section seed seedling sequin serving session set shape share shark sheep sheet shelf
shell shelves ship shirt shoe shop show shrimp sibling side singer sister sit skate skirt skittle
slice small snack snail snake snow snowball soap soccer sock soda sofa song sound soup sparrow
species spectator speed spider spoon sport spot squirrel stack staff stair stall stamp star state
station step stick sticker stone store story strand strawberry stream street string strip student
stuffed suit supervisor survey sweater sweet swimmer table tablet tail tall tank tape task tax
teacher team teaspoon teddy teeth tent test text ticket tie tiger tile times tip tire toad tomato
tool tooth top total toucan towel town toy track trade train trainer tray treat tree triangle trip
trophy truck trumpet turkey turtle tv type uniform utensil valentine van vase vegetable vehicle
vertex vertices video violin visit visitor vitamin volunteer vote voter wage wagon walk wall
washing watch water watermelon way weight whale wheel whistle white window wing wolf wolves woman
women wood word worker worksheet worm wrapper yarn yellow zebra zoo
"""
_KNOWN = frozenset(_THINGS.split())
_JOINING = frozenset(("a", "an", "the", "of", "per", "in", "for"))  # no unit by themselves

_POWER = r"(?:\^ ?\{?([23])\}?|([²³]))?"
_MEASURE = re.compile(
    rf"(?:(square|sq|cubic|cu)\.? )?([a-z]+|L)\.?{_POWER}(?: (squared))?"
    r"(?: ?(?:/|per) ?([a-z]+|L))?"
)
_WORDS = re.compile(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_MAX_WORDS = 6
_SEPARATORS = re.compile(r"[ ()/.-]*")


def measure(text: str) -> str | None:
    """The canonical name of a unit of measure, `cm^2` of `square centimeters`, else None."""
    match = _MEASURE.fullmatch(_lowered(text.strip()))
    if match is None:
        return None
    prefix, word, digit, sign, suffix, over = match.groups()
    name, below = _name(word), _name(over) if over else None
    if name is None or (over and below is None):
        return None
    powers = [_POWERS[w] for w in (prefix, suffix) if w]
    powers += [2 if (digit or sign) in ("2", "²") else 3] if digit or sign else []
    if len(powers) > 1:
        return None
    found = f"{name}^{powers[0]}" if powers else name
    return f"{found}/{below}" if below else found


def kinds(word: str) -> frozenset[str]:
    """What a unit of measure may measure, or a word tells of: length or time of `mph`."""
    name = measure(word)
    names = {name} if name else set(_singulars(word.lower()))
    found = frozenset(kind for kind, known in _KINDS.items() if names & set(known.split()))
    return found or frozenset([name] if name else [])


def is_unit(text: str) -> bool:
    """Whether a text says what is counted or measured and nothing else: `dollars per day`."""
    if measure(text) is not None:
        return True
    words = _WORDS.findall(text)
    if not 0 < len(words) <= _MAX_WORDS or not _SEPARATORS.fullmatch(_WORDS.sub("", text)):
        return False
    parts = [part for word in words for part in re.split(r"[-'\u2019]", _lowered(word))]
    return all(map(_is_known, parts)) and any(word.lower() not in _JOINING for word in words)


def is_money(text: str) -> bool:
    """Whether a text may stand after an amount with its sign: `dollars` may, no other measure."""
    name = measure(text)
    return name is None or name.partition("/")[0] in ("dollar", "euro", "pound")


def _lowered(text: str) -> str:
    """In small letters, but for letters that stand alone: `5 M` is no length."""
    return re.sub(r"[^\W\d_]{2,}", lambda m: m[0].lower(), text)


def _is_known(word: str) -> bool:
    return word in _JOINING or _name(word) is not None or any(w in _KNOWN for w in _singulars(word))


def _name(word: str) -> str | None:
    return next((_MEASURES[w] for w in _singulars(word) if w in _MEASURES), None)


def _singulars(word: str) -> tuple[str, ...]:
    """What the word may be the plural of, itself first."""
    return (
        word,
        word.removesuffix("s"),
        word.removesuffix("es"),
        word.removesuffix("ies") + "y" if word.endswith("ies") else word,
    )
