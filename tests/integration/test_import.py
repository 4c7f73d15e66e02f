"""An operator's CSV comes in whole, once, and every row that cannot is told with its line and reason."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from mivra.errors import StoreUnavailable, TradeImportError
from mivra.store import import_file, imports
from mivra.store.imports import ImportSummary, import_trades
from tests.integration.copies import copied

HEADER = "external_id,email,account_type,asset,direction,stake,payout_rate,result,opened_at,expires_at"
ROW = "t1,ana@example.com,real,EURUSD,call,20,0.85,WIN,2024-05-31T14:30:00Z,2024-05-31T14:30:10Z"


@pytest.fixture(scope="module")
def used_again(servers: tuple[str, str | None], template: str) -> Iterator[str]:
    with copied(servers[0], template) as url:
        yield url


@pytest.fixture
def database_url(used_again: str) -> str:
    """An empty database, which the tests of this module use one after the other."""
    with psycopg.connect(used_again) as connection:
        # Bots may only be deleted one by one, so that each is on record.
        connection.execute("set session_replication_role = replica")
        connection.execute("truncate trade_history, profiles, bot_control, bot_status restart identity")
    return used_again


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trades.csv"


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return path


def rows(dsn: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute(query.encode()).fetchall()


def trades(dsn: str) -> list[dict[str, Any]]:
    return rows(dsn, "select * from trade_history order by external_id")


def rejected(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.reader(lines))


def with_cells(**cells: str) -> str:
    return ",".join((dict(zip(HEADER.split(","), ROW.split(","), strict=True)) | cells).values())


def test_a_good_file_is_imported_as_it_is(database_url: str, file: Path) -> None:
    summary = import_trades(database_url, write(file, HEADER, ROW))
    assert summary == ImportSummary(read=1, imported=1, already_there=0, rejected=0, rejects_file=None)
    (trade,) = trades(database_url)
    (profile,) = rows(database_url, "select * from profiles")
    del trade["id"]
    assert trade == {
        "external_id": "t1",
        "user_id": profile["user_id"],
        "bot_id": None,
        "account_type": "real",
        "asset": "EURUSD",
        "direction": "call",
        "stake": Decimal(20),
        "payout_rate": Decimal("0.85"),
        "expiration_seconds": 10,
        "strategy": None,
        "status": "closed",
        "result": "WIN",
        "pnl": Decimal(17),
        "opened_at": datetime(2024, 5, 31, 14, 30, tzinfo=UTC),
        "expires_at": datetime(2024, 5, 31, 14, 30, 10, tzinfo=UTC),
        "closed_at": datetime(2024, 5, 31, 14, 30, 10, tzinfo=UTC),
    }
    assert (profile["email"], profile["created_at"]) == ("ana@example.com", trade["opened_at"])
    assert not file.with_name("trades.csv.rejects.csv").exists()


BAD = [
    (with_cells(external_id=""), "external_id is empty"),
    (with_cells(external_id="b2", stake="x"), 'stake "x" is not a number with a decimal point'),
    (with_cells(external_id="b3", stake="-5", asset=""), 'asset is empty; stake "-5" is not above 0'),
    (with_cells(external_id="b4", result="LOST?"), 'result "LOST?" is none of WIN, LOSS, TIE'),
    (with_cells(external_id="b5", email="nobody"), 'email "nobody" is no e-mail address'),
    (with_cells(external_id="b6", email=""), "user_id and email are empty"),
    (
        with_cells(external_id="b7", account_type=""),
        "account_type is empty; pass --account-type real or --account-type demo",
    ),
    (with_cells(external_id="b8", opened_at="?"), 'opened_at "?" is no time such as 2024-05-31T14:30:00Z'),
    (with_cells(external_id="b9", expires_at="2024-05-31T14:29:00Z"), "expires_at is not after opened_at"),
    (with_cells(external_id="b10", payout_rate="2000"), 'payout_rate "2000" is more than 1000 %'),
    (with_cells(external_id="b11", asset="E" * 65), "asset is longer than 64 characters"),
    ("b12,ana@example.com,real", "3 columns instead of 10"),
    (with_cells(external_id="t1", stake="50"), "external_id is already in line 2"),
    (with_cells(external_id='"=1+1"', asset=""), "asset is empty"),
]


def test_every_bad_row_is_told_with_its_line_and_reason(database_url: str, file: Path) -> None:
    # Blank lines and a record over two lines: the line is the physical one.
    two_lines = with_cells(external_id="b15", asset='"EUR\nUSD"')
    write(file, HEADER, ROW, "", *(line for line, _ in BAD), two_lines, with_cells(external_id="t2"))
    summary = import_trades(database_url, file)
    target = file.with_name("trades.csv.rejects.csv")
    assert summary == ImportSummary(read=17, imported=2, already_there=0, rejected=15, rejects_file=target)
    assert [trade["external_id"] for trade in trades(database_url)] == ["t1", "t2"]
    assert trades(database_url)[0]["stake"] == 20
    header, *told = rejected(target)
    assert header == ["line", "reason", *HEADER.split(",")]
    assert [(row[0], row[1]) for row in told] == [
        *((str(number), reason) for number, (_, reason) in enumerate(BAD, 4)),
        ("18", 'asset "EUR?USD" has characters that cannot be printed'),
    ]
    assert told[1][2:] == with_cells(external_id="b2", stake="x").split(",")
    assert told[2][7] == "-5"
    assert told[13][2] == "'=1+1"


def test_a_corrected_rejects_file_is_a_file_to_import(database_url: str, file: Path) -> None:
    write(file, HEADER, with_cells(external_id="b1", stake="x"))
    target = import_trades(database_url, file).rejects_file
    assert target is not None
    target.write_bytes(target.read_bytes().replace(b",x,", b",20,"))
    assert import_trades(database_url, target).imported == 1


def test_the_platform_before_this_one_is_recognised(database_url: str, file: Path) -> None:
    write(
        file,
        "user_email;external_id;ativo_nome;direction;valor;profit_esperado;resultado;data_abertura;data_expiracao",
        "Ana@Example.com;m1;EURUSD;CALL;20,5;85;win;2024-05-31 11:30:00;2024-05-31 11:30:10",
        "ana@example.com;m2;BTCUSD;PUT;10;87%;LOSS;1717165800;1717165805",
        "ana@example.com;m3;BTCUSD;put;10;0.85;Empate;1717165800000;1717165830000",
        "ana@example.com;m4;BTCUSD;put;10;0.85;;2024-05-31T14:30:00Z;2024-05-31T14:31:00Z",
    )
    summary = import_trades(database_url, file, account_type="demo", timezone="America/Sao_Paulo")
    assert (summary.imported, summary.rejected) == (4, 0)
    got = trades(database_url)
    assert {trade["opened_at"] for trade in got} == {datetime(2024, 5, 31, 14, 30, tzinfo=UTC)}
    assert [trade["expiration_seconds"] for trade in got] == [10, 5, 30, 60]
    assert [trade["pnl"] for trade in got] == [Decimal("17.425"), -10, 0, None]
    assert [trade["payout_rate"] for trade in got] == [Decimal(t) for t in ("0.85", "0.87", "0.85", "0.85")]
    assert [trade["status"] for trade in got] == ["closed", "closed", "closed", "open"]
    assert {trade["account_type"] for trade in got} == {"demo"}
    assert [p["email"] for p in rows(database_url, "select email from profiles")] == ["Ana@Example.com"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_byte_order_marks_and_line_ends(
    database_url: str, file: Path, encoding: str, delimiter: str, end: str
) -> None:
    text = "".join(f"{line}{end}" for line in ("", HEADER.upper(), ROW, with_cells(external_id="é", stake="x")))
    file.write_bytes(text.replace(",", delimiter).encode(encoding))
    summary = import_trades(database_url, file)
    assert (summary.imported, summary.rejected) == (1, 1)
    assert summary.rejects_file is not None
    assert summary.rejects_file.read_bytes().startswith(b"\xef\xbb\xbfline" + delimiter.encode())
    assert f"{delimiter}é{delimiter}" in summary.rejects_file.read_text(encoding="utf-8")


def test_twice_is_once(database_url: str, file: Path) -> None:
    write(file, HEADER, ROW, with_cells(external_id="t2", result=""))
    import_trades(database_url, file)
    before = trades(database_url)
    write(file, HEADER, with_cells(stake="50"), with_cells(external_id="t2"), with_cells(external_id="t3"))
    summary = import_trades(database_url, file)
    assert summary == ImportSummary(read=3, imported=1, already_there=2, rejected=0, rejects_file=None)
    assert trades(database_url)[:2] == before


def test_a_trade_that_is_already_there_makes_no_user(database_url: str, file: Path) -> None:
    import_trades(database_url, write(file, HEADER, ROW))
    import_trades(database_url, write(file, HEADER, with_cells(email="new@example.com")))
    assert rows(database_url, "select email from profiles") == [{"email": "ana@example.com"}]


def test_strict_imports_nothing_when_one_row_is_bad(database_url: str, file: Path) -> None:
    write(file, HEADER, ROW, with_cells(external_id="t2", stake="x"), with_cells(email="b@example.com"))
    summary = import_trades(database_url, file, strict=True)
    assert (summary.read, summary.imported, summary.already_there, summary.rejected) == (3, 0, 0, 2)
    assert [row[:2] for row in rejected(file.with_name("trades.csv.rejects.csv"))[1:]] == [
        ["3", 'stake "x" is not a number with a decimal point'],
        ["4", "external_id is already in line 2"],
    ]
    assert rows(database_url, "select from trade_history") == rows(database_url, "select from profiles") == []
    assert import_trades(database_url, write(file, HEADER, ROW), strict=True).imported == 1


def test_users_are_found_or_made(database_url: str, file: Path) -> None:
    known, by_id, late = (uuid.UUID(int=n) for n in (1, 2, 3))
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into profiles values (%s, 'Known@example.com', '2020-01-01Z')", [known])
    write(
        file,
        "external_id,user_id,email,account_type,asset,direction,stake,payout_rate,result,opened_at,expiration_seconds",
        "1,,known@EXAMPLE.com,real,A,call,20,85,WIN,2024-01-05T00:00:00Z,10",
        "2,,new@example.com,real,A,call,20,85,WIN,2024-01-04T00:00:00Z,10",
        "3,,NEW@example.com,real,A,call,20,85,WIN,2024-01-03T00:00:00Z,10",
        f"4,{by_id},id@example.com,real,A,call,20,85,WIN,2024-01-02T00:00:00Z,10",
        f"5,{by_id},,real,A,call,20,85,WIN,2024-01-06T00:00:00Z,10",
        "6,,id@example.com,real,A,call,20,85,WIN,2024-01-01T00:00:00Z,10",
        f"7,{late},known@example.com,real,A,call,20,85,WIN,2024-01-07T00:00:00Z,10",
    )
    assert import_trades(database_url, file).imported == 7
    owner = {trade["external_id"]: trade["user_id"] for trade in trades(database_url)}
    assert owner["1"] == known
    assert owner["2"] == owner["3"]
    assert owner["4"] == owner["5"] == owner["6"] == by_id
    assert owner["7"] == late
    profiles = {row["user_id"]: row for row in rows(database_url, "select * from profiles")}
    assert profiles[known]["created_at"] == datetime(2020, 1, 1, tzinfo=UTC)
    assert profiles[owner["2"]]["created_at"] == datetime(2024, 1, 3, tzinfo=UTC)
    assert (profiles[by_id]["email"], profiles[late]["email"]) == ("id@example.com", None)
    assert len(profiles) == 4


def test_times_without_offset_follow_the_clocks_of_the_zone(database_url: str, file: Path) -> None:
    times = [
        ("2024-03-31 01:59:59", "2024-03-31 03:00:04"),
        ("2024-03-31 02:30:00", "2024-03-31 03:30:05"),
        ("2024-10-27 02:30:00", "2024-10-27 02:30:05"),
    ]
    lines = [with_cells(external_id=str(n), opened_at=o, expires_at=e) for n, (o, e) in enumerate(times)]
    summary = import_trades(database_url, write(file, HEADER, *lines), timezone="Europe/Berlin")
    assert [(trade["opened_at"], trade["expiration_seconds"]) for trade in trades(database_url)] == [
        (datetime(2024, 3, 31, 0, 59, 59, tzinfo=UTC), 5),
        (datetime(2024, 10, 27, 0, 30, tzinfo=UTC), 5),
    ]
    assert summary.rejects_file is not None
    assert rejected(summary.rejects_file)[1][:2] == [
        "3",
        'opened_at "2024-03-31 02:30:00" does not exist in Europe/Berlin: clocks were put forward over it',
    ]


def test_progress_counts_bytes_to_the_end(database_url: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "PROGRESS_ROWS", 100)
    write(file, HEADER, *(with_cells(external_id=str(n)) for n in range(1000)))
    calls: list[tuple[int, int]] = []
    import_trades(database_url, file, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 11
    assert calls == sorted(calls)
    assert calls[-1] == (file.stat().st_size, file.stat().st_size)


HEADER_SHOWN = HEADER.replace("email,", "mail,").replace("result,", "").replace(",", ", ")
TROUBLE: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b"\xef\xbb\xbf\n\n", "is empty"),
    (b"\x89PNG\r\n\x1a\n\0\0", "is not a text file; save it as CSV UTF-8"),
    (HEADER.encode("utf-16"), "is not a text file; save it as CSV UTF-8"),
    (f"{HEADER}\n{with_cells(asset='Petróleo')}\n".encode("latin-1"), "is not text in UTF-8; save it as CSV UTF-8"),
    (
        HEADER.replace("email,", "mail,").replace("result,", "").encode(),
        f"lacks the column user_id or email, result; its columns are {HEADER_SHOWN}",
    ),
    (f"{HEADER},valor\n".encode(), "has two columns for stake: stake and valor"),
    (f"{HEADER},Stake\n".encode(), "has two columns for stake: stake and Stake"),
    (
        f'{HEADER}\n{ROW}\nt2,"{"x" * 140_000}"\n'.encode(),
        "the record at line 3 cannot be read (field larger than field limit (131072))",
    ),
]


@pytest.mark.parametrize(("content", "sentence"), TROUBLE)
def test_trouble_with_the_content_is_one_sentence(database_url: str, file: Path, content: bytes, sentence: str) -> None:
    file.write_bytes(content)
    with pytest.raises(TradeImportError) as caught:
        import_trades(database_url, file)
    assert str(caught.value).removeprefix(str(file)).lstrip(": ") == sentence
    assert trades(database_url) == []


def test_trouble_with_the_file_is_one_sentence(database_url: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, sentence in [
        (tmp_path / "none.csv", f"{tmp_path}/none.csv cannot be used: No such file or directory"),
        (tmp_path, f"{tmp_path} is not a file"),
        (tmp_path / "pipe", f"{tmp_path}/pipe is not a file"),
        (tmp_path / ("x" * 300), f"{tmp_path}/{'x' * 300} cannot be used: File name too long"),
    ]:
        with pytest.raises(TradeImportError) as caught:
            import_trades(database_url, path)
        assert str(caught.value) == sentence


def test_a_file_that_may_not_be_read(database_url: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, HEADER, ROW)

    open_other = Path.open

    def deny(path: Path, *arguments: Any, **options: Any) -> Any:
        if path != file:
            return open_other(path, *arguments, **options)
        # As the system says it; the tests may run as root, whom no mode stops.
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(TradeImportError, match="cannot be used: Permission denied"):
        import_trades(database_url, file)


def test_a_rejects_file_that_cannot_be_written_means_nothing_is_imported(database_url: str, file: Path) -> None:
    write(file, HEADER, ROW, with_cells(external_id="t2", stake="x"))
    with pytest.raises(TradeImportError, match=r"rejects\.csv cannot be used: No such file or directory"):
        import_trades(database_url, file, rejects=file.parent / "none" / "rejects.csv")
    with pytest.raises(TradeImportError, match="is the file to import; choose another one for the rejects"):
        import_trades(database_url, file, rejects=file)
    assert trades(database_url) == []
    assert file.read_text(encoding="utf-8").startswith(HEADER)


def test_a_row_that_only_the_database_refuses_stops_everything(database_url: str, file: Path) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table trade_history add constraint ours check (asset <> 'GOLD')")
    write(file, HEADER, ROW, with_cells(external_id="t2", asset="GOLD"))
    with pytest.raises(TradeImportError, match=r'nothing was imported, the database refused a row: .*"ours"'):
        import_trades(database_url, file)
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table trade_history drop constraint ours")
    assert rows(database_url, "select from trade_history") == rows(database_url, "select from profiles") == []


def test_a_database_that_is_away_is_a_store_error(file: Path) -> None:
    with pytest.raises(StoreUnavailable):
        import_trades("postgresql://mivra@127.0.0.1:1/mivra", write(file, HEADER, ROW))


def test_a_file_without_line_ends_is_not_read_whole(
    database_url: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_file, "LINE_LIMIT", 200)
    file.write_text(f"{HEADER}\n{ROW}\n{'a,' * 500}", encoding="utf-8")
    summary = import_trades(database_url, file)
    assert (summary.imported, summary.rejected) == (1, 5)
