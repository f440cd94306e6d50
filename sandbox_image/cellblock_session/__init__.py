"""Capture and load the state of a session that outlives its kernel. It runs in the sandbox only, never on the host."""
