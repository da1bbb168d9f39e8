"""Runs inside GDB: writes structures as GDB has them, as JSON.

The names are lines of ``$names``, the output goes to the file ``$output``.
"""

import json

import gdb

names = gdb.parse_and_eval("$names").string()
output = gdb.parse_and_eval("$output").string()
found = {}
with open(names) as file:
    for name in file.read().split():
        structure = gdb.lookup_type(f"struct {name}")
        members = [[field.name, field.bitpos] for field in structure.fields()]
        found[name] = {"size": structure.sizeof, "members": members}
with open(output, "w") as file:
    json.dump(found, file)
