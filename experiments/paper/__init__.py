"""The experiments of MAID's paper, arXiv 2308.10098, and two more on its problems."""
