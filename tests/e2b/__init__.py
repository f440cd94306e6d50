"""E2B's unmodified SDKs against a real server."""
