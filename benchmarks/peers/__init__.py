"""Compares Cellblock with its peers: repeated executes, and the time from a request to a sandbox's first result."""
