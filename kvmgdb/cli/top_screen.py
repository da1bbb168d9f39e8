"""The screen of ``kvmgdb top``."""

from __future__ import annotations

import asyncio
import errno
import signal
from dataclasses import replace

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
)
from prompt_toolkit.styles import Style

from kvmgdb.cli.top_rows import Choice, Page, page
from kvmgdb.profiler.live import Live, Phase
from kvmgdb.profiler.view import View

_REFRESH = 1.0  # seconds
# Lines that are not the list's: two above it, its heading, one below.
_OTHER_LINES = 4
_KEYS = (
    ("q", "quit"),
    ("space", "pause"),
    ("tab", "list"),
    ("s", "sort"),
    ("enter", "open"),
    ("esc", "back"),
    ("/", "search"),
    ("i", "idle"),
)

_STYLE = Style.from_dict(
    {
        "title": "bold",
        "heading": "reverse",
        "selected": "bold reverse",
        "key": "bold",
        "problem": "bold ansired",
    }
)


class TopScreen:
    """Shows what ``live`` samples until the user leaves."""

    def __init__(self, live: Live, view: View) -> None:
        self._live = live
        self._choice = Choice(view=view)
        self._page = Page("", ())
        self._selected = 0
        self._first = 0
        self._searching = False
        self._search = Buffer(multiline=False, on_text_changed=self._search_changed)
        self._app: Application[None] = Application(
            layout=Layout(self._body()),
            key_bindings=self._keys(),
            style=_STYLE,
            full_screen=True,
            mouse_support=False,
        )
        # The time after which Escape is a key, and not the begin of another's code:
        # ssh may take its time, but not so much.
        self._app.ttimeoutlen = 0.1
        self._app.timeoutlen = 0.1

    def run(self) -> None:
        """Returns when the user leaves, or the terminal goes away."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave)
        refresh = asyncio.create_task(self._refresh())
        try:
            await self._app.run_async()
        except EOFError:
            pass  # the terminal is gone
        except OSError as error:
            if error.errno != errno.EIO:  # so is it then
                raise
        finally:
            refresh.cancel()

    def _leave(self) -> None:
        if self._app.is_running:
            self._app.exit()

    async def _refresh(self) -> None:
        while True:
            self._live.update()
            self._show()
            self._app.invalidate()
            if self._live.over and not self._live.started:
                self._leave()  # whoever called us has the reason
            await asyncio.sleep(_REFRESH)

    # -- what is shown

    def _body(self) -> HSplit:
        search = VSplit(
            [
                Window(FormattedTextControl("/"), width=1),
                Window(BufferControl(self._search)),
            ],
            height=1,
        )
        searching = Condition(lambda: self._searching)
        self._search_window = search.children[1]
        self._list = Window(FormattedTextControl(self._list_text, focusable=True))
        return HSplit(
            [
                Window(FormattedTextControl(self._status_text), height=1),
                Window(FormattedTextControl(self._title_text), height=1),
                Window(FormattedTextControl(self._heading_text), height=1, style="class:heading"),
                self._list,
                ConditionalContainer(search, searching),
                ConditionalContainer(
                    Window(FormattedTextControl(self._keys_text), height=1), ~searching
                ),
            ]
        )

    def _size(self) -> tuple[int, int]:
        """Rows of the list, and columns."""
        size = self._app.output.get_size()
        return max(size.rows - _OTHER_LINES, 1), size.columns

    def _show(self) -> None:
        """Makes the page anew. The selection stays with what was selected."""
        key = self._key()
        self._page = page(self._live, self._choice, self._size()[1])
        keys = [row.key for row in self._page.rows]
        if key is not None and key in keys:
            self._selected = keys.index(key)
        self._select(self._selected)

    def _key(self) -> object:
        rows = self._page.rows
        return rows[self._selected].key if self._selected < len(rows) else None

    def _select(self, place: int) -> None:
        self._selected = max(0, min(place, len(self._page.rows) - 1))

    def _status_text(self) -> StyleAndTextTuples:
        live = self._live
        if live.error is not None:
            return [("class:problem", f"{live.phase.value}: {live.error}")]
        busy = live.busy()
        words = [live.recording.target, live.phase.value]
        if busy is not None:
            words.append(f"{100 * busy:.0f}% busy")
        words.append(f"{live.recording.rate:g} Hz")
        return [("", "  ".join(words))]

    def _title_text(self) -> StyleAndTextTuples:
        text = self._choice.title()
        if self._choice.search:
            text += f" /{self._choice.search}"
        return [("class:title", text)]

    def _heading_text(self) -> StyleAndTextTuples:
        return [("", self._page.heading)]

    def _list_text(self) -> StyleAndTextTuples:
        rows = self._page.rows
        if not rows:
            return [("", self._nothing())]
        height, width = self._size()
        if self._selected < self._first:
            self._first = self._selected
        elif self._selected >= self._first + height:
            self._first = self._selected - height + 1
        self._first = max(0, min(self._first, len(rows) - height))
        lines: StyleAndTextTuples = []
        for place in range(self._first, min(self._first + height, len(rows))):
            style = "class:selected" if place == self._selected else ""
            lines.append((style, f"{rows[place].text:<{width}}\n"))
        return lines

    def _nothing(self) -> str:
        if self._choice.search:
            return "nothing has such a name"
        if self._live.phase is Phase.STARTING:
            return "reading the guest's symbols ..."
        return "nothing runs"

    def _keys_text(self) -> StyleAndTextTuples:
        words: StyleAndTextTuples = []
        for key, what in _KEYS:
            words += [("class:key", key), ("", f" {what}  ")]
        return words

    # -- what the user does

    def _choose(self, choice: Choice) -> None:
        if choice != self._choice:
            self._choice = choice
            self._page = Page("", ())
            self._selected = self._first = 0
            self._show()

    def _search_changed(self, buffer: Buffer) -> None:
        self._choose(replace(self._choice, search=buffer.text))

    def _end_search(self) -> None:
        self._searching = False
        self._app.layout.focus(self._list)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        listing = Condition(lambda: not self._searching)
        searching = ~listing

        @keys.add("q", filter=listing)
        @keys.add("c-c")
        def _(_event: KeyPressEvent) -> None:
            self._leave()

        @keys.add("space", filter=listing)
        def _(_event: KeyPressEvent) -> None:
            self._live.pause(not self._live.paused)

        @keys.add("tab", filter=listing)
        def _(_event: KeyPressEvent) -> None:
            choice = self._choice
            self._choose(replace(choice, listing=choice.listing.next, callers=None, search=""))

        @keys.add("s", filter=listing)
        def _(_event: KeyPressEvent) -> None:
            self._choose(replace(self._choice, by_total=not self._choice.by_total))

        @keys.add("i", filter=listing)
        def _(_event: KeyPressEvent) -> None:
            view = self._choice.view
            self._choose(replace(self._choice, view=replace(view, idle=not view.idle)))

        @keys.add("enter", filter=listing)
        @keys.add("right", filter=listing)
        def _(_event: KeyPressEvent) -> None:
            self._choose(self._choice.opened(self._key()))

        @keys.add("escape", filter=listing, eager=True)
        @keys.add("left", filter=listing)
        @keys.add("backspace", filter=listing)
        def _(_event: KeyPressEvent) -> None:
            self._choose(self._choice.closed())

        @keys.add("/", filter=listing)
        def _(event: KeyPressEvent) -> None:
            self._searching = True
            self._search.text = ""
            event.app.layout.focus(self._search)

        @keys.add("enter", filter=searching)
        def _(_event: KeyPressEvent) -> None:
            self._end_search()

        @keys.add("escape", filter=searching, eager=True)
        def _(_event: KeyPressEvent) -> None:
            self._search.text = ""
            self._end_search()

        for name, rows in (("up", -1), ("down", 1), ("k", -1), ("j", 1)):
            keys.add(name, filter=listing)(self._mover(rows))
        for name, pages in (("pageup", -1), ("pagedown", 1), ("home", -(10**6)), ("end", 10**6)):
            keys.add(name, filter=listing)(self._mover(pages, by_pages=True))
        return keys

    def _mover(self, count: int, by_pages: bool = False):  # type: ignore[no-untyped-def]
        def move(_event: KeyPressEvent) -> None:
            self._select(self._selected + count * (self._size()[0] if by_pages else 1))

        return move
