"""Statements: the stretches of a diagnosis within which a negation can reach.

A line break ends a statement unless the line was wrapped: it ends in a word that needs another, the next begins in lower case
or with a word that begins no statement, a bracket is open, or the next word would not have fitted. A sentence that stops at a
blank line for want of its object goes on where a later stretch begins in lower case: a page ended within it.
"""

import re

MAX_STATEMENT = 3000  # characters; more is text without any stop, and the work on a statement grows with its square
MIN_WRAP_WIDTH = 58  # a shorter line was not broken for want of room
MAX_BLOCKS_BETWEEN = 1  # between two halves of a sentence: the head of a page
_BULLET = re.compile(
    r"[ ]*(?:[-*+>o]+[ ]+|-(?=[A-Za-z])|\d{1,2}[.)][ ]+|[a-z][.)][ ]+|[ivx]+[.)][ ]+|\([a-z0-9]\)[ ]+)"
)
_KEY = re.compile(r"[ ]*[A-Za-z][A-Za-z0-9 /()'-]{1,45}:(?:[ ]|$)")
_STATUS = re.compile(r"[ ]*(?:absent|not |none|present|identified|negative|positive|no\b|yes\b|n/a)", re.IGNORECASE)
_DANGLING = re.compile(
    r"(?:,|/|&|\(see|\b(?:and|or|nor|of|for|no|not|the|with|a|an|in|to|by|is|are|at|from|without|as|on|that|which|invasive|infiltrating|"
    r"ductal|lobular|metastatic|residual|negative|suspicious|consistent|evidence|extensive|focal|usual|atypical|sclerosing|microscopic|"
    r"high grade|low grade|carcinoma in|definite|positive for|intraductal|suggesting|suggestive|favou?r(?:s|ing)?|shows?|showing|"
    r"demonstrating|containing|involving|including|compatible|small|minute|rare|scattered|adjacent|associated|possible|probable))$",
    re.IGNORECASE,
)
_BEGINS_NOTHING = re.compile(r"(?:OR|NOR|OF|AND)[ ](?![^\n:]{0,45}:)")
# "DUCTAL CARCINOMA / IN SITU, GRADE 3" is one finding; "IN SITU COMPONENT: 20 %" is another line.
_IN_SITU = re.compile(
    r"[Ii][Nn][ -][Ss][Ii][Tt][Uu](?:[ ]*[,.;(&]|[ ]*$|[ ](?i:and|with|without|of|involving|arising)\b)"
)
_NEEDS_IN_SITU = re.compile(r"\b(?:adeno)?(?:carcinoma|neoplasia|cancer|ca)$", re.IGNORECASE)
_IS_INVASIVE = re.compile(
    r"\b(?:invasive|infiltrating|invading)(?:\s+(?:mammary|ductal|lobular|and))*\s+(?:carcinoma|cancer|ca)$",
    re.IGNORECASE,
)
_CUT_LETTER = re.compile(r"[A-Za-z] [A-Za-z]$")
_GRADED = re.compile(
    r"(?:grade|part|type|level|class|group|stage|category|pattern|specimen|as|block|node|levels?) [a-z]$", re.IGNORECASE
)
_ANSWER = re.compile(r":[ ]*\w+$")  # "DCIS: NO" is whole
_SPLIT = re.compile(r"(?<=[.!?])[\s\"')]+(?=[A-Z0-9(\"*-])|;")
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|drs|vs|no|approx|e\.g|i\.e|cf|st|ext|fig|mr|mrs|ms|nos|inc|resp|incl|max|min|dx|hx|bx|[a-z]))\.$",
    re.IGNORECASE,
)


def statements(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of the statements between two offsets, in order, without surrounding white space."""
    spans: list[tuple[int, int]] = []
    for chunk_start, chunk_end in _chunks(text, start, end):
        spans += _sentences(text, chunk_start, chunk_end)
    return spans


def dangles(text: str) -> bool:
    """Whether a text ends in a word that needs another one: it was cut."""
    stripped = text.rstrip()
    if _CUT_LETTER.search(stripped) and not _GRADED.search(stripped):
        return True
    found = _DANGLING.search(stripped)
    if not found or _ANSWER.search(stripped):
        return False
    described = stripped[: found.start()].rstrip().endswith(",") or found.group().lower() == "negative"
    return not described  # "carcinoma, lobular", "HER2 negative" are whole


def _chunks(text: str, start: int, end: int) -> list[tuple[int, int]]:
    chunks: list[tuple[int, int]] = []
    chunk_start, position, previous = start, start, ""
    halted: list[tuple[str, int, int]] = []  # before each blank line: the line, its chunk's number and start
    while position < end:
        line_end = text.find("\n", position, end)
        line_end = end if line_end < 0 else line_end
        line = text[position:line_end]
        if halted and not previous and line and line.lstrip()[:1].islower() and not _BULLET.match(line):
            resumed = next((halt for halt in halted[-1 : -MAX_BLOCKS_BETWEEN - 2 : -1] if _is_open(halt[0])), None)
            if resumed is not None:
                previous, num_chunks, chunk_start = resumed
                del chunks[num_chunks:]
        if position > start and not _continues(previous, line, text[chunk_start:position]):
            chunks.append((chunk_start, position))
            chunk_start = position
        if line.strip():
            previous = line.rstrip()
        elif previous:
            halted.append((previous, len(chunks) - 1, chunks[-1][0]))
            previous = ""  # a blank line ends a statement
        position = line_end + 1
    chunks.append((chunk_start, end))
    return chunks


def _is_open(line: str) -> bool:
    return bool(_DANGLING.search(line)) and not _ANSWER.search(line)


def _continues(previous: str, line: str, chunk: str) -> bool:
    stripped = line.strip()
    if not stripped or not previous:
        return False
    if _BULLET.match(line):
        return False
    if previous.endswith(":"):
        return bool(_STATUS.match(line))
    if chunk.count("(") > chunk.count(")"):
        return True
    if previous[-1] in ".;!?" and not _ABBREVIATION.search(previous):
        return False
    if _is_open(previous):
        return True
    if stripped[0] in "iI" and _IN_SITU.match(stripped):
        whole = chunk.rstrip()
        return bool(_NEEDS_IN_SITU.search(whole)) and not _IS_INVASIVE.search(whole)
    if stripped[0] in "ONA" and _BEGINS_NOTHING.match(stripped):
        return True
    if _KEY.match(line):
        return False
    if stripped[0].islower():
        return True
    first_word = stripped.split(None, 1)[0]
    return len(previous) + 1 + len(first_word) > max(MIN_WRAP_WIDTH, 72) and len(previous) >= MIN_WRAP_WIDTH


def _sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    begin = start
    for found in _SPLIT.finditer(text, start, end):
        if found.group() == ";":
            if text.count("(", begin, found.start()) > text.count(")", begin, found.start()):
                continue
        elif _ABBREVIATION.search(text[max(begin, found.start() - 8) : found.start()]):
            continue
        _append(spans, text, begin, found.start())
        begin = found.end()
    _append(spans, text, begin, end)
    return spans


def _append(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    while start < end and text[start] in " \n-*":
        start += 1
    while end > start and text[end - 1] in " \n":
        end -= 1
    while end - start > MAX_STATEMENT:
        comma = text.rfind(",", start + MAX_STATEMENT // 2, start + MAX_STATEMENT)
        stop = comma + 1 if comma > 0 else start + MAX_STATEMENT
        spans.append((start, stop))
        start = stop
    if start < end:
        spans.append((start, end))
