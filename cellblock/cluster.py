"""ClusterKernelManager: the manager's calls over many hosts.

    from cellblock.cluster import ClusterKernelManager

    async with ClusterKernelManager(store_url=URL, token=TOKEN) as manager:
        async with manager.acquire_kernel("analyst", timeout=60) as (_kernel, session):
            print((await manager.execute(session, "6 * 7")).result)

Needs the extras ``client`` and ``postgres``.
"""

from orchestrator.cluster.clustermanager import ClusterKernelManager

__all__ = ["ClusterKernelManager"]
