"""The flame graph in a browser, and our files in speedscope."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from kvmgdb.profiler import formats
from kvmgdb.profiler.recording import FrameKind, Recording, State
from kvmgdb.profiler.view import Root, View
from tests.profiler.browser import Browser, started
from tests.profiler.recordings import EVIL, SHARES, TOTAL, known
from tests.support.require import requires

pytestmark = requires("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as found:
        yield found


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Browser:
    path = tmp_path / "graph.html"
    formats.write(known(), path, "html", View(by=(Root.TASK,)))
    browser.open(path.as_uri())
    return browser


def frame(page: Browser, name: str) -> WebElement:
    found = [box for box in page.all("g.frame") if box.get_attribute("name") == name]
    assert found, f"{name} is not drawn"
    return found[0]


def width(page: Browser, name: str) -> float:
    return float(frame(page, name).size["width"])


def settled(page: Browser, name: str) -> float:
    """The width of a frame that has stopped moving."""
    last = width(page, name)
    while True:
        time.sleep(0.4)
        now = width(page, name)
        if now == last:
            return now
        last = now


def test_the_page_draws_what_was_recorded(page: Browser) -> None:
    assert page.driver.title == "Flame graph: vm & <1>"
    assert page.problems() == []
    facts = page.one("#facts").text
    assert "2000 samples of vm & <1> in 10.0 s at 100 Hz" in facts
    assert "500 of halted vCPUs, 0 errors, 3 broken stacks" in facts
    assert page.one("#legend").text.split() == ["kernel", "kernel", "module", "user", "unknown"]
    whole = settled(page, "all")
    # Each of the two tasks has half of the samples.
    for name, (total, _) in SHARES.items():
        assert width(page, name) / whole == pytest.approx(total / TOTAL / 2, abs=0.003), name
    names = {box.get_attribute("name") for box in page.all("g.frame")}
    assert {"work (100)", "work er (201)"} <= names
    assert EVIL in names  # and it is a name still


def test_a_click_zooms_and_reset_goes_back(page: Browser) -> None:
    before = settled(page, "memcpy")
    frame(page, "memcpy").click()
    page.wait(lambda: width(page, "memcpy") > 1200, "a click does not zoom")
    assert "fade" in (frame(page, "main").get_attribute("class") or "")
    # What is beside it is gone.
    assert "vfs_read" not in {box.get_attribute("name") for box in page.all("g.frame")}
    page.one("#reset").click()
    page.wait(lambda: width(page, "memcpy") == before, "reset does not go back")
    assert frame(page, "vfs_read").is_displayed()
    assert page.problems() == []


def test_a_search_marks_and_counts(page: Browser) -> None:
    page.driver.find_element("tag name", "body").send_keys("/")
    box = page.driver.switch_to.active_element
    assert box.get_attribute("id") == "search"
    box.send_keys("^EXT4|memcpy")
    found = 2 * 200 + 2 * 100
    page.wait(
        lambda: page.one("#details").text == f"found: {found} samples (30.00 %)",
        "the search counts wrong",
    )
    marked = {
        box.get_attribute("name")
        for box in page.all("g.frame")
        if page.driver.execute_script(
            "return arguments[0].querySelector('rect').getAttribute('fill')", box
        )
        == "#e35be3"
    }
    assert marked == {"ext4_readpage [ext4]", "memcpy"}
    box.send_keys("(")
    page.wait(
        lambda: "Unterminated group" in page.one("#details").text,
        "a bad expression is not said to be one",
    )
    box.send_keys(Keys.ESCAPE)
    page.wait(lambda: page.one("#details").text == "", "Escape does not end the search")
    assert page.problems() == []


def test_a_frame_says_what_it_is(page: Browser) -> None:
    settled(page, "compute;all")
    page.driver.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))",
        frame(page, "compute;all"),
    )
    page.wait(
        lambda: (
            page.one("#details").text
            == "compute;all in /bin/work: 500 samples (25.00 %), 300 (15.00 %) in itself"
        ),
        "the frame under the pointer is not described",
    )


def test_dark_upside_down_and_narrow(page: Browser) -> None:
    def background() -> str:
        return page.one("body").value_of_css_property("background-color")

    light = background()
    page.one("#theme").click()
    assert background() != light
    page.one("#theme").click()
    assert background() == light

    settled(page, "all")
    assert frame(page, "all").location["y"] > frame(page, "main").location["y"]
    page.one("#invert").click()
    page.wait(
        lambda: frame(page, "all").location["y"] < frame(page, "main").location["y"],
        "the chart is not turned over",
    )
    page.driver.set_window_size(500, 700)
    try:
        page.wait(lambda: width(page, "all") < 500, "the chart is wider than its window")
    finally:
        page.driver.set_window_size(1300, 800)
    assert page.problems() == []


def test_the_page_needs_no_network(page: Browser) -> None:
    loaded = page.driver.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert loaded == []
    # And it could not have any.
    refused = page.driver.execute_async_script(
        "fetch('http://127.0.0.1:9/').then(arguments[0], error => arguments[0](String(error)))"
    )
    assert "Failed to fetch" in refused
    assert any("Content Security Policy" in problem for problem in page.problems())


def test_a_large_recording_is_cut_to_what_can_be_drawn(browser: Browser, tmp_path: Path) -> None:
    recording = Recording("large", 100.0)
    vm, task = recording.vm("large"), recording.task(1, 1, "task")
    top = recording.frame("top", "", FrameKind.KERNEL, 1)
    for number in range(30_000):
        leaf = recording.frame(f"rare_{number}", "", FrameKind.KERNEL, number)
        stack = recording.stack([top, leaf])
        for _ in range(1 + (number < 50)):
            recording.add(0, vm, 0, task, stack, State.RUNNING, 0)
    path = tmp_path / "large.html"
    formats.write(recording, path, "html")
    browser.open(path.as_uri())
    assert "calls with less than 2 samples are not drawn" in browser.one("#facts").text
    assert "top" in {box.get_attribute("name") for box in browser.all("g.frame")}
    assert browser.problems() == []


# ---- speedscope -------------------------------------------------------------


def weight(text: str) -> float:
    """Seconds, or a plain count: speedscope shows three digits."""
    for unit, factor in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text.replace(",", ""))


@requires("speedscope")
@pytest.mark.parametrize(
    ("file", "of_vcpus", "unit"),
    [
        ("a.speedscope.json", 1, 0.01),
        ("a.pb.gz", 2, 0.01),
        ("a.folded", 2, 1.0),
        ("a.perf", 1, 0.01),
    ],
)
def test_speedscope_reads_our_files(
    browser: Browser, tmp_path: Path, file: str, of_vcpus: int, unit: float
) -> None:
    """Its first profile is that of the first vCPU, or of its only task, where the
    format tells them apart; a sample is 0.01 s where it keeps times."""
    path = tmp_path / file
    formats.write(known(), path, formats.format_of(path))
    found = browser.functions_by_speedscope(path, tmp_path)
    seen = 0
    for name, (total, own) in SHARES.items():
        # The folded format cannot write the one, perf script and speedscope's
        # reader of it do not name what has no symbol.
        shown = name.replace(";", ":") if file == "a.folded" else name
        if shown not in found:
            continue
        seen += 1
        expected = (total * unit * of_vcpus / 2, own * unit * of_vcpus / 2)
        # From perf script it takes durations out of the times: the last sample's is
        # a guess of its own.
        slack = unit if file == "a.perf" else 0.0
        found_weights = tuple(map(weight, found[shown]))
        assert found_weights == pytest.approx(expected, rel=0.006, abs=slack), name
    assert seen >= 7, found
