"""E2B's wire: what the unmodified E2B SDKs send, answered with sessions. It keeps no sandboxes of its own."""
