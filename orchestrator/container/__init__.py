"""Docker and the host's cgroups: one container, its limits, its end and its removal.

It never reads what a sandbox sends.
"""
