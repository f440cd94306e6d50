"""The commands, one module for each. They never do what the manager cannot do for another program."""
