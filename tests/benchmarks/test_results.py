"""What the harness makes of its figures: bars, ratios, tables, the page. The measuring itself is done by hand."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the harness is Linux's", allow_module_level=True)

from benchmarks.__main__ import choose_questions, choose_servers
from benchmarks.bars import BARS, BEST_PYTHON, PYTHON_PEERS, Bar, Verdict, judge
from benchmarks.page import write_page
from benchmarks.plots import bar_chart, write_plots
from benchmarks.questions import QUESTIONS
from benchmarks.quick import PEER, compare
from benchmarks.registry import SERVERS
from benchmarks.results import Entry, by_question, committed, load, ordered, save, table


def entry(
    server: str, value: float | None, question: str = "routed-echo-16", *, unit: str = "CPU µs a message"
) -> Entry:
    return Entry(
        question=question,
        title=question.capitalize(),
        server=server,
        server_title=f"The {server} & co",
        cpu_us_per_message=value,
        value=value,
        minimum=value and value / 2,
        unit=unit,
        runs=[] if value is None else [value / 2, value],
        detail={} if value is None else {"server_busy": 0.9, "generator_busy": 0.2},
        failed=None if value is not None else "it ended",
        generator="c",
        machine={"processor": "a test", "cores": 2},
        versions={"package": "1.0"},
    )


def verdict_on(bar: Bar, entries: list[Entry]) -> Verdict:
    (found,) = [verdict for verdict in judge(entries) if verdict.bar == bar]
    return found


def test_a_bar_is_the_ratio_of_two_servers_in_the_same_results() -> None:
    bar = Bar("routed-echo-16", 0.35, "wskit-bun")
    assert bar in BARS
    good = verdict_on(bar, [entry("wskit-native", 7.0), entry("wskit-bun", 20.0)])
    assert (good.figure, good.holds) == (0.35, True)
    assert "holds" in str(good)
    bad = verdict_on(bar, [entry("wskit-native", 7.1), entry("wskit-bun", 20.0)])
    assert (bad.figure, bad.holds) == (0.355, False)
    assert "MISSED" in str(bad)
    assert "of wskit-bun (at most 0.35)" in str(bad)


def test_the_best_python_peer_is_the_lowest_of_them_and_of_nobody_else() -> None:
    entries = [entry("wskit-native", 6.0), entry("picows-uvloop", 10.0), entry("websockets-asyncio", 30.0)]
    entries += [entry("bun", 1.0), entry("aiohttp-uvloop", None)]
    (best,) = [one for one in judge(entries) if one.bar.against == BEST_PYTHON and one.bar.question == "routed-echo-16"]
    assert best.figure == 0.6


def test_a_bar_may_be_a_figure_of_its_own_or_stand_against_another_question() -> None:
    memory = [one for one in judge([entry("wskit-native", 8.5, "idle-memory")]) if one.bar.against is None]
    assert [(one.figure, one.holds) for one in memory] == [(8.5, True)]
    assert "8.50 in itself" in str(memory[0])
    ours = "wskit-trio-websocket"
    (against,) = judge([entry(ours, 13.0), entry(ours, 10.0, "raw-echo-16")])
    assert (against.figure, against.holds) == (1.3, True)
    assert "at raw-echo-16" in str(against)


def test_a_bar_without_figures_is_not_judged() -> None:
    assert judge([]) == []
    assert judge([entry("wskit-native", None), entry("wskit-bun", 20.0)]) == []
    assert judge([entry("wskit-native", 7.0), entry("wskit-bun", None)]) == []


def test_every_bar_names_questions_and_servers_that_exist() -> None:
    for bar in BARS:
        assert bar.question in QUESTIONS
        assert bar.ours in SERVERS
        assert bar.against in {None, BEST_PYTHON, *SERVERS}
        assert bar.against_question is None or bar.against_question in QUESTIONS
    assert set(SERVERS) >= PYTHON_PEERS
    assert PEER in SERVERS


def test_quick_says_which_ratio_moved_by_more_than_noise() -> None:
    kept = [entry("wskit-native", 10.0, name) for name in ("a", "b", "c")] + [entry(PEER, 20.0, n) for n in "abc"]
    now = [entry("wskit-native", 11.4, "a"), entry("wskit-native", 12.0, "b"), entry("wskit-native", 8.0, "c")]
    now += [entry("wskit-native", 1.0, "new"), *(entry(PEER, 20.0, name) for name in ("a", "b", "c", "new"))]
    head, *lines = compare(now, PEER, kept).splitlines()
    assert head == f"ratios to {PEER}: committed, now (lower is better)"
    assert [line.split()[0] for line in lines] == ["a", "b", "c", "new"]
    assert [line.split(maxsplit=4)[4] for line in lines] == [
        "same",
        "SLOWER +20%",
        "faster -20%",
        "nothing committed to compare with",
    ]


def test_quick_leaves_out_who_failed() -> None:
    assert len(compare([entry("wskit-native", None), entry(PEER, 1.0)], PEER, []).splitlines()) == 1
    assert len(compare([entry("wskit-native", 1.0), entry(PEER, None)], PEER, []).splitlines()) == 1


def test_results_come_back_as_they_were_kept(tmp_path: Path) -> None:
    entries = [entry("wskit-native", 7.0), entry("bun", None)]
    save(tmp_path / "b.json", entries)
    assert load(tmp_path / "b.json") == entries
    save(tmp_path / "a.json", [entry("node-ws", 1.0)])
    (tmp_path / "other.json").write_text('{"of": "another form"}')
    assert [one["server"] for one in committed(tmp_path)] == ["node-ws", "wskit-native", "bun"]


def test_what_is_committed_can_be_read() -> None:
    for one in committed():
        assert set(one) == set(Entry.__annotations__)
        assert one["question"] in QUESTIONS
        assert one["server"] in SERVERS


def test_the_best_stands_first_and_who_failed_last() -> None:
    entries = [entry("failed", None), entry("slow", 9.0), entry("fast", 1.0)]
    assert [one["server"] for one in ordered(entries)] == ["fast", "slow", "failed"]
    assert list(by_question([entry("a", 1.0, "x"), entry("b", 1.0, "y"), entry("c", 1.0, "x")])) == ["x", "y"]


def test_a_table_refers_to_its_base_or_to_the_best() -> None:
    entries = [entry("fast", 5.0), entry("base", 10.0), entry("failed", None)]
    head, fast, base, failed = table(entries, "base").splitlines()
    assert head.endswith("ratios to base)")
    assert " 0.50   busy: server  90%, generator  20%" in fast
    assert " 1.00 " in base
    assert failed.endswith("failed: it ended")
    assert "ratios to fast)" in table(entries, "nobody")


def test_a_question_may_be_named_by_its_beginning() -> None:
    assert [one.name for one in choose_questions(["rpc", "routed-echo"], only_main=False)] == [
        "routed-echo-1",
        "routed-echo-16",
        "rpc",
    ]
    assert [one.name for one in choose_questions(["routed-echo-1"], only_main=False)] == ["routed-echo-1"]
    assert all(one.main for one in choose_questions([], only_main=True))
    with pytest.raises(SystemExit, match="no question"):
        choose_questions(["nothing"], only_main=False)


def test_ours_always_take_part_unless_only_some_are_asked_for() -> None:
    ours = ["wskit-native", "wskit-trio-websocket"]
    assert [one.name for one in choose_servers("", None)] == ours
    assert [one.name for one in choose_servers("bun", None)] == [*ours, "bun"]
    assert [one.name for one in choose_servers(None, "bun")] == ["bun"]
    assert len(choose_servers(None, None)) == len(SERVERS)
    with pytest.raises(SystemExit, match="no server"):
        choose_servers("nobody", None)


def test_the_page_holds_every_figure_and_every_verdict(tmp_path: Path) -> None:
    entries = [entry("wskit-native", 7.0), entry("wskit-bun", 2000.0), entry("node-ws", None)]
    page = write_page(tmp_path, entries).read_text(encoding="utf-8")
    assert "| wskit-native | routed-echo-16 | wskit-bun | 0.00 | 0.35 | holds |" in page
    assert "| The wskit-bun & co | 2,000 | 1,000 | 285.71 |" in page
    assert "| The node-ws & co | failed: it ended | | |" in page
    assert "| routed-echo-16 | wskit-native | 90% | 20% |" in page
    assert "processor a test, cores 2" in page
    assert (tmp_path / "benchmarks" / "routed-echo-16.svg").exists()


def test_the_page_is_there_before_anything_was_measured(tmp_path: Path) -> None:
    assert "No results are committed yet." in write_page(tmp_path, []).read_text(encoding="utf-8")


def test_a_chart_is_well_formed_whatever_the_titles_are(tmp_path: Path) -> None:
    entries = [entry("wskit-native", 7.0), entry("bun", None), entry("node-ws", 123456.0)]
    entries[1]["failed"] = "&" * 100
    chart = bar_chart(entries)
    assert ET.fromstring(chart).tag.endswith("svg")
    assert "123,456" in chart
    assert write_plots([], tmp_path / "charts") == []
