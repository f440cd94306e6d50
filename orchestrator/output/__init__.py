"""Owns what a cell puts out: events, the result, and how much of them is kept. Never talks to a kernel."""
