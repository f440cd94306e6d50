"""What outlives the process: history, audit log and checkpoint files.

The one room that speaks SQL. It never looks into what it keeps.
"""
