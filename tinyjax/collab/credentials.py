"""Who may talk: certificates for either side, and a token for each device.

With a certificate authority on both sides TLS is mutual, and a device is who its certificate says.
With a secret in the cloud a device also, or instead, shows the token made of the secret and its
number, inside TLS. Either ties a connection to one device, so that none can speak for another.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyjax.collab.saving import extra

__all__ = ["Credentials", "is_loopback", "make_credentials", "read_credentials", "token"]


class Credentials(NamedTuple):
    """What one side shows and whom it believes. PEM is bytes; what is None is not used.

    Attributes:
      ca: certificate authority that the other side's certificate must come from. A cloud without
        one asks no certificate of devices.
      certificate: of this side.
      key: to the certificate.
      token: a device's token, or the cloud's secret from which every device's is made.

    Example:
      >>> from tinyjax import collab
      >>> collab.Credentials(token="...").ca is None
      True
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    token: str | None = None


def name_of(device: int) -> str:
    """What a device is called in its certificate and among files."""
    return f"device-{device}"


def token(secret: str, device: int) -> str:
    """The token of a device: HMAC-SHA256 of its name under the cloud's secret, in hexadecimal.

    Args:
      secret: the cloud's.
      device: its number.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> from tinyjax import collab
      >>> len(collab.token("a secret", 0)), collab.token("a secret", 0) == collab.token("", 0)
      (64, False)
    """
    return hmac.new(secret.encode(), name_of(device).encode(), hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a host, by name or number, is this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_credentials(folder: Path, name: str, *, mutual: bool = True) -> Credentials:
    """One side's credentials, from a folder that :func:`make_credentials` has filled.

    Args:
      folder: with ``ca.pem`` and, for a name, ``name.pem``, ``name.key`` and ``name.token``.
      name: ``"cloud"``, or ``"device-0"`` and so on.
      mutual: whether devices have certificates; else they have tokens alone. The same on all sides.

    Returns:
      The credentials.

    Raises:
      ValueError: if a file is not there.

    Example:
      >>> from pathlib import Path
      >>> from tinyjax import collab
      >>> collab.read_credentials(Path("nowhere"), "cloud")
      Traceback (most recent call last):
      ...
      ValueError: there is no nowhere/ca.pem: make a set with make_credentials
    """

    def read(file: str) -> bytes:
        try:
            return (folder / file).read_bytes()
        except FileNotFoundError as error:
            raise ValueError(
                f"there is no {folder / file}: make a set with make_credentials"
            ) from error

    ca, cloud = read("ca.pem"), name == "cloud"
    shown = (read(f"{name}.pem"), read(f"{name}.key")) if cloud or mutual else (None, None)
    return Credentials(ca if mutual or not cloud else None, *shown, read(f"{name}.token").decode())


def make_credentials(
    folder: Path, devices: int, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 30
) -> None:
    """Fills a folder with an authority for tests, and what the cloud and each device need of it.

    The authority's key is thrown away, so the set cannot grow: make another. Files with keys and
    tokens are for their owner's eyes, and no more than its own should go to each side.

    Args:
      folder: made where it is missing; must not hold a set already.
      devices: how many.
      hosts: names and addresses under which devices reach the cloud.
      days: for which certificates hold.

    Raises:
      ValueError: if the folder holds a set.
      ImportError: without the package cryptography.

    Example:
      >>> from tinyjax import collab
      >>> collab.make_credentials.__defaults__
      (('localhost', '127.0.0.1'), 30)
    """
    authority = _Authority(days)
    if (folder / "ca.pem").exists():
        raise ValueError(f"{folder} holds credentials already: remove it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    secret = secrets.token_hex(32)
    _write(folder / "cloud.token", secret.encode())
    _certify(authority, folder, "cloud", hosts)
    for device in range(devices):
        _write(folder / f"{name_of(device)}.token", token(secret, device).encode())
        _certify(authority, folder, name_of(device), [])
    (folder / "ca.pem").write_bytes(authority.pem)  # last: with it the set is complete


class _Authority:
    """A certificate authority that lasts as long as this object, as does its key."""

    def __init__(self, days: int) -> None:
        self.days = days
        self.name = "tinyjax test authority"
        self.key = _new_key()
        self.pem = self.sign(self.name, self.key.public_key(), [], authority=True)

    def sign(self, name: str, public: Any, hosts: Sequence[str], authority: bool = False) -> bytes:
        """A certificate, PEM."""
        x509 = extra("cryptography.x509")
        hashes = extra("cryptography.hazmat.primitives.hashes")
        serialization = extra("cryptography.hazmat.primitives.serialization")
        called = lambda name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(called(name))
            .issuer_name(called(self.name))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=self.days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .add_extension(_usage(authority), critical=True)
        )
        if not authority:  # a device's certificate is no cloud's
            usage = x509.ExtendedKeyUsageOID
            usages = x509.ExtendedKeyUsage([usage.SERVER_AUTH if hosts else usage.CLIENT_AUTH])
            builder = builder.add_extension(usages, critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(list(map(_host, hosts))), critical=False
            )
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def _usage(authority: bool) -> Any:
    """What a key may do: sign certificates, or handshakes."""
    x509 = extra("cryptography.x509")
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


def _new_key() -> Any:
    ec = extra("cryptography.hazmat.primitives.asymmetric.ec")
    return ec.generate_private_key(ec.SECP256R1())


def _certify(authority: _Authority, folder: Path, name: str, hosts: Sequence[str]) -> None:
    serialization = extra("cryptography.hazmat.primitives.serialization")
    key = _new_key()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(folder / f"{name}.key", pem)
    (folder / f"{name}.pem").write_bytes(authority.sign(name, key.public_key(), hosts))


def _host(host: str) -> Any:
    """A host as a certificate names it."""
    x509 = extra("cryptography.x509")
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, secret: bytes) -> None:
    """Writes what nobody else may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secret)
