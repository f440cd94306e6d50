"""Faults that real use found, each with its kind: red before the fix."""
