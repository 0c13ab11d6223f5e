"""dmcopy: the kernel's kcopyd in userspace, and dm-snapshot and dm-mirror workflows on it.

Every length and position is in sectors of 512 bytes unless its name says bytes.
"""

__version__ = "0.1.0"
