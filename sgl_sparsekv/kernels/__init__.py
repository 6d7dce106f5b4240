"""Ops by device; each folder `kernels/<device>` of the repository is mapped below this package.

Nothing imports a device directly: `sgl_sparsekv.ops.load_ops` is the only way in.
"""
