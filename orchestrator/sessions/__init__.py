"""The sessions of one manager: who has which one, what of it outlives a kernel or the process, and when it sleeps.

It never starts or ends a container itself.
"""
