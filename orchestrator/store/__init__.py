"""What outlives the process: the history, the audit log, checkpoint files and large outputs.

The only room that speaks SQL. It never interprets the outputs and states that it keeps.
"""
