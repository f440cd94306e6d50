"""The commands of ``cellblock``, one module for each. They only use what the manager offers to any program."""
