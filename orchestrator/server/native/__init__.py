"""The native API, ``/v1``: what ``AgentKernelManager`` can do, as HTTP. Anything else is another wire's translation."""
