"""Messages between the host, the worker and what it forks: a header in JSON and any number of byte strings, with file descriptors."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_SIZES = struct.Struct("!II")
_to_json, _from_json = json.JSONEncoder(check_circular=False).encode, json.JSONDecoder().raw_decode  # quicker than dumps and loads
Header = dict[str, Any]


def send(sock: socket.socket, header: Header, blobs: Sequence[bytes] = (), fds: Sequence[int] = ()) -> None:
    """Raises OSError where the other side is gone or does not read."""
    send_packed(sock, packed(header, blobs), fds)


def packed(header: Header, blobs: Sequence[bytes] = ()) -> bytes:
    text = _to_json({**header, "sizes": [*map(len, blobs)]}).encode()
    body = b"".join((text, *blobs))
    return _SIZES.pack(len(text), len(body)) + body


def send_packed(sock: socket.socket, message: bytes, fds: Sequence[int] = ()) -> None:
    sent = socket.send_fds(sock, [message], fds) if fds else 0
    if sent < len(message):
        sock.sendall(memoryview(message)[sent:])


def receive(sock: socket.socket, longest: int = 2**32, most_fds: int = 0) -> tuple[Header, list[bytes], list[int]]:
    """Raises EOFError where the other side is gone, ValueError for what is no message or longer than ``longest`` bytes."""
    fds: list[int] = []
    if most_fds:
        head, fds, _, _ = socket.recv_fds(sock, _SIZES.size, most_fds, socket.MSG_CMSG_CLOEXEC)
        head += _exactly(sock, _SIZES.size - len(head))
    else:
        head = _exactly(sock, _SIZES.size)
    of_text, of_all = _SIZES.unpack(head)
    if not of_text <= of_all <= longest:
        raise ValueError(f"a message of {of_all} bytes, where at most {longest} are allowed")
    body = _exactly(sock, of_all)
    header = _header(body[:of_text])
    blobs, at = [], of_text
    for size in header["sizes"]:
        blobs.append(body[at : at + size])
        at += size
    return header, blobs, fds


def _header(text: bytes) -> Header:
    """Raises ValueError for what we have not written, and nothing else: a program may have sent it."""
    try:
        header: Header = _from_json(text.decode())[0]
    except RecursionError as error:
        raise ValueError("a header too deep to read") from error
    sizes = header.get("sizes") if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a header without sizes")
    return header


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 2**20))
        if not part:
            raise EOFError("the other side closed the connection")
        data += part
    return bytes(data)


def history_digest(before: str, cell: str) -> str:
    """The digest of a history that goes on with ``cell``; the digest of the empty history is ``""``."""
    return hashlib.sha256(f"{before}:{cell}".encode("utf-8", "surrogatepass")).hexdigest()


def state_key(history: str, files: Mapping[str, bytes]) -> str:
    """What an interpreter is found by: the digest of its history, and the files that the next call finds."""
    digest = hashlib.sha256(history.encode())
    for name in sorted(files):
        path, content = name.encode("utf-8", "surrogatepass"), files[name]
        digest.update(b"%d:%b%d:%b" % (len(path), path, len(content), content))
    return digest.hexdigest()
