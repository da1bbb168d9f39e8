"""See inside any Linux virtual machine under KVM, from the host."""

__version__ = "0.1.0"
