"""The dashboard: a page for operators and users, and frames that show what cells put out. It never runs code."""
