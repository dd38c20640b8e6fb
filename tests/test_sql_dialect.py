"""MySQL on SQLite: values, comparisons, grouping, order and words, each as MySQL has it."""

from __future__ import annotations

import datetime
import gc
import re
import weakref
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.errors import AgentGymError, ToolError
from agentgym.tools.mysql import NOT_UNDERSTOOD, MySQL
from agentgym.tools.mysql.functions import collate, folded, like, regexp, substituted, trim
from agentgym.tools.mysql.tables import ColumnInfo, TableInfo
from agentgym.tools.sqlite import Database, SqlLimits

PEOPLE = TableInfo(
    "People",
    (
        *(ColumnInfo("id", "int", False, extra="auto_increment"), ColumnInfo("name", "varchar(20)"), ColumnInfo("pay", "decimal(8,2)")),
        *(ColumnInfo("born", "date"), ColumnInfo("size", "double"), ColumnInfo("share", "float(10,2)")),
    ),
    ("id",),
)
NOTES = TableInfo("notes", (ColumnInfo("people_id", "int"), ColumnInfo("text", "text")), indexes=(("people_id",),))
ROWS = [(1, "Zoë", "1.50", "2020-01-31", 1.5, 0.5), (2, "ann ", "2.25", "2021-02-28", 2.0, 0.25), (3, None, None, None, None, None)]

WORDS = [
    "SELECT", "id", "name", "FROM", "people", "(", ")", ",", "*", "=", "'x'", "1", "GROUP", "BY", "WHERE", "notes", "AND", "IN", "COUNT",
    "ORDER", "LIMIT", "NULL", ".", "-", "UNION", ";", "\\", "`", "SHOW", "COLUMNS", "UPDATE", "SET", "INSERT", "INTO", "VALUES", "WITH",
]  # fmt: skip


@pytest.fixture(scope="module")
def mysql() -> MySQL:
    return MySQL()


@pytest.fixture(scope="module")
def shop(mysql: MySQL) -> Database:
    return mysql.create("Shop", [(PEOPLE, ROWS), (NOTES, [(2, "10"), (1, "9"), (1, "abc")])])


def rows(mysql: MySQL, database: Database, statement: str) -> list[Any]:
    answer = mysql.run(database, statement)[0]
    assert answer is not None
    return list(answer)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT AVG(id), SUM(id), COUNT(*), MAX(id) FROM people", [(Decimal("2.0000"), Decimal(6), 3, 3)]),
        ("SELECT AVG(pay), SUM(pay), AVG(size), AVG(share) FROM people", [(Decimal("1.875000"), Decimal("3.75"), 1.75, 0.375)]),
        ("SELECT 1/3, 7 DIV 2, 7 % 4, 1/0, 2*1.5, 1+1", [(Decimal("0.3333"), 3, 3, None, Decimal("3.0"), 2)]),
        ("SELECT born FROM people WHERE id = 1", [(datetime.date(2020, 1, 31),)]),
        ("SELECT id FROM people WHERE name = 'ZOE'", [(1,)]),
        ("SELECT id FROM people WHERE name = 'ANN'", [(2,)]),
        ("SELECT id FROM people WHERE name LIKE 'z_ë%'", [(1,)]),
        ("SELECT id FROM people WHERE UPPER(name) = 'zoë'", [(1,)]),
        ("SELECT text FROM notes WHERE text > 9", [("10",)]),
        ("SELECT text FROM notes WHERE text = 0", [("abc",)]),
        ("SELECT SUM(text) FROM notes", [(19.0,)]),
        ("SELECT SUM(CONCAT(text, 'x')) FROM notes", [(19.0,)]),
        ("SELECT text FROM notes WHERE CONCAT(text, 'x') > 9", [("10",)]),
        ("SELECT text FROM notes WHERE CONCAT(text, 'x') IN (9, 8)", [("9",)]),
        ("SELECT text FROM notes WHERE CONCAT(text, 'x')", [("10",), ("9",)]),
        ("SELECT name FROM people WHERE id = '1'", [("Zoë",)]),
        ("SELECT COUNT(*) FROM people WHERE 'a' = 'A'", [(3,)]),
        ("SELECT 1 FROM people WHERE BINARY 'a' = 'A'", []),
        ("SELECT id FROM people WHERE born > '2020-6-1'", [(2,)]),
        ("SELECT GROUP_CONCAT(text ORDER BY text DESC SEPARATOR ';') FROM notes", [("abc;9;10",)]),
        ("SELECT COUNT(DISTINCT people_id, text) FROM notes", [(3,)]),
        ("SELECT id FROM people WHERE id >= ALL (SELECT people_id FROM notes)", [(2,), (3,)]),
        ("SELECT id FROM people WHERE id = ANY (SELECT people_id FROM notes)", [(1,), (2,)]),
        ("SELECT DATE_ADD(born, INTERVAL 1 MONTH) FROM people WHERE id = 1", [(datetime.date(2020, 2, 29),)]),
        ("SELECT TIMESTAMPDIFF(YEAR, born, '2023-01-30') FROM people WHERE id = 1", [(2,)]),
        ("SELECT DATE_FORMAT(born, '%Y/%m') FROM people WHERE id = 1", [("2020/01",)]),
        ("SELECT CAST('12abc' AS SIGNED), CAST('3.456' AS DECIMAL(5,2)), CAST(2.5 AS SIGNED)", [(12, Decimal("3.46"), 3)]),
        ("SELECT ROUND(2.345, 2), ROUND(size), TRUNCATE(-1.29, 1) FROM people WHERE id = 2", [(Decimal("2.35"), 2.0, Decimal("-1.2"))]),
        ("SELECT CONCAT(name, id), CONCAT(name, pay) FROM people WHERE id = 3", [(None, None)]),
        ("SELECT IF(id > 1, 'a', 'b'), COALESCE(name, '-') FROM people WHERE id = 3", [("a", "-")]),
        ("SELECT DATABASE(), YEAR(CURDATE())", [("shop", 2023)]),
        ("SHOW TABLES", [("notes",), ("people",)]),
        ("SHOW TABLES LIKE 'p%'", [("people",)]),
        ("SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()", [("notes",), ("people",)]),
        ("SELECT data_type FROM information_schema.columns WHERE table_name = 'people' AND column_name = 'NAME'", [("varchar",)]),
        ("SHOW COLUMNS FROM notes", [("people_id", b"int", "YES", "MUL", None, ""), ("text", b"text", "YES", "", None, "")]),
    ],
)
def test_a_statement_is_answered_as_by_mysql(mysql: MySQL, shop: Database, statement: str, expected: list[Any]) -> None:
    assert rows(mysql, shop, statement) == expected
    assert str(rows(mysql, shop, statement)) == str(expected)  # 2 and 2.0 differ


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SELECT nam FROM people", "Unknown column 'nam' in 'field list'"),
        ("SELECT p.nam FROM people p WHERE q = 1", "Unknown column 'p.nam' in 'field list'"),
        ("SELECT id FROM people WHERE q = 1", "Unknown column 'q' in 'where clause'"),
        ("SELECT id AS k FROM people WHERE k = 1", "Unknown column 'k' in 'where clause'"),
        ("SELECT id FROM people ORDER BY q", "Unknown column 'q' in 'order clause'"),
        ("SELECT id FROM people GROUP BY q", "Unknown column 'q' in 'group statement'"),
        ("SELECT name FROM people GROUP BY name HAVING pay > 1", "Unknown column 'pay' in 'having clause'"),
        ("SELECT 1 FROM people p JOIN notes n ON p.x = n.y JOIN notes m ON m.z = 1", "Unknown column 'm.z' in 'on clause'"),
        ("SELECT 1 FROM people WHERE q IN (SELECT z FROM notes)", "Unknown column 'q' in 'IN/ALL/ANY subquery'"),
        ("SELECT people_id FROM notes a JOIN notes b ON a.text = b.text", "Column 'people_id' in field list is ambiguous"),
        ("SELECT 1 FROM Nowhere", "Table 'shop.nowhere' doesn't exist"),
        ("DESCRIBE nowhere", "Table 'shop.nowhere' doesn't exist"),
        ("SELECT * FROM sqlite_master", "Table 'shop.sqlite_master' doesn't exist"),
        ("SELECT id, name FROM people GROUP BY name", "Expression #1 of SELECT list is not in GROUP BY clause"),
        ("SELECT MAX(id), name FROM people", "In aggregated query without GROUP BY, expression #2 of SELECT list"),
        ("SELECT id FROM people WHERE COUNT(*) > 1", "Invalid use of group function"),
        ("SELECT id FROM people WHERE id = (SELECT people_id FROM notes)", "Subquery returns more than 1 row"),
        ("SELECT id FROM people WHERE id IN (SELECT people_id FROM notes LIMIT 1)", "This version of MySQL doesn't yet support"),
        ("SELECT id FROM (SELECT id FROM people)", "Every derived table must have its own alias"),
        ("SELECT rank FROM people", "right syntax to use near 'FROM people' at line 1"),
        ("SELECT 1 FROM groups", "right syntax to use near 'groups' at line 1"),
        ("SELECT id FROM", "right syntax to use near"),
        ("SELECT FROM people", "right syntax to use near 'FROM people' at line 1"),
        ("SELECT 1 FROM people WHERE id IN id", "IN needs a list"),
        ("SHOW COLUMNS FROM", "SHOW COLUMNS is not supported here"),
        ("SELECT 1; SELECT 2", "Use multi=True"),
        ("SELECT LOAD_FILE('/etc/passwd')", "FUNCTION shop.LOAD_FILE does not exist"),
        ("SELECT SLEEP(10)", "FUNCTION shop.SLEEP does not exist"),
        ("SELECT mysql_m_number('1')", "does not exist"),
        ("SELECT RAND()", "does not exist"),
        ("SELECT name REGEXP '(' FROM people", "regular expression"),
        ("INSERT INTO people VALUES (1)", "Column count doesn't match value count at row 1"),
        ("INSERT INTO people (nam) VALUES (1)", "Unknown column 'nam' in 'field list'"),
        ("INSERT INTO people (id) VALUES (1)", "UNIQUE constraint failed"),
        ("DELETE FROM information_schema.tables", "Access denied"),
        ("DELETE FROM `information_schema.tables`", "Access denied"),
        ("UPDATE `Information_Schema.Columns` SET table_name = 'x'", "Access denied"),
        ("INSERT INTO `information_schema.tables` VALUES ('a', 'b', 'c')", "Access denied"),
        ("CREATE TABLE `information_schema.views` (a INT)", "Access denied"),
        ("ALTER TABLE `information_schema.tables` ADD COLUMN a INT", "doesn't exist"),
        ("DROP TABLE `information_schema.tables`", "Unknown table"),
        ("ALTER TABLE people ADD COLUMN NAME int", "Duplicate column name 'NAME'"),
        ("USE elsewhere", "Unknown database 'elsewhere'"),
        ("", "Query was empty"),
        ("garbage", "not supported here"),
        ("SELECT " + "(" * 200 + "1" + ")" * 200, "nested too deeply"),
        ("SELECT '" + "x" * 30_000 + "'", "too long"),
        ("SELECT REPEAT('a', 50) REGEXP '(a|aa)+b|(a+)+c'", "Timeout exceeded in regular expression"),
    ],
)
def test_what_mysql_refuses_is_refused_in_its_words(mysql: MySQL, shop: Database, statement: str, words: str) -> None:
    with pytest.raises(ToolError) as refusal:
        mysql.run(shop, statement)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SELECT 'a' REGEXP '((a{1000}){1000}){1000}'", "counted repeats written out"),
        ("SELECT 'a' REGEXP '(([{]|\\\\}){9}x){1,99}'", "counted repeats written out"),
        ("SELECT 'a' REGEXP REPEAT('a?', 300)", "counted repeats written out"),
        ("SELECT 'a' REGEXP '(?:a(?R)?)'", "not supported here"),
        ("SELECT 'a' REGEXP '(?:abc){e<=5}'", "not supported here"),
        ("SELECT 'a' LIKE REPEAT('a_', 300)", "a pattern of more than 500 characters"),
        ("SELECT LENGTH(REGEXP_REPLACE(REPEAT('a', 60000), 'a', REPEAT('b', 60000)))", "a text of more than 100000 characters"),
        ("SELECT LENGTH(REGEXP_REPLACE(REPEAT('a', 60000), '(a+)', '\\\\1\\\\1\\\\1'))", "a text of more than 100000 characters"),
        ("SELECT " + ", ".join(["TRIM(LEADING 'a' FROM CONCAT(REPEAT('a', 90000), 1))"] * 100), "takes too long"),
        (
            "SELECT 1 FROM notes a, notes b WHERE REPEAT('a', 90000) LIKE CONCAT('%', REPEAT('a_', 200), 'b', a.text, b.text)",
            "takes too long",
        ),
    ],
)
def test_no_function_outgrows_the_limits_of_its_statement(mysql: MySQL, shop: Database, statement: str, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        mysql.run(shop, statement)


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "2020-01-31", 1),
        ("^([0-9]{1,3}[.]){3}[0-9]{1,3}$", "127.0.0.1", 1),
        ("a{2,}(?:b|c)(?=d)(?!de)", "aacdx", 1),
        ("[]{(?R]", "?", 1),
        ("(?i)^\\(?[a-z]{3}\\{e$", "(aBc{e", 1),
        ("x{2}", "x", 0),
    ],
)
def test_ordinary_regular_expressions_are_taken(pattern: str, text: str, found: int) -> None:
    assert regexp(pattern, text) == found


@given(st.text("ab", max_size=9), st.text("ab", max_size=2), st.sampled_from(["BOTH", "LEADING", "TRAILING"]))
def test_trim_takes_pieces_from_the_ends(text: str, piece: str, where: str) -> None:
    left = re.sub(f"^(?:{piece})+", "", text) if where != "TRAILING" and piece else text
    assert trim(text, where, piece) == (re.sub(f"(?:{piece})+$", "", left) if where != "LEADING" and piece else left)


def test_the_replacement_of_a_regular_expression_may_name_its_groups() -> None:
    assert substituted("a1 b22", "([a-z])([0-9]+)", r"\2\1") == "1a 22b"


def test_no_cache_keeps_a_database_alive(mysql: MySQL, shop: Database) -> None:
    _, changed = mysql.run(shop, "DELETE FROM notes")
    assert rows(mysql, changed, "SELECT * FROM notes") == rows(mysql, changed, "SELECT text FROM notes WHERE people_id = 7") == []
    kept = weakref.ref(changed)
    del changed
    gc.collect()
    assert kept() is None


def test_a_statement_is_translated_anew_where_the_tables_differ(mysql: MySQL, shop: Database) -> None:
    _, wider = mysql.run(shop, "ALTER TABLE notes ADD COLUMN more INT")
    assert rows(mysql, shop, "SELECT * FROM notes WHERE text = '10'") == [(2, "10")]
    assert rows(mysql, wider, "SELECT * FROM notes WHERE text = '10'") == [(2, "10", None)]


def test_a_full_database_refuses_tables_and_columns_and_nothing_else_is_raised() -> None:
    mysql = MySQL(SqlLimits(size=128 * 1024))
    database = mysql.create("d", [(NOTES, [])])
    statements = [f"CREATE TABLE t{number} (c{'x' * 3000} INT)" for number in range(40)]
    statements += [f"ALTER TABLE notes ADD COLUMN c{number}{'x' * 300} INT" for number in range(400)]
    refused = 0
    for statement in statements:
        try:
            _, database = mysql.run(database, statement)
        except ToolError as refusal:
            assert "full" in str(refusal)  # noqa: PT017
            refused += 1
    assert refused


def test_a_group_may_be_asked_for_what_its_key_determines(mysql: MySQL, shop: Database) -> None:
    joined = "SELECT p.name, COUNT(*) FROM people p JOIN notes n ON p.id = n.people_id GROUP BY"
    assert rows(mysql, shop, f"{joined} p.id") == rows(mysql, shop, f"{joined} n.people_id") == [("Zoë", 2), ("ann ", 1)]


def test_groups_and_unions_come_in_the_order_of_their_coming(mysql: MySQL) -> None:
    table = TableInfo("t", (ColumnInfo("id", "int"), ColumnInfo("kind", "text")), ("id",))
    database = mysql.create("d", [(table, [(1, "pear"), (2, "apple"), (3, "pear"), (4, "fig")])])
    assert rows(mysql, database, "SELECT kind, COUNT(*) FROM t GROUP BY kind") == [("pear", 2), ("apple", 1), ("fig", 1)]
    assert rows(mysql, database, "SELECT kind FROM t GROUP BY kind ORDER BY COUNT(*) LIMIT 1") == [("apple",)]
    assert rows(mysql, database, "SELECT kind FROM t UNION SELECT 'cherry'") == [("pear",), ("apple",), ("fig",), ("cherry",)]
    assert rows(mysql, database, "SELECT kind FROM t EXCEPT SELECT 'apple'") == [("pear",), ("fig",)]
    both = "SELECT kind FROM t INTERSECT SELECT kind FROM t WHERE id > 1 ORDER BY kind"
    assert rows(mysql, database, both) == [("apple",), ("fig",), ("pear",)]


def test_tables_come_in_the_order_of_their_key_without_regard_to_case(mysql: MySQL) -> None:
    table = TableInfo("t", (ColumnInfo("name", "varchar(9)", False), ColumnInfo("n", "int")), ("name",))
    database = mysql.create("d", [(table, [("b", 1), ("C", 2), ("A", 3)])])
    assert rows(mysql, database, "SELECT n FROM t") == [(3,), (1,), (2,)]
    with pytest.raises(ToolError, match="UNIQUE"):
        mysql.run(database, "INSERT INTO t VALUES ('B', 9)")


def test_writes_give_new_databases_and_numbers_become_the_texts_that_mysql_would_write(mysql: MySQL, shop: Database) -> None:
    answer, changed = mysql.run(shop, "UPDATE notes SET text = text + 1 WHERE text = '9'")
    assert answer is None
    _, changed = mysql.run(changed, "INSERT INTO notes (people_id, text) VALUES (3, 12.50), (3, 7)")
    assert [text for (text,) in rows(mysql, changed, "SELECT text FROM notes")] == ["10", "10", "abc", "12.50", "7"]
    assert [text for (text,) in rows(mysql, shop, "SELECT text FROM notes")] == ["10", "9", "abc"]


def test_tables_are_made_changed_and_dropped_and_told_of(mysql: MySQL, shop: Database) -> None:
    _, made = mysql.run(shop, "CREATE TABLE pets (id int AUTO_INCREMENT PRIMARY KEY, kind varchar(9) DEFAULT 'cat', owner int)")
    _, made = mysql.run(made, "ALTER TABLE pets ADD COLUMN age INT")
    _, made = mysql.run(made, "INSERT INTO pets (owner, age) VALUES (1, 3)")
    assert rows(mysql, made, "SELECT * FROM pets") == [(1, "cat", 1, 3)]
    assert rows(mysql, made, "DESCRIBE pets")[:2] == [
        ("id", b"int", "NO", "PRI", None, "auto_increment"),
        ("kind", b"varchar(9)", "YES", "", b"cat", ""),
    ]
    _, dropped = mysql.run(made, "DROP TABLE pets")
    assert rows(mysql, dropped, "SHOW TABLES") == rows(mysql, shop, "SHOW TABLES")


def test_a_dump_with_a_bad_statement_is_named_with_its_line(mysql: MySQL, tmp_path: Any) -> None:
    path = tmp_path / "dump.sql"
    made = "USE `a`;\n-- a comment; with a semicolon\nCREATE TABLE `t` (\n  `x` int\n);\n"
    path.write_text(made + "INSERT INTO `t` VALUES (1),(-2.5),('it\\'s; ok'),(NULL);\n")
    assert rows(mysql, mysql.load(path)["a"], "SELECT COUNT(*) FROM t") == [(4,)]
    path.write_text("USE `a`;\n\nCREATE TABLE `t` (`x`;\n")
    with pytest.raises(AgentGymError, match=r"dump\.sql, line 3"):
        mysql.load(path)
    path.write_text("USE `a`;\nCREATE TABLE `t` (`x` int);\nINSERT INTO `t` VALUES (1, 2);\n")
    with pytest.raises(AgentGymError, match="a row of t has not its 1 columns"):
        mysql.load(path)


@settings(max_examples=150, deadline=None)
@given(st.text("aB%_é ", max_size=8), st.text("abÉ c", max_size=8))
def test_like_agrees_with_its_definition(pattern: str, text: str) -> None:
    def matches(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "%":
            return any(matches(p[1:], t[i:]) for i in range(len(t) + 1))
        return bool(t) and (p[0] == "_" or folded(p[0] + "|") == folded(t[0] + "|")) and matches(p[1:], t[1:])

    assert like(pattern, text) == int(matches(pattern, text))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_the_collation_is_an_order(a: str, b: str, c: str) -> None:
    assert collate(a, b) == -collate(b, a)
    assert not (collate(a, b) <= 0 and collate(b, c) <= 0) or collate(a, c) <= 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_no_statement_raises_anything_but_a_refusal_that_says_why(mysql: MySQL, shop: Database, words: list[str]) -> None:
    said = ""
    try:
        mysql.run(shop, " ".join(words))
    except ToolError as refusal:
        said = str(refusal)
    assert said != NOT_UNDERSTOOD
