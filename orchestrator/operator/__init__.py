"""What an operator sees and does: usage, the overview and the control socket. It never decides for an agent."""
