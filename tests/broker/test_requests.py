"""The requests of one client that wait for their turn."""

from __future__ import annotations

import asyncio

from orchestrator.broker.client import Requests
from orchestrator.broker.messages import Channel, JupyterMessage

MIB = 1024 * 1024


def request(number: int, size: int = 100) -> JupyterMessage:
    return JupyterMessage({"msg_id": str(number), "msg_type": "execute_request"}, {}, {}, size=size)


async def test_requests_that_wait_are_bounded_in_number_and_size() -> None:
    """Those beyond are refused; there is room again once some were served, or taken out."""
    served: list[str] = []
    free = asyncio.Event()

    async def serve(_channel: Channel, message: JupyterMessage) -> None:
        await free.wait()
        served.append(message.header["msg_id"])

    requests = Requests(serve, lambda: None)
    assert requests.add("shell", request(0, 100 * MIB))  # however large: none waits
    await asyncio.sleep(0)
    assert [requests.add("shell", request(each, 6 * MIB)) for each in (1, 2, 3)] == [True, True, False]
    assert len(requests.take_all("execute_request")) == 2
    assert sum(requests.add("shell", request(each)) for each in range(4, 2000)) == 1000
    free.set()
    await requests.settled()
    assert (len(served), requests.is_idle) == (1001, True)
    assert requests.add("shell", request(2001, 16 * MIB))
    await requests.settled()
    assert served[-1] == "2001"
