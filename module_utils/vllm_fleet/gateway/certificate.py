# SPDX-License-Identifier: Apache-2.0
"""The gateway's certificate: what is in a file, and what the running HAProxy has.

Commands: HAProxy management guide 2.6 and 3.0, "set ssl cert", "commit ssl cert", "show ssl cert".
"""

from __future__ import annotations

import hashlib
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .haproxy import SocketError, ask

LEAF = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
DAY = 86400


class CertificateError(Exception):
    """A file cannot serve. The message says why, in words that follow `PATH ...`."""


@dataclass(frozen=True)
class Certificate:
    """What a file proves: `fingerprint` is the first certificate's SHA-1 as HAProxy writes it, `ends` in its words."""

    fingerprint: str
    names: tuple[str, ...]
    ends: str
    days_left: int


def examine(path: str) -> Certificate:
    """Have the certificate and the key of a PEM file shake hands; raises CertificateError where that fails."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # Who signed it is the clients' matter.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        text = Path(path).read_text(encoding="ascii")
        first = LEAF.search(text)
        if first is None:
            raise CertificateError("has no certificate")
        # A key with a passphrase would otherwise be asked for at the terminal.
        server.load_cert_chain(path, password=lambda: "")
        client.load_verify_locations(cadata=first[0])
        found = _greet(client, server)
        derived = ssl.PEM_cert_to_DER_cert(first[0])
    except FileNotFoundError:
        raise CertificateError("is not there") from None
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(f"cannot be used: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise CertificateError(f"does not hold a certificate and its key: {_reason(error)}") from None
    except (OSError, ValueError) as error:
        raise CertificateError(f"cannot be read: {getattr(error, 'strerror', None) or 'it is no PEM file'}") from None
    return Certificate(
        fingerprint=hashlib.sha1(derived, usedforsecurity=False).hexdigest().upper(),
        names=tuple(value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address")),
        ends=str(found["notAfter"]),
        days_left=days_left(str(found["notAfter"])),
    )


def _greet(client: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, Any]:
    """A TLS handshake in memory; the certificate as the client sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one, other = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(one.getpeercert() or {})


def _reason(error: ssl.SSLError) -> str:
    known = {"KEY_VALUES_MISMATCH": "the key belongs to another certificate"}
    reason = getattr(error, "reason", None) or ""
    return known.get(reason, reason.lower().replace("_", " ") or "it is no PEM file of both")


def days_left(ends: str) -> int:
    """Return the whole days until a time as OpenSSL writes it (`Nov 29 07:00:00 2027 GMT`); negative afterwards."""
    return int((ssl.cert_time_to_seconds(ends) - time.time()) // DAY)


def live(path: str, name: str) -> dict[str, str]:
    """Return what the HAProxy at a socket has of a file: `fingerprint` and `ends`; empty where it has none of it."""
    fields = {
        line.partition(": ")[0]: line.partition(": ")[2].strip()
        for line in ask(path, f"show ssl cert {name}").splitlines()
        if ": " in line
    }
    if "SHA1 FingerPrint" not in fields:
        return {}
    return {"fingerprint": fields["SHA1 FingerPrint"], "ends": fields.get("notAfter", "")}


def replace(path: str, name: str, text: str) -> None:
    """Have the HAProxy at a socket take a file's new ``text``, between two connections.

    Raises SocketError where it does not. No answer is shown that repeats what was sent.
    """
    lines = "\n".join(line for line in text.splitlines() if line.strip())
    said = ask(path, f"set ssl cert {name} <<\n{lines}\n")
    if "Transaction created" not in said and "Transaction updated" not in said:
        raise SocketError(f"does not take a new certificate for {name}: {said.strip() or 'no reason was given'}")
    said = ask(path, f"commit ssl cert {name}")
    if "Success" not in said:
        ask(path, f"abort ssl cert {name}")
        raise SocketError(f"did not put the new certificate of {name} into use: {said.strip()}")
