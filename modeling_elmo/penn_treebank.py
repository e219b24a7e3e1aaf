"""How raw text is split into words: by default as in the Penn Treebank, on which published ELMos were trained."""

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Split, WhitespaceSplit


def penn_treebank_pattern() -> str:
    """A regular expression (Oniguruma) that matches one word or one sign at a time, as in the Penn Treebank."""
    apostrophe = r"['\u2019]"
    # Private use (Co) has letters, too, such as those of medieval fonts.
    character = r"[\p{L}\p{M}\p{N}\p{Co}_\u200C\u200D\u00AD]"
    end = r"(?![\p{L}\p{M}\p{N}\p{Co}_])"
    start = r"(?<![\p{L}\p{M}\p{N}\p{Co}_])"
    not_ = rf"(?i:n{apostrophe}t){end}"
    clitic = rf"{apostrophe}(?i:s|m|d|ll|re|ve){end}"
    url_rest = r"[^\s<>\"]*[^\s<>\"'\u2019\u201D»).,;:!?\]}]"
    abbreviations = (
        r"Mr|Mrs|Ms|Dr|Prof|Rev|Hon|Gen|Sen|Rep|Gov|Pres|Lt|Col|Sgt|Capt|Maj|Cmdr|Adm|Jr|Sr|Messrs|Ph\.D|Inc|Corp|Co|"
        r"Cos|Ltd|Bros|St|Mt|Ft|Ave|Blvd|Rd|Jan|Feb|Aug|Sept|Oct|Nov|Dec|vs|etc|al|cf|Fig|Figs|Eq|Vol|pp"
    )
    dotted = rf"{start}(?:\p{{L}}\.){{2,}}"
    part = rf"(?:(?!{not_}){character})+"
    joint = rf"[-\u2010\u2011.&/](?={character})|(?<=\p{{N}})[,:](?=\p{{N}})|(?!{clitic}){apostrophe}(?=\p{{L}})"
    alternatives = [
        rf"(?:https?|ftp)://{url_rest}|www\.{url_rest}",
        r"[\p{L}\p{N}][\p{L}\p{M}\p{N}._%+-]{0,63}@[\p{L}\p{M}\p{N}-]+(?:\.[\p{L}\p{M}\p{N}-]+)+",  # e-mail
        r"</?\p{L}[\p{L}\p{N}]*/?>|-[LR][RSC]B-",  # <UNK>, <b>, -LRB-
        not_,  # do n't
        clitic,  # it 's
        rf"{apostrophe}(?:(?i:em|til|tis|twas)|\d\ds?){end}",  # 'em, '90s
        rf"{dotted}{end}(?!-{character})",  # U.S.
        rf"{start}(?:{abbreviations})\.(?=\s+\S|[,;:)])",  # Mr., but not at the end of a text
        rf"{start}(?:[Nn]os?\.(?=\s*\p{{N}})|\p{{Lu}}\.(?=\s+\p{{Lu}}))",  # No. 5, J. Smith
        # An optional sign or decimal point, then parts such as "U.S." or "word" joined by signs such as "-" and "/"
        rf"(?:(?<!\S)[-+](?={character})|{start}\.(?=\p{{N}}))?(?:{dotted}(?=-{character})|{part})(?:(?:{joint}){part})*"
        r"(?:-(?=\s))?",
        r"([-.=*~])\1+",  # -- and ...
        r"``|''",
        r"(?![\s\u200B\uFEFF])\X",  # any other sign; \X keeps the parts of an emoji together
    ]
    return "|".join(alternatives)


PRE_TOKENIZERS = {
    "ptb": lambda: Split(Regex(penn_treebank_pattern()), behavior="removed", invert=True),
    "whitespace": WhitespaceSplit,
    "characters": lambda: Split(Regex(r"\S"), behavior="removed", invert=True),
}


def pre_tokenizer_named(name: str) -> PreTokenizer:
    """A new one; a `ValueError` for a name that is not in `PRE_TOKENIZERS`."""
    if name not in PRE_TOKENIZERS:
        raise ValueError(f"pre_tokenizer must be one of {', '.join(PRE_TOKENIZERS)}, not {name!r}")
    return PRE_TOKENIZERS[name]()
