"""The compiled extension. Only kvmgdb.machine.native, which gives it types, imports it."""

from typing import Any

ffi: Any
lib: Any
