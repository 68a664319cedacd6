"""Disks and file systems: full, over quota, stale, read-only, unreadable.

torch hides a full disk behind ``PytorchStreamWriter failed`` (its inline_container.cc), safetensors
behind ``StorageFull``.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

FILES_RULES = (
    rule(
        F.DISK_FULL,
        Trust.CAUSE,
        "no space left|storagefull|quota exceeded|disk quota|errno 28|errno 122|enospc|edquot",
        r"no space left|storagefull|quota exceeded|exceeded.{0,20}quota|errno (?:28|122)\b|"
        r"enospc|edquot",
    ),
    rule(
        F.DISK_FULL,
        Trust.CAUSE,
        "streamwriter|unexpected pos|not enough disk space|not enough free disk|disk is full|"
        "disk full|out of disk space|insufficient disk|filesystem full|enough free space|"
        "file write failed",
        r"streamwriter failed|unexpected pos \d+ vs \d+|enough (?:free )?(?:disk )?space|"
        r"(?:dis[ck]|file ?system|device|volume|storage)(?: is)? full|out of disk space|"
        r"insufficient disk|file write failed",
    ),
    rule(F.DISK_FULL, Trust.CAUSE, "diskfull|disk usage exceeded|storage quota|file too large"),
    rule(
        F.FILESYSTEM,
        Trust.CAUSE,
        "stale file handle|stale nfs|input/output error|remote i/o error|read-only file system|"
        "transport endpoint|structure needs cleaning|bad file descriptor|"
        "no locks available|resource deadlock avoided",
        r"stale (?:nfs )?file handle|input/output error|remote i/o error|read-only file ?system|"
        r"transport endpoint (?:is not connected|shutdown)|after transport endpoint|"
        r"structure needs cleaning|no locks available|"
        r"oserror.{0,20}bad file descriptor|resource deadlock avoided",
    ),
    rule(
        F.FILESYSTEM,
        Trust.CAUSE,
        "errno 116|errno 5]|errno 30|errno 107|errno 108|errno 117|errno 121|errno 37]|errno 35]",
        r"\[errno (?:116|5|30|107|108|117|121|37|35)\]",
    ),
    rule(
        F.FILESYSTEM,
        Trust.KERNEL,
        "lustreerror|nfs: server|nfs server|ext4-fs error|xfs (|blk_update_request|i/o error|mmfs|"
        "ceph:|gpfs",
        r"lustreerror:|nfs:? server \S+ (?:is )?(?:not respond|timed out)|ext4-fs error|"
        r"xfs \(\S+\):.{0,60}(?:corrupt|shutdown|error)|"
        r"(?:blk_update_request|buffer|dev \S+).{0,20}i/o error|mmfs.{0,60}(?:error|unmount|panic)|"
        r"ceph: .{0,60}(?:hung|error|evicted|blocklisted)",
        any_level=True,
    ),
    rule(
        F.FILESYSTEM,
        Trust.CAUSE,
        "permission denied|operation not permitted|permissionerror",
        r"permissionerror|\[errno (?:13|1)\]|"
        r"(?:cannot|can't|could not|failed|unable|error|denied).{0,80}"
        r"(?:open|create|write|read|access|mkdir|touch|rm|remove)\b.{0,80}permission denied|"
        r"(?:mkdir|cp|mv|touch|rm|tar|bash|tee|ln): .{0,120}permission denied|"
        r"^\S*(?:/|slurm_script)\S*:.{0,80}: permission denied",
    ),
    rule(
        F.FILESYSTEM,
        Trust.CAUSE,
        "central directory|headertoolarge|metadataincompletebuffer|invalidheader|"
        "file may be corrupted|checksum mismatch|file is corrupt|truncated file|unexpected eof|"
        "corrupted size|errno = 11|file locking|unable to lock file|unpicklingerror",
        r"failed (?:finding central directory|reading (?:zip archive|file))|headertoolarge|"
        r"metadataincompletebuffer|invalidheader|file may be corrupted|"
        r"checksum mismatch|file is corrupt|truncated file|unexpected eof|"
        r"unable to (?:lock|open) file.{0,80}(?:errno = 11|unavailable)|"
        r"unpicklingerror: (?:pickle data was truncated|invalid load key)",
    ),
    rule(
        F.FILESYSTEM,
        Trust.CAUSE,
        "too many open files|errno 24]|errno 23]",
        r"too many open files",
    ),
)
