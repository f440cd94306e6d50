"""A new instance on this host: its id, its lease and its folder."""

from __future__ import annotations

import secrets
from pathlib import Path

from orchestrator.container.engine import Engine
from orchestrator.container.folders import instance_folder
from orchestrator.container.lease import InstanceLease, instance_lease
from orchestrator.container.reaper import clear_folder
from orchestrator.container.visibility import engine_sees
from orchestrator.errors import SettingsError, StoreError
from orchestrator.settings import Settings


async def visible_instance(engine: Engine, settings: Settings) -> tuple[str, InstanceLease, Path]:
    """Return a new instance's id, its lease, and its folder, which the engine sees. On failure nothing of it is left.

    Raises:
        SettingsError: the folder cannot be created, is not seen by the engine, or another user can write it.
        StoreError: the data folder cannot be written.
        EngineError: the engine does not answer.
    """
    instance, lease, folder = _new_instance(settings.state_path, settings.data_path)
    try:
        settings.refuse_foreign_folders()  # now that they exist
        await _refuse_unseen(engine, folder)
    except BaseException:
        clear_folder(folder)
        lease.release()
        raise
    return instance, lease, folder


def _new_instance(state: Path, data: Path) -> tuple[str, InstanceLease, Path]:
    """Return a new instance's id, lease and folder. No await, so that nothing can come between lease and folder."""
    while True:
        instance = secrets.token_hex(6)
        folder = instance_folder(state, instance)
        try:
            lease = instance_lease(instance, (state, data))
        except OSError as error:
            if str(error.filename).startswith(f"{data.resolve()}/"):
                raise _no_lock(data, error) from error
            raise _no_folder(folder, error) from error
        if lease is not None:
            try:
                folder.mkdir(parents=True, mode=0o700)
            except OSError as error:
                lease.release()
                raise _no_folder(folder, error) from error
            return instance, lease, folder


async def _refuse_unseen(engine: Engine, folder: Path) -> None:
    if not await engine.retry(engine_sees, engine.client.api, folder):
        state = folder.parent
        raise SettingsError(
            f"the Docker engine does not see the state folder {state}: it runs outside this process's container, or on "
            "another machine.",
            remedy=f"In a container, mount the host's folder at the same path (-v {state}:{state}), or set "
            "CELLBLOCK_STATE_DIR to a folder that is mounted so.",
        )


def _no_lock(data: Path, error: OSError) -> StoreError:
    return StoreError(
        f"this process's lock file cannot be created in the data folder {data}: {error.strerror}. Nothing was started.",
        remedy="Check that the folder is writable and has room, or set CELLBLOCK_DATA_DIR to another one.",
    )


def _no_folder(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"the state folder {folder} cannot be created: {error.strerror}.",
        remedy="Set CELLBLOCK_STATE_DIR to a writable folder with a short path and free space.",
    )
