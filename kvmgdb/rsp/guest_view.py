"""What one debugger has been told of the guest's kernel, so that it is told of changes.

::

    T05thread:p1.1;exec:<path in hex>;    another kernel: GDB loads its symbols
    T05thread:p1.1;library:;              modules came or went: GDB reads the list

GDB lets the guest go by itself after either. The stop at which we noticed is owed
to it until then; meanwhile the guest does not move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmgdb.rsp.virtual_files import ON_TARGET

if TYPE_CHECKING:
    from kvmgdb.rsp.session import Session


class GuestView:
    """The debugger's side of :class:`kvmgdb.rsp.guest.Guest`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._guest = session.debuggee.guest
        self._asked_executable = False
        self._executable: str | None = None
        self._libraries_version: int | None = None
        self._libraries = ""

    @property
    def follows_modules(self) -> bool:
        """Whether this debugger wants to know of modules that come and go."""
        return self._libraries_version is not None

    @property
    def waits_for_kernel(self) -> bool:
        """Whether it can be told of a kernel, and has not been told of the one that
        runs or will run."""
        return (
            self._asked_executable
            and "exec-events" in self._session.features
            and (self._executable is None or self._executable != self._guest.executable)
        )

    def tell_executable(self) -> str | None:
        """The path that stands for the running kernel; None where there is none."""
        self._guest.find(self._session.machine)
        self._asked_executable = True
        self._executable = self._guest.executable
        return self._executable

    def tell_libraries(self, first: bool) -> str:
        """The modules as ``library-list`` (GDB manual, "Library List Format"). GDB
        reads it in pieces: it is made anew at the ``first`` of them."""
        if not first:
            return self._libraries
        guest = self._guest
        guest.find(self._session.machine)
        self._libraries_version = guest.libraries_version
        self._session.debuggee.watch_modules()
        items = "".join(
            f'<library name="{ON_TARGET}{library.path}">'
            f'<segment address="{library.base:#x}"/></library>'
            for library in guest.libraries
        )
        self._libraries = f'<?xml version="1.0"?><library-list version="1.0">{items}</library-list>'
        return self._libraries

    def news(self) -> str:
        """The part of a stop reply that tells of a change, once; or nothing."""
        executable = self._guest.executable
        if executable is not None and self.waits_for_kernel:
            self._executable = executable
            # It drops what it had planted, and plants it again after reading.
            self._session.debuggee.drop_breakpoints(self._session)
            self._session.console(self._guest.moved())
            return f"exec:{(ON_TARGET + executable).encode().hex()};"
        if self.follows_modules and self._libraries_version != self._guest.libraries_version:
            self._libraries_version = self._guest.libraries_version
            return "library:;"
        return ""
