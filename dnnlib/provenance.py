"""What a result was made with: command line, versions, and the revision of the code."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout
_PACKAGES = ('torch', 'torchvision', 'numpy')


def session_facts() -> dict[str, str]:
    """Returns what this process runs: command, versions, git; the same command gives the same facts."""
    facts = {'command': shlex.join(sys.argv), 'python': platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = 'unknown'
    return facts | {'git': git_revision(ROOT) or 'unknown'}


def git_revision(folder: Path) -> str | None:
    """Returns the commit of a checkout, with `-changed` when files differ from it; None without git."""
    try:
        head, changes = (
            subprocess.check_output(['git', '-C', folder, *args], stderr=subprocess.DEVNULL, text=True)
            for args in (('rev-parse', 'HEAD'), ('status', '--porcelain', '--untracked-files=no'))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ('-changed' if changes.strip() else '')
