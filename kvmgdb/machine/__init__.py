"""Virtual machines: the interface, and the backends behind it."""
