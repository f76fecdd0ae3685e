"""Names of blocks in a statement: `blocks A5, A6` and `slides A1-A4`."""

import re

_RANGE = r"(?:\s*[,&]\s*(?:and\s+)?|\s*-\s*|\s+(?:and|to|through)\s+)"
_BLOCKS = re.compile(
    rf"\b(?:blocks?|slides?|cassettes?|sections?)\s+([A-Z]{{0,2}}\d{{1,3}}(?:{_RANGE}[A-Z]{{0,2}}\d{{1,3}})*)",
    re.IGNORECASE,
)
_NAMES_BLOCK = re.compile(r"(?:block|slide|cassette|section)s? +[a-z]{0,2}\d")  # a sieve over the view, for speed


def names_block(view: str, start: int, end: int) -> bool:
    return _NAMES_BLOCK.search(view, start, end) is not None


def blocks_named(text: str, view: str, start: int, end: int) -> tuple[str, ...]:
    """The blocks that a stretch names, with ranges written out."""
    if not names_block(view, start, end):
        return ()
    return tuple(name for group in _BLOCKS.findall(text, start, end) for name in expand_blocks(group))


def expand_blocks(text: str) -> tuple[str, ...]:
    """`A5, A6` and `A1-A4` as block names; a range must stay within one letter and 60 blocks."""
    names: list[str] = []
    pieces = re.split(r"(\s*-\s*|\s+to\s+|\s+through\s+|\s*[,&]\s*(?:and\s+)?|\s+and\s+)", text.strip().upper())
    for index in range(0, len(pieces), 2):
        found = re.fullmatch(r"([A-Z]{0,2})(\d{1,3})", pieces[index])
        if not found:
            continue
        letter, number = found.group(1) or (re.sub(r"\d", "", names[-1]) if names else ""), int(found.group(2))
        separator = pieces[index - 1].strip().lower() if index else ""
        if names and separator in ("-", "to", "through"):
            before = re.fullmatch(r"([A-Z]{0,2})(\d{1,3})", names[-1])
            if before and before.group(1) == letter and 0 < number - int(before.group(2)) <= 60:
                names += [f"{letter}{value}" for value in range(int(before.group(2)) + 1, number + 1)]
                continue
        names.append(f"{letter}{number}")
    return tuple(names)
