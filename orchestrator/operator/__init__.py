"""Usage samples, the overview of a manager and its control socket, for operators. Never acts on its own behalf."""
