"""The parts of the spreadsheet example.

Sent into sandboxes, cell by cell: ``formulas.py``, ``patterns.py``, ``pictures.py``, one file per agent.
Run on the host: ``agents.py`` (an agent, and cutting its file into cells), ``findings.py`` (checks what a sandbox
hands out), ``progress.py`` and ``report.py`` (the terminal), ``make_workbook.py`` (the workbook with planted faults).
"""
