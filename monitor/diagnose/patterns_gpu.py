"""What is written about GPUs and their links, collectives, and memory of GPU and host.

Memory of the two is said to be exhausted alike, and means different things. The word NCCL alone is
no error. Xid 43 and 45 are clean-ups after a process died, 13 and 31 usually the program's fault.

Sources: NVIDIA's "Xid errors" manual; cudaError_t names in the CUDA runtime's driver_types.h.
torch's ProcessGroupNCCL.cpp and NCCLUtils.hpp, NCCL's src/misc/socket.cc, net_ib.cc and
src/debug.cc (``NCCL WARN``), gloo's transport/tcp. torch's c10/cuda/CUDACachingAllocator.cpp and
c10/core/impl/alloc_cpu.cpp, the kernel's mm/oom_kill.c, slurm's src/plugins/task/cgroup, bash's job
messages.
"""

from __future__ import annotations

from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.patterns import Table, at_exit, cause, exception, kernel, victim

GPU_RULES: Table = {
    "xid-hardware": kernel(
        F.GPU_XID,
        "xid",
        r"nvrm: xid(?! \([^)]*\): (?:13|31|43|45)\b)|"
        r"\bxid[ :=]+(?:error )?\d{2,3}\b(?<!\b43)(?<!\b45)|"
        r"\bxid \(pci:[^)]*\):? (?!13|31|43|45)\d+",
    ),
    "xid-program": cause(
        F.GPU_XID,
        "xid",
        r"nvrm: xid \([^)]*\): (?:13|31)\b|\bxid \(pci:[^)]*\): (?:13|31)\b",
        any_level=True,
    ),
    "xid-clean-up": victim(F.GPU_XID, "xid", r"nvrm: xid \([^)]*\): (?:43|45)\b", any_level=True),
    "fallen-off-the-bus": kernel(
        F.GPU_XID, "fallen off the bus|gpu is lost|gpu lost|rminitadapter failed|gpu requires reset"
    ),
    "ecc-error": cause(
        F.GPU_XID,
        "ecc error|ecc_uncorrect|double bit|row remap|remapping failure|uncorrectable",
        r"uncorrect\w*[ -].{0,20}(?:ecc|nvlink)|ecc_uncorrectable|double[- ]bit ecc|"
        r"row remap\w* fail|uncorrectable (?:memory )?error|"
        r"ecc error (?:was )?(?:encounter|detect)",
        any_level=True,
    ),
    "nvlink": cause(
        F.GPU_XID,
        "nvlink|nvswitch|fabric",
        r"nvlink.{0,60}(?:error|fail|fatal|inactive|down)|nvswitch.{0,60}(?:fatal|fail|error)|"
        r"sxid|fabric ?manager.{0,40}(?:fail|not running|error)",
    ),
    "unspecified-launch-failure": cause(
        F.GPU_XID,
        "unspecified launch failure|cudaerrorlaunchfailure|cuda_error_launch_failed|"
        "capable devices are busy|capable device(s) is/are busy|system not yet initialized|"
        "unable to determine the device handle|driver/library version mismatch|"
        "cuda_error_not_initialized: |hardware stack error|device is lost|unknown device handle",
    ),
    "memory-access-fault-by-gpu": cause(
        F.GPU_XID,
        "memory access fault by gpu|amdgpu|hsa_status_error|gpu hang",
        r"memory access fault by gpu|amdgpu.{0,60}(?:reset|timeout|fault|fail)|"
        r"hsa_status_error_(?!out_of)|gpu hang",
    ),
    "nvrm": cause(
        F.GPU_XID,
        "nvrm|nvidia-smi|nvml",
        r"nvrm:.{0,80}(?:fail|not responding|error)|nvidia-smi.{0,40}(?:failed|no devices|error)|"
        r"failed to initialize nvml|nvml.{0,40}(?:gpu_is_lost|unknown error|failed)",
    ),
}


NCCL_RULES: Table = {
    "watchdog": victim(
        F.NCCL_TIMEOUT,
        "watchdog|nccl operations|collective",
        r"watchdog caught collective operation timeout|detected by watchdog at work|"
        r"watchdog.{0,20} got stuck|watchdog thread terminated|"
        r"some nccl operations have failed or timed out|"
        r"(?:caught|due to a?|received).{0,40}collective (?:operation )?timeout|"
        r"collective .{0,80}timed? ?out",
        any_level=True,
    ),
    "timeout-at-nccl": victim(
        F.NCCL_TIMEOUT, "timeout at nccl|work timeout|before timing out", any_level=True
    ),
    "monitoredbarrier": victim(
        F.NCCL_TIMEOUT,
        "monitoredbarrier|wait timeout|socket timeout|timed out waiting|barrier",
        r"monitoredbarrier|wait timeout after \d+ ?ms|socket timeout\b|"
        r"timed out waiting \d+ ?ms for (?:recv|send)|barrier.{0,40}timed out",
    ),
    "nccl-timed-out": victim(
        F.NCCL_TIMEOUT,
        "nccl|rccl",
        r"\b[nr]ccl\b.{0,80}(?:timed out|timeout)(?!\s*[=:(])(?!.{0,12}(?:set|environment|"
        r"variable))"
        r"(?<!_timeout)",
    ),
    "nccl-warn-cause": cause(
        F.NCCL_ERROR,
        "nccl warn",
        r"nccl warn .{0,40}(?:got completion .{0,60}(?:error|status)|ibv_\w+.{0,80}(?:fail|error)|"
        r"call to ib\w+ .{0,60}fail|async fatal event|no device found|"
        r"error while (?:creating|attaching)|posix_fallocate|duplicate gpu|"
        r"cuda failure(?! .?out of memory)|unhandled|mismatch|invalid|wrong|"
        r"unable to (?:open|find|load)|failed to (?:find|initialize|register|open))",
        any_level=True,
    ),
    "duplicate-gpu-detected": cause(F.NCCL_ERROR, "duplicate gpu detected", any_level=True),
    "nccl-warn-consequence": victim(
        F.NCCL_ERROR,
        "nccl warn",
        r"nccl warn .{0,200}(?:closed|fail|timed? ?out|error|refused|reset by|no route|abort)",
        any_level=True,
    ),
    "ncclsystemerror": cause(
        F.NCCL_ERROR,
        "ncclsystemerror|ncclinternalerror|ncclunhandledcudaerror|ncclinvalidusage|"
        "ncclinvalidargument|unhandled system error|unhandled cuda error|rcclsystemerror",
        any_level=True,
    ),
    "ncclremoteerror": victim(
        F.NCCL_ERROR,
        "ncclremoteerror|remote process exited|communicator was aborted|ncclcommabort|"
        "nccl communicator aborted|nccl comm was aborted",
        any_level=True,
    ),
    "nccl-error": cause(
        F.NCCL_ERROR,
        "nccl error|nccl failure|error nccl|nccl_error|nccl2 error",
        r"(?:nccl error|nccl failure|nccl_error)(?!.{0,120}remote process exited)"
        r"(?!\S*(?:handling|_block))",
    ),
    "distbackenderror": victim(
        F.NCCL_ERROR,
        "distbackenderror|remote peer",
        r"distbackenderror|connection closed by remote peer",
    ),
    "ibv": cause(
        F.NCCL_ERROR,
        "ibv_|libibverbs|infiniband|mlx5|ib device|openib",
        r"mlx5_.{0,80}(?:error|fail|syndrome|timeout|link down)|"
        r"ibv_\w+.{0,40}(?:failed|error)(?!.*fork)|infiniband.{0,40}(?:link down|port error)",
    ),
}


MEMORY_RULES: Table = {
    "cuda-out-of-memory": cause(
        F.CUDA_OOM, "cuda out of memory|hip out of memory|outofmemoryerror: cuda"
    ),
    "xpu-out-of-memory": cause(
        F.CUDA_OOM, "xpu out of memory|npu out of memory|mps backend out of memory"
    ),
    "out-of-memory": cause(
        F.CUDA_OOM,
        "out of memory|memoryallocation|out_of_memory",
        r"(?:cuda|hip|nccl|cublas|cudnn|nvrtc|gpu|device|driver)[^.;]{0,60}out of memory|"
        r"out of memory (?:on|trying to allocate|while trying to allocate|allocating)\b|"
        r"cudaerrormemoryallocation|cuda_error_out_of_memory|cudamalloc\S* .{0,20}out of memory",
        any_level=True,
    ),
    "resource-exhausted": cause(
        F.CUDA_OOM, "resource_exhausted|oom when allocating|resourceexhausted"
    ),
    "cublas-status-alloc-failed": cause(
        F.CUDA_OOM, "cublas_status_alloc_failed|cudnn_status_alloc_failed"
    ),
    "failed-to-cuda-calloc": cause(
        F.CUDA_OOM, "failed to cuda calloc|failed to cuda malloc", any_level=True
    ),
    "no-available-memory-for-the-cache-blocks": cause(
        F.CUDA_OOM, "no available memory for the cache blocks"
    ),
    "tried-to-allocate": cause(
        F.CUDA_OOM, "tried to allocate", r"tried to allocate [\d.]+ ?[kmgt]i?b"
    ),
    "outofmemoryerror": exception(
        F.CUDA_OOM, "outofmemoryerror", r"(?:torch\.(?:cuda\.)?|^)OutOfMemoryError", exact_case=True
    ),
    "oom-kill": kernel(
        F.HOST_OOM,
        "oom-kill|oom_kill|oom kill|oom killed",
        r"oom[-_ ]kill(?:er|ed)? ?(?:event|:|in |$)|oom[-_]kill:constraint|invoked oom-killer|"
        r"detected \d+ oom|been oom killed",
    ),
    "oom-reaper": kernel(F.HOST_OOM, "oom_reaper"),
    "oomkilled": kernel(F.HOST_OOM, "oomkilled"),
    "kernel-out-of-memory": kernel(
        F.HOST_OOM,
        "out of memory|out-of-memory",
        r"out of memory:? kill|cgroup out[- ]of[- ]memory|task \d[\d,-]*: out of memory|"
        r"tasks? [\d,-]+: out of memory|killed by the (?:cgroup )?out-of-memory",
    ),
    "memory-limit": kernel(
        F.HOST_OOM,
        "memory limit",
        r"exceed\w* (?:job|step|task|the)? ?(?:memory|virtual memory|pss) limit|"
        r"(?:job|step|task|container|pod).{0,60}(?:exceed\w*|over|beyond).{0,20}memory limit|"
        r"memory limit .{0,40}exceeded.{0,40}(?:kill|cancel)",
    ),
    "term-memlimit": kernel(F.HOST_OOM, "term_memlimit"),
    "running-low-on-memory": cause(
        F.HOST_OOM,
        "running low on memory|low on memory",
        r"(?:node|worker|host|system).{0,60}low on memory",
        any_level=True,
    ),
    "allocate-memory": cause(
        F.HOST_OOM,
        "allocate memory|bad_alloc|not enough memory",
        r"can(?:no|')?t allocate memory|unable to allocate memory|std::bad_alloc|"
        r"defaultcpuallocator: not enough memory",
    ),
    "memoryerror": cause(
        F.HOST_OOM,
        "memoryerror",
        r"(?:^|[\s.])(?:_Array)?MemoryError\b|ArrowMemoryError",
        exact_case=True,
    ),
    "unable-to-allocate": cause(
        F.HOST_OOM,
        "unable to allocate|cudahostalloc|realloc of size",
        r"unable to allocate [\d.]+ ?[kmgtp]i?b|unable to allocate array|"
        r"(?:malloc|realloc|mmap) of size \d+ failed",
    ),
    "shell-killed": at_exit(
        F.HOST_OOM,
        "killed",
        r"^(?:\S+: line \d+:\s+\d+ )?\s*Killed\b(?:\s*$|\s+\S*(?:python|srun|torchrun|accelerate|"
        r"deepspeed|mpirun|bash|\$))|tasks? [\d,-]+: Killed|\bKilled process\b",
        exact_case=True,
    ),
    "exit-137": at_exit(
        F.HOST_OOM,
        "sigkill|exit code 137|signal 9|exitcode|status 137|exit code: 137|code -9|retcode|killed",
        r"sigkill|exit(?:ed with)? (?:code|status):?\s*(?:137|-9)\b|"
        r"exit_?code\s*[:=]\s*(?:137|-9)\b|"
        r"signal:? ?9\b|return code = -9\b|return code:? -9\b|killed by signal: killed",
    ),
}
