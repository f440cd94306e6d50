"""Claims about a sandbox, the probes and attacks that test them, and negative controls that must fail them.

Never serves an agent.
"""
