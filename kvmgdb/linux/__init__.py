"""What guest memory says about the Linux kernel that runs in it.

Everything is found from guest-physical memory and the control registers of one
vCPU: :meth:`kvmgdb.linux.kernel.Kernel.find` is where to begin.
"""
