"""What a cell puts out, as events and as one result, and how much of it is kept. It never talks to a kernel."""
