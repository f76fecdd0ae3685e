"""Rule files: refused when they are wrong, compiled to tries, tested by their own tests."""

import json
import pickle
import re
from pathlib import Path

import pytest

from ingest.errors import ConfigError, InputError
from ingest.label_file import label_text
from ingest.rulecheck import check_rules, diff_rules, run_tests
from ingest.rulefile import RULES_FOLDER, load_rules
from ingest.rulescore import score_lines
from ingest.trie import PhraseTable, TooManyPhrases, expand, trie_pattern

MINIMAL = """
[ruleset]
id = "mini"
version = "1"
task = "mini"
[[findings]]
id = "quux"
label = "cancer"
terms = ["quuxoma"]
"""
TEST = '[[tests]]\ntext = "DIAGNOSIS: A. BREAST, BIOPSY: QUUXOMA."\nexpect = {A = "cancer"}\n'


def test_a_rule_file_without_tests_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mini.toml"
    path.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"no \[\[tests\]\]"):
        load_rules(path)
    path.write_text(MINIMAL + TEST)
    assert check_rules(path) == 1


def test_a_failing_test_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mini.toml"
    path.write_text(MINIMAL + TEST.replace('"cancer"}', '"benign"}'))
    with pytest.raises(ConfigError, match="test 1: part A is cancer, not benign"):
        check_rules(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("unknown_key = 1\n[ruleset]", "unknown_key"),
        ('[ruleset]\nextends = ["nowhere"]', "nowhere"),
    ],
)
def test_a_wrong_rule_file_is_refused_with_the_key(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mini.toml"
    path.write_text(MINIMAL.replace("[ruleset]", change, 1) + TEST)
    with pytest.raises(ConfigError, match=message):
        load_rules(path)


def test_a_missing_rule_file_names_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match="breast, general, lung_egfr"):
        load_rules("brest")


@pytest.mark.parametrize("name", ["general", "breast", "lung_egfr"])
def test_packaged_rules_pass_their_own_tests(name: str) -> None:
    rules = load_rules(name)
    assert rules.file.tests
    assert run_tests(rules) == []


def test_packaged_rules_are_named_by_their_file() -> None:
    for name in ("general", "breast", "lung_egfr"):
        assert load_rules(RULES_FOLDER / f"{name}.toml").id == name


def test_rules_pickle_and_keep_their_digest() -> None:
    rules = load_rules("breast")
    again = pickle.loads(pickle.dumps(rules))
    assert again.digest == rules.digest
    text = "A. BREAST, CORE BIOPSY: FIBROADENOMA."
    assert label_text(text, "text", again) == label_text(text, "text", rules)


def test_a_change_of_a_term_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "mini.toml"
    path.write_text(MINIMAL + TEST)
    first = load_rules(path).digest
    path.write_text((MINIMAL + TEST).replace("quuxoma", "quuxomata"))
    assert load_rules(path).digest != first


def test_diff_shows_the_parts_that_change(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text(MINIMAL + TEST)
    b.write_text(MINIMAL.replace('label = "cancer"', 'label = "benign"') + TEST.replace('"cancer"}', '"benign"}'))
    lines = [json.dumps({"id": "r1", "report_text": "DIAGNOSIS: A. BREAST, BIOPSY: QUUXOMA."})]
    changes, counts = diff_rules(a, b, lines)
    assert [(change.id, change.part, change.label_a, change.label_b) for change in changes] == [
        ("r1", "A", "cancer", "benign")
    ]
    assert counts == {("cancer", "benign"): 1}


def test_score_counts_every_kind_of_miss() -> None:
    def line(text: str, **gold: str) -> str:
        return json.dumps({"id": "r", "report_text": text, "parts": [{"part": p, "label": v} for p, v in gold.items()]})

    left, right = "A. BREAST, LEFT, CORE BIOPSY: FIBROADENOMA.", "B. BREAST, RIGHT, CORE BIOPSY: DCIS."
    score = score_lines(
        [
            line(left, A="benign"),  # exact
            line(left, A="cancer"),  # confused
            line(f"{left}\n{right}", A="benign"),  # B is spurious
            line(left, A="benign", B="in_situ"),  # B is missing
            line("A. BREAST, LEFT, CORE BIOPSY: QUUX.", A="benign"),  # abstained
            line("A. BREAST, LEFT, CORE BIOPSY: QUUX.", A="not_assessable"),  # exact: a person abstained too
        ],
        "breast",
    )
    assert (score.num_reports, score.num_parts, score.num_exact) == (6, 7, 4)
    assert (score.num_confused, score.num_spurious, score.num_missing, score.num_abstained) == (1, 1, 1, 1)
    assert [(miss.part, miss.label, miss.gold) for miss in score.misses] == [
        ("A", "benign", "cancer"),
        ("B", "in_situ", "absent"),
        ("B", "absent", "in_situ"),
        ("A", "not_assessable", "benign"),
    ]
    assert score.lines()[0] == "6 reports, 7 parts: 4 labels exact (57.1 %)"


@pytest.mark.parametrize(
    "line", ['{"id": 1, "report_text": "x"}', '{"report_text": "x", "parts": [{"part": "A", "label": "bad"}]}']
)
def test_reports_without_known_labels_are_not_scored(line: str) -> None:
    with pytest.raises(InputError, match="line 1"):
        score_lines([line], "breast")
    with pytest.raises(InputError, match="no lines"):
        score_lines([], "breast")


def test_patterns_expand_to_phrases() -> None:
    assert expand("(a|b) c") == ["a c", "b c"]
    assert expand("tumou?r") == ["tumor", "tumour"]
    assert expand("(a )*b") == ["b", "a b", "a a b"]
    assert expand("(a )+b") == ["a b", "a a b"]
    assert expand(r"ca\+\+") == ["ca++"]


@pytest.mark.parametrize("pattern", ["(a", "a)", "?a", "(a|b"])
def test_unbalanced_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError):
        expand(pattern)


def test_runaway_patterns_stay_regexes() -> None:
    with pytest.raises(TooManyPhrases):
        expand("(a|b|c|d)" * 7)
    table = PhraseTable([("(a|b|c|d)" * 7, 5), ("abc", 6)])
    assert table.value("abcdabc") == 5
    assert table.value("abc") == 6


def test_the_longest_phrase_wins_at_a_place() -> None:
    table = PhraseTable([("no", 0), ("no evidence of", 1), ("not", 2)])
    assert [m.group() for m in table.pattern.finditer("no  evidence of x, not no")] == ["no  evidence of", "not", "no"]
    assert table.value("no  evidence of") == 1


def test_a_trie_matches_what_the_plain_alternation_matches() -> None:
    phrases = ["carcinoma", "carcinoma in situ", "cancer", "ca++", "in situ carcinoma"]
    trie = re.compile(trie_pattern(phrases))
    plain = re.compile("|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True)))
    text = "carcinoma in situ ca++ cancer in situ carcinoma carcinomatous"
    assert trie.findall(text) == plain.findall(text)
