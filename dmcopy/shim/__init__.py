"""dmsetup's command line over the device server, for scripts on a machine without device-mapper.

`dmcopy dm shim DIR` puts a `dmsetup` into a directory that runs `main`. A script calls it hundreds
of times: nothing here imports what a call does not need, and of dmcopy only what is as light. What
it prints, on which stream, and how it ends is what dmsetup does, down to the blanks: what was not
read in dmsetup(8) was measured with 1.02.185 on 6.1 and 6.12.
"""
