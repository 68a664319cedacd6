"""GPUs, their driver and links, as the kernel and CUDA report them.

Sources: NVIDIA's "Xid errors" manual; cudaError_t names in the CUDA runtime's driver_types.h.
Xid 43 and 45 are clean-ups after a process died, 13 and 31 usually the program's own fault.
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

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
