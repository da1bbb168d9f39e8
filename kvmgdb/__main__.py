"""``python -m kvmgdb``."""

from kvmgdb.cli import main

main()
