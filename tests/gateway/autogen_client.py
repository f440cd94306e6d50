"""AutoGen's code executor for Jupyter, unmodified, against a server: ``python autogen_client.py HOST PORT TOKEN``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock
from autogen_ext.code_executors.docker_jupyter import DockerJupyterCodeExecutor
from autogen_ext.code_executors.docker_jupyter._jupyter_server import JupyterConnectionInfo

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()"


async def main(host: str, port: int, token: str) -> None:
    """Run blocks, restart, and stop."""
    info = JupyterConnectionInfo(host=host, use_https=False, port=port, token=token)
    with tempfile.TemporaryDirectory() as folder:
        async with DockerJupyterCodeExecutor(info, timeout=60, output_dir=folder) as executor:

            async def run(*codes: str) -> tuple[int, str]:
                blocks = [CodeBlock(code=code, language="python") for code in codes]
                result = await executor.execute_code_blocks(blocks, CancellationToken())
                return result.exit_code, result.output

            assert await run("x = 20", "print(x + 1)\nx * 2") == (0, "\n21\n\n40")
            assert (await run(PLOT))[0] == 0
            assert [path.suffix for path in Path(folder).iterdir()] == [".png"]
            failed = await run("1 / 0", "print('never')")
            assert failed[0] == 1
            assert "ZeroDivisionError" in failed[1]
            await executor.restart()
            assert "NameError" in (await run("x"))[1]
    print("done")


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
