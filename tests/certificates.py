"""Certificates for servers and clients of the tests."""

import datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

HOUR = datetime.timedelta(hours=1)


def self_signed(directory: Path) -> tuple[Path, Path]:
    """The files of a certificate for 127.0.0.1, which is its own authority, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = builder("sc", "sc", key, ["127.0.0.1"]).sign(key, hashes.SHA256())
    return write(directory, "certificate", certificate, key)


class Authority:
    """Its own certificate is in `file`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        itself = x509.BasicConstraints(ca=True, path_length=None)
        made = builder("authority", "authority", self._key, []).add_extension(itself, critical=True)
        self.file, _ = write(directory, "authority", made.sign(self._key, hashes.SHA256()), self._key)

    def certify(self, name: str, addresses: list[str], ago: datetime.timedelta = HOUR) -> tuple[Path, Path]:
        """The files of a certificate that is good for two hours, from so long ago on, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = builder("authority", name, key, addresses, ago)
        return write(self._directory, name, made.sign(self._key, hashes.SHA256()), key)


def builder(issuer, subject, key, addresses, ago=HOUR) -> x509.CertificateBuilder:
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in (issuer, subject)]
    begin = datetime.datetime.now(datetime.UTC) - ago
    made = x509.CertificateBuilder(*names, key.public_key(), x509.random_serial_number(), begin, begin + 2 * HOUR)
    if not addresses:
        return made
    return made.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address(a)) for a in addresses]), critical=False
    )


def write(directory: Path, name: str, certificate, key) -> tuple[Path, Path]:
    files = directory / name, directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].touch(0o600)
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
