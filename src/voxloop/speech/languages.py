"""Languages: the names and codes that people give them, as the one code that models know each by.

The codes are Whisper's (openai/whisper, tokenizer.py: LANGUAGES): ISO 639-1 where a language has such a code. People
write `eng`, `en-US`, `nb_no`, `cmn_hans_cn` (FLEURS), `English` or `Deutsch`. The table is our own, since it is small
and decides what is accepted: `langcodes` with its data takes 7 MB and accepts thousands of languages that no model has.

What a text is written in is told by its letters. That finds a text that was given to the wrong language only where
the two are written differently.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from difflib import get_close_matches
from functools import cache

from voxloop.errors import UsageError

# Code: other codes (ISO 639-2, 639-3, members of a macrolanguage, withdrawn ones); names in English; own names;
# scripts, by the first words of Unicode's character names (none: Latin).
_TABLE = """
en: eng; English; English
zh: zho chi cmn; Chinese, Mandarin; 中文, 汉语, 漢語, 普通话, 國語; CJK BOPOMOFO
de: deu ger; German; Deutsch
es: spa; Spanish, Castilian; español, castellano
ru: rus; Russian; русский; CYRILLIC
ko: kor; Korean; 한국어; HANGUL CJK
fr: fra fre; French; français
ja: jpn; Japanese; 日本語; CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA
pt: por; Portuguese; português
tr: tur; Turkish; Türkçe
pl: pol; Polish; polski
ca: cat; Catalan, Valencian; català, valencià
nl: nld dut vls; Dutch, Flemish; Nederlands, Vlaams
ar: ara arb arz apc ajp acm acw afb aeb ary ars; Arabic; العربية; ARABIC
sv: swe; Swedish; svenska
it: ita; Italian; italiano
id: ind in; Indonesian; Bahasa Indonesia
hi: hin; Hindi; हिन्दी, हिंदी; DEVANAGARI
fi: fin; Finnish; suomi
vi: vie; Vietnamese; Tiếng Việt
he: heb iw; Hebrew; עברית; HEBREW
uk: ukr; Ukrainian; українська; CYRILLIC
el: ell gre; Greek; ελληνικά; GREEK
ms: msa may zsm zlm; Malay; Bahasa Melayu, Melayu; LATIN ARABIC
cs: ces cze; Czech; čeština
ro: ron rum mo mol; Romanian, Moldavian, Moldovan; română; LATIN CYRILLIC
da: dan; Danish; dansk
hu: hun; Hungarian; magyar
ta: tam; Tamil; தமிழ்; TAMIL
no: nor nb nob; Norwegian, Bokmål, Norwegian Bokmål; norsk, bokmål, norsk bokmål
th: tha; Thai; ไทย, ภาษาไทย; THAI
ur: urd; Urdu; اردو; ARABIC
hr: hrv; Croatian; hrvatski
bg: bul; Bulgarian; български; CYRILLIC
lt: lit; Lithuanian; lietuvių
la: lat; Latin; latina
mi: mri mao; Maori, Māori; te reo Māori
ml: mal; Malayalam; മലയാളം; MALAYALAM
cy: cym wel; Welsh; Cymraeg
sk: slk slo; Slovak; slovenčina
te: tel; Telugu; తెలుగు; TELUGU
fa: fas per pes prs; Persian, Farsi, Dari; فارسی, دری; ARABIC
lv: lav lvs; Latvian; latviešu
bn: ben; Bengali, Bangla; বাংলা; BENGALI
sr: srp; Serbian; српски, srpski; CYRILLIC LATIN
az: aze azj azb; Azerbaijani; azərbaycan; LATIN CYRILLIC ARABIC
sl: slv; Slovenian, Slovene; slovenščina
kn: kan; Kannada; ಕನ್ನಡ; KANNADA
et: est ekk; Estonian; eesti
mk: mkd mac; Macedonian; македонски; CYRILLIC
br: bre; Breton; brezhoneg
eu: eus baq; Basque; euskara
is: isl ice; Icelandic; íslenska
hy: hye arm hyw; Armenian; հայերեն; ARMENIAN
ne: nep npi; Nepali; नेपाली; DEVANAGARI
mn: mon khk; Mongolian; монгол; CYRILLIC MONGOLIAN
bs: bos; Bosnian; bosanski; LATIN CYRILLIC
kk: kaz; Kazakh; қазақ, қазақша; CYRILLIC LATIN ARABIC
sq: sqi alb als aln; Albanian; shqip
sw: swa swh swc; Swahili; Kiswahili
gl: glg; Galician; galego
mr: mar; Marathi; मराठी; DEVANAGARI
pa: pan pnb; Punjabi, Panjabi; ਪੰਜਾਬੀ, پنجابی; GURMUKHI ARABIC
si: sin; Sinhala, Sinhalese; සිංහල; SINHALA
km: khm; Khmer; ខ្មែរ; KHMER
sn: sna; Shona; chiShona
yo: yor; Yoruba; Yorùbá
so: som; Somali; Soomaali
af: afr; Afrikaans; Afrikaans
oc: oci; Occitan; occitan
ka: kat geo; Georgian; ქართული; GEORGIAN
be: bel; Belarusian; беларуская; CYRILLIC LATIN
tg: tgk; Tajik; тоҷикӣ; CYRILLIC
sd: snd; Sindhi; سنڌي; ARABIC DEVANAGARI
gu: guj; Gujarati; ગુજરાતી; GUJARATI
am: amh; Amharic; አማርኛ; ETHIOPIC
yi: yid ydd ji; Yiddish; ייִדיש; HEBREW
lo: lao; Lao; ລາວ; LAO
uz: uzb uzn; Uzbek; oʻzbek, o'zbek, ўзбек; LATIN CYRILLIC
fo: fao; Faroese; føroyskt
ht: hat; Haitian Creole, Haitian; Kreyòl ayisyen
ps: pus pbt pbu pst; Pashto, Pushto; پښتو; ARABIC
tk: tuk; Turkmen; Türkmen
nn: nno; Nynorsk, Norwegian Nynorsk; nynorsk, norsk nynorsk
mt: mlt; Maltese; Malti
sa: san; Sanskrit; संस्कृतम्; DEVANAGARI LATIN
lb: ltz; Luxembourgish, Letzeburgesch; Lëtzebuergesch
my: mya bur; Myanmar, Burmese; မြန်မာ, ဗမာစာ; MYANMAR
bo: bod tib; Tibetan; བོད་ཡིག; TIBETAN
tl: tgl fil; Tagalog, Filipino; Wikang Filipino
mg: mlg plt; Malagasy; Malagasy
as: asm; Assamese; অসমীয়া; BENGALI
tt: tat; Tatar; татар, татарча; CYRILLIC LATIN
haw: ; Hawaiian; ʻŌlelo Hawaiʻi
ln: lin; Lingala; lingála
ha: hau; Hausa; Hausa; LATIN ARABIC
ba: bak; Bashkir; башҡорт; CYRILLIC
jw: jv jav; Javanese; Basa Jawa; LATIN JAVANESE
su: sun; Sundanese; Basa Sunda; LATIN SUNDANESE
yue: ; Cantonese; 粵語, 粤语, 廣東話; CJK BOPOMOFO
"""
LEAST_LETTERS = 4  # of an alphabet, from which a script says something: "OK" is written so in every language
LEAST_SIGNS = 2  # of a script that writes syllables or words
OWN_SHARE = 0.2  # of the letters that are in a script of the language; names and foreign words are in others
# A Vietnamese syllable is written with a mark in four of five cases, and spaces stand between syllables.
VIETNAMESE_SYLLABLES = 4
MARKED_SHARE = 0.1
_ALPHABETS = frozenset(("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "GEORGIAN"))


# Codes of countries that are taken for those of their languages.
_COUNTRIES = {
    "vn": "vi",
    "jp": "ja",
    "cn": "zh",
    "kr": "ko",
    "ua": "uk",
    "cz": "cs",
    "gr": "el",
    "dk": "da",
    "ir": "fa",
}
_SHOWN = {"CJK": "Chinese characters", "KATAKANA-HIRAGANA": ""}


class UnknownLanguage(UsageError):
    """No model knows a language by this code or name."""


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").split())


_CODES: dict[str, str] = {}  # by every code and name
_NAMES: dict[str, str] = {}  # in English, by code
_SCRIPTS: dict[str, frozenset[str]] = {}  # by code
for _line in _TABLE.strip().splitlines():
    _code, _, _rest = _line.partition(":")
    _others, _english, _own, *_written = (part.strip() for part in _rest.split(";"))
    _names = [name.strip() for name in f"{_english}, {_own}".split(",")]
    _CODES |= {_key(one): _code for one in (_code, *_others.split(), *_names)}
    _NAMES[_code] = _names[0]
    _SCRIPTS[_code] = frozenset(_written[0].split() if _written else ("LATIN",))

LANGUAGES = tuple(_NAMES)
"""The code of every language that a model can have."""


@cache
def language_code(value: str | None) -> str | None:
    """`en` for `eng`, `en-GB`, `EN`, `English` and so on; None for nothing. Raises UnknownLanguage with the nearest."""
    written = _key(value or "")
    if not written:
        return None
    # `zh-yue` and `cmn_hans_cn` begin with the language; what follows is a variety, a script or a country.
    first, *rest = written.split()
    found = _CODES.get(written) or (_CODES.get(rest[0]) if first == "zh" and rest[:1] == ["yue"] else None)
    if found is None and len(first) in (2, 3) and all(re.fullmatch(r"[a-z0-9]{1,8}", part) for part in rest):
        found = _CODES.get(first)
    if found is None:
        named = re.sub(r"\s*\(.*\)$", "", written)  # "Chinese (China)", as Windows and macOS name them
        found = _CODES.get(named)
    if found is None:
        raise UnknownLanguage(
            f"no model knows a language {value!r}{_nearest(first)}; give an ISO 639-1 code or an English name, "
            "or leave the language out to have it detected"
        )
    return found


def _nearest(written: str) -> str:
    """The languages that a mistyped one may have been."""
    if written in _COUNTRIES:
        close = [_COUNTRIES[written]]
    else:
        long = len(written) > 3
        names = [name for name in _CODES if long == (len(name) > 3)]
        close = list(dict.fromkeys(_CODES[name] for name in get_close_matches(written, names, n=3, cutoff=0.6)))
    shown = ", ".join(f"{code} ({_NAMES[code]})" for code in close)
    return f"; did you mean {shown}?" if shown else ""


def language_name(code: str | None) -> str:
    """Its English name; the code itself where it has none here."""
    return _NAMES.get(code or "", code or "no language")


def scripts(text: str) -> Counter[str]:
    """Letters by script, named as Unicode names its characters: LATIN, CYRILLIC, CJK, HIRAGANA."""
    found: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            found[unicodedata.name(letter, "UNKNOWN").split()[0].removeprefix("FULLWIDTH")] += count
    return found


def contradiction(text: str, language: str | None) -> str:
    """Why a text can hardly be in a language, for a person; empty where nothing speaks against it."""
    own = _SCRIPTS.get(language or "")
    if own is None:
        return ""
    found = scripts(text)
    if not found:
        return ""
    most, count = found.most_common(1)[0]
    least = LEAST_LETTERS if most in _ALPHABETS else LEAST_SIGNS
    if most not in own and count >= least and sum(found[one] for one in own) < OWN_SHARE * found.total():
        expected = " or ".join(sorted(filter(None, map(_script_name, own))))
        return f"the text is written in {_script_name(most)}, and {language_name(language)} in {expected}"
    if language == "vi" and _without_marks(text):
        return "the text has no Vietnamese diacritics"
    return ""


def _script_name(script: str) -> str:
    return _SHOWN.get(script, script.capitalize())


def _without_marks(text: str) -> bool:
    syllables = [word for word in unicodedata.normalize("NFD", text).split() if any(map(str.isalpha, word))]
    marked = sum("đ" in word.lower() or any(map(unicodedata.combining, word)) for word in syllables)
    return len(syllables) >= VIETNAMESE_SYLLABLES and marked < MARKED_SHARE * len(syllables)
