"""A guest to try kvmgdb on: a stock Debian kernel with a small userland of our own."""
