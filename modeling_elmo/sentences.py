"""Sentences of raw paragraphs in any language, by rules: a model reads a sentence a line."""

import re

# ruff: noqa: RUF001 -- the stops and quotes of many scripts look like those of others

# Stops of scripts that are written without spaces end a sentence by themselves.
SPACELESS_STOPS = "。！？｡។៕။"
STOPS = ".!?…‽։؟۔।॥።፧᠃᱾" + SPACELESS_STOPS
QUOTES = "\"'`’‘‚‛”“„‟»«›‹」』"
# The words "he said" may follow a quotation within a Japanese sentence.
WITHIN = "と、，,;；:："

# Both expressions match whatever follows, so they never turn back, and take linear time. Quotes and brackets belong to
# the sentence that they touch; apart from both, as in tokenised text, only closing ones do.
END = re.compile(rf"([{STOPS}]+)(?:[{QUOTES})\]}}）】》〉］｣]|\[\w{{1,4}}\]|\s(?:''|[»”)\]}}])(?=\s|\Z))*")
START = re.compile(rf"\s*(?:(?:[-–—―«]|``)\s*)*[{QUOTES}(\[{{¿¡$€£（【《〈［｢「『]*(.?)", re.DOTALL)

# Abbreviations that seldom end a sentence, by language; those that often do ("etc.", "Inc.") are left out.
TITLES = """
    Mr Mrs Ms Mx Messrs Dr Drs Prof Rev Fr Hon Gen Brig Sen Rep Gov Pres Lt Col Sgt Cpl Capt Cmdr Maj Adm Supt St Ste
    Mt Ft vs cf approx esp viz
    Hr Hrn Frl bzw ca vgl evtl ggf sog inkl bspw geb gest Dipl dhr mevr drs bijv resp hr dvs jf
    MM Mme Mmes Mlle Mlles Mgr Sr Sra Sras Sres Srta Dra Dña Ud Uds Exmo Exma Profa Sig Dott Avv Ing
    prof dr inż mgr ks św tzw np im ul płk např tzv tj sv проф акад им ул св см напр гр pl ún kb Doç Yrd Av κα
"""
BEFORE_NUMBERS = """
    No Nos no Nr nr Núm núm Fig Figs fig figs Eq Eqs eq Vol Vols vol vols Ch ch Chap chap Sec sec Sect pp Pg pg pag pág
    Art art Abs Abb Tab Bd Ref al cca op Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec tel Tel kl
    str стр рис гл ст tab čl rys poz
"""
ABBREVIATIONS, NUMBERED = frozenset(TITLES.split()), frozenset(BEFORE_NUMBERS.split())
NOT_A_WORD = re.compile(r"[^\w.'’]+")
GERMAN_ORDINAL = re.compile(
    r"\s+(?:Jänner|Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember|Jahrhundert|"
    r"Jahrtausend|Weltkrieg|Auflage|Platz)"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in any language, without the white space around them; in linear time.

    A sentence ends after a stop, and the quotes and brackets that close after it, where white space follows and then
    what can start a sentence: a capital, a digit, or a letter of a script without capitals. Nothing but white space is
    lost. In doubt, as after "U.S.", a text stays whole.
    """
    sentences = []
    begin = 0
    for end in END.finditer(text):
        if is_boundary(text, begin, end):
            sentences.append(text[begin : end.end()].strip())
            begin = end.end()
    sentences.append(text[begin:].strip())
    return [sentence for sentence in sentences if sentence]


def is_boundary(text: str, begin: int, end: re.Match) -> bool:
    """Whether the sentence that starts at `begin` ends with this match of `END`."""
    after = end.end()
    following = text[after : after + 1]
    if end[1][-1] in SPACELESS_STOPS:
        return following not in WITHIN
    if not following.isspace():
        return False
    start = START.match(text, after)
    first = start[1] if start else ""
    # Georgian letters are lower case, and yet start sentences: they have no title case of their own.
    if not first.isalnum() or first != first.title():
        return False
    if after - begin < 16 and not any(map(str.isalnum, text[begin:after])):  # "... Then"
        return False
    return end[0] != "." or not is_abbreviation(text, begin, end.start(), first)


def is_abbreviation(text: str, begin: int, dot: int, first: str) -> bool:
    """Whether the dot belongs to the word before it; `first` is the letter or digit that follows."""
    before = text[max(begin, dot - 24) : dot].strip()
    word = NOT_A_WORD.split(before[before.rfind(" ") + 1 :])[-1].strip("'’")
    if word in ABBREVIATIONS or (first.isdecimal() and word in NUMBERED):
        return True
    parts = word.split(".")
    if word.replace(".", "").isdecimal():  # "1. Introduction", "am 3. Oktober"
        return before == word or GERMAN_ORDINAL.match(text, dot + 1) is not None
    if len(parts) == 1:
        return len(word) == 1 and (word.isupper() or word.islower())
    return all(part.isalpha() and len(part) <= 3 for part in parts)  # U.S., Ph.D., z.B., f.eks.
