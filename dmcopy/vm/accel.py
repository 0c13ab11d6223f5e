"""KVM or TCG: decided by booting something, because /dev/kvm alone proves nothing.

It can exist, open, and then hang a stock kernel for ever (nested clouds do that). So a real kernel
has to reach its own panic for want of a root under KVM, within seconds; that it does, or hangs,
holds until the host is booted again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from dmcopy.atomic import replace_file
from dmcopy.vm.cache import cache_dir
from dmcopy.vm.leash import Leashed

TRIAL_SECONDS: Final = 10.0
_REFUSED: Final = "QEMU cannot use it"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def choose(qemu: str, image: Path) -> str:
    """Return "kvm" or "tcg" for this machine, and say on stderr which one it is and why.

    `DMCOPY_ACCEL` forces one. `image` is the kernel for the trial.
    """
    forced = os.environ.get("DMCOPY_ACCEL")
    accel, why = (forced, "by DMCOPY_ACCEL") if forced else _decide(qemu, image)
    print(f"dmcopy: accelerator {accel}: {why}", file=sys.stderr)
    return accel


def _decide(qemu: str, image: Path) -> tuple[str, str]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "no usable /dev/kvm"
    kept = cache_dir() / "accel.json"
    here = {"boot": _BOOT_ID.read_text().strip(), "qemu": qemu, "uid": os.getuid()}
    known = _read(kept)
    if known.get("on") == here and known.get("accel") in ("kvm", "tcg"):
        return str(known["accel"]), f"{known.get('why')} (tried since this machine booted)"
    refusal = try_kvm(qemu, image)
    accel = "tcg" if refusal else "kvm"
    why = f"/dev/kvm is there but {refusal}" if refusal else "a kernel boots with /dev/kvm"
    if refusal.startswith(_REFUSED):
        return accel, why  # immediately: another hypervisor may have it now, or all memory
    replace_file(kept, json.dumps({"on": here, "accel": accel, "why": why}).encode())
    return accel, why


def _read(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def try_kvm(qemu: str, image: Path, cpu: str = "host") -> str:
    """Boot `image` under KVM without a root: it has to come to its panic and end in time.

    Returns "" if it does, else what happened instead.
    """
    folder = Path(tempfile.mkdtemp(prefix="dmcopy-vm-"))
    console = folder / "console"
    argv = [
        qemu, "-accel", "kvm", "-cpu", cpu, "-m", "256M", "-nodefaults", "-no-reboot",
        "-no-user-config", "-display", "none", "-serial", f"file:{console}",
        "-kernel", str(image), "-append", "console=ttyS0 panic=-1",
    ]  # fmt: skip
    process = Leashed(folder, argv)
    try:
        if process.wait(TRIAL_SECONDS) is None:
            return f"a kernel that was booted with it hung for {TRIAL_SECONDS:.0f} s"
        if console.exists() and b"Kernel panic" in console.read_bytes():
            return ""
        said = (folder / "output").read_text(errors="replace").strip().splitlines()
        return f"{_REFUSED} ({said[0] if said else 'it said nothing'})"
    finally:
        process.close()
