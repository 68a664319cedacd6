"""What is written about files, data loaders, credentials and imports.

torch hides a full disk behind ``PytorchStreamWriter failed`` (its inline_container.cc), safetensors
behind ``StorageFull``.

Sources: torch/utils/data/dataloader.py, _utils/signal_handling.py; CPython's import, ld.so; errors
of Hugging Face, Weights & Biases, clouds, registries, ssh, munge.
"""

from __future__ import annotations

from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.patterns import Table, cause, exception, kernel

FILES_RULES: Table = {
    "no-space-left": cause(
        F.DISK_FULL,
        "no space left|storagefull|quota exceeded|disk quota|errno 28|errno 122|enospc|edquot",
        r"no space left|storagefull|quota exceeded|exceeded.{0,20}quota|errno (?:28|122)\b|"
        r"enospc|edquot",
    ),
    "streamwriter": cause(
        F.DISK_FULL,
        "streamwriter|unexpected pos|not enough disk space|not enough free disk|disk is full|"
        "disk full|out of disk space|insufficient disk|filesystem full|enough free space|"
        "file write failed",
        r"streamwriter failed|unexpected pos \d+ vs \d+|enough (?:free )?(?:disk )?space|"
        r"(?:dis[ck]|file ?system|device|volume|storage)(?: is)? full|out of disk space|"
        r"insufficient disk|file write failed",
    ),
    "diskfull": cause(F.DISK_FULL, "diskfull|disk usage exceeded|storage quota|file too large"),
    "stale-file-handle": cause(
        F.FILESYSTEM,
        "stale file handle|stale nfs|input/output error|remote i/o error|read-only file system|"
        "transport endpoint|structure needs cleaning|bad file descriptor|"
        "no locks available|resource deadlock avoided",
        r"stale (?:nfs )?file handle|input/output error|remote i/o error|read-only file ?system|"
        r"transport endpoint (?:is not connected|shutdown)|after transport endpoint|"
        r"structure needs cleaning|no locks available|"
        r"oserror.{0,20}bad file descriptor|resource deadlock avoided",
    ),
    "errno-116": cause(
        F.FILESYSTEM,
        "errno 116|errno 5]|errno 30|errno 107|errno 108|errno 117|errno 121|errno 37]|errno 35]",
        r"\[errno (?:116|5|30|107|108|117|121|37|35)\]",
    ),
    "lustreerror": kernel(
        F.FILESYSTEM,
        "lustreerror|nfs: server|nfs server|ext4-fs error|xfs (|blk_update_request|i/o error|mmfs|"
        "ceph:|gpfs",
        r"lustreerror:|nfs:? server \S+ (?:is )?(?:not respond|timed out)|ext4-fs error|"
        r"xfs \(\S+\):.{0,60}(?:corrupt|shutdown|error)|"
        r"(?:blk_update_request|buffer|dev \S+).{0,20}i/o error|mmfs.{0,60}(?:error|unmount|panic)|"
        r"ceph: .{0,60}(?:hung|error|evicted|blocklisted)",
    ),
    "permission-denied": cause(
        F.FILESYSTEM,
        "permission denied|operation not permitted|permissionerror",
        r"permissionerror|\[errno (?:13|1)\]|"
        r"(?:cannot|can't|could not|failed|unable|error|denied).{0,80}"
        r"(?:open|create|write|read|access|mkdir|touch|rm|remove)\b.{0,80}permission denied|"
        r"(?:mkdir|cp|mv|touch|rm|tar|bash|tee|ln): .{0,120}permission denied|"
        r"^\S*(?:/|slurm_script)\S*:.{0,80}: permission denied",
    ),
    "central-directory": cause(
        F.FILESYSTEM,
        "central directory|headertoolarge|metadataincompletebuffer|invalidheader|"
        "file may be corrupted|checksum mismatch|file is corrupt|truncated file|unexpected eof|"
        "corrupted size|errno = 11|file locking|unable to lock file|unpicklingerror",
        r"failed (?:finding central directory|reading (?:zip archive|file))|headertoolarge|"
        r"metadataincompletebuffer|invalidheader|file may be corrupted|"
        r"checksum mismatch|file is corrupt|truncated file|unexpected eof|"
        r"unable to (?:lock|open) file.{0,80}(?:errno = 11|unavailable)|"
        r"unpicklingerror: (?:pickle data was truncated|invalid load key)",
    ),
    "too-many-open-files": cause(
        F.FILESYSTEM, "too many open files|errno 24]|errno 23]", r"too many open files"
    ),
}


DATA_RULES: Table = {
    "dataloader-worker": cause(
        F.DATALOADER_WORKER,
        "dataloader worker",
        r"dataloader worker ?\(pid.{0,40}(?:killed|exited|signal)|"
        r"dataloader worker .{0,60}(?:exited unexpectedly|is killed|was killed|died)",
    ),
    "encountered-in-worker": cause(
        F.DATALOADER_WORKER, "encountered in worker", r"unexpected .{0,40} in worker"
    ),
    "received-0-items-of-ancdata": cause(
        F.DATALOADER_WORKER, "received 0 items of ancdata|unable to mmap"
    ),
    "shared-memory": cause(
        F.DATALOADER_WORKER,
        "shared memory|torch_|shm_open|/dev/shm|torch_shm_manager",
        r"(?:insufficient|out of) shared memory|unable to (?:open|write|resize).{0,40}"
        r"(?:shared memory|</?torch_)|shm_open.{0,60}fail|torch_shm_manager|"
        r"shared memory (?:limit|object|manager).{0,80}(?:fail|error|no such)",
    ),
    "in-dataloader-worker": exception(
        F.DATALOADER_WORKER,
        "in dataloader worker|in pin memory thread",
        r"caught \w+ in (?:dataloader worker|pin memory thread)",
    ),
    "dataloader-timed-out": cause(
        F.DATALOADER_WORKER,
        "dataloader timed out|pin memory thread exited|worker (pid",
        r"dataloader timed out|pin memory thread exited unexpectedly|"
        r"worker \(pid\S* \d+\) .{0,20}(?:exited|killed)",
    ),
    "one-of-the-subprocesses-has-abruptly-died": cause(
        F.DATALOADER_WORKER, "one of the subprocesses has abruptly died"
    ),
}


ACCESS_RULES: Table = {
    "gated": cause(
        F.AUTH_ERROR,
        "gated|repository not found|repositorynotfounderror|gatedrepoerror",
        r"gated ?repo|repository ?not ?found|repo is gated",
        any_level=True,
    ),
    "http-401-403": cause(
        F.AUTH_ERROR,
        "client error|unauthorized|forbidden|status|http|code:|error code|responded with",
        r"\b40[13] (?:client error|unauthorized|forbidden)|(?:http|status|code)\D{0,20}40[13]\b|"
        r"\b(?:unauthorized|forbidden)\b.{0,40}(?:url|token|access|request)|"
        r"error.{0,40}\b(?:unauthorized|forbidden)\b|unauthorized: |responded with 40[13]",
    ),
    "api-key": cause(
        F.AUTH_ERROR,
        "api_key|api key|invalid token|invalid user token|token is required|not logged in|"
        "invalid username or password|invalid credentials|login required|must be logged in|"
        "authenticate|authentication|authenticationerror|login()|huggingface-cli login|"
        "usage error: api_key",
        r"api[_ ]?key\W.{0,40}(?:not configured|invalid|missing|incorrect|not valid|must be)|"
        r"(?:invalid|incorrect|missing|no|expired|wrong) (?:user |access |auth\w* |wandb |api )?"
        r"(?:token|api[_ ]?key|credentials?)\b|"
        r"token is (?:required|invalid|expired|not valid)|not logged in|"
        r"invalid username or password|"
        r"login required|must be (?:logged in|authenticated)|failed to authenticate|"
        r"could not authenticate|authentication (?:failed|required|error|token)|"
        r"authenticationerror|localtokennotfounderror|please log in|"
        r"(?:error|denied|restricted|private).{0,200}huggingface-cli login|unauthenticated",
    ),
    "access-to-model": cause(
        F.AUTH_ERROR,
        "access to model|access denied|accessdenied|nocredential|unable to locate credentials|"
        "expiredtoken|defaultcredentialserror|invalidaccesskeyid|signaturedoesnotmatch|"
        "pull access denied|refresherror|access_denied",
        r"access to model .{0,80}is restricted|access ?denied|nocredential|"
        r"unable to locate credentials|expiredtoken|"
        r"defaultcredentialserror|invalidaccesskeyid|signaturedoesnotmatch|refresherror|"
        r"access_denied",
    ),
    "host-key-verification": cause(
        F.AUTH_ERROR,
        "permission denied|host key verification",
        r"permission denied \((?:publickey|password|keyboard|gssapi)|host key verification failed|"
        r"wandb.{0,80}permission denied|commerror.{0,60}permission|permission denied, please try",
    ),
    "no-permission": cause(
        F.AUTH_ERROR,
        "permission to|do not have|don't have",
        r"(?:do not|don't|does not) have (?:the )?(?:required |sufficient |write |read )?"
        r"(?:permissions?|access|rights?)\b.{0,40}(?:to|for|on)",
    ),
    "munge-credential": cause(
        F.AUTH_ERROR,
        "munge|credential|kerberos|key has expired|required key not available",
        r"munge.{0,80}(?:unauthorized|invalid|expired|replayed|decode failed)|"
        r"(?:auth\w*|kerberos) credential.{0,40}(?:invalid|expired|not found)|"
        r"credentials? (?:has |have )?expired|key has expired|required key not available|"
        r"could not read (?:username|password)",
    ),
}


IMPORTS_RULES: Table = {
    "modulenotfounderror": cause(
        F.IMPORT_ERROR,
        "modulenotfounderror|importerror|packagenotfounderror",
        r"(?:^|\s|\.)(?:ModuleNotFound|Import|PackageNotFound)Error\b|DistributionNotFound",
        exact_case=True,
    ),
    "undefined-symbol": cause(
        F.IMPORT_ERROR,
        "undefined symbol|failed to import|no module named|symbol lookup error|cannot import name|"
        "could not import module",
        r"undefined symbol|failed to import (?:transformers|diffusers|\w+[.\w]* because)|"
        r"no module named|symbol lookup error|cannot import name|could not import module",
    ),
    "cannot-open-shared-object": cause(
        F.IMPORT_ERROR,
        "cannot open shared object|not found (required by|glibc|cxxabi|error while loading shared",
        r"cannot open shared object|(?:GLIBC\w*|CXXABI)_[\d.]+'? not found|"
        r"error while loading shared libraries",
    ),
    "distributionnotfound": cause(
        F.IMPORT_ERROR,
        "distributionnotfound|versionconflict|is not installed|please install|is required but|"
        "compiled with a different version of the abi|numpy.dtype size changed|"
        "numpy.core.multiarray",
        r"distributionnotfound|versionconflict|"
        r"error.{0,120}(?:is not installed|please install|is required but)|"
        r"numpy\.dtype size changed|numpy\.core\.multiarray failed",
    ),
}
