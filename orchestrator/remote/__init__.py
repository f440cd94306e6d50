"""A server of ours, from the client's side: the manager's calls over HTTP. It owns no kernel and no session."""
