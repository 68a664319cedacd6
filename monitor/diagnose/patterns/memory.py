"""Memory of the GPU and of the host; the two say "out of memory" alike and mean different things.

Sources: torch's c10/cuda/CUDACachingAllocator.cpp and c10/core/impl/alloc_cpu.cpp, the kernel's
mm/oom_kill.c, slurm's src/plugins/task/cgroup, bash's job messages.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

MEMORY_RULES = (
    rule(F.CUDA_OOM, Trust.CAUSE, "cuda out of memory|hip out of memory|outofmemoryerror: cuda"),
    rule(F.CUDA_OOM, Trust.CAUSE, "xpu out of memory|npu out of memory|mps backend out of memory"),
    rule(
        F.CUDA_OOM,
        Trust.CAUSE,
        "out of memory|memoryallocation|out_of_memory",
        r"(?:cuda|hip|nccl|cublas|cudnn|nvrtc|gpu|device|driver)[^.;]{0,60}out of memory|"
        r"out of memory (?:on|trying to allocate|while trying to allocate|allocating)\b|"
        r"cudaerrormemoryallocation|cuda_error_out_of_memory|cudamalloc\S* .{0,20}out of memory",
        any_level=True,
    ),
    rule(F.CUDA_OOM, Trust.CAUSE, "resource_exhausted|oom when allocating|resourceexhausted"),
    rule(F.CUDA_OOM, Trust.CAUSE, "cublas_status_alloc_failed|cudnn_status_alloc_failed"),
    rule(F.CUDA_OOM, Trust.CAUSE, "failed to cuda calloc|failed to cuda malloc", any_level=True),
    rule(F.CUDA_OOM, Trust.CAUSE, "no available memory for the cache blocks"),
    rule(
        F.CUDA_OOM,
        Trust.CAUSE,
        "tried to allocate",
        r"tried to allocate [\d.]+ ?[kmgt]i?b",
    ),
    rule(
        F.CUDA_OOM,
        Trust.EXCEPTION,
        "outofmemoryerror",
        r"(?:torch\.(?:cuda\.)?|^)OutOfMemoryError",
        exact_case=True,
    ),
    rule(
        F.HOST_OOM,
        Trust.KERNEL,
        "oom-kill|oom_kill|oom kill|oom killed",
        r"oom[-_ ]kill(?:er|ed)? ?(?:event|:|in |$)|oom[-_]kill:constraint|invoked oom-killer|"
        r"detected \d+ oom|been oom killed",
        any_level=True,
    ),
    rule(F.HOST_OOM, Trust.KERNEL, "oom_reaper", any_level=True),
    rule(F.HOST_OOM, Trust.KERNEL, "oomkilled", any_level=True),
    rule(
        F.HOST_OOM,
        Trust.KERNEL,
        "out of memory|out-of-memory",
        r"out of memory:? kill|cgroup out[- ]of[- ]memory|task \d[\d,-]*: out of memory|"
        r"tasks? [\d,-]+: out of memory|killed by the (?:cgroup )?out-of-memory",
        any_level=True,
    ),
    rule(
        F.HOST_OOM,
        Trust.KERNEL,
        "memory limit",
        r"exceed\w* (?:job|step|task|the)? ?(?:memory|virtual memory|pss) limit|"
        r"(?:job|step|task|container|pod).{0,60}(?:exceed\w*|over|beyond).{0,20}memory limit|"
        r"memory limit .{0,40}exceeded.{0,40}(?:kill|cancel)",
        any_level=True,
    ),
    rule(F.HOST_OOM, Trust.KERNEL, "term_memlimit", any_level=True),
    rule(
        F.HOST_OOM,
        Trust.CAUSE,
        "running low on memory|low on memory",
        r"(?:node|worker|host|system).{0,60}low on memory",
        any_level=True,
    ),
    rule(
        F.HOST_OOM,
        Trust.CAUSE,
        "allocate memory|bad_alloc|not enough memory",
        r"can(?:no|')?t allocate memory|unable to allocate memory|std::bad_alloc|"
        r"defaultcpuallocator: not enough memory",
    ),
    rule(
        F.HOST_OOM,
        Trust.CAUSE,
        "memoryerror",
        r"(?:^|[\s.])(?:_Array)?MemoryError\b|ArrowMemoryError",
        exact_case=True,
    ),
    rule(
        F.HOST_OOM,
        Trust.CAUSE,
        "unable to allocate|cudahostalloc|realloc of size",
        r"unable to allocate [\d.]+ ?[kmgtp]i?b|unable to allocate array|"
        r"(?:malloc|realloc|mmap) of size \d+ failed",
    ),
    rule(
        F.HOST_OOM,
        Trust.EXIT,
        "killed",
        r"^(?:\S+: line \d+:\s+\d+ )?\s*Killed\b(?:\s*$|\s+\S*(?:python|srun|torchrun|accelerate|"
        r"deepspeed|mpirun|bash|\$))|tasks? [\d,-]+: Killed|\bKilled process\b",
        exact_case=True,
    ),
    rule(
        F.HOST_OOM,
        Trust.EXIT,
        "sigkill|exit code 137|signal 9|exitcode|status 137|exit code: 137|code -9|retcode|killed",
        r"sigkill|exit(?:ed with)? (?:code|status):?\s*(?:137|-9)\b|"
        r"exit_?code\s*[:=]\s*(?:137|-9)\b|"
        r"signal:? ?9\b|return code = -9\b|return code:? -9\b|killed by signal: killed",
    ),
)
