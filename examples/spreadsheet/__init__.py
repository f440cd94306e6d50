"""The parts of the spreadsheet example.

``inside/`` runs in the sandboxes: a script for each agent, sent cell by cell, and the modules that the scripts import.
The other modules run on the host: ``agents.py`` (the agents and their cells), ``findings.py`` (validates what a sandbox
returns), ``progress.py`` and ``report.py`` (the terminal), ``make_workbook.py`` (the workbook with planted faults).
"""
