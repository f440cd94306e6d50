"""NAP, the Notebook Agent Protocol: notebooks as living documents. It never runs code but as cells of a session."""
