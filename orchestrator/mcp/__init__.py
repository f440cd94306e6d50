"""Serves the manager over MCP: it owns tools, handles and answers, and never sees a kernel, a token or the store."""
