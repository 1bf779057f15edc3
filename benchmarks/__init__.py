"""Scripts that print what is measured in one run."""

from dnnlib.threads import choose_spins

choose_spins()
