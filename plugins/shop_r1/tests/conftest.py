"""Checks every annotated shape while the tests run."""

from jaxtyping import install_import_hook

from plugins.shop_r1.tests import shapes

# Stays installed: modules of the package are imported by the tests one after another.
install_import_hook("lensd_shop_r1", f"{shapes.__name__}.checked")
