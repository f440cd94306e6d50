"""Many hosts: which node gets a session, and the way of each call to it. It never decides who owns a session."""
