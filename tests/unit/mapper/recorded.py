"""What dmsetup 1.02.185 said on Debian's 6.1.192 and 6.12.107."""

from typing import Any

Answer = dict[str, Any]
FAILED = "Command failed.\n"
INFO = [
    *("info", "-c", "--manglename", "hex", "--noheadings", "--separator", "|", "-o"),
    "mangled_name,mangled_uuid,major,minor,open,segments,events,tables_loaded,suspended,readonly",
]
NO_DRIVER = (
    "/dev/mapper/control: open failed: No such device\n"
    "Failure to communicate with kernel device-mapper driver.\n"
    "Check that device-mapper is available in the kernel.\n"
    "Incompatible libdevmapper 1.02.185 (2022-05-18) and kernel driver (unknown version).\n"
) + FAILED
NO_ROOT = (
    "/dev/mapper/control: open failed: Permission denied\n"
    "Failure to communicate with kernel device-mapper driver.\n"
    "Incompatible libdevmapper 1.02.185 (2022-05-18) and kernel driver (unknown version).\n"
) + FAILED


def ok(*words: str, stdout: str = "", **more: Any) -> Answer:
    """An answer of success."""
    return {"words": list(words), "stdout": stdout, **more}


def failed(*words: str, stderr: str, **more: Any) -> Answer:
    """An answer of failure: dmsetup knows only exit code 1."""
    return {"words": list(words), "stderr": stderr + FAILED, "code": 1, **more}


def ioctl(verb: str, name: str, text: str) -> str:
    """What libdevmapper prints when the kernel refuses."""
    return f"device-mapper: {verb} ioctl on {name}  failed: {text}\n"


def info(*rows: str) -> Answer:
    """The answer to a question about devices."""
    return ok(*INFO, stdout="".join(f"{row}\n" for row in rows) or "No devices found\n")


NOBODY = failed(*INFO, stderr="Device does not exist.\n")
LIN = "lin||254|0|0|1|0|Live|Active|Writeable"
EMPTY = "empty|U5|254|8|0|0|3|None|Active|Writeable"
ODD = r"a\x20b\x22c|DMCOPY-1|254|1|0|1|0|Both|Suspended|Read-only"
