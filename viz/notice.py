"""What the metadata of every file say that shows what a network has made."""


def notice(network: str, sha256: str) -> str:
    """Returns the sentence: that it is synthetic, and the network's file with its SHA-256."""
    return f'Synthetic, made by PV3D with the network {network} (SHA-256 {sha256})'
