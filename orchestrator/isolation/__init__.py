"""The claims about a sandbox, the probes and attacks that try them, and containers that must fail them.

It never serves an agent.
"""
