"""What a command shows when something goes wrong: never what a patient is called."""

import pytest
import typer

from ingest.command import SHOW_VALUES, UNEXPECTED_ERROR, new_app, run_app


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    app = new_app("help")

    @app.command()
    def fail() -> None:
        raise KeyError("S23-12345 of NOBODY,INVENTED")

    monkeypatch.setattr("sys.argv", ["ingest"])
    monkeypatch.delenv(SHOW_VALUES, raising=False)
    return app


def test_an_unexpected_error_shows_its_kind_and_place_but_no_value(
    app: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_app(app, hide_values=True)
    assert caught.value.code == UNEXPECTED_ERROR
    shown = capsys.readouterr()
    assert "unexpected KeyError at " in shown.err
    assert "test_command.py:" in shown.err
    assert "12345" not in shown.err + shown.out
    assert "NOBODY" not in shown.err + shown.out


def test_whoever_may_see_patient_data_can_ask_for_the_whole_error(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOW_VALUES, "1")
    with pytest.raises(KeyError, match="S23-12345"):
        run_app(app, hide_values=True)
    monkeypatch.delenv(SHOW_VALUES)
    with pytest.raises(KeyError, match="S23-12345"):
        run_app(app)  # commands that see pseudonyms only
