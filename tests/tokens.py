"""Real PKCS#11 tokens in software (SoftHSM 2), each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLACES = ("/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/local/lib/softhsm")
LIBRARY = next((path for place in PLACES if (path := Path(place) / "libsofthsm2.so").exists()), None)

_PROGRAM = f"""
import sys, pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass
P256, ED25519 = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("130c656477617264733235353139")
with pkcs11.lib("{LIBRARY}").get_token(token_label="groundplane").open(user_pin="4711", rw=True) as session:
"""
_MAKES = """
    kind, curve = (KeyType.EC, P256) if "interchange" in "{0}" else (KeyType.EC_EDWARDS, ED25519)
    parameters = session.create_domain_parameters(kind, {{Attribute.EC_PARAMS: curve}}, local=True)
    parameters.generate_keypair(label="{0}", store=True)
"""
_DESTROYS = """
    for each in list(session.get_objects({{Attribute.LABEL: "{0}", Attribute.CLASS: ObjectClass.{1}}})):
        each.destroy()
"""


class Token:
    """A token `groundplane` with its PIN in a file. `environment` is what a process needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens, self.pin = folder, folder / "tokens", folder / "pin"
        self.tokens.mkdir(parents=True)
        (folder / "softhsm2.conf").write_text(f"directories.tokendir = {self.tokens}\nlog.level = ERROR\n")
        self.environment = {"SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
        self.pin.touch(mode=0o600)
        self.pin.write_text("4711\n")
        self.tool(
            "softhsm2-util", "--init-token", "--free", "--label", "groundplane", "--pin", "4711", "--so-pin", "0815"
        )

    def uri(self, label: str = "signing") -> str:
        return f"pkcs11:token=groundplane;object={label}?module-path={LIBRARY}&pin-source=file:{self.pin}"

    def make_pairs(self, *labels: str) -> None:
        """In a process of their own, as an operator's tool would."""
        self.tool(sys.executable, "-c", _PROGRAM + "".join(_MAKES.format(label) for label in labels))

    def destroy(self, *halves: tuple[str, str]) -> None:
        """Takes objects away, each by its label and class, such as PRIVATE_KEY."""
        self.tool(sys.executable, "-c", _PROGRAM + "".join(_DESTROYS.format(*half) for half in halves))

    def tool(self, *command: str) -> str:
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
