"""Memory of the GPU and of the host; the two say "out of memory" alike and mean different things.

Sources: torch's c10/cuda/CUDACachingAllocator.cpp and c10/core/impl/alloc_cpu.cpp, the kernel's
mm/oom_kill.c, slurm's src/plugins/task/cgroup, bash's job messages.

GPUs, their driver and links, as the kernel and CUDA report them.

Sources: NVIDIA's "Xid errors" manual; cudaError_t names in the CUDA runtime's driver_types.h.
Xid 43 and 45 are clean-ups after a process died, 13 and 31 usually the program's own fault.

NCCL, RCCL and gloo collectives. The word NCCL alone is no error.

Sources: torch's ProcessGroupNCCL.cpp and NCCLUtils.hpp, NCCL's src/misc/socket.cc, net_ib.cc and
src/debug.cc (``NCCL WARN``), gloo's transport/tcp.
"""

from __future__ import annotations

from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.model import Trust, rule

GPU_RULES = (
    rule(
        F.GPU_XID,
        Trust.KERNEL,
        "xid",
        r"nvrm: xid(?! \([^)]*\): (?:13|31|43|45)\b)|"
        r"\bxid[ :=]+(?:error )?\d{2,3}\b(?<!\b43)(?<!\b45)|"
        r"\bxid \(pci:[^)]*\):? (?!13|31|43|45)\d+",
        any_level=True,
    ),
    rule(
        F.GPU_XID,
        Trust.CAUSE,
        "xid",
        r"nvrm: xid \([^)]*\): (?:13|31)\b|\bxid \(pci:[^)]*\): (?:13|31)\b",
        any_level=True,
    ),
    rule(F.GPU_XID, Trust.VICTIM, "xid", r"nvrm: xid \([^)]*\): (?:43|45)\b", any_level=True),
    rule(
        F.GPU_XID,
        Trust.KERNEL,
        "fallen off the bus|gpu is lost|gpu lost|rminitadapter failed|gpu requires reset",
        any_level=True,
    ),
    rule(
        F.GPU_XID,
        Trust.CAUSE,
        "ecc error|ecc_uncorrect|double bit|row remap|remapping failure|uncorrectable",
        r"uncorrect\w*[ -].{0,20}(?:ecc|nvlink)|ecc_uncorrectable|double[- ]bit ecc|"
        r"row remap\w* fail|uncorrectable (?:memory )?error|"
        r"ecc error (?:was )?(?:encounter|detect)",
        any_level=True,
    ),
    rule(
        F.GPU_XID,
        Trust.CAUSE,
        "nvlink|nvswitch|fabric",
        r"nvlink.{0,60}(?:error|fail|fatal|inactive|down)|nvswitch.{0,60}(?:fatal|fail|error)|"
        r"sxid|fabric ?manager.{0,40}(?:fail|not running|error)",
    ),
    rule(
        F.GPU_XID,
        Trust.CAUSE,
        "unspecified launch failure|cudaerrorlaunchfailure|cuda_error_launch_failed|"
        "capable devices are busy|capable device(s) is/are busy|system not yet initialized|"
        "unable to determine the device handle|driver/library version mismatch|"
        "cuda_error_not_initialized: |hardware stack error|device is lost|unknown device handle",
    ),
    rule(
        F.GPU_XID,
        Trust.CAUSE,
        "memory access fault by gpu|amdgpu|hsa_status_error|gpu hang",
        r"memory access fault by gpu|amdgpu.{0,60}(?:reset|timeout|fault|fail)|"
        r"hsa_status_error_(?!out_of)|gpu hang",
    ),
    rule(
        F.GPU_XID,
        Trust.CAUSE,
        "nvrm|nvidia-smi|nvml",
        r"nvrm:.{0,80}(?:fail|not responding|error)|nvidia-smi.{0,40}(?:failed|no devices|error)|"
        r"failed to initialize nvml|nvml.{0,40}(?:gpu_is_lost|unknown error|failed)",
    ),
)


NCCL_RULES = (
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "watchdog|nccl operations|collective",
        r"watchdog caught collective operation timeout|detected by watchdog at work|"
        r"watchdog.{0,20} got stuck|watchdog thread terminated|"
        r"some nccl operations have failed or timed out|"
        r"(?:caught|due to a?|received).{0,40}collective (?:operation )?timeout|"
        r"collective .{0,80}timed? ?out",
        any_level=True,
    ),
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "timeout at nccl|work timeout|before timing out",
        any_level=True,
    ),
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "monitoredbarrier|wait timeout|socket timeout|timed out waiting|barrier",
        r"monitoredbarrier|wait timeout after \d+ ?ms|socket timeout\b|"
        r"timed out waiting \d+ ?ms for (?:recv|send)|barrier.{0,40}timed out",
    ),
    rule(
        F.NCCL_TIMEOUT,
        Trust.VICTIM,
        "nccl|rccl",
        r"\b[nr]ccl\b.{0,80}(?:timed out|timeout)(?!\s*[=:(])(?!.{0,12}(?:set|environment|"
        r"variable))"
        r"(?<!_timeout)",
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "nccl warn",
        r"nccl warn .{0,40}(?:got completion .{0,60}(?:error|status)|ibv_\w+.{0,80}(?:fail|error)|"
        r"call to ib\w+ .{0,60}fail|async fatal event|no device found|"
        r"error while (?:creating|attaching)|posix_fallocate|duplicate gpu|"
        r"cuda failure(?! .?out of memory)|unhandled|mismatch|invalid|wrong|"
        r"unable to (?:open|find|load)|failed to (?:find|initialize|register|open))",
        any_level=True,
    ),
    rule(F.NCCL_ERROR, Trust.CAUSE, "duplicate gpu detected", any_level=True),
    rule(
        F.NCCL_ERROR,
        Trust.VICTIM,
        "nccl warn",
        r"nccl warn .{0,200}(?:closed|fail|timed? ?out|error|refused|reset by|no route|abort)",
        any_level=True,
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "ncclsystemerror|ncclinternalerror|ncclunhandledcudaerror|ncclinvalidusage|"
        "ncclinvalidargument|unhandled system error|unhandled cuda error|rcclsystemerror",
        any_level=True,
    ),
    rule(
        F.NCCL_ERROR,
        Trust.VICTIM,
        "ncclremoteerror|remote process exited|communicator was aborted|ncclcommabort|"
        "nccl communicator aborted|nccl comm was aborted",
        any_level=True,
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "nccl error|nccl failure|error nccl|nccl_error|nccl2 error",
        r"(?:nccl error|nccl failure|nccl_error)(?!.{0,120}remote process exited)"
        r"(?!\S*(?:handling|_block))",
    ),
    rule(
        F.NCCL_ERROR,
        Trust.VICTIM,
        "distbackenderror|remote peer",
        r"distbackenderror|connection closed by remote peer",
    ),
    rule(
        F.NCCL_ERROR,
        Trust.CAUSE,
        "ibv_|libibverbs|infiniband|mlx5|ib device|openib",
        r"mlx5_.{0,80}(?:error|fail|syndrome|timeout|link down)|"
        r"ibv_\w+.{0,40}(?:failed|error)(?!.*fork)|infiniband.{0,40}(?:link down|port error)",
    ),
)


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
