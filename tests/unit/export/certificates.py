"""Certificates of a test's own, made with openssl: an authority, a server's, clients'."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


class Certificates:
    """An authority in `folder`/ca; `server` and `client` are folders as QEMU has them."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl (apt-get install openssl)")
        self.folder = folder
        folder.mkdir()
        self.authority = self._authority("ca")
        self.server = self.credentials("server", "server")
        self.client = self.credentials("client", "client")

    def credentials(self, name: str, role: str, *, authority: str = "ca", days: int = 2) -> Path:
        """Make a folder with a certificate and key for `role`, and the authority's certificate."""
        made = self.folder / name
        made.mkdir()
        key, request = made / f"{role}-key.pem", self.folder / f"{name}.csr"
        self._openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
        self._openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        names = self.folder / f"{name}.ext"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signed = [
            "-CA",
            self.folder / f"{authority}.pem",
            "-CAkey",
            self.folder / f"{authority}.key",
        ]
        out = ["-out", made / f"{role}-cert.pem", "-extfile", names, "-days", days]
        self._openssl("x509", "-req", "-in", request, *signed, "-CAcreateserial", *out)
        shutil.copy(self.folder / f"{authority}.pem", made / "ca-cert.pem")
        return made

    def stranger(self) -> Path:
        """Make the folder of a client that another authority has signed."""
        self._authority("other")
        made = self.credentials("stranger", "client", authority="other")
        shutil.copy(self.authority, made / "ca-cert.pem")
        return made

    def context(self, folder: Path | None = None) -> ssl.SSLContext:
        """Return how a client speaks that trusts the authority, with credentials or without."""
        context = ssl.create_default_context(cafile=str(self.authority))
        if folder is not None:
            context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
        return context

    def with_password(self, key: Path) -> bytes:
        """Return a key as it is with a password."""
        made = self.folder / "locked.pem"
        self._openssl("ec", "-in", key, "-aes128", "-passout", "pass:word", "-out", made)
        return made.read_bytes()

    def revoke(self, client: Path, out: Path) -> None:
        """Write the list of revoked certificates, with one on it."""
        config = self.folder / "ca.cnf"
        index = self.folder / "index.txt"
        index.touch()
        config.write_text(
            f"[ca]\ndefault_ca=it\n[it]\ndatabase={index}\ndefault_md=sha256\ndefault_crl_days=2\n"
        )
        words = [
            "ca",
            "-config",
            config,
            "-cert",
            self.authority,
            "-keyfile",
            self.folder / "ca.key",
        ]
        self._openssl(*words, "-revoke", client / "client-cert.pem")
        self._openssl(*words, "-gencrl", "-out", out)

    def _authority(self, name: str) -> Path:
        key, cert = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        self._openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
        self._openssl("req", "-x509", "-key", key, "-subj", f"/CN={name}", "-days", 2, "-out", cert)
        return cert

    def _openssl(self, *words: object) -> None:
        argv = ["openssl", *map(str, words)]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
