"""SQL sources and presets: the CoPath queries on a real SQLite file, and the guards around a query."""

import os
import random
import sqlite3
from pathlib import Path

import pytest

from ingest.cohort import CohortConfig
from ingest.config import load_config
from ingest.errors import ConfigError, InputError
from ingest.init import PRESETS, cohort_text, init_cohort
from ingest.source.canonical import COLUMNS
from ingest.source.config import PRESET_FOLDER, SourceConfig
from ingest.source.read import read_source
from ingest.source.sql import check_select
from tests.copath import COPATH_ROWS, fill_copath


@pytest.fixture
def lis(tmp_path: Path) -> Path:
    connection = sqlite3.connect(tmp_path / "lis.sqlite")
    fill_copath(connection)
    connection.close()
    return tmp_path


COPATH = SourceConfig(preset="copath", database_file="lis.sqlite")


def test_copath_preset_reads_versions_sections_parts_and_blocks(lis: Path) -> None:
    with read_source(COPATH, lis) as source:
        records = {record.accession: record for record in source.case_records()}
        first = records["S23-1"]
        assert [part.part for part in first.parts] == ["A", "B"]
        assert [block.block for block in first.blocks] == ["A1", "A2", "B1"]
        assert [(report.version_kind, report.section, report.text) for report in first.reports] == [
            ("final", "final", "A. BREAST: BENIGN."),
            ("final", "gross", "{\\rtf1 Received fresh.}"),
            ("amended", "addendum", "AMENDED: A. CARCINOMA."),
            ("preliminary", "addendum", "Pending."),
        ]
        assert [report.format for report in first.reports] == ["text", "rtf", "text", "text"]
        assert first.case is not None
        assert first.case.patient_id == "1"
        assert records["S23-2"].reports[0].version_kind == "preliminary"  # never signed out


def test_copath_preset_keeps_every_scan_also_of_unknown_glass(lis: Path) -> None:
    with read_source(COPATH, lis) as source:
        found = {
            row["slide_id"]: (row["accession"], row["part"], row["block"]) for row in source.table("slides").to_pylist()
        }
        assert found == {"i1": ("S23-1", "A", "A1"), "i2": ("S23-1", "A", "A1"), "i3": (None, None, None)}


def test_copath_preset_never_reads_names_or_birth_dates(lis: Path) -> None:
    assert "NOBODY" in repr(COPATH_ROWS)
    with read_source(COPATH, lis) as source:
        everything = repr([source.table(name).to_pylist() for name in COLUMNS if name != "reports"])
        assert "NOBODY" not in everything
        assert "1950" not in everything


def test_row_order_in_the_database_changes_nothing(tmp_path: Path) -> None:
    outcomes = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows = list(COPATH_ROWS)
        random.Random(seed).shuffle(rows)
        connection = sqlite3.connect(folder / "lis.sqlite")
        fill_copath(connection, rows)
        connection.close()
        with read_source(COPATH, folder) as source:
            outcomes.append((list(source.case_records()), source.table("slides"), source.table("patients")))
    assert outcomes[1] == outcomes[0]
    assert outcomes[2] == outcomes[0]


def test_source_is_opened_read_only(lis: Path) -> None:
    before = (lis / "lis.sqlite").read_bytes()
    config = SourceConfig.model_validate(
        {"database_file": "lis.sqlite", "tables": {"cases": {"query": "SELECT 'S1' AS accession"}}}
    )
    with read_source(config, lis):
        pass
    assert (lis / "lis.sqlite").read_bytes() == before
    assert {path.name for path in lis.iterdir()} == {"lis.sqlite"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("DELETE FROM c_specimen", "must start with SELECT or WITH"),
        ("SELECT 1; DROP TABLE c_specimen", "more than one statement"),
        ("WITH x AS (SELECT 1) INSERT INTO y SELECT * FROM x", "INSERT in a query"),
        ("SELECT * INTO copy FROM c_specimen", "INTO in a query"),
        ("", "must start with SELECT"),
    ],
)
def test_anything_but_one_select_is_refused(query: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_select(query, "source.tables.cases")


def test_forbidden_words_in_literals_and_comments_are_no_statements() -> None:
    check_select("-- drop; delete\nSELECT 'insert; update', x /* ; */ FROM y WHERE z = 'it''s; INTO';", "t")


def test_database_errors_name_class_and_table_but_neither_query_nor_value(lis: Path) -> None:
    config = SourceConfig.model_validate(
        {"database_file": "lis.sqlite", "tables": {"cases": {"query": "SELECT 'S23-777' AS accession FROM absent"}}}
    )
    with pytest.raises(InputError) as caught:
        read_source(config, lis)
    assert "source.tables.cases" in str(caught.value)
    assert "OperationalError" in str(caught.value)
    assert "777" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_colons_and_percent_signs_in_a_query_are_no_parameters(lis: Path) -> None:
    query = "SELECT specnum_formatted AS accession, '10:30' AS status FROM c_specimen WHERE specclass_id LIKE 'S%'"
    config = SourceConfig.model_validate({"database_file": "lis.sqlite", "tables": {"cases": {"query": query}}})
    with read_source(config, lis) as source:
        assert set(source.table("cases")["status"].to_pylist()) == {"10:30"}


def test_query_may_stand_in_a_file_of_its_own(lis: Path) -> None:
    (lis / "cases.sql").write_text("SELECT specnum_formatted AS accession FROM c_specimen")
    config = SourceConfig.model_validate(
        {"database_file": "lis.sqlite", "tables": {"cases": {"query_file": "cases.sql"}}}
    )
    with read_source(config, lis) as source:
        assert source.table("cases").num_rows == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "variable is not set"),
        ("not a url", "no SQLAlchemy URL"),
        ("nosuchdb://reader:secret@host/x", "not known to SQLAlchemy"),
        ("oracle+oracledb://reader:secret@host/x", "driver oracledb is not installed"),
    ],
)
def test_wrong_urls_are_explained_and_never_printed(
    url: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url is None:
        monkeypatch.delenv("LIS_URL", raising=False)
    else:
        monkeypatch.setitem(os.environ, "LIS_URL", url)
    with pytest.raises(ConfigError, match=message) as caught:
        read_source(SourceConfig(preset="copath"), tmp_path)
    assert "secret" not in str(caught.value)


def test_source_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tables"):
        read_source(SourceConfig(), tmp_path)


def test_missing_database_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"database_file = lis\.sqlite: no such file"):
        read_source(COPATH, tmp_path)


def test_broken_connection_is_tried_again_and_nothing_is_read_twice(lis: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.source import sql

    calls = {"stain": 0}
    real = sql.check_select

    def drop_once(query: str, where: str) -> None:
        if where.endswith("slides"):
            calls["stain"] += 1
            if calls["stain"] < 3:
                raise sql.DroppedConnection("OperationalError 57P01")
        real(query, where)

    monkeypatch.setattr(sql, "check_select", drop_once)
    with read_source(COPATH, lis) as source:
        assert source.num_rows["cases"] == 2
        assert list(source.rejected()) == []
    calls["stain"] = 0
    with pytest.raises(InputError, match=r"connection broke 2 times \(OperationalError 57P01\)"):
        read_source(COPATH.model_copy(update={"read_attempts": 2}), lis)


@pytest.mark.parametrize("preset", PRESETS)
def test_init_writes_a_cohort_file_that_loads_as_it_is(preset: str, tmp_path: Path) -> None:
    path = init_cohort(preset, tmp_path / "cohort")
    config = load_config(CohortConfig, "ingest", path)
    assert config.source.tables["slides"]
    assert config.model_copy(update={"source": SourceConfig()}) == CohortConfig()
    with pytest.raises(ConfigError, match="exists in that folder"):
        init_cohort(preset, tmp_path / "cohort")


def test_commented_defaults_of_the_cohort_file_are_the_defaults(tmp_path: Path) -> None:
    text = (PRESET_FOLDER / "common.toml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if "not a default" not in line]
    start = next(index for index, line in enumerate(lines) if line.startswith("["))
    (tmp_path / "c.toml").write_text("\n".join(lines[start:]))
    assert load_config(CohortConfig, "ingest", tmp_path / "c.toml") == CohortConfig()


def test_unknown_preset_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="copath, powerpath, beaker, hl7, csv"):
        cohort_text("softpath")
    (tmp_path / "c.toml").write_text('[ingest]\npreset = "softpath"')
    with pytest.raises(ConfigError, match="copath"):
        load_config(SourceConfig, "ingest", tmp_path / "c.toml")


def test_own_table_replaces_the_one_of_the_preset() -> None:
    config = SourceConfig.model_validate({"preset": "copath", "tables": {"slides": {"file": "scans.csv"}}})
    assert config.tables["slides"].file == "scans.csv"
    assert config.tables["cases"].query is not None
    again = SourceConfig.model_validate(config.model_dump(mode="json", exclude_none=True))
    assert again == config  # the resolved configuration can be saved and read back


# The tables these two presets name, as far as they name them; only the grammar and the column names are under test.
PRESET_TABLES = {
    "powerpath": """
        CREATE TABLE patient_mrn_2 (id, patient_id, med_rec_no, facility_id);
        CREATE TABLE accession_2 (id, accession_no, patient_id, status_final, created_date, facility_id, acc_type_id);
        CREATE TABLE acc_type (id, name); CREATE TABLE tmplt_profile (id, code);
        CREATE TABLE acc_specimen (id, acc_id, specimen_label, description, tmplt_profile_id);
        CREATE TABLE acc_results (acc_id, heading_id, row_version, finding, finding_text);
        CREATE TABLE path_rpt_heading (id, name, type); CREATE TABLE acc_block (id, acc_specimen_id, label);""",
    "beaker": """
        CREATE TABLE PATIENT (PAT_ID, PAT_MRN_ID); CREATE TABLE IDENTITY_ID (PAT_ID, IDENTITY_ID, IDENTITY_TYPE_ID);
        CREATE TABLE PAT_MERGE_HISTORY (PAT_ID, PATIENT_MRG_ID);
        CREATE TABLE LAB_CASE_DB_MAIN (CASE_ID, CASE_PAT_ID, CASE_COLL_DTTM);
        CREATE TABLE LAB_CASE_INFO (REQUISITION_ID, CASE_NUM);
        CREATE TABLE SPEC_DB_MAIN (SPECIMEN_ID, CASE_ID, SPEC_NUMBER_LN1, SPECIMEN_DESC);
        CREATE TABLE SPEC_AP_RESULT (SPECIMEN_ID, LINE, AP_RES_TYPE_C, AP_RES_STATUS_C, AP_RES_NOTE_ID);
        CREATE TABLE ZC_AP_RES_TYPE (AP_RES_TYPE_C, NAME);
        CREATE TABLE HNO_NOTE_TEXT (NOTE_ID, LINE, NOTE_TEXT, CONTACT_DATE_REAL);""",
}


@pytest.mark.parametrize("preset", PRESET_TABLES)
def test_queries_of_the_other_presets_are_sound_and_name_canonical_columns(preset: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.create_function("LEN", 1, len)
    connection.executescript(PRESET_TABLES[preset])
    for name, table in SourceConfig.model_validate({"preset": preset}).tables.items():
        if table.query is not None:
            check_select(table.query, name)
            cursor = connection.execute(table.query)
            assert {column[0] for column in cursor.description} <= set(COLUMNS[name])
    connection.close()
