"""The sessions of one manager: which agent has which session, when it sleeps, and what outlives its kernel and process.

It never starts or ends a container itself.
"""
