"""The front end `ublk`: devices as block devices of the kernel's ublk driver."""
