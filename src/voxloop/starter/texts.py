"""Texts for the synthetic voices: digits, digit strings and short English phrases, lower-case and spelled out.

Not a language model's corpus: a few hundred common words in simple patterns, so that the encoder gets every English
sound in many contexts.
"""

import random
import re
from typing import Final

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DEMO_COMMANDS: Final = (
    "dim the lantern",
    "brighten the hallway",
    "raise the curtain",
    "fold the awning",
    "boil the kettle",
    "chill the cellar",
    "bolt the shutters",
    "shuffle playlist",
    "repeat the chorus",
    "snooze",
    "vacuum the attic",
    "sprinkle the orchids",
    "feed the parrot",
    "polish the silver",
    "tidy the nursery",
    "thermostat",
    "swivel the telescope",
    "unfurl the banner",
    "ignite the furnace",
    "pause the carousel",
    "rinse the blender",
    "sharpen the pencil",
    "inflate the mattress",
    "garage",
)
"""What the demo's own voice says. Every word of it but `the` is kept out of the starter's training texts."""

RESERVED_WORDS: Final = frozenset(" ".join(DEMO_COMMANDS).split()) - {"the"}

_COMMON: Final = """
able about above accept account across add address after again age agree air all allow almost alone along already also
always am amount and animal another answer any apple april area arm around arrive art as ask at august autumn away
baby back bad bag ball bank bath be beach bear beautiful because bed been before begin behind believe below best
better between big bird birthday black blue board boat body book born both bottle bottom box boy branch bread break
breakfast bridge bright bring brother brown build burn bus business busy but butter buy by call came camera can
capital car card care carry cat catch cause centre chair chance change cheap check cheese child choice choose church
circle city class clean clear clock close cloth cloud coat coffee cold colour come common company complete computer
cook cool copy corner cost could count country course cover cow cream cross cup current cut dance danger dark date
daughter day dead dear december decide deep desk did different difficult dinner direct dirty do doctor dog dollar door
double down draw dream dress drink drive drop dry during each ear early earth east easy eat edge education egg either
empty end engine enjoy enough enter evening ever every exact example eye face fact fair fall family famous far farm
fast father favourite february few field fight fill film final find fine finger finish fire first fish floor flower
fly follow food foot for force forest forget fork form forward found free fresh friday friend from front fruit full
future game garden gave get girl give glad glass go gold good grass great green grey ground group grow guess had hair
half hand happen happy hard has hat have he head hear heart heavy height hello help her here high hill him his history
hold hole holiday home hope horse hospital hot hotel hour house how huge human hundred hungry hurry husband ice idea
if important in inside into iron island it january job join joke juice july jump june just keep key kind king kitchen
knee knife know lady lake land language large last late laugh law lazy lead learn leave left leg lemon less lesson let
letter level library life light like line lion list listen little live local lock long look lose lot loud love low
lucky lunch machine mail main make man many map march mark market match matter may me meal mean measure meat medicine
meet member message metal middle might mile milk mind minute miss mistake modern moment monday money month moon more
morning most mother mountain mouse mouth move movie much music must my name narrow nature near neck need never new
news next nice night no noise north nose not note nothing november now number object ocean october of off offer office
often oil old on once only open orange order other our out over own oxygen page paint pair paper parent park part
party pass past pay peace pen people perfect perhaps person phone photo picture piece place plan plane plant plate
play please point poor possible post potato power press pretty price problem public pull purple push put quality
quarter queen question quick quiet quite radio rain reach read ready real reason receive record red remember rest
return rice rich ride right ring rise river road rock room round rule run safe said salt same sand saturday save say
school sea second see sell send sentence september serious serve service set seventy several shake shall shape share
she sheep ship shirt shoe shop short should shoulder show shower sick side sign simple since sing sister sit size skin
sky sleep slow small smell smile smoke snow so social soft some son song soon sorry sound soup south space speak
special speed spell spend spoon sport spring square stage stamp stand star start state station stay step still stone
stop store storm story straight strange street strong student study such sugar suit summer sun sunday sure surface
sweet swim switch table take talk tall taste taxi tea teach team tell test than thank that their them then there these
they thick thin thing think thirsty this those though thousand through throw thursday ticket time tired to today
together tomorrow tonight too tooth top total touch toward town toy train travel tree trip trouble true trust try
tuesday turn twenty uncle under understand until up us use usual valley value very view village visit voice wait walk
wall want war warm was wash watch water wave way we wear weather wednesday week welcome well went were west what wheel
when where which while white who whole why wide wife wild will wind window wine winter wish with without woman wonder
wood word work world worry would write wrong year yellow yes yesterday yet you young your zone alexa jarvis computer
mirror smart snowboy view operator extension password menu mailbox conference record pound star unavailable invalid
connect transfer goodbye monkey english agent queue
"""
_WORDS: Final = tuple(_COMMON.split())

_PATTERNS: Final = (
    "please {w} the {w}",
    "turn {w} the {w}",
    "the {w} is {w}",
    "my {w} and your {w}",
    "a {w} {w}",
    "{w} it {w}",
    "to {w} press {d}",
    "press {d} for {w}",
    "call me at {d} {d} {d}",
    "extension {d} {d} {d}",
    "{w} {d}",
    "{w} or {w}",
    "can you {w} the {w}",
    "i {w} the {w} {w}",
    "we {w} in the {w}",
    "{w} {w} {w}",
    "{w} {w}",
    "{w} {w} {w} {w}",
    "{d} {w} {d} {w}",
)


def digit_string(rng: random.Random, *, longest: int = 10) -> str:
    """Two to `longest` digits, mostly three to six, as words."""
    count = min(longest, rng.choices((2, 3, 4, 5, 6, 7, 8, 9, 10), (12, 20, 20, 18, 14, 5, 5, 3, 3))[0])
    return " ".join(rng.choice(DIGITS) for _ in range(count))


def phrase(rng: random.Random) -> str:
    """One word, or a short phrase of common words; never a word of the demo."""
    words = [word for word in (rng.choice(_WORDS) for _ in range(12)) if word not in RESERVED_WORDS]
    pattern = "{w}" if rng.random() < 0.3 else rng.choice(_PATTERNS)
    while "{w}" in pattern:
        pattern = pattern.replace("{w}", words.pop(), 1)
    while "{d}" in pattern:
        pattern = pattern.replace("{d}", rng.choice(DIGITS), 1)
    return pattern


def spoken(text: str) -> str:
    """A transcript as the starter writes it: lower-case words, digits spelled out, no punctuation but apostrophes.

    >>> spoken("Press 1 for A.M., or 22 for P.M.")
    'press one for a m or two two for p m'
    """
    text = re.sub(
        r"\d",
        lambda found: f" {DIGITS[int(found.group())]} ",
        text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"),
    )
    return " ".join(word.strip("'") for word in re.sub(r"[^a-z']+", " ", text).split() if word.strip("'"))
