"""Not a test: what a stranger may put into the index of a zoo, or beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

COLUMNS = (
    "id, shard, row, architecture, task, dataset, classes, split, member, step, final, accuracy, loss, "
    "provenance"
)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def _sql(*statements: str) -> Callable[[Path], None]:
    def put(zoo: Path) -> None:
        with closing(sqlite3.connect(zoo / "zoo.sqlite3", isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    return put


def _rewritten(old: str, new: str) -> Callable[[Path], None]:
    """The text that made an object is another one."""

    def put(zoo: Path) -> None:
        with closing(sqlite3.connect(zoo / "zoo.sqlite3", isolation_level=None)) as db:
            db.execute("PRAGMA writable_schema=ON")
            changed = db.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (old, new))
            assert changed.rowcount
        with closing(sqlite3.connect(zoo / "zoo.sqlite3")) as db:
            assert any(new in (row[0] or "") for row in db.execute("SELECT sql FROM sqlite_master"))

    return put


def _view_of(table: str, columns: str, rest: str) -> Callable[[Path], None]:
    return _sql(
        f"ALTER TABLE {table} RENAME TO hidden",
        f"CREATE VIEW {table} AS {rest.format(columns=columns)}",
    )


SCHEMAS: dict[str, Callable[[Path], None]] = {
    "a view in place of the checkpoints": _view_of("checkpoints", COLUMNS, "SELECT {columns} FROM hidden"),
    "an endless view of checkpoints": _view_of(
        "checkpoints", COLUMNS, f"{ENDLESS} SELECT {{columns}} FROM hidden, n"
    ),
    "an endless view of shards": _view_of(
        "shards", "name, sha256, networks", f"{ENDLESS} SELECT name, sha256, networks FROM hidden, n"
    ),
    "a view of what the zoo says": _view_of("about", "key, value", "SELECT {columns} FROM hidden"),
    "one more view": _sql("CREATE VIEW more AS SELECT * FROM checkpoints"),
    "a trigger that empties the zoo": _sql(
        "CREATE TRIGGER t AFTER INSERT ON about BEGIN DELETE FROM checkpoints; DELETE FROM shards; "
        "DELETE FROM seals; END"
    ),
    "a trigger on deleting": _sql(
        "CREATE TRIGGER t BEFORE DELETE ON seals BEGIN DELETE FROM checkpoints; DELETE FROM shards; END"
    ),
    "a virtual table": _sql("CREATE VIRTUAL TABLE words USING fts3(text)"),
    "a virtual table of another name": _sql("CREATE VIRTUAL TABLE seals2 USING rtree(a, b, c)"),
    "one more table": _sql("CREATE TABLE more (key TEXT)"),
    "statistics": _sql("ANALYZE"),
    "a generated column": _sql("ALTER TABLE about ADD COLUMN more AS (hex(zeroblob(1000000)))"),
    "one more column": _sql("ALTER TABLE checkpoints ADD COLUMN more TEXT DEFAULT 'x'"),
    "an index with an expression": _sql("CREATE INDEX more ON about (lower(value))"),
    "a partial index": _sql("CREATE INDEX more ON checkpoints (id) WHERE length(id) > 3"),
    "an index of other columns": _sql("DROP INDEX by_words", "CREATE INDEX by_words ON checkpoints (id)"),
    "an index that is gone": _sql("DROP INDEX by_shard"),
    "a table that is gone": _sql("DROP TABLE seals"),
    "a check in a table": _rewritten("networks INTEGER NOT NULL)", "networks INTEGER NOT NULL CHECK (1))"),
    "another default": _rewritten("loss REAL,", "loss REAL DEFAULT 3,"),
    "a collation": _rewritten("key TEXT PRIMARY KEY", "key TEXT COLLATE NOCASE PRIMARY KEY"),
}  # fmt: skip
"""What puts it into a zoo, by what it is."""


def _beside(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def put(zoo: Path) -> None:
        place = zoo / name
        if place.exists():
            os.replace(place, zoo.parent / "aside")
        make(place)

    return put


def _link_to(name: str) -> Callable[[Path], None]:
    return lambda place: place.symlink_to(place.parents[1] / name)


PLACES: dict[str, Callable[[Path], None]] = {
    "an index that is a link": _beside("zoo.sqlite3", _link_to("aside")),
    "an index that is a pipe": _beside("zoo.sqlite3", lambda place: os.mkfifo(place)),
    "an index that is a folder": _beside("zoo.sqlite3", lambda place: place.mkdir()),
    "shards that are a link": _beside("shards", _link_to("aside")),
    "a log beside it": _beside("zoo.sqlite3-wal", lambda place: place.write_bytes(b"x" * 100) and None),
    "an empty log beside it": _beside("zoo.sqlite3-wal", lambda place: place.touch()),
    "a log that is a link": _beside("zoo.sqlite3-wal", _link_to("outside")),
    "a log that is a pipe": _beside("zoo.sqlite3-wal", lambda place: os.mkfifo(place)),
    "a log's memory": _beside("zoo.sqlite3-shm", lambda place: place.write_bytes(bytes(32768)) and None),
    "a journal that is a link": _beside("zoo.sqlite3-journal", _link_to("outside")),
    "a journal that is a pipe": _beside("zoo.sqlite3-journal", lambda place: os.mkfifo(place)),
}
"""What puts something else than a plain file where one belongs; ``outside`` beside the zoo is the user's."""


def hot_journal(zoo: Path, *, names: Path | None = None, pages: int | None = None) -> Path:
    """A journal that SQLite would take back: a writer was killed, and perhaps a stranger was at it since.

    Args:
        zoo: the zoo, whose index has changed since the journal was begun.
        names: another journal that it says it is part of.
        pages: how many pages it says that the index had.
    """
    index = zoo / "zoo.sqlite3"
    journal = Path(f"{index}-journal")
    pid = os.fork()
    if pid == 0:
        try:
            db = sqlite3.connect(index, isolation_level=None)
            db.execute("PRAGMA cache_size=1")
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE checkpoints SET accuracy = 0.125, task = hex(zeroblob(4000))")
            db.execute("SELECT count(*) FROM checkpoints").fetchall()
            os.kill(os.getpid(), 9)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    assert journal.stat().st_size > 512
    data = bytearray(journal.read_bytes())
    if pages is not None:
        data[16:20] = pages.to_bytes(4, "big")
    if names is not None:
        text = os.fsencode(names)
        page = int.from_bytes(data[24:28], "big")
        locked = (1 << 30) // page + 1
        data += locked.to_bytes(4, "big") + text + len(text).to_bytes(4, "big")
        data += sum(text).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    journal.write_bytes(data)
    return journal


def shared_pages(zoo: Path, table: str) -> None:
    """A table whose pages lead to each other so that it has rows for ever."""
    index = zoo / "zoo.sqlite3"
    with closing(sqlite3.connect(index, isolation_level=None)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    data = bytearray(index.read_bytes())
    leaf = data[(root - 1) * 4096 : root * 4096]
    assert leaf[0] == 0x0D
    count = len(data) // 4096
    levels = 12
    pages = [root, *range(count + 1, count + levels + 1)]
    for number, page in enumerate(pages[:-1]):
        children = 300
        cells = b"".join(pages[number + 1].to_bytes(4, "big") + b"\x01" for _ in range(children))
        start = 4096 - len(cells)
        body = bytearray(4096)
        body[0] = 5
        body[3:5], body[5:7] = children.to_bytes(2, "big"), start.to_bytes(2, "big")
        body[8:12] = pages[number + 1].to_bytes(4, "big")
        for cell in range(children):
            body[12 + 2 * cell : 14 + 2 * cell] = (start + 5 * cell).to_bytes(2, "big")
        body[start:] = cells
        if page > count:
            data += body
        else:
            data[(page - 1) * 4096 : page * 4096] = body
    data += leaf
    data[28:32] = (len(data) // 4096).to_bytes(4, "big")
    index.write_bytes(data)
