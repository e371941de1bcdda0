"""Certificates: a small authority of one's own and one certificate a machine; checks that name what is wrong.

`python -m zenoh_link certificates make DIR --host gpu.example.org` writes ca.pem, ca.key and for each machine NAME
NAME.pem and NAME.key. The server's is for serving, everybody else's for connecting. `show DIR` lists expiry dates.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zenoh_link.errors import CertificateError
from zenoh_link.settings import Address, check_machine

AUTHORITY_DAYS = 3650
MACHINE_DAYS = 365
WARN_DAYS = 30
"""A certificate that expires sooner is reported at start."""


class Usage(Enum):
    """What a machine's certificate is for: the value is the extended key usage."""

    SERVE = ExtendedKeyUsageOID.SERVER_AUTH
    CONNECT = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True)
class Files:
    """The three files that a machine needs (never the authority's key)."""

    authority: Path
    certificate: Path
    key: Path


def files_of(directory: Path | str, machine: str) -> Files:
    folder = Path(directory)
    return Files(folder / "ca.pem", folder / f"{machine}.pem", folder / f"{machine}.key")


# --- making


def make(
    directory: Path | str,
    server: str,
    others: Sequence[str],
    hosts: Sequence[str],
    *,
    days: int = MACHINE_DAYS,
    now: datetime.datetime | None = None,
) -> list[Path]:
    """Write an authority (where there is none yet) and a certificate for each machine; returns what was written.

    hosts: names and addresses under which the server is reached; this machine's own are added.

    Raises:
        CertificateError: a file exists already, the authority's key is not there, or nothing can be written.
        SettingsError: a machine's name that no file can have.
    """
    folder = Path(directory)
    start = now or datetime.datetime.now(datetime.UTC)
    for machine in (server, *others):
        check_machine(machine)
        for path in (files_of(folder, machine).certificate, files_of(folder, machine).key):
            if path.exists():
                raise CertificateError(f"{path} exists already: move it away first, it is not overwritten")
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority, authority_key = _authority(folder, start, written)
        for machine in (server, *others):
            usage = Usage.SERVE if machine == server else Usage.CONNECT
            names = _names([*hosts, "localhost", "127.0.0.1", "::1"] if machine == server else [machine])
            _write_machine(folder, machine, usage, names, (authority, authority_key), start, days, written)
    except OSError as error:
        raise CertificateError(f"certificates cannot be written into {folder}: {error}") from error
    return written


def _authority(
    folder: Path, start: datetime.datetime, written: list[Path]
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
    if certificate_path.exists():
        if not key_path.exists():
            raise CertificateError(
                f"{key_path} is missing: without the authority's key no certificate can be added"
            )
        key = _load_key(key_path)
        return _load_certificate(certificate_path), key
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("StreamPilot link authority")
    certificate = (
        _builder(name, name, key, start, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _pem(key), secret=True)
    _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
    written += [certificate_path, key_path]
    return certificate, key


def _write_machine(
    folder: Path,
    machine: str,
    usage: Usage,
    names: list[x509.GeneralName],
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    start: datetime.datetime,
    days: int,
    written: list[Path],
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(machine), authority[0].subject, key, start, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage.value]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority[1].public_key()), critical=False
        )
        .sign(authority[1], hashes.SHA256())
    )
    files = files_of(folder, machine)
    _write(files.key, _pem(key), secret=True)
    _write(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    written += [files.certificate, files.key]


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    start: datetime.datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(hours=1))  # the machines' clocks may differ a little
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError as error:
                raise CertificateError(f"host {host!r} is neither a name nor an address: {error}") from error
    return names


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Never over a file that exists; a key is readable by its owner alone."""
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644), "wb"
    ) as file:
        file.write(data)


# --- checking


def check(files: Files, machine: str, usage: Usage, *, now: datetime.datetime | None = None) -> list[str]:
    """Check a machine's files before connecting; returns warnings (a certificate about to expire).

    Raises:
        CertificateError: a file is missing or broken, a certificate expired or not yet valid, signed by another
            authority, for another machine or another use, or the key belongs to another certificate.
    """
    instant = now or datetime.datetime.now(datetime.UTC)
    authority = _load_certificate(files.authority)
    certificate = _load_certificate(files.certificate)
    key = _load_key(files.key)
    warnings: list[str] = []
    for path, each in ((files.authority, authority), (files.certificate, certificate)):
        if instant < each.not_valid_before_utc:
            raise CertificateError(
                f"{path} is valid only from {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: clock?"
            )
        if instant > each.not_valid_after_utc:
            raise CertificateError(f"{path} expired on {each.not_valid_after_utc:%Y-%m-%d}: make a new one")
        days = (each.not_valid_after_utc - instant).days
        if days < WARN_DAYS:
            warnings.append(f"{path} expires in {days} days, on {each.not_valid_after_utc:%Y-%m-%d}")
    if not _is_authority(authority):
        raise CertificateError(
            f"{files.authority} is no authority's certificate: is it swapped with another file?"
        )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateError(
            f"{files.certificate} was not signed by {files.authority}: both must come from the same `certificates make`"
        ) from error
    if certificate.public_key() != key.public_key():
        raise CertificateError(
            f"{files.key} is not the key of {files.certificate}: they are swapped with others"
        )
    name = common_name(certificate)
    if name != machine:
        raise CertificateError(
            f"{files.certificate} is the certificate of {name!r}, this machine is {machine!r}"
        )
    if usage.value not in _usages(certificate):
        purpose = "serving" if usage is Usage.SERVE else "connecting"
        raise CertificateError(
            f"{files.certificate} is not for {purpose} (its extended key usage forbids it)"
        )
    return warnings


def common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise CertificateError(f"certificate {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path} holds no certificate: {error}") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise CertificateError(f"key {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{path} holds no private key without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{path} holds a key of another kind, must be EC (P-256)")
    return key


# --- asking a server, since zenoh itself only ever says "Timeout"


_CERTIFICATE_ALERTS = frozenset(
    {
        "BAD_CERTIFICATE",
        "UNSUPPORTED_CERTIFICATE",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_UNKNOWN",
        "CERTIFICATE_REQUIRED",
        "UNKNOWN_CA",
        "ACCESS_DENIED",
        "DECRYPT_ERROR",
    }
)
"""By which a server refuses a client's certificate (RFC 8446, 6.2), as OpenSSL calls them after `..._ALERT_`."""


class FailureKind(Enum):
    UNREACHABLE = "unreachable"
    NO_TLS = "no TLS"
    CERTIFICATE = "certificate"
    """One side does not accept the other's."""


@dataclass(frozen=True)
class Failure:
    """Why no connection comes about. `text`: for people."""

    kind: FailureKind
    text: str


def explain_failure(address: Address, files: Files | None, timeout_s: float = 2.0) -> Failure | None:
    """Why no connection to `address` comes about; None if TCP and TLS get through."""
    try:
        with socket.create_connection((address.host, address.port), timeout_s) as plain:
            if not address.needs_certificates or files is None:
                return None
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(files.authority))
            context.load_cert_chain(files.certificate, files.key)
            with context.wrap_socket(plain, server_hostname=address.host) as secure:
                secure.settimeout(0.3)
                try:
                    secure.recv(1)  # with TLS 1.3, a server's refusal of our certificate arrives here
                except TimeoutError:
                    return None
                return None
    except ssl.SSLCertVerificationError as error:
        text = f"{address} shows a certificate that is not accepted: {error.verify_message}"
        return Failure(FailureKind.CERTIFICATE, text)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if reason.partition("_ALERT_")[2] in _CERTIFICATE_ALERTS:
            return Failure(FailureKind.CERTIFICATE, f"{address} refuses this machine's certificate: {reason}")
        return Failure(FailureKind.NO_TLS, f"{address} speaks no TLS that can be used: {reason}")
    except TimeoutError:
        return Failure(FailureKind.UNREACHABLE, f"{address} does not answer within {timeout_s:g} s")
    except OSError as error:
        return Failure(FailureKind.UNREACHABLE, f"{address} cannot be reached: {error.strerror or error}")


# --- command line


def show(directory: Path | str, now: datetime.datetime | None = None) -> list[str]:
    """A line for each certificate of a folder.

    Raises:
        CertificateError: there is none, or one is broken.
    """
    instant = now or datetime.datetime.now(datetime.UTC)
    lines = []
    for path in sorted(Path(directory).glob("*.pem")):
        certificate = _load_certificate(path)
        left = (certificate.not_valid_after_utc - instant).days
        state = f"{left} days left" if left >= 0 else "EXPIRED"
        kind = (
            "authority"
            if _is_authority(certificate)
            else "server"
            if Usage.SERVE.value in _usages(certificate)
            else "client"
        )
        lines.append(
            f"{path.name:24} {common_name(certificate):28} {kind:10} "
            f"until {certificate.not_valid_after_utc:%Y-%m-%d} ({state})"
        )
    if not lines:
        raise CertificateError(f"{directory} holds no certificate (*.pem)")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True)
    making = commands.add_parser("make", help="write an authority and a certificate for each machine")
    making.add_argument("directory", type=Path)
    making.add_argument("--server", default="server", metavar="NAME", help="default %(default)s")
    making.add_argument(
        "--machine", action="append", metavar="NAME", help="who connects; repeat; default: edge, viewer"
    )
    making.add_argument(
        "--host",
        action="append",
        default=[],
        help="name or address under which the server is reached; repeat",
    )
    making.add_argument("--days", type=int, default=MACHINE_DAYS, help="validity, default %(default)s")
    showing = commands.add_parser("show", help="list the certificates of a folder with their expiry")
    showing.add_argument("directory", type=Path)


def run(options: argparse.Namespace) -> int:
    """Raises LinkError."""
    if options.action == "show":
        print("\n".join(show(options.directory)))
        return 0
    if not 1 <= options.days <= AUTHORITY_DAYS:
        raise CertificateError(f"--days is {options.days}, must be 1 to {AUTHORITY_DAYS}")
    machines = options.machine or ["edge", "viewer"]
    for path in make(options.directory, options.server, machines, options.host, days=options.days):
        print(path)
    print("Copy ca.pem and NAME.pem, NAME.key to machine NAME; keep ca.key here, out of reach.")
    return 0
