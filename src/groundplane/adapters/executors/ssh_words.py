"""What OpenSSH's client says when it can't connect, told apart: one line and the way forward for each.

Source: OpenSSH portable 9.x, messages of ssh(1) in sshconnect.c, ssh.c, readconf.c and authfile.c.
"""

from __future__ import annotations

SILENT, REFUSED = False, True
_CAUSES: tuple[tuple[tuple[str, ...], bool, str, str], ...] = (
    (
        ("REMOTE HOST IDENTIFICATION HAS CHANGED", "Host key for", "key has changed"),
        REFUSED,
        "the host key of node {node} is not the one in known_hosts: it changed, or another machine answers",
        "find out why; then ssh-keygen -R and add the new key after comparing its fingerprint on the machine itself",
    ),
    (
        ("host key is known for", "Host key verification failed"),
        REFUSED,
        "the host key of node {node} is not in known_hosts, so we don't talk to it",
        "ssh-keyscan -p PORT HOST, compare the fingerprint on the machine itself, and add the line to known_hosts",
    ),
    (
        ("UNPROTECTED PRIVATE KEY FILE", "bad permissions"),
        REFUSED,
        "the key for node {node} can be read by others, so ssh refuses to use it",
        "chmod 600 the key_file",
    ),
    (
        ("No such identity", "not accessible: No such file"),
        REFUSED,
        "the key for node {node} is not there",
        "key_file in the pool file must name a private key that this server can read",
    ),
    (
        ("Permission denied (", "Too many authentication failures"),
        REFUSED,
        "node {node} refuses our key",
        "add the public key to ~/.ssh/authorized_keys of the pool's user on the node, or set user and key_file right",
    ),
    (
        ("Could not resolve hostname",),
        SILENT,
        "the name of node {node} can't be resolved",
        "check host in the pool file, and this server's DNS",
    ),
    (
        ("Connection refused",),
        SILENT,
        "node {node} is up, but nothing listens on its ssh port",
        "start sshd there, or set port in the pool file",
    ),
    (
        ("No route to host", "Network is unreachable", "Connection timed out", "Operation timed out"),
        SILENT,
        "node {node} does not answer: its network is cut or it is down",
        "check its power and cables; what runs there goes on until its dead-man timer ends it",
    ),
    (
        ("kex_exchange_identification", "Connection reset", "Connection closed", "Broken pipe", "not responding"),
        SILENT,
        "the connection to node {node} was lost",
        "it is made anew; if it stays so, see sshd's log there (MaxStartups, MaxSessions)",
    ),
    (
        ("Permission denied", "PermissionError", "Read-only file system", "FileNotFoundError"),
        REFUSED,
        "node {node} lets us in, but we may not write our folder there",
        "set root in the pool file to a folder that the pool's user may write",
    ),
    (("No space left on device",), REFUSED, "the disk of node {node} is full", "free some space there"),
    (
        ("command not found", "No such file or directory", ": not found"),
        REFUSED,
        "node {node} has no such python",
        "install Python 3.9 or newer there, or set python in the pool file",
    ),
)


def explain(node: str, said: str, status: int) -> tuple[str, str, bool]:
    """(message, hint, whether it answers but can't be used) for what ssh or the node wrote before `status`."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = next((line.removeprefix("ground: ") for line in lines if line.startswith("ground: ")), "")
    if own:
        return f"node {node}: {own}", "see docs/guides/pools.md for what a node needs", REFUSED
    for words, refused, message, hint in _CAUSES:
        if any(word in said for word in words):
            return message.format(node=node), hint, refused
    last = lines[-1] if lines else "it said nothing"
    return f"node {node} ended the connection (status {status}): {last}", "try ssh to it by hand", SILENT
