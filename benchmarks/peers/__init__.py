"""Cellblock beside its peers: a repeated execute, and the way from asking for a sandbox to a first result."""
