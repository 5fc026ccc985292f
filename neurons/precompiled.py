"""Importing this module compiles the kernels. Only the fork server does (`neurons.nursery`): it can be told nothing but
what to import, and its children find them compiled."""

from neurons.precompile import precompile

precompile()
