"""Sandboxes by a Docker engine, in an image that is made of this machine's Python, so that no registry is needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentgym.errors import AgentGymError, MissingExtra
from agentgym.tools.sandbox import rootfs
from agentgym.tools.sandbox.worker import SOCKET, Shell

REPOSITORY = "agentgym-sandbox"
CALLS_AT_ONCE = 8  # for which the container as a whole has memory and processes
_OF_WORKER = 512  # MiB
# What the worker needs to map the users of the namespace that it goes on in; programs get none of it.
_CAPABILITIES = ["SETUID", "SETGID"]


class Docker:
    name = "docker"

    def __init__(self) -> None:
        try:
            import docker
        except ImportError as error:
            raise MissingExtra("docker", "docker") from error
        try:
            self._client: Any = docker.from_env(timeout=60)
            self._client.ping()
        except Exception as error:  # of the SDK, of requests, or of the socket: all mean that nobody answers
            raise AgentGymError(f"no Docker engine answers ({error}); start one, or use bubblewrap") from error

    def launch(self, folder: Path, limits: Mapping[str, Any]) -> Shell:
        import docker

        plan = {"socket": f"/run/agentgym/{SOCKET}", "isolated": True, "scratch": "", **limits}
        try:
            container = self._client.api.create_container(
                _image(self._client), rootfs.command(json.dumps(plan)), environment=rootfs.ENVIRONMENT, user="0:0", hostname="sandbox",
                working_dir="/", labels=[REPOSITORY], host_config=self._host_config(folder, limits),
            )["Id"]
            self._client.api.start(container)
        except docker.errors.DockerException as error:
            raise AgentGymError(f"the Docker engine starts no sandbox: {error}") from error
        return Container(self._client.api, container)

    def _host_config(self, folder: Path, limits: Mapping[str, Any]) -> dict[str, Any]:
        memory = f"{_OF_WORKER + CALLS_AT_ONCE * (limits['memory'] + limits['disk'])}m"
        config: dict[str, Any] = self._client.api.create_host_config(
            auto_remove=True,
            binds=[f"{folder}:/run/agentgym"],
            cap_drop=["ALL"],
            cap_add=_CAPABILITIES,
            mem_limit=memory,
            memswap_limit=memory,
            network_mode="bridge" if limits["network"] else "none",
            pids_limit=64 + CALLS_AT_ONCE * 2 * limits["processes"],
            read_only=True,
            # The worker makes namespaces of its own, which the engine's filters forbid; programs are held by a stricter filter.
            security_opt=["no-new-privileges", "seccomp=unconfined", "apparmor=unconfined"],
        )
        config |= {"MaskedPaths": [], "ReadonlyPaths": []}  # else the kernel forbids a /proc for each call
        return config


class Container:
    def __init__(self, api: Any, container: str) -> None:
        self._api, self._container = api, container
        self._stopped = False

    def is_alive(self) -> bool:
        """As far as is known without asking the engine, which would cost more than a call."""
        return not self._stopped

    def stop(self) -> None:
        self._stopped = True
        with suppress(Exception):  # it may be gone, and so may the engine
            self._api.kill(self._container)

    def complaint(self) -> str:
        return ""


def _image(client: Any) -> str:
    """The image for this machine's Python, made when first needed."""
    root = rootfs.this_machine()
    paths = [*root.files, *((place, str(path)) for place, path in root.library_files())]
    digest = hashlib.sha256(json.dumps([rootfs.TEXTS, rootfs.FOLDERS]).encode())
    for place, path in paths:
        about = os.stat(path)
        digest.update(f"{place}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    tag = digest.hexdigest()[:16]
    if not client.images.list(f"{REPOSITORY}:{tag}"):
        client.api.import_image_from_data(_archive(paths), repository=REPOSITORY, tag=tag)
    return f"{REPOSITORY}:{tag}"


def _archive(paths: list[tuple[str, str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for place in rootfs.FOLDERS:
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for place, path in paths:
            archive.addfile(_entry(place, os.stat(path)), io.BytesIO(Path(path).read_bytes()))
        for place, text in rootfs.TEXTS.items():
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _entry(place: str, about: os.stat_result) -> tarfile.TarInfo:
    """Owned by root, whoever owns the file here."""
    entry = tarfile.TarInfo(place.lstrip("/"))
    entry.size, entry.mtime, entry.mode = about.st_size, int(about.st_mtime), about.st_mode & 0o755 | 0o444
    return entry
