"""YAML files become frozen values, and a wrong file becomes one line of error.

    >>> from sim.inputs.document import Document
    >>> from sim.inputs.names import find_entry
    >>> Document(find_entry("groq-lpu-v1", "chips")).data["memory"]["sram"]["capacity"]
    '230.7 MB'

Read `document` first (YAML with the line of every key), then `fields` (short forms, kinds, and a
user's own classes).
"""
