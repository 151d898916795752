"""Checks every annotated shape while the tests run."""

from jaxtyping import install_import_hook

from plugins.dla.tests import shapes

# Stays installed: modules of the package are imported by the tests one after another.
install_import_hook("lensd_dla", f"{shapes.__name__}.checked")
