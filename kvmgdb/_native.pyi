"""The compiled extension. The facades (*.native), which give it types, import it."""

from typing import Any

ffi: Any
lib: Any
