"""GDB's remote serial protocol (GDB manual, appendix E), server side."""
