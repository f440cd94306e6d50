"""CellblockProvisioner: runs a kernelspec's kernel in a sandbox, whatever its command is.

It is for programs that choose a provisioner: by ``metadata.kernel_provisioner`` of a kernelspec, or by the variable
JUPYTER_DEFAULT_PROVISIONER_NAME. It starts the relay in place of the kernelspec's command. All else, such as signals
and the life of that process, is the local provisioner's.
"""

from __future__ import annotations

from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Unicode

from orchestrator.jupyter.kernelspec import relay_argv


class CellblockProvisioner(LocalProvisioner):
    """Starts the relay in place of a kernelspec's command.

    Attributes:
        policy, runtime: from the ``config`` of ``metadata.kernel_provisioner``; "": see ``relay``.
    """

    policy = Unicode("", config=True, help="A policy's name, or the path of a TOML file.")
    runtime = Unicode("", config=True, help="The container runtime; empty: the policy's.")

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of the launch, with the relay as the command. The kernel manager calls it at each start.

        Raises:
            RuntimeError: the kernelspec is not one for Python, or encryption is required.
        """
        language = self.kernel_spec.language
        if language != "python":
            raise RuntimeError(f"a sandbox of Cellblock has Python, and this kernelspec is for {language}.")
        assert self.parent is not None
        wanted = getattr(self.parent, "transport_encryption", None)  # jupyter_client has it from 8.10 on
        if wanted == "required":
            raise RuntimeError("Cellblock's kernels have no encryption, and transport_encryption is 'required'.")
        if wanted == "auto":  # the kernelspec is another program's, and may promise it
            kwargs["transport_encryption"] = "disabled"
        arguments = await super().pre_launch(**kwargs)
        arguments["cmd"] = relay_argv(self.parent.connection_file, self.policy, self.runtime)
        return arguments
